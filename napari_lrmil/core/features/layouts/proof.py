"""Proof that features of another program are those of a slide: its size, the places of patches, their µm per pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from napari_lrmil.core.errors import BagError
from napari_lrmil.core.features.layouts.foreign import ForeignFeatures
from napari_lrmil.core.features.layouts.steps import typical_step
from napari_lrmil.core.geometry import Float, Int64
from napari_lrmil.core.slides.slide import Slide

NOMINAL_TOLERANCE = 0.3  # a scan "at 40x" has 0.22 to 0.27 µm per pixel, and files state the magnification
EXACT_TOLERANCE = 0.05  # as `geometry.MPP_TOLERANCE`
MOST_GAPS = 1.02  # step of neighbours in units of the side, above which the stated side is wrong
FEWEST_STEPS = 20  # patches below which neighbours may be missing by chance


@dataclass(frozen=True)
class ProvenPatches:
    """Places of the patches of features on a slide.

    Attributes
    ----------
    corners
        (N, 2) int64 level-0 corners (x, y), in the order of the file.
    side
        Side of a patch in level-0 pixels.
    mpp
        µm per pixel of the patches as encoded; None if the file does not state their side in pixels.
    patch_px
        That side; None if it is not stated.
    notices
        Sentences on what was taken from the coordinates alone.
    """

    corners: Int64
    side: int
    mpp: float | None
    patch_px: int | None
    notices: tuple[str, ...] = ()


def prove_patches(foreign: ForeignFeatures, slide: Slide) -> ProvenPatches:
    """Return the places of the patches of a file on a slide.

    Raises
    ------
    BagError
        If the features are of another slide, or the file contradicts itself: duplicates, patches outside the slide, a
        side that is not the step of the coordinates, another resolution than it says.
    """
    _require_same_slide(foreign, slide)
    scale = slide.mpp.mean if foreign.unit == "um" else 1.0
    coords = np.asarray(foreign.coords / scale)
    exact, notices = _side(foreign, coords, scale, slide.mpp.mean)
    side = max(1, round(exact))
    if foreign.anchor == "center":  # a centre may be rounded down by half a pixel
        coords = np.asarray(np.floor(coords - exact / 2 + 0.5))
    corners = np.rint(coords).astype(np.int64)
    _refuse_duplicates(foreign, corners)
    _refuse_outside(foreign, corners, side, slide)
    _refuse_gaps(foreign, corners, side)
    mpp = exact * slide.mpp.mean / foreign.patch_px if foreign.patch_px else None
    _refuse_other_mpp(foreign, mpp, slide)
    return ProvenPatches(corners, side, mpp, foreign.patch_px, tuple(notices))


def _require_same_slide(foreign: ForeignFeatures, slide: Slide) -> None:
    if foreign.fingerprint is not None and foreign.fingerprint != slide.fingerprint:
        raise BagError(
            foreign.path,
            f"features of another slide: the file names the slide's content {foreign.fingerprint[:8]}, and this one "
            f"has {slide.fingerprint[:8]}; encode this slide, or correct the names",
        )
    size = (slide.width, slide.height)
    if foreign.level0_size is not None and foreign.level0_size != size:
        (width, height), (own_width, own_height) = foreign.level0_size, size
        raise BagError(
            foreign.path,
            f"features of another slide: its file says {width} x {height} px, and this one has {own_width} x "
            f"{own_height}; encode this slide, or correct the names",
        )


def _side(foreign: ForeignFeatures, coords: Float, scale: float, mpp0: float) -> tuple[float, list[str]]:
    """Return the side of a patch in level-0 pixels, not rounded, and a notice if the file does not state it."""
    if foreign.side is not None:
        return foreign.side / scale, []
    if foreign.side_um is not None:
        return foreign.side_um / mpp0, []
    step = typical_step(coords)
    if step is None:
        raise BagError(
            foreign.path,
            "the file does not state the size of patches, and no two are neighbours; name it by "
            "--hr-mapping patch_level0=PIXELS",
        )
    return step, [f"{foreign.layout} states no size of patches; {step:g} level-0 px is the step of the coordinates"]


def _refuse_duplicates(foreign: ForeignFeatures, corners: Int64) -> None:
    places, counts = np.unique(corners, axis=0, return_counts=True)
    if len(places) < len(corners):
        x, y = places[np.argmax(counts)]
        raise BagError(
            foreign.path,
            f"{len(corners) - len(places)} of {len(corners)} coordinates come twice, such as ({x}, {y}); features "
            "were appended to an older file, or coordinates were rounded: write the file again",
        )


def _refuse_outside(foreign: ForeignFeatures, corners: Int64, side: int, slide: Slide) -> None:
    outside = (corners + side <= 0).any(axis=1) | (corners >= (slide.width, slide.height)).any(axis=1)
    if outside.any():
        x, y = corners[np.argmax(outside)]
        raise BagError(
            foreign.path,
            f"{outside.sum()} of {len(corners)} patches lie outside the slide of {slide.width} x {slide.height} px, "
            f"such as ({x}, {y}); the features are of another slide, or the coordinates in another unit or order",
        )


def _refuse_gaps(foreign: ForeignFeatures, corners: Int64, side: int) -> None:
    step = typical_step(corners.astype(np.float64))
    if step is None or len(corners) < FEWEST_STEPS:
        return
    if step > MOST_GAPS * side + 1:  # 1: both are rounded to pixels
        raise BagError(
            foreign.path,
            f"the file states patches of {side} level-0 px, but neighbours are {step:g} px apart; the patch size is "
            "that of another level, or the coordinates are: name it by --hr-mapping patch_level0=PIXELS",
        )
    if foreign.overlap is not None and abs(1 - step / side - foreign.overlap) > 0.02 + 1 / side:
        raise BagError(
            foreign.path,
            f"the file states an overlap of {foreign.overlap:.0%}, but neighbours of {side} px are {step:g} px apart; "
            "write the coordinates again",
        )


def _refuse_other_mpp(foreign: ForeignFeatures, mpp: float | None, slide: Slide) -> None:
    if mpp is None or foreign.stated_mpp is None:
        return
    tolerance = NOMINAL_TOLERANCE if foreign.is_nominal else EXACT_TOLERANCE
    if abs(mpp / foreign.stated_mpp - 1) > tolerance:
        stated = f"{foreign.stated_mpp:.4g} µm per pixel" + (
            f" ({10 / foreign.stated_mpp:g}x)" if foreign.is_nominal else ""
        )
        raise BagError(
            foreign.path,
            f"the file says {stated}, but its patches have {mpp:.4g} µm per pixel on this slide of "
            f"{slide.mpp.mean:.4g}; correct the resolution of the slide (column mpp), or encode it again",
        )
