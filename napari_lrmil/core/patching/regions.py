"""Regions of a slide: drawn or read from QuPath and ASAP files, and the patches that belong to them.

Regions are in level-0 pixels. QuPath counts from the corner of the scanned area, so its coordinates are moved by the
slide's bounds on reading and writing. ASAP counts from the corner of level 0.

None of `wsidata`, `wsidicom` and geopandas reads ASAP's XML, the GeoJSON of QuPath up to 0.3 and the slide's bounds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5
from xml.etree import ElementTree

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.errors import RegionError
from napari_lrmil.core.geometry import Bounds, BoxLevel0, Float, Int64

Area = shapely.Polygon | shapely.MultiPolygon
Geometries = NDArray[np.object_]
Rgb = tuple[int, int, int]

NAMELESS = "region"
HALF = 0.5 - 1e-9  # a patch that is covered by exactly half belongs; the margin absorbs rounding of areas
NAMESPACE = UUID("6a0f2c1e-8f0b-5a53-9c55-0d2f6c1b7e11")  # of written ids, which depend on the content only
ASAP_AREAS = ("Polygon", "Spline", "Rectangle")
EXPECTED = "expected QuPath's GeoJSON (a FeatureCollection, a list of Features, or one Feature) or ASAP's XML"


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
        if self.colour is not None and _rgb(list(self.colour)) != self.colour:
            raise RegionError(f"region {self.name!r} has the colour {self.colour}; expected three numbers, 0 to 255")
        area = _area(self.geometry)
        if area is None:
            raise RegionError(
                f"region {self.name!r} is a {self.geometry.geom_type} without an area; draw an outline of at least "
                "three corners that do not lie on one line"
            )
        object.__setattr__(self, "geometry", area)


@dataclass(frozen=True)
class RegionFile:
    """Content of a file of annotations: regions, and the number of annotations without an area (points, lines)."""

    regions: tuple[Region, ...]
    skipped: int

    @property
    def caution(self) -> str | None:
        """Sentence for the user if annotations were left out, else None."""
        if not self.skipped:
            return None
        is_single = self.skipped == 1
        return (
            f"{self.skipped} {'annotation has' if is_single else 'annotations have'} no area (points, lines) and "
            f"{'was' if is_single else 'were'} left out; {len(self.regions)} read"
        )


def box_region(box: BoxLevel0, name: str) -> Region:
    """Return a rectangle, such as the visible area, as a region."""
    return Region(name, shapely.box(box.x, box.y, box.x + box.width, box.y + box.height))


def _area(geometry: BaseGeometry) -> Area | None:
    """Return the valid 2D area of a geometry, or None if it has none.

    Raises
    ------
    RegionError
        If a corner is not a finite number.
    """
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise RegionError("an outline has a corner that is not a finite number; draw it again")
    if geometry.has_z:
        geometry = shapely.force_2d(geometry)
    if isinstance(geometry, Area) and not geometry.is_valid:
        # "structure" fills areas that an outline encloses twice; the default method would leave a hole
        geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    return geometry if isinstance(geometry, Area) and geometry.area > 0 else None


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
    boxes = np.concatenate([corners, corners + np.asarray(size_level0)], axis=1).astype(np.float64)
    patch_area = size_level0[0] * size_level0[1]
    area = shapely.union_all([region.geometry for region in regions])
    is_covered: NDArray[np.bool_] = overlap_areas(boxes, area) >= HALF * min(patch_area, area.area)
    small = [region.geometry for region in regions if region.geometry.area < patch_area]
    return is_covered | _holds_half(boxes, small)


def _rectangles(boxes: Float) -> Geometries:
    return np.asarray(shapely.box(*boxes.T), dtype=object)


def overlap_areas(boxes: Float, area: BaseGeometry) -> Float:
    """Return (N,) overlaps of (N, 4) boxes (left, top, right, bottom) with a valid `area`."""
    rectangles = _rectangles(boxes)
    shapely.prepare(area)
    within = shapely.covers(area, rectangles)
    shared: Float = np.where(within, shapely.area(rectangles), 0.0)
    crossed = np.flatnonzero(shapely.intersects(area, rectangles) & ~within)
    if len(crossed):
        shared[crossed] = _cut(boxes[crossed], area)
    return shared


def _cut(boxes: Float, area: BaseGeometry) -> Float:
    """Return (N,) overlaps. The area is cut into strips first, so that a long outline is not searched per box."""
    shared = np.empty(len(boxes))
    order = np.argsort(boxes[:, 0], kind="stable")
    for strip in np.array_split(order, math.isqrt(len(boxes))):
        low, high = boxes[strip, :2].min(axis=0), boxes[strip, 2:].max(axis=0)
        near = _polygons(shapely.intersection(area, shapely.box(*low, *high)))
        shared[strip] = shapely.area(shapely.intersection(_rectangles(boxes[strip]), near))
    return shared


def _polygons(geometry: BaseGeometry) -> shapely.MultiPolygon:
    """Return the polygons among the parts. A cut along an outline leaves lines too."""
    return shapely.MultiPolygon([part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"])


def _holds_half(boxes: Float, areas: Sequence[Area]) -> NDArray[np.bool_]:
    """Return (N,) whether each box contains at least half of one of the areas."""
    holds_half = np.zeros(len(boxes), dtype=np.bool_)
    rectangles, geometries = _rectangles(boxes), np.array(areas, dtype=object)
    which, box = shapely.STRtree(rectangles).query(geometries, predicate="intersects")
    shared = shapely.area(shapely.intersection(geometries[which], rectangles[box]))
    holds_half[box[shared >= HALF * shapely.area(geometries[which])]] = True
    return holds_half


# ---------------------------------------------------------------- reading

Annotation = tuple[str, BaseGeometry | None, Rgb | None]  # name, geometry in level-0 pixels, colour


def read_regions(path: Path, bounds: Bounds, *, may_be_empty: bool = False) -> RegionFile:
    """Read the areas of a file of annotations: GeoJSON of QuPath or XML of ASAP, detected by content.

    Parameters
    ----------
    path
        The file.
    bounds
        Scanned area of the slide, whose corner is QuPath's origin.
    may_be_empty
        Whether a file without annotations is valid. It then states that the slide has none.

    Raises
    ------
    RegionError
        If the file cannot be read, has another format, or contains no area.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: editors on Windows write a byte order mark
        annotations = list(_asap(text) if text.lstrip().startswith("<") else _qupath(text, bounds))
        areas = [(name, _area(geometry), colour) for name, geometry, colour in annotations if geometry is not None]
    except OSError as error:
        raise RegionError(f"cannot be read ({error.strerror}); check the path", path) from error
    except RegionError as error:
        raise RegionError(str(error), path) from error
    except _MALFORMED as error:
        raise RegionError(f"not an annotation file ({_message(error)}); {EXPECTED}", path) from error
    regions = tuple(
        Region(name if name.strip() else NAMELESS, area, colour) for name, area, colour in areas if area is not None
    )
    if not regions and not (may_be_empty and not annotations):
        count = len(annotations)
        seen = f"none of the {count} annotations has an area" if count else "the file has no annotations"
        seen = "the only annotation has no area" if count == 1 else seen
        raise RegionError(f"{seen}; draw at least one polygon or rectangle", path)
    return RegionFile(regions, len(annotations) - len(regions))


