"""Place of regions on a slide: which patches answer for them, and which regions are off the tissue or the slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from napari_lrmil.core.geometry import BoxLevel0, Float
from napari_lrmil.core.patching.grid import TissueGrid
from napari_lrmil.core.patching.outlines import Area
from napari_lrmil.core.patching.overlaps import Geometries, Overlaps, find_overlaps
from napari_lrmil.core.patching.regions import HALF, Region, cover_half, patch_boxes, patches_in_regions
from napari_lrmil.core.patching.tissue import Tissue

Mask = NDArray[np.bool_]

MIN_TISSUE = 0.1  # share of tissue from which a region lies on the tissue: masks are smoothed over their edges
MAX_OUTSIDE = 0.02  # share of a region that may lie outside the slide without a word: hands draw past the edge


@dataclass(frozen=True, eq=False)  # compared by identity, as comparing the arrays would be slow
class Placement:
    """Place of R regions on a slide with N LR patches.

    Attributes
    ----------
    is_selected
        (N,) whether a patch answers for a region. These are the patches of which the regions cover half, and for each
        region that fills no patch by half, but lies on the tissue, the patches that it touches most.
    is_outside
        (R,) whether a region lies outside the patches' lattice.
    outside_share
        (R,) share of each region's area that lies outside the patches' lattice.
    is_off_tissue
        (R,) whether a region fills no patch by half, and less than `MIN_TISSUE` of it is tissue.
    is_thin
        (R,) whether a region on the tissue fills no patch by half.
    overlaps
        Overlaps of the regions with the patches.
    """

    is_selected: Mask
    is_outside: Mask
    outside_share: Float
    is_off_tissue: Mask
    is_thin: Mask
    overlaps: Overlaps


def place_regions(tissue_grid: TissueGrid, regions: Sequence[Region]) -> Placement:
    """Return the place of regions on a slide."""
    grid = tissue_grid.grid
    corners, size, box = grid.lr_corners, grid.lattice.lr_cell, grid.lattice.box
    areas = np.array([region.geometry for region in regions], dtype=object)
    overlaps = find_overlaps(patch_boxes(corners, size), areas)
    largest = overlaps.largest(len(areas))
    frame = shapely.box(box.x, box.y, box.x + box.width, box.y + box.height)
    is_outside = ~shapely.intersects(areas, frame)
    is_slim = ~is_outside & (largest < HALF * size[0] * size[1])
    is_off_tissue = is_slim & ~_lie_on_tissue(tissue_grid.tissue, areas, overlaps, is_slim)
    is_thin = is_slim & ~is_off_tissue
    on_tissue = [region for region, is_off in zip(regions, is_off_tissue, strict=True) if not is_off]
    is_selected = patches_in_regions(corners, size, on_tissue)
    if len(on_tissue) < len(regions):
        # Regions off the tissue take no patch alone, but count for patches that all regions cover together.
        is_selected |= cover_half(corners, size, regions)
    is_unanswered = is_thin & ~_have_main_patch(overlaps, len(areas), is_selected)
    is_touched = is_unanswered[overlaps.area] & (overlaps.size >= HALF * largest[overlaps.area])
    is_selected[overlaps.box[is_touched]] = True
    return Placement(is_selected, is_outside, _outside_shares(areas, frame), is_off_tissue, is_thin, overlaps)


def _outside_shares(areas: Geometries, frame: shapely.Polygon) -> Float:
    """Return (R,) shares of each area that lie outside a frame."""
    shares = np.zeros(len(areas))
    rows = np.flatnonzero(~shapely.contains_properly(frame, areas))  # few: most regions need no intersection
    shares[rows] = 1 - shapely.area(shapely.intersection(areas[rows], frame)) / shapely.area(areas[rows])
    return shares


def _have_main_patch(overlaps: Overlaps, n_areas: int, is_selected: Mask) -> Mask:
    """Return (R,) whether the patch that an area touches most is selected."""
    is_main = overlaps.size > overlaps.largest(n_areas)[overlaps.area] * (1 - 1e-9)
    has_main = np.zeros(n_areas, dtype=np.bool_)
    has_main[overlaps.area[is_main & is_selected[overlaps.box]]] = True
    return has_main


def _lie_on_tissue(tissue: Tissue, areas: Geometries, overlaps: Overlaps, is_wanted: Mask) -> Mask:
    """Return (R,) whether each wanted area lies on patches and on tissue, `MIN_TISSUE` or more of it.

    Half of the corners on tissue are enough too: an area is rasterised if its corners leave a doubt, as that takes 0.2
    ms for each of tens of thousands of cells.
    """
    on_patches = np.bincount(overlaps.area, overlaps.size, minlength=len(areas)) / shapely.area(areas)
    is_on = is_wanted & (on_patches >= MIN_TISSUE)
    rows = np.flatnonzero(is_on & (_corner_shares(tissue, areas) < HALF))
    is_on[rows] = [_tissue_share(tissue, areas[row]) >= MIN_TISSUE for row in rows]
    return is_on


def _corner_shares(tissue: Tissue, areas: Geometries) -> Float:
    """Return (R,) shares of the corners of each area that are tissue."""
    corners, area = shapely.get_coordinates(areas, return_index=True)
    height, width = tissue.mask.shape
    x, y = np.floor((corners - tissue.lattice.origin) * _to_mask(tissue)).T
    is_within = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    is_tissue = np.zeros(len(corners), dtype=np.bool_)
    is_tissue[is_within] = tissue.mask[y[is_within].astype(np.int64), x[is_within].astype(np.int64)]
    n_tissue = np.bincount(area, is_tissue, minlength=len(areas))
    shares: Float = n_tissue / np.bincount(area, minlength=len(areas)).astype(np.float64)
    return shares


def _to_mask(tissue: Tissue) -> Float:
    """Return mask pixels per level-0 pixel along x and y."""
    k = tissue.mask.shape[0] // tissue.lattice.rows
    return np.asarray(k / np.asarray(tissue.lattice.cell), dtype=np.float64)


def _tissue_share(tissue: Tissue, area: Area) -> float:
    """Return the share of tissue among the mask pixels that an area covers or touches."""
    from PIL import Image, ImageDraw

    lattice, (height, width), to_mask = tissue.lattice, tissue.mask.shape, _to_mask(tissue)
    low, high = np.reshape(area.bounds, (2, 2))
    left, top = (int(v) for v in np.floor((low - lattice.origin) * to_mask).clip(0, (width - 1, height - 1)))
    right, bottom = (
        int(v) for v in np.ceil((high - lattice.origin) * to_mask).clip((left + 1, top + 1), (width, height))
    )
    # Pillow counts from the centre of the first pixel.
    shift = np.asarray(lattice.origin) + (np.array([left, top]) + 0.5) / to_mask
    raster = Image.new("L", (right - left, bottom - top))
    draw = ImageDraw.Draw(raster)
    for part in shapely.get_parts(area):
        for i, ring in enumerate(shapely.get_rings(part)):
            draw.polygon(((shapely.get_coordinates(ring) - shift) * to_mask).ravel().tolist(), fill=int(i == 0))
    is_inside = np.asarray(raster, dtype=np.bool_)
    return float(tissue.mask[top:bottom, left:right][is_inside].mean()) if is_inside.any() else 0.0


# ---------------------------------------------------------------- sentences


def placement_warnings(placement: Placement, name: str, *, may_reach_beyond: bool = False) -> list[str]:
    """Return sentences on regions called `name` that are answered only roughly, or not at all.

    `may_reach_beyond`: regions such as the visible area reach beyond the slide without a fault.
    """
    n, patches = len(placement.is_thin), int(placement.is_selected.sum())
    of_patches = f"{patches:,} {'patch' if patches == 1 else 'patches'}"
    warnings = []
    for is_meant, fault in ((placement.is_outside, "outside the slide"), (placement.is_off_tissue, "off the tissue")):
        count = int(is_meant.sum())
        if 0 < count < n:  # if all are, the answer is an error
            warnings.append(
                f"{count:,} of {n:,} {name}s {'lies' if count == 1 else 'lie'} {fault} and {_was(count)} left out"
            )
    warnings += [] if may_reach_beyond else _partly_outside(placement, name)
    thin = int(placement.is_thin.sum())
    if thin and n == 1:
        warnings.append(
            f"the {name} is too thin to fill half of a patch, or lies across patch borders; the answer is that of the "
            f"{of_patches} that it touches most"
        )
    elif thin:
        warnings.append(
            f"{thin:,} of {n:,} {name}s {_is(thin)} too thin to fill half of a patch, or across patch borders; the "
            f"patches that they touch most count for them ({of_patches} in all)"
        )
    return warnings


def _partly_outside(placement: Placement, name: str) -> list[str]:
    """Return a sentence on regions that reach beyond the slide, if there are any."""
    n, is_partly = len(placement.is_outside), (placement.outside_share > MAX_OUTSIDE) & ~placement.is_outside
    count = int(is_partly.sum())
    if not count:
        return []
    if n == 1:
        share = f"{float(placement.outside_share[0]):.0%} of the {name}"
        return [f"{share} lies outside the slide and was left out; check that it was drawn on this slide"]
    reach = "reaches" if count == 1 else "reach"
    return [f"{count:,} of {n:,} {name}s {reach} beyond the slide; the parts outside were left out"]


def exclusion_warnings(tissue_grid: TissueGrid, regions: Sequence[Region], is_excluded: Mask) -> list[str]:
    """Return sentences on excluded regions that lie outside the slide, or on tissue without excluding a patch."""
    placement, n = place_regions(tissue_grid, regions), len(regions)
    outside = int(placement.is_outside.sum())
    warnings = (
        [f"{outside:,} of {n:,} excluded regions {'lies' if outside == 1 else 'lie'} outside the slide"]
        if outside
        else []
    )
    without_effect = int((placement.is_thin & ~_have_main_patch(placement.overlaps, n, is_excluded)).sum())
    if without_effect:
        warnings.append(
            f"{without_effect:,} of {n:,} excluded regions {_is(without_effect)} too thin to fill half of a patch, or "
            "across patch borders; nothing was left out for them"
        )
    return warnings


def why_nowhere(placement: Placement, regions: Sequence[Region], box: BoxLevel0) -> str:
    """Return why no patch answers for any of the regions, and what to do about it."""
    they, lie, were = ("they", "lie", "were") if len(regions) > 1 else ("it", "lies", "was")
    if placement.is_outside.all():
        left, top, right, bottom = (round(value) for value in shapely.total_bounds([r.geometry for r in regions]))
        ends = box.x + box.width, box.y + box.height
        return (
            f"{they} {lie} outside the slide (x {left} to {right}, y {top} to {bottom} in level-0 pixels, where "
            f"patches lie from {box.x:.0f} to {ends[0]:.0f} and {box.y:.0f} to {ends[1]:.0f}); {were} {they} drawn on "
            "another slide?"
        )
    partly = ", or outside the slide" if placement.is_outside.any() else ""
    return f"{they} {lie} off the tissue{partly}; choose a part with tissue"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
