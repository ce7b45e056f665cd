"""Artefacts on a slide, found at low resolution: pen, folds, air bubbles and blur, by thresholds and shapes.

The pixels are those that the tissue mask has read, so nothing is read twice. Thresholds were set on phantoms with one
artefact of each kind, see benchmarks/artefacts.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Float = NDArray[np.float32]

PEN, FOLD, BUBBLE, BLUR = "pen", "fold", "bubble", "blur"
KINDS = (PEN, FOLD, BUBBLE, BLUR)
WORDS = {PEN: "pen", FOLD: "folds", BUBBLE: "air bubbles", BLUR: "blur"}
WARNING_SHARE = 0.05  # of the tissue
STEP = 2  # mask pixels per pixel of the colours: 16 µm, below the width of every artefact

# Optical densities of H&E rank green, then red or blue. An ink whose red or blue is this much above green is none.
_INK_EXCESS, _INK_MARGIN = 1.2, 0.06
_WEAK_EXCESS, _WEAK_DENSITY = 1.0, 0.8  # of ink on tissue, if it touches ink; least mean density
_RED_INK = (0.9, 0.2, 0.45)  # of red ink: least blue and most red relative to green, least green
_WEAK_RED = (0.68, 0.4, 1.2)  # of red ink on tissue, if it touches red ink
_BLACK_DENSITY, _BLACK_SPREAD = 0.6, 0.22  # least mean density, and most difference between channels relative to it
_SMALLEST_PEN_UM2 = 25_000.0
_FOLD_DENSITY = 1.5  # relative to the median of the tissue; a fold has about twice its density
_FOLD_HUE = 0.15  # most difference of red to green from the tissue's median, relative to it: epithelium is bluer
_FOLD_LENGTH, _WIDEST_FOLD_UM, _SMALLEST_FOLD_UM2 = 3.0, 250.0, 12_000.0  # length relative to width
_MOST_FOLD = 0.2  # of the tissue; what is denser than usual on more of it are glands and nuclei in a small crop
_RIM_DENSITY, _RIM_SPREAD = 0.22, 0.3
_WIDEST_RIM_UM = 100.0  # wider ones are strokes of a pen, and what a pen encircles is no bubble
_SMALLEST_BUBBLE_UM2, _ROUND = 60_000.0, 0.6  # share of its bounding box; a circle has 0.79
_BLUR_CELL = 16  # mask pixels along a side of a cell in which sharpness is measured, 128 µm
_BLUR_SHARPNESS = 0.45  # relative to the median of the tissue
_SMALLEST_BLUR_CELLS = 6


@dataclass(frozen=True, eq=False)
class Artefacts:
    """Artefacts of a slide.

    Attributes
    ----------
    masks
        Kind -> mask, with `STEP` x `STEP` pixels of the tissue mask per pixel; kinds that were not found are left out.
    shares
        Kind -> share of the tissue that it covers, 0 to 1, for every kind that was found on tissue.
    """

    masks: Mapping[str, Mask]
    shares: Mapping[str, float]

    @property
    def any_kind(self) -> Mask | None:
        """Mask of all kinds; None if there is none."""
        return _union(list(self.masks.values()))

    @property
    def excludable(self) -> Mask | None:
        """Mask of the kinds that may be left out of the tissue; None if there is none. Folds are not among them.

        A band of dense carcinoma can look like a fold, and a model must not lose it unnoticed.
        """
        return _union([mask for kind, mask in self.masks.items() if kind != FOLD])


@dataclass(frozen=True)
class ArtefactShares:
    """Artefacts of a slide as its result states them.

    Attributes
    ----------
    shares
        Kind -> share of the tissue, 0 to 1.
    excluded
        Whether all but folds were left out of the tissue.
    """

    shares: dict[str, float]
    excluded: bool

    @property
    def warning(self) -> str:
        """A sentence if so much of the tissue is covered that the answer may rest on it; else empty."""
        if sum(self.shares.values()) <= WARNING_SHARE:
            return ""
        others = {kind: share for kind, share in self.shares.items() if kind != FOLD}
        if self.excluded and others:
            read = f"; {format_shares(self.folds)} read as tissue" if self.folds else ""
            return f"artefacts on the tissue, which were left out: {format_shares(others)}{read}"
        advice = "leave out all but folds (--exclude-artefacts, in the window: Artefacts, Leave out)"
        text = f"artefacts on the tissue, which were read as tissue: {format_shares(self.shares)}"
        return f"{text}; {advice}" if others else text

    @property
    def folds(self) -> dict[str, float]:
        """Share of the tissue of folds, which are always read as tissue; empty without folds."""
        return {kind: share for kind, share in self.shares.items() if kind == FOLD}


def format_share(share: float) -> str:
    """Return a share in per cent; none reads as nothing by rounding."""
    return "less than 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def format_shares(shares: Mapping[str, float]) -> str:
    """Return kinds and their shares of the tissue as words."""
    return ", ".join(f"{WORDS[kind]} on {format_share(share)}" for kind, share in shares.items())


def _union(masks: Sequence[Mask]) -> Mask | None:
    return np.logical_or.reduce(masks) if masks else None


def find_artefacts(colours: NDArray[np.uint8], sharpness: Float, is_tissue: Mask, pixel_um: float) -> Artefacts:
    """Return the artefacts of a slide.

    Parameters
    ----------
    colours
        (h, w, 3) RGB, every `STEP`-th pixel of the tissue mask's raster.
    sharpness
        (H // 16, W // 16) mean deviation of the colourfulness from its smoothed values, see `measure_sharpness`.
    is_tissue
        (H, W) tissue mask.
    pixel_um
        Side of a pixel of the mask, µm.
    """
    tissue, side = is_tissue[::STEP, ::STEP], pixel_um * STEP
    density = _densities(colours)
    masks = {BUBBLE: _find_bubbles(density, side)}
    masks[PEN] = _keep_large(
        _find_pen(density, side) & ~masks[BUBBLE], _SMALLEST_PEN_UM2 / side**2, opening=False
    )  # without remains of a rim
    other = masks[PEN] | masks[BUBBLE]
    masks[FOLD] = _find_folds(density, tissue & ~other, side)
    masks[BLUR] = _find_blur(sharpness, is_tissue, other)
    total = int(tissue.sum())
    found_masks = {kind: masks[kind] for kind in KINDS if masks[kind].any()}
    on_tissue = {kind: int((mask & tissue).sum()) for kind, mask in found_masks.items()}
    return Artefacts(found_masks, {kind: count / total for kind, count in on_tissue.items() if count and total})


def exclude_artefacts(is_tissue: Mask, artefacts: Artefacts) -> Mask:
    """Return a tissue mask without the artefacts on it; folds stay, see `Artefacts.excludable`."""
    covered = artefacts.excludable
    if covered is None:
        return is_tissue
    height, width = is_tissue.shape
    return is_tissue & ~covered.repeat(STEP, axis=0).repeat(STEP, axis=1)[:height, :width]


def measure_sharpness(colourfulness: NDArray[np.uint8], smooth: Float) -> Float:
    """Return the mean deviation from the smoothed image in cells of 16 x 16 pixels; remainders are left out.

    Parameters
    ----------
    colourfulness, smooth
        (H, W) image, and the same smoothed by a Gaussian of 1 px.
    """
    rows, columns = (n // _BLUR_CELL for n in colourfulness.shape)
    sharpness = np.empty((rows, columns), np.float32)
    for row in range(rows):  # a row of cells at a time stays in the CPU cache
        part = slice(row * _BLUR_CELL, (row + 1) * _BLUR_CELL), slice(0, columns * _BLUR_CELL)
        deviation = np.abs(colourfulness[part] - smooth[part])
        sharpness[row] = deviation.sum(axis=0).reshape(columns, _BLUR_CELL).sum(axis=1)
    return np.asarray(sharpness / np.float32(_BLUR_CELL**2), np.float32)


def _densities(colours: NDArray[np.uint8]) -> Float:
    """Return (3, h, w) optical densities relative to the glass, that is to the brightest tenth of the pixels."""
    planes = np.moveaxis(colours, -1, 0)
    density = np.empty(planes.shape, np.float32)
    for plane, out in zip(planes, density, strict=True):
        counts = np.bincount(plane.reshape(-1), minlength=256)
        glass = max(200, int(np.searchsorted(np.cumsum(counts), 0.95 * counts.sum())))
        table = np.maximum(-np.log(np.maximum(np.arange(256), 1) / glass), 0).astype(np.float32)
        out[...] = table[plane]
    return density


def _find_pen(density: Float, side: float) -> Mask:
    """Return where ink of another hue than H&E, red or black lies, without what is thinner than two pixels."""
    red, green, blue = density
    limit = np.float32(_INK_EXCESS) * green + np.float32(_INK_MARGIN)
    is_ink = np.maximum(red, blue) > limit
    is_ink |= _is_red(density, _RED_INK)
    mean = (red + green + blue) / 3
    spread = density.max(axis=0) - density.min(axis=0)
    is_ink |= (mean > _BLACK_DENSITY) & (spread < np.float32(_BLACK_SPREAD) * mean)
    pen = _keep_large(is_ink, _SMALLEST_PEN_UM2 / side**2)
    if not pen.any():
        return pen
    from scipy import ndimage

    is_weak = (np.maximum(red, blue) > np.float32(_WEAK_EXCESS) * green) & (mean > _WEAK_DENSITY)
    is_weak |= _is_red(density, _WEAK_RED)
    return np.asarray(ndimage.binary_propagation(pen, mask=pen | is_weak), np.bool_)


def _is_red(density: Float, bounds: tuple[float, float, float]) -> Mask:
    """Return where blue and green are absorbed alike, and red is not; see `_RED_INK`."""
    red, green, blue = density
    least_blue, most_red, least_green = map(np.float32, bounds)
    return np.asarray((green > least_green) & (blue > least_blue * green) & (red < most_red * green))


def _find_bubbles(density: Float, side: float) -> Mask:
    """Return the inside of dark grey rims that are closed and round."""
    mean, spread = density.mean(axis=0), density.max(axis=0) - density.min(axis=0)
    is_rim = (mean > _RIM_DENSITY) & (spread < np.float32(_RIM_SPREAD) * mean)
    smallest = _SMALLEST_BUBBLE_UM2 / side**2
    if is_rim.sum() < 2 * math.sqrt(math.pi * smallest):  # the circumference of the smallest
        return np.zeros_like(is_rim)
    from scipy import ndimage

    widest = np.ones((round(_WIDEST_RIM_UM / side),) * 2, np.bool_)
    wide = ndimage.binary_opening(is_rim, widest)
    is_rim &= ~ndimage.binary_propagation(wide, mask=is_rim)
    rim = ndimage.binary_closing(np.pad(is_rim, 2), iterations=1)[2:-2, 2:-2] | is_rim
    filled = ndimage.binary_fill_holes(rim) & ~rim
    bubbles = np.zeros_like(is_rim)
    labels, _ = ndimage.label(filled)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[box] == number
        height, width = inside.shape
        is_round = inside.mean() > _ROUND and 0.5 < height / width < 2
        if inside.sum() >= smallest and is_round:
            bubbles[box] |= inside
    return ndimage.binary_dilation(bubbles, np.ones((3, 3), np.bool_), iterations=3) if bubbles.any() else bubbles


def _find_folds(density: Float, is_tissue: Mask, side: float) -> Mask:
    """Return long narrow parts of the tissue that are much denser than its median."""
    total = density.sum(axis=0)
    is_dense = np.zeros_like(is_tissue)
    if not is_tissue.any():
        return is_dense
    limit = _FOLD_DENSITY * float(np.median(total[is_tissue]))
    smallest = _SMALLEST_FOLD_UM2 / side**2
    is_dense = (_mean3(total) > limit) & is_tissue
    if is_dense.sum() < smallest:
        return np.zeros_like(is_dense)
    ratio = _mean3(density[0]) / np.maximum(_mean3(density[1]), np.float32(1e-3))
    usual = float(np.median(ratio[is_tissue]))
    is_dense &= np.abs(ratio - usual) < _FOLD_HUE * usual
    if is_dense.sum() < smallest:
        return np.zeros_like(is_dense)
    from scipy import ndimage

    is_dense = ndimage.binary_opening(ndimage.binary_closing(is_dense, iterations=2), iterations=1)
    labels, _ = ndimage.label(is_dense, np.ones((3, 3), np.bool_))
    folds, largest = np.zeros_like(is_dense), _MOST_FOLD * is_tissue.sum()
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        part = np.pad(labels[box] == number, 1)
        area = int(part.sum())
        if not smallest <= area <= largest:
            continue
        width = 2 * float(ndimage.distance_transform_edt(part).max())
        if width * side <= _WIDEST_FOLD_UM and area / width >= _FOLD_LENGTH * width:
            folds[box] |= part[1:-1, 1:-1]
    return ndimage.binary_dilation(folds, iterations=1) if folds.any() else folds


def _find_blur(sharpness: Float, is_tissue: Mask, is_other: Mask) -> Mask:
    """Return cells full of tissue that are much less sharp than the rest, and form a group."""
    rows, columns = sharpness.shape
    blur = np.zeros(is_other.shape, np.bool_)
    cells = is_tissue[: rows * _BLUR_CELL, : columns * _BLUR_CELL]
    share = cells.reshape(rows, _BLUR_CELL, columns, _BLUR_CELL).mean(axis=(1, 3))
    is_full = share > 0.9
    if is_full.sum() < 4 * _SMALLEST_BLUR_CELLS:
        return blur
    is_blurred = is_full & (sharpness < _BLUR_SHARPNESS * float(np.median(sharpness[is_full])))
    if is_blurred.sum() < _SMALLEST_BLUR_CELLS:
        return blur
    is_blurred = _keep_large(is_blurred, _SMALLEST_BLUR_CELLS, opening=False)
    step = _BLUR_CELL // STEP
    enlarged = is_blurred.repeat(step, axis=0).repeat(step, axis=1)
    height, width = np.minimum(enlarged.shape, blur.shape)
    blur[:height, :width] = enlarged[:height, :width]
    return blur & ~is_other


def _mean3(values: Float) -> Float:
    """Return the mean over 3 x 3 pixels; the edge is repeated."""
    padded = np.pad(values, 1, mode="edge")
    across = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return np.asarray((across[:-2] + across[1:-1] + across[2:]) / np.float32(9))


def _keep_large(mask: Mask, smallest_px: float, *, opening: bool = True) -> Mask:
    """Return the objects of at least this many pixels; with `opening`, without lines of one pixel and grown by one."""
    if mask.sum() < smallest_px:
        return np.zeros_like(mask)
    from scipy import ndimage

    opened = ndimage.binary_opening(mask, np.ones((2, 2), np.bool_)) if opening else mask
    labels, _ = ndimage.label(opened)
    sizes = np.bincount(labels.reshape(-1))
    is_large = sizes >= smallest_px
    is_large[0] = False
    large: Mask = is_large[labels]
    return ndimage.binary_dilation(large, iterations=1) if opening and large.any() else large
