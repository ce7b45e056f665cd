"""Tissue segmentation: one mask per slide, on a raster that divides the HR lattice exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.errors import TissueError
from napari_lrmil.core.geometry import Bounds, BoxLevel0, Lattice
from napari_lrmil.core.patching.artefacts import STEP, Artefacts, exclude_artefacts, find_artefacts, measure_sharpness
from napari_lrmil.core.patching.mask_filters import Mask as Mask  # re-exported: the type of every mask
from napari_lrmil.core.patching.mask_filters import gaussian_smooth, remove_small_objects_and_holes
from napari_lrmil.core.slides.resampling import Pixels
from napari_lrmil.core.slides.slide import Slide

_STRIP_PIXELS = 2**16  # rows are processed in strips of this size, which stay in the CPU cache


@dataclass(frozen=True)
class TissueConfig:
    """Parameters of the tissue segmentation.

    Attributes
    ----------
    mask_um
        Target side of a mask pixel in µm. 8 µm is a few cells wide, and every pyramid has a level for it.
    lowest_chroma, highest_chroma
        Bounds, in grey levels, of the threshold on colourfulness (max - min of RGB). Otsu's threshold is clipped to
        them. Without them it would split the tissue of a full slide, or take noise on glass for tissue.
    darkest
        Mean grey level below which a pixel is not tissue: pen, tape, the background of fluorescence.
    smallest_um2
        Objects and holes below this area are removed.
    min_share
        Share of tissue from which an HR patch is selected.
    exclude_artefacts
        Whether pen, air bubbles and blur are no tissue (folds are); see `napari_lrmil.core.patching.artefacts`.
    """

    mask_um: float = 8.0
    lowest_chroma: float = 12.0
    highest_chroma: float = 28.0
    darkest: float = 30.0
    smallest_um2: float = 3000.0
    min_share: float = 0.25
    exclude_artefacts: bool = False


def without_unset(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a `TissueConfig` as the first versions had them, unless a later one is set."""
    return {name: value for name, value in values.items() if name != "exclude_artefacts" or value}


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What artefacts are found from: colours and sharpness, the mask before any was excluded, and its pixel in µm."""

    colours: Pixels
    sharpness: NDArray[np.float32]
    is_tissue: Mask
    pixel_um: float


@dataclass(frozen=True)
class Tissue:
    """The tissue mask of a slide.

    Attributes
    ----------
    mask
        (rows * k, columns * k) bool, with `k` x `k` mask pixels per HR cell of `lattice`.
    lattice
        Lattice of the HR cells.
    threshold
        Colourfulness in grey levels above which a pixel is tissue.
    evidence
        Colours from which artefacts are found on demand; None if they were not kept.
    """

    mask: Mask
    lattice: Lattice
    threshold: float
    evidence: _Evidence | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows, columns = self.mask.shape
        if rows % self.lattice.rows or columns % self.lattice.columns:
            raise ValueError(
                f"a mask of {rows} x {columns} does not divide into {self.lattice.rows} x {self.lattice.columns}"
            )

    @cached_property
    def artefacts(self) -> Artefacts | None:
        """Artefacts on the tissue as it was found, before any was excluded; None if colours were not kept."""
        e = self.evidence
        return None if e is None else find_artefacts(e.colours, e.sharpness, e.is_tissue, e.pixel_um)

    def shares(self) -> NDArray[np.float32]:
        """Return (rows, columns) shares of tissue in each HR cell."""
        k = self.mask.shape[0] // self.lattice.rows
        narrowest = np.min_scalar_type(k)  # holds a count of k: sums of bytes are fastest in bytes
        down = self.mask.view(np.uint8).reshape(self.lattice.rows, k, -1).sum(axis=1, dtype=narrowest)
        cells = down.reshape(self.lattice.rows, self.lattice.columns, k).sum(axis=2, dtype=np.uint64)
        return np.asarray(cells / k**2, dtype=np.float32)


def find_tissue(slide: Slide, lattice: Lattice, config: TissueConfig | None = None) -> Tissue:
    """Segment the tissue of `slide` at about `config.mask_um` per pixel.

    A pixel is tissue if its smoothed colourfulness (max - min of RGB) exceeds Otsu's threshold. Only the area within
    the slide's bounds is read: the lattice reaches beyond them by an amount that depends on `n`, and the mask must not.
    """
    config = config or TissueConfig()
    k = max(4, round(lattice.hr_um / config.mask_um))
    box, size = _within(slide.bounds, lattice, k)
    chroma = np.empty((size[1], size[0]), dtype=np.uint8)
    colours = np.empty((-(-size[1] // STEP), -(-size[0] // STEP), 3), dtype=np.uint8)
    dark: list[tuple[slice, slice, Mask]] = []
    for rows, columns, pixels in slide.read_blocks(box, size):
        _write_colourfulness(pixels, chroma[rows, columns])
        top, left = -rows.start % STEP, -columns.start % STEP
        sample = pixels[top::STEP, left::STEP]
        row, column = -(-rows.start // STEP), -(-columns.start // STEP)
        colours[row : row + sample.shape[0], column : column + sample.shape[1]] = sample
        if pixels.min() < config.darkest:  # cheap test first: most blocks have no dark pixel
            dark.append((rows, columns, _darker(pixels, config.darkest)))
    smooth = gaussian_smooth(chroma)
    threshold = _threshold(smooth, config)
    is_tissue = smooth > threshold
    for rows, columns, is_dark in dark:
        is_tissue[rows, columns] &= ~is_dark
    pixel_um = lattice.hr_um / k
    is_tissue = remove_small_objects_and_holes(is_tissue, int(config.smallest_um2 / pixel_um**2))
    evidence = _Evidence(colours, measure_sharpness(chroma, smooth), is_tissue, pixel_um)
    mask = np.zeros((lattice.rows * k, lattice.columns * k), dtype=bool)
    mask[: size[1], : size[0]] = is_tissue
    tissue = Tissue(mask, lattice, threshold, evidence)
    if config.exclude_artefacts and tissue.artefacts is not None:
        mask[: size[1], : size[0]] = exclude_artefacts(is_tissue, tissue.artefacts)
    return tissue


def write_mask(path: Path, mask: Mask) -> None:
    """Write a mask atomically as a 1-bit PNG."""
    from napari_lrmil.core.atomic_files import atomic_write

    with atomic_write(path) as partial:
        Image.fromarray(mask).save(partial, format="PNG")


def read_mask(path: Path, like: Tissue) -> Mask:
    """Read a mask that was written for the same slide and patches.

    Raises
    ------
    TissueError
        If the file is not an image, or its size differs from `like`.
    """
    try:
        with Image.open(path) as picture:
            mask = np.asarray(picture.convert("1"), dtype=np.bool_)
    except (OSError, ValueError) as error:
        raise TissueError(path, f"the mask cannot be read ({error}); expected a PNG that this program wrote") from error
    if mask.shape != like.mask.shape:
        seen, wanted = (" x ".join(map(str, m.shape[::-1])) for m in (mask, like.mask))
        raise TissueError(
            path, f"the mask has {seen} px, expected {wanted} for this slide and model; edit the mask on this slide"
        )
    return mask


def _within(bounds: Bounds, lattice: Lattice, k: int) -> tuple[BoxLevel0, tuple[int, int]]:
    """Return the part of the lattice within the slide's bounds, in whole mask pixels, and its size in mask pixels."""
    ends = bounds.x + bounds.width - lattice.origin[0], bounds.y + bounds.height - lattice.origin[1]
    most = lattice.columns * k, lattice.rows * k
    width, height = (
        min(limit, max(1, -(-end * k // cell))) for end, cell, limit in zip(ends, lattice.cell, most, strict=True)
    )
    across, down = lattice.cell[0] / k, lattice.cell[1] / k
    return BoxLevel0(*lattice.origin, width * across, height * down), (width, height)


def _write_colourfulness(pixels: Pixels, out: NDArray[np.uint8]) -> None:
    """Write max - min of RGB to `out`, (height, width).

    Each byte is compared with the next two, and two of three results are dropped. That is faster than three planes:
    numpy is slow along an axis of three.
    """
    for part, chroma in zip(_strips(pixels), _strips(out), strict=True):
        first = np.ascontiguousarray(part).reshape(-1)
        second, third = first[1:-1], first[2:]
        most = np.maximum(first[:-2], second)
        np.maximum(most, third, out=most)
        least = np.minimum(first[:-2], second)
        np.minimum(least, third, out=least)
        most -= least
        chroma[...] = most[::3].reshape(chroma.shape)


def _strips(array: NDArray[Any]) -> list[NDArray[Any]]:
    """Return views of rows, small enough for the CPU cache."""
    return np.array_split(array, 1 + array.shape[0] * array.shape[1] // _STRIP_PIXELS)


def _darker(pixels: Pixels, grey: float) -> Mask:
    """Return the mask of pixels whose mean of RGB is below `grey`."""
    total = pixels[..., 0].astype(np.uint16)
    total += pixels[..., 1]
    total += pixels[..., 2]
    dark: Mask = total < 3 * grey
    return dark


def _threshold(chroma: NDArray[np.float32], config: TissueConfig) -> float:
    low, high = float(chroma.min()), float(chroma.max())
    otsu = _otsu(chroma, low, high) if high > low else config.highest_chroma
    return float(np.clip(otsu, config.lowest_chroma, config.highest_chroma))


def _otsu(values: NDArray[np.float32], low: float, high: float) -> float:
    """Return Otsu's threshold from 256 bins. A histogram of bytes is several times faster than one of floats."""
    bins = np.empty(values.shape, np.uint8)
    scale = np.float32((256 - 1e-4) / (high - low))  # keeps the highest value in the last bin
    for part, rows in zip(_strips(bins), _strips(values), strict=True):
        scaled = rows - np.float32(low)
        scaled *= scale
        part[...] = scaled
    counts = np.asarray(Image.fromarray(bins).histogram())
    return otsu_threshold(counts, low + (np.arange(256) + 0.5) * (high - low) / 256)


def otsu_threshold(counts: NDArray[np.int64], centers: NDArray[np.float64]) -> float:
    """Return the center of a bin that separates two classes best: that of the largest variance between them.

    It equals ``skimage.filters.threshold_otsu(hist=(counts, centers))`` to the last bit. Importing that takes 0.1
    CPU-seconds.

    Parameters
    ----------
    counts
        (B,) number of values in each bin; the first and the last bin are not empty.
    centers
        (B,) values of the bins.
    """
    single = counts.astype(np.float32)  # as in scikit-image
    sums = single * centers
    below, above = np.cumsum(single), np.cumsum(single[::-1])[::-1]
    mean_below = np.cumsum(sums) / below
    mean_above = np.cumsum(sums[::-1])[::-1] / above
    variance = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centers[np.argmax(variance)])
