"""Placement of HR patches of another program: nested into LR patches as they are, or by area where they do not nest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lrmil_training.data.teacher_targets import grid_from_coords
from napari_lrmil.core.errors import BagError, TissueError
from napari_lrmil.core.features.bag import BagOrigin
from napari_lrmil.core.features.layouts.proof import ProvenPatches
from napari_lrmil.core.geometry import MPP_TOLERANCE, Bounds, Int64, Mpp, PatchPlan
from napari_lrmil.core.patching.grid import NestedGrid, find_nested_grid, place_patches
from napari_lrmil.core.slides.slide import Slide

MOST_DEVIATION = 0.15  # of µm per pixel; scans "at 40x" of several makers differ by as much
MOST_UNCOVERED = 0.1  # of the tissue; programs differ at the edges of the tissue, and in what they call tissue
IN_TRAINING = "take no part in the training"
SIDE_TOLERANCE = 0.3  # of the side of patches whose pixels are not stated


@dataclass(frozen=True)
class HrPlacement:
    """Patches of a slide in reading order, with the lattice that they lie on.

    Attributes
    ----------
    corners
        (K, 2) level-0 corners.
    order
        (K,) their rows in the file.
    origin
        Level-0 corner of the lattice.
    side
        Side of a patch in level-0 pixels.
    """

    corners: Int64
    order: Int64
    origin: tuple[int, int]
    side: int


def place_on_slide(patches: ProvenPatches, slide: Slide, plan: PatchPlan, file: Path) -> HrPlacement:
    """Return the patches in reading order, on the lattice that starts with them.

    Raises
    ------
    BagError
        If they cannot be HR patches of these resolutions.
    """
    require_plan(patches, slide.mpp.mean, plan, file)
    order = np.lexsort((patches.corners[:, 0], patches.corners[:, 1]))
    corners, side = patches.corners[order], patches.side
    bounds, lr_cell = slide.bounds, plan.lattice(slide.bounds, slide.mpp).lr_cell
    corner, first = np.array([bounds.x, bounds.y]), corners.min(axis=0)
    is_lattice = not ((corners - first) % side).any()
    origin = corner + (first - corner) % side if is_lattice else corner
    # Patches beyond the scanned area, to the left or above, need a lattice that begins before them.
    step = np.full(2, side * plan.n) if is_lattice else np.asarray(lr_cell)
    origin = origin - np.maximum(0, -((first - origin) // step)) * step
    return HrPlacement(corners, order, (int(origin[0]), int(origin[1])), side)


def uncovered_tissue_notice(
    patches: HrPlacement | ProvenPatches, slide: Slide, plan: PatchPlan, effect: str = IN_TRAINING
) -> str:
    """Return a sentence on tissue without features, where that is more than `MOST_UNCOVERED`; else an empty text.

    `effect` says what follows for that tissue.

    A tissue patch is covered if the centre of a stored patch lies within three quarters of a side of its own centre, in
    x and y: an overlapping patch always does, a neighbour on the same lattice does not.
    """
    from scipy.spatial import cKDTree

    try:
        grid = find_nested_grid(slide, plan)
    except TissueError:  # no tissue of ours to compare with
        return ""
    tissue = grid.hr_corners + np.asarray(grid.hr_size) / 2
    stored = cKDTree(patches.corners + patches.side / 2)
    reach = 0.75 * max(patches.side, *grid.hr_size)
    distance, _ = stored.query(tissue, p=np.inf)
    lacking = int(np.count_nonzero(distance > reach))
    if lacking <= MOST_UNCOVERED * len(tissue):
        return ""
    return (
        f"{lacking:,} of {len(tissue):,} HR patches of tissue have no features and {effect}: the file may be "
        "incomplete or of another slide, or its program calls less of the slide tissue"
    )


def require_plan(patches: ProvenPatches, mpp0: float, plan: PatchPlan, file: Path) -> None:
    """Raise `BagError` if patches on a slide of `mpp0` µm per pixel cannot be the HR patches of a run."""
    um = patches.side * mpp0
    if um > plan.lr_um * (1 + MPP_TOLERANCE):
        raise BagError(
            file,
            f"its patches of {um:.4g} µm are larger than LR patches of {plan.lr_um:.4g} µm (lr_mpp x lr_patch_px), "
            "which are to hold them; choose larger LR patches, such as --set lr_patch_px=512",
        )
    mpp, px = patches.mpp, patches.patch_px
    if mpp is None or px is None:
        if abs(um / plan.hr_um - 1) > SIDE_TOLERANCE:
            raise BagError(
                file,
                f"its patches of {um:.4g} µm are not HR patches of {plan.hr_um:.4g} µm (hr_mpp x hr_patch_px); set "
                "hr_mpp and hr_patch_px to those that were encoded",
            )
        return
    setting = f"--set hr_mpp={mpp:.7g} --set hr_patch_px={px}"
    if abs(mpp / plan.hr_mpp - 1) > MOST_DEVIATION:
        raise BagError(
            file,
            f"its patches have {mpp:.4g} µm per pixel, and the run's teacher reads {plan.hr_mpp:g} (hr_mpp); encode "
            f"them again, or train with {setting}",
        )
    ratio = plan.lr_um / um
    if px != plan.hr_patch_px and abs(ratio - round(ratio)) <= MPP_TOLERANCE * ratio and round(ratio) != plan.n:
        raise BagError(
            file,
            f"its patches have {px} px, and the run's teacher reads {plan.hr_patch_px} (hr_patch_px); make them with "
            f"`features --patch-px {plan.hr_patch_px}`, or train with {setting}",
        )


def grid_of_features(origin: BagOrigin, coords: Int64, plan: PatchPlan) -> NestedGrid:
    """Return the grids of stored (K, 2) HR patches: nested, or by area for patches of another program."""
    if not origin.source:
        return grid_from_coords(origin, coords, plan.n)
    is_lattice = not ((coords - np.asarray(origin.origin_level0)) % np.asarray(origin.patch_level0)).any()
    if is_lattice and abs(origin.patch_um / plan.hr_um - 1) <= MPP_TOLERANCE:
        return grid_from_coords(origin, coords, plan.n)
    (x, y), (width, height) = origin.origin_level0, origin.level0_size
    lattice = plan.lattice(Bounds(x, y, width - x, height - y), Mpp(origin.mpp0, origin.mpp0, "features"))
    return place_patches(lattice, coords, origin.patch_level0[0])


def origin_of_placement(slide: Slide, placement: HrPlacement, plan: PatchPlan) -> BagOrigin:
    """Return slide and patches of a placement, without the encoder."""
    return BagOrigin(
        slide=slide.name,
        slide_fingerprint=slide.fingerprint,
        mpp0=slide.mpp.mean,
        target_mpp=plan.hr_mpp,
        patch_px=plan.hr_patch_px,
        patch_level0=(placement.side, placement.side),
        origin_level0=placement.origin,
        level0_size=(slide.width, slide.height),
        encoder="",
        encoder_sha256="",
    )


def with_source(origin: BagOrigin, source: str) -> BagOrigin:
    """Return an origin that names the file of another program."""
    return replace(origin, source=source)