_MALFORMED = (
    ValueError,  # no JSON, no text, too few corners
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RecursionError,
    ElementTree.ParseError,
    shapely.errors.ShapelyError,
)


def _message(error: BaseException) -> str:
    """Return the message of a library's error in one line, without a full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{text} is missing" if isinstance(error, KeyError) else text


def _qupath(text: str, bounds: Bounds) -> Iterator[Annotation]:
    offset = np.array([bounds.x, bounds.y], dtype=np.float64)
    for feature in _features(json.loads(text, parse_constant=_refused)):
        properties = feature.get("properties") or {}
        label = properties.get("classification")
        label = {"name": label} if isinstance(label, str) else label or {}
        name = ": ".join(label.get("names") or []) or label.get("name") or properties.get("name") or NAMELESS
        colours = (label.get("color"), label.get("colorRGB"), properties.get("color"))
        colour = next((rgb for rgb in map(_rgb, colours) if rgb is not None), None)
        geometry = feature["geometry"] and shapely.transform(shape(feature["geometry"]), lambda at: at + offset)
        yield str(name), geometry, colour


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not a finite number")


def _features(content: Any) -> list[dict[str, Any]]:
    """Return the Features of a collection, of a list (QuPath 0.2 and 0.3) or of a single Feature."""
    match content:
        case {"type": "FeatureCollection", "features": [*features]} | [*features]:
            pass
        case {"type": "Feature"}:
            features = [content]
        case _:
            raise ValueError("JSON without Features")
    if any(not isinstance(f, dict) or f.get("type") != "Feature" for f in features):
        raise ValueError("a list with entries that are not Features")
    return features


def _rgb(value: object) -> Rgb | None:
    """Return a colour from [r, g, b], Java's packed number (QuPath before 0.4) or #rrggbb, else None."""
    if isinstance(value, str) and value.startswith("#") and len(value) == 7:
        try:
            value = int(value[1:], 16)
        except ValueError:
            return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value >> 16 & 255, value >> 8 & 255, value & 255]
    match value:
        case [int(r), int(g), int(b)] if all(0 <= c <= 255 for c in (r, g, b)):
            return r, g, b
    return None


def _asap(text: str) -> Iterator[Annotation]:
    root = ElementTree.fromstring(text)  # expat refuses entity expansion attacks
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"XML of another program: <{root.tag}> instead of <ASAP_Annotations>")
    for annotation in root.iterfind("Annotations/Annotation"):
        group = annotation.get("PartOfGroup", "None")
        name = group if group not in ("", "None") else annotation.get("Name") or NAMELESS
        yield name, _asap_outline(annotation), _rgb(annotation.get("Color"))


def _asap_outline(annotation: ElementTree.Element) -> shapely.Polygon | None:
    """Return the polygon through an annotation's points in their stated order, for splines too."""
    points = sorted(annotation.iterfind("Coordinates/Coordinate"), key=lambda c: float(c.attrib["Order"]))
    corners = [(float(c.attrib["X"]), float(c.attrib["Y"])) for c in points]
    if not np.isfinite(corners).all():
        _refused("a corner")
    if annotation.get("Type") not in ASAP_AREAS or len(corners) < 3:
        return None
    return shapely.Polygon(corners)


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
