"""Where the tissue is: one mask per slide, on a raster that the HR lattice divides exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.errors import TissueError
from napari_lrmil.core.geometry import Bounds, BoxLevel0, Lattice
from napari_lrmil.core.patching.mask_filters import Mask as Mask  # the name that readers of a mask know it by
from napari_lrmil.core.patching.mask_filters import gaussian_smooth, remove_small_objects_and_holes
from napari_lrmil.core.slides.resampling import Pixels
from napari_lrmil.core.slides.slide import Slide

_AT_ONCE = 2**16  # pixels


@dataclass(frozen=True)
class TissueConfig:
    """How tissue is told from glass.

    Attributes
    ----------
    mask_um
        Wanted side of a mask pixel in µm. 8: a few cells across, and a level that every pyramid has.
    lowest_chroma, highest_chroma
        Grey levels between which the threshold on colourfulness (max - min of RGB) must lie. Otsu's choice is
        clipped to them, so that a slide full of tissue is not cut in two and glass noise is not taken for tissue.
    darkest
        Mean grey level below which nothing is tissue: pen, tape, the black of fluorescence.
    smallest_um2
        Specks and holes below this area are ignored.
    min_share
        An HR patch is kept when at least this share of it is tissue.
    """

    mask_um: float = 8.0
    lowest_chroma: float = 12.0
    highest_chroma: float = 28.0
    darkest: float = 30.0
    smallest_um2: float = 3000.0
    min_share: float = 0.25


@dataclass(frozen=True)
class Tissue:
    """The tissue mask of a slide.

    Attributes
    ----------
    mask
        (rows * k, columns * k): `k` x `k` mask pixels to an HR cell of `lattice`.
    lattice
        The lattice on which the mask hangs.
    threshold
        Colourfulness (grey levels) above which a pixel counted as tissue.
    """

    mask: Mask
    lattice: Lattice
    threshold: float

    def __post_init__(self) -> None:
        rows, columns = self.mask.shape
        if rows % self.lattice.rows or columns % self.lattice.columns:
            raise ValueError(
                f"a mask of {rows} x {columns} does not divide into {self.lattice.rows} x {self.lattice.columns}"
            )

    def shares(self) -> NDArray[np.float32]:
        """Return (rows, columns): the share of each HR cell that is tissue."""
        k = self.mask.shape[0] // self.lattice.rows
        down = self.mask.view(np.uint8).reshape(self.lattice.rows, k, -1).sum(axis=1, dtype=np.uint32)
        cells = down.reshape(self.lattice.rows, self.lattice.columns, k).sum(axis=2)
        return np.asarray(cells / k**2, dtype=np.float32)


def find_tissue(slide: Slide, lattice: Lattice, config: TissueConfig | None = None) -> Tissue:
    """Return the tissue of `slide`, read at about `config.mask_um` per pixel from a level just fine enough.

    Only what lies within the slide's bounds is looked at: how far the lattice reaches past them depends on `n`, and
    which cells are tissue must not.
    """
    config = config or TissueConfig()
    k = max(4, round(lattice.hr_um / config.mask_um))
    box, size = _within(slide.bounds, lattice, k)
    chroma = np.zeros((size[1], size[0]), dtype=np.uint8)
    dark: list[tuple[slice, slice, Mask]] = []
    for rows, columns, pixels in slide.read_blocks(box, size):
        chroma[rows, columns] = _colourfulness(pixels)
        if pixels.min() < config.darkest:  # else no mean of three colours is: mostly the second look is saved
            dark.append((rows, columns, _darker(pixels, config.darkest)))
    smooth = gaussian_smooth(chroma)
    threshold = _threshold(smooth, config)
    inside = smooth > threshold
    for rows, columns, part in dark:
        inside[rows, columns] &= ~part
    mask = np.zeros((lattice.rows * k, lattice.columns * k), dtype=bool)
    mask[: size[1], : size[0]] = remove_small_objects_and_holes(
        inside, int(config.smallest_um2 / (lattice.hr_um / k) ** 2)
    )
    return Tissue(mask, lattice, threshold)


def write_mask(path: Path, mask: Mask) -> None:
    """Write a mask as a PNG of one bit, whole or not at all."""
    from napari_lrmil.core.atomic_files import atomic_write

    with atomic_write(path) as partial:
        Image.fromarray(mask).save(partial, format="PNG")


def read_mask(path: Path, like: Tissue) -> Mask:
    """Return a mask that was written for the same slide and patches.

    Raises
    ------
    TissueError
        Where it is no picture, or one of another raster than `like`.
    """
    try:
        with Image.open(path) as picture:
            mask = np.asarray(picture.convert("1"), dtype=np.bool_)
    except (OSError, ValueError) as error:
        raise TissueError(path, f"not a mask that can be read ({error}); expected the PNG that was saved") from error
    if mask.shape != like.mask.shape:
        seen, wanted = (" x ".join(map(str, m.shape[::-1])) for m in (mask, like.mask))
        raise TissueError(path, f"a mask of {seen} px, where this slide and model have {wanted}; edit it on this slide")
    return mask


def _within(bounds: Bounds, lattice: Lattice, k: int) -> tuple[BoxLevel0, tuple[int, int]]:
    """Return the part of the lattice that the slide reaches into, in whole mask pixels, and its size in those."""
    ends = bounds.x + bounds.width - lattice.origin[0], bounds.y + bounds.height - lattice.origin[1]
    most = lattice.columns * k, lattice.rows * k
    width, height = (
        min(whole, max(1, -(-end * k // cell))) for end, cell, whole in zip(ends, lattice.cell, most, strict=True)
    )
    across, down = lattice.cell[0] / k, lattice.cell[1] / k
    return BoxLevel0(*lattice.origin, width * across, height * down), (width, height)


def _colourfulness(pixels: Pixels) -> NDArray[np.uint8]:
    """Return (height, width): max - min of RGB; plane by plane, for numpy is slow along an axis of three."""
    out = np.empty(pixels.shape[:2], np.uint8)
    for part, most in zip(_strips(pixels), _strips(out), strict=True):
        red, green, blue = np.ascontiguousarray(part.transpose(2, 0, 1))
        np.maximum(np.maximum(red, green), blue, out=most)
        most -= np.minimum(np.minimum(red, green), blue)
    return out


def _strips(array: NDArray[Any]) -> list[NDArray[Any]]:
    """Return views of rows, so few that copies of them stay in the processor's own memory."""
    return np.array_split(array, 1 + array.shape[0] * array.shape[1] // _AT_ONCE)


def _darker(pixels: Pixels, grey: float) -> Mask:
    """Return where the mean of RGB is below `grey`."""
    total = pixels[..., 0].astype(np.uint16)
    total += pixels[..., 1]
    total += pixels[..., 2]
    dark: Mask = total < 3 * grey
    return dark


def _threshold(chroma: NDArray[np.float32], config: TissueConfig) -> float:
    low, high = float(chroma.min()), float(chroma.max())
    found = _otsu(chroma, low, high) if high > low else config.highest_chroma
    return float(np.clip(found, config.lowest_chroma, config.highest_chroma))


def _otsu(values: NDArray[np.float32], low: float, high: float) -> float:
    """Return Otsu's threshold; a histogram of bytes is several times as fast as one of fractions."""
    from skimage.filters import threshold_otsu

    counts = np.zeros(256, np.int64)
    for rows in _strips(values):
        bins = rows - np.float32(low)
        bins *= np.float32((256 - 1e-4) / (high - low))  # the highest value falls into the last bin, not beyond
        counts += np.asarray(Image.fromarray(bins.astype(np.uint8)).histogram())
    return float(threshold_otsu(hist=(counts, low + (np.arange(256) + 0.5) * (high - low) / 256)))
