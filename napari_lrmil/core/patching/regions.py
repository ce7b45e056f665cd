"""Regions of a slide: drawn or read from annotation files, and the patches that belong to them.

Regions are in level-0 pixels. QuPath counts from the corner of the scanned area, so its coordinates are moved by the
slide's bounds on reading and writing. ASAP and ImageScope count from the corner of level 0.

None of `wsidata`, `wsidicom` and geopandas reads ASAP's XML, the GeoJSON of QuPath up to 0.3 and the slide's bounds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import mapping

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.errors import RegionError
from napari_lrmil.core.geometry import Bounds, BoxLevel0, Float, Int64
from napari_lrmil.core.patching.annotation_text import read_annotation_text
from napari_lrmil.core.patching.annotations import (
    CROSSED,
    CUT_AWAY,
    CUT_OUT,
    LOST_HOLES,
    NAMELESS,
    NO_AREA,
    Annotation,
    Findings,
    Rgb,
    parse_rgb,
    read_annotations,
)
from napari_lrmil.core.patching.outlines import MAX_CROSSINGS, Area, OutlineError, area_of
from napari_lrmil.core.patching.overlaps import find_overlaps, overlap_areas

HALF = 0.5 - 1e-9  # a patch that is covered by exactly half belongs; the margin absorbs rounding of areas
NAMESPACE = UUID("6a0f2c1e-8f0b-5a53-9c55-0d2f6c1b7e11")  # of written ids, which depend on the content only
EXPECTED = (
    "expected GeoJSON, as QuPath writes it (a FeatureCollection, Features or geometries), or XML of ASAP or ImageScope"
)


@dataclass(frozen=True)
class Region:
    """A named area of a slide. Construction checks it and repairs outlines that cross themselves.

    Attributes
    ----------
    name
        Name, such as the class of an annotation in QuPath.
    geometry
        Polygon or MultiPolygon in level-0 pixels, valid and with an area.
    colour
        Red, green and blue, 0 to 255, or None.
    """

    name: str
    geometry: Area
    colour: Rgb | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise RegionError("a region has no name, and region files need one; name it")
        if self.colour is not None and parse_rgb(list(self.colour)) != self.colour:
            raise RegionError(f"region {self.name!r} has the colour {self.colour}; expected three numbers, 0 to 255")
        area, _ = area_of(self.geometry)
        if area is None:
            raise RegionError(
                f"region {self.name!r} is a {self.geometry.geom_type} without an area; draw an outline of at least "
                "three corners that do not lie on one line"
            )
        object.__setattr__(self, "geometry", area)


@dataclass(frozen=True)
class RegionFile:
    """Content of a file of annotations.

    Attributes
    ----------
    regions
        The annotations with an area.
    skipped
        Number of annotations, and of parts of them, that were left out.
    warnings
        Sentences on what was left out, and on what was repaired or guessed.
    """

    regions: tuple[Region, ...]
    skipped: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def caution(self) -> str | None:
        """The warnings in one text, else None."""
        return "; ".join(self.warnings) or None


def box_region(box: BoxLevel0, name: str) -> Region:
    """Return a rectangle, such as the visible area, as a region."""
    return Region(name, shapely.box(box.x, box.y, box.x + box.width, box.y + box.height))


# ---------------------------------------------------------------- patches


def patches_in_regions(corners: Int64, size_level0: tuple[int, int], regions: Sequence[Region]) -> NDArray[np.bool_]:
    """Return (N,) whether each patch belongs to the regions.

    A patch belongs if the union of the regions covers at least half of it. A region smaller than a patch selects the
    patch that contains at least half of the region. The same holds for regions that together are smaller than a patch.

    Parameters
    ----------
    corners
        (N, 2) level-0 corners (x, y).
    size_level0
        Width and height of a patch in level-0 pixels.
    regions
        Regions. Overlapping areas count once.
    """
    if len(corners) == 0 or not regions:
        return np.zeros(len(corners), dtype=np.bool_)
    boxes, patch_area = patch_boxes(corners, size_level0), size_level0[0] * size_level0[1]
    area = union_of(regions)
    is_covered: NDArray[np.bool_] = overlap_areas(boxes, area) >= HALF * min(patch_area, area.area)
    small = [region.geometry for region in regions if region.geometry.area < patch_area]
    return is_covered | _holds_half(boxes, small)


def cover_half(corners: Int64, size_level0: tuple[int, int], regions: Sequence[Region]) -> NDArray[np.bool_]:
    """Return (N,) whether the union of the regions covers at least half of each patch."""
    shared = overlap_areas(patch_boxes(corners, size_level0), union_of(regions))
    return np.asarray(shared >= HALF * size_level0[0] * size_level0[1])


def patch_boxes(corners: Int64, size_level0: tuple[int, int]) -> Float:
    """Return (N, 4) boxes (left, top, right, bottom) of patches given by their (N, 2) corners."""
    return np.concatenate([corners, corners + np.asarray(size_level0)], axis=1).astype(np.float64)


def union_of(regions: Sequence[Region]) -> Area:
    """Return the area that regions cover together."""
    # By clusters: the plain union of 60,000 outlines takes 18 s, this one 0.4 s.
    union: Any = shapely.disjoint_subset_union_all([region.geometry for region in regions])
    return union  # type: ignore[no-any-return]  # a union of areas is an area


def _holds_half(boxes: Float, areas: Sequence[Area]) -> NDArray[np.bool_]:
    """Return (N,) whether each box contains at least half of one of the areas."""
    holds_half = np.zeros(len(boxes), dtype=np.bool_)
    overlaps = find_overlaps(boxes, areas)
    sizes = np.array([area.area for area in areas], dtype=np.float64)
    holds_half[overlaps.box[overlaps.size >= HALF * sizes[overlaps.area]]] = True
    return holds_half


# ---------------------------------------------------------------- reading


def read_regions(path: Path, bounds: Bounds, *, may_be_empty: bool = False) -> RegionFile:
    """Read the areas of a file of annotations: GeoJSON, or XML of ASAP or ImageScope, detected by content.

    The file may be packed by gzip or zip. Annotations without a usable area are left out, counted by reason.

    Parameters
    ----------
    path
        The file.
    bounds
        Scanned area of the slide, whose corner is the origin of GeoJSON.
    may_be_empty
        Whether a file without annotations is valid. It then states that the slide has none.

    Raises
    ------
    RegionError
        If the file cannot be read, has another format, or contains no usable area.
    """
    try:
        text = read_annotation_text(path)
        findings = read_annotations(text.text, bounds)
    except OSError as error:
        raise RegionError(f"cannot be read ({error.strerror}); check the path", path) from error
    # RecursionError: JSON that is nested too deeply for the parser.
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RegionError(f"not an annotation file ({reason}); {EXPECTED}", path) from error
    regions = _regions_of(findings)
    if not regions and not (may_be_empty and not findings.count):
        if not findings.count:
            raise RegionError("the file has no annotations; draw at least one polygon or rectangle", path)
        raise RegionError(f"no annotation has a usable area: {_counted(findings.omitted)}; draw a new outline", path)
    return RegionFile(regions, findings.omitted.total(), _warnings(path.name, regions, findings, text.guessed))


def _warnings(name: str, regions: Sequence[Region], findings: Findings, encoding: str | None) -> tuple[str, ...]:
    """Return sentences on what was left out of a file, and on what was repaired or guessed."""
    changes = [_counted(findings.changed)] if +findings.changed else []
    changes += [f"letters read as {encoding}"] if encoding else []
    left_out = f"{name}: left out: {_counted(findings.omitted)}; {len(regions)} read" if findings.omitted else ""
    changed = f"{name}: repaired or guessed: {', '.join(changes)}; check the outlines" if changes else ""
    return tuple(filter(None, (left_out, changed)))


def _counted(counts: Counter[str]) -> str:
    """Return "2 outlines closed, 1 part without a geometry" from texts in which "|" marks where an s goes."""
    texts = ((text.replace("|", "" if count == 1 else "s", 1), count) for text, count in counts.items() if count)
    return ", ".join(f"{count:,} {text}" for text, count in texts)


def _regions_of(findings: Findings) -> tuple[Region, ...]:
    """Return the regions of annotations; those without a usable area are counted as left out."""
    usable: list[tuple[Annotation, Area]] = []
    crossings = 0  # of all outlines: the time of a file's repair is bounded, not that of each outline
    for annotation in findings.annotations:
        try:
            area, repaired = area_of(annotation.geometry, most_crossings=MAX_CROSSINGS - crossings)
        except OutlineError as error:
            findings.omit(error.fault)
            continue
        crossings += repaired
        if area is None:
            findings.omit(NO_AREA)
        else:
            findings.changed[CROSSED] += repaired > 0
            usable.append((annotation, area))
    return tuple(
        Region(a.name if a.name.strip() else NAMELESS, area, a.colour) for a, area in _cut_holes(usable, findings)
    )


def _cut_holes(usable: Sequence[tuple[Annotation, Area]], findings: Findings) -> list[tuple[Annotation, Area]]:
    """Return the annotations that are no holes, with the holes of their groups cut out."""
    holes = [(annotation, area) for annotation, area in usable if annotation.cuts]
    if not holes:
        return list(usable)
    solids = [(annotation, area) for annotation, area in usable if not annotation.cuts]
    areas: list[Any] = [area for _, area in solids]
    tree = shapely.STRtree(areas)
    for hole, hole_area in holes:
        near = tree.query(hole_area, predicate="intersects")
        rows = [int(row) for row in near if solids[row][0].group in hole.cuts]
        for row in rows:
            areas[row] = shapely.difference(areas[row], hole_area)
        if rows:
            findings.changed[CUT_OUT] += 1
        elif hole.is_region_elsewhere:
            solids.append((hole, hole_area))
            areas.append(hole_area)
        else:
            findings.omitted[LOST_HOLES] += 1
    is_left = [area.area > 0 for area in areas]
    findings.omitted.update({f"annotation| {CUT_AWAY}": is_left.count(False)} if not all(is_left) else {})
    return [(a, area) for (a, _), area, has_area in zip(solids, areas, is_left, strict=True) if has_area]


# ---------------------------------------------------------------- writing


def write_regions(path: Path, regions: Sequence[Region], bounds: Bounds) -> None:
    """Write regions as annotations that QuPath opens on the same slide.

    `read_regions` returns them unchanged. A corner left of or above the bounds can differ by 1e-10 pixel.
    """
    offset = np.array([bounds.x, bounds.y], dtype=np.float64)
    write_features(path, (_annotation(i, region, offset) for i, region in enumerate(regions)))


def _annotation(index: int, region: Region, offset: Float) -> dict[str, Any]:
    label: dict[str, Any] = {"name": region.name}
    if region.colour is not None:
        label["color"] = list(region.colour)
    geometry = shapely.transform(region.geometry, lambda at: at - offset)
    return {
        "type": "Feature",
        "id": str(uuid5(NAMESPACE, f"{index} {region.name} {region.geometry.wkb_hex}")),
        "geometry": mapping(geometry),
        "properties": {"objectType": "annotation", "classification": label},
    }


def write_features(path: Path, features: Iterable[Mapping[str, Any]]) -> None:
    """Write a GeoJSON FeatureCollection atomically, with one Feature per line. NaN raises `ValueError`."""
    lines = ",\n".join(json.dumps(feature, allow_nan=False) for feature in features)
    content = f'{{"type": "FeatureCollection", "features": [\n{lines}\n]}}\n'.encode()
    with atomic_write(path, len(content)) as partial:
        partial.write_bytes(content)
