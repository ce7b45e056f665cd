"""An offer for a slide that states no resolution: micrometres per pixel from the size of its nuclei. Never believed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.slides.slide import Pixels, Slide

Field = NDArray[np.float32]  # (height, width)

NUCLEUS_UM = 5.2  # across, as `diameters_um` measures it; see `estimate_mpp`
ERROR_FACTOR = 1.4  # by which an estimate may well be off, up and down; see `estimate_mpp`
NOMINAL = (0.25, 0.5)  # 40x and 20x
ASSUMED_MPP = tuple(0.125 * math.sqrt(2) ** i for i in range(7))  # 0.125 to 1: beyond, nuclei are dots
ENOUGH_NUCLEI = 50
FIELDS, FIELD_PX = 4, 1024  # how many are read, and about how many level-0 pixels along a side each has
OVERVIEW_PX = 1024  # along the longer side of the overview that the fields are chosen from
DARKEST = 60.0  # mean grey level below which it is no stained section on a light ground
BLACKEST = 10  # grey level that darker channels are lifted to
FAINTEST = 0.006  # haematoxylin, as `haematoxylin` measures it, that a field needs on average; clean glass has 0.004

WORKING_MPP = 0.5  # to which a field is brought under an assumed resolution
SMOOTH_UM, GROUND_UM = 0.4, 8.0  # sd of the Gaussians that take away grain, and the tissue around a nucleus
OPENING_UM = 0.75  # radius of the disc that cuts nuclei apart
SMALLEST_UM, LARGEST_UM = 2.0, 25.0
SOLID = 0.88  # area over that of the convex hull; less is a clump


@dataclass(frozen=True)
class MppEstimate:
    """What nuclear size says of a slide's resolution.

    Attributes
    ----------
    mpp
        Micrometres per level-0 pixel.
    low, high
        Between which it most likely lies; they are a factor 2 apart.
    nuclei
        How many were measured.
    """

    mpp: float
    low: float
    high: float
    nuclei: int

    @property
    def nominal(self) -> float | None:
        """The nominal resolution, 0.25 or 0.5, that lies nearest and within `low` and `high`; None where none does."""
        near = min(NOMINAL, key=lambda value: abs(math.log(value / self.mpp)))
        return near if self.low <= near <= self.high else None


def estimate_mpp(slide: Slide) -> MppEstimate | None:
    """Return µm per level-0 pixel by the size of nuclei, or None where too few are found. Asks for no resolution.

    A diameter depends on the scale at which nuclei are looked for, and that scale on the resolution. So fields are
    segmented under several assumed resolutions, and the one under which nuclei come out at `NUCLEUS_UM` is returned.

    Nuclei of routine sections are taken to be alike. Those outlined by hand in two breast fields (MoNuSeg, Kumar et
    al., IEEE Trans. Med. Imaging 36, 2017) have a median equivalent diameter of 5.4 and 6.0 µm. What our threshold
    leaves of a nucleus is less: 5.2 µm, chosen so that breast at 0.25, colon at 0.62 and CMU-1 at 0.5 µm agree.
    Estimate over truth was then 0.87 and 0.95 for breast, 1.14 to 1.19 for CMU-1, and for twelve sets of colon fields
    0.96 to 1.31, once 1.53, once none. Phantoms, whose nuclei are larger than most, come out at 0.64 to 0.79.
    """
    fields = [haematoxylin(slide.read(box, (round(box.width), round(box.height)))) for box in choose_fields(slide)]
    return estimate_of(fields) if fields else None


def estimate_of(fields: list[Field]) -> MppEstimate | None:
    """Return the estimate from fields of haematoxylin at level 0; see `estimate_mpp`."""
    low, high = -1, len(ASSUMED_MPP)
    found: dict[int, _Typical] = {}
    while high - low > 1:  # the diameter in µm grows with the assumed resolution: halve the span
        middle = (low + high) // 2
        found[middle] = _typical(fields, ASSUMED_MPP[middle])
        low, high = (low, middle) if found[middle].um > NUCLEUS_UM else (middle, high)
    if low not in found or high not in found:
        return None  # finer or coarser than any that was assumed
    below, above = found[low], found[high]
    if min(below.nuclei, above.nuclei) < ENOUGH_NUCLEI or not below.um <= NUCLEUS_UM < above.um:
        return None
    share = math.log(NUCLEUS_UM / below.um) / math.log(above.um / below.um)
    mpp = ASSUMED_MPP[low] * (ASSUMED_MPP[high] / ASSUMED_MPP[low]) ** share
    return MppEstimate(mpp, mpp / ERROR_FACTOR, mpp * ERROR_FACTOR, min(below.nuclei, above.nuclei))


# ---------------------------------------------------------------- fields


def choose_fields(slide: Slide) -> list[BoxLevel0]:
    """Return up to `FIELDS` fields of level 0, richest in haematoxylin first: parts of a slide cut evenly."""
    bounds = slide.bounds
    overview = _overview(slide)
    rows, columns = (max(1, round(length / FIELD_PX)) for length in (bounds.height, bounds.width))
    richness = _part_means(haematoxylin(overview), rows, columns)
    richness[_part_means(overview.mean(axis=2), rows, columns) < DARKEST] = 0
    richest = [int(i) for i in np.argsort(-richness, axis=None)[:FIELDS] if richness.flat[i] >= FAINTEST]
    width, height = bounds.width // columns, bounds.height // rows
    return [
        BoxLevel0(
            bounds.x + i % columns * bounds.width // columns,
            bounds.y + i // columns * bounds.height // rows,
            width,
            height,
        )
        for i in richest
    ]


def _overview(slide: Slide) -> Pixels:
    """Return the scanned part of `slide` on `OVERVIEW_PX` pixels along its longer side, or as it is where smaller."""
    bounds = slide.bounds
    shrink = max(1.0, max(bounds.width, bounds.height) / OVERVIEW_PX)
    size = (max(1, round(bounds.width / shrink)), max(1, round(bounds.height / shrink)))
    overview = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for rows, columns, pixels in slide.read_blocks(BoxLevel0(bounds.x, bounds.y, bounds.width, bounds.height), size):
        overview[rows, columns] = pixels
    return overview


def _part_means(image: NDArray[np.floating], rows: int, columns: int) -> NDArray[np.float64]:
    """Return (rows, columns): the mean of each part of an image that is cut evenly into as many."""
    edges = [
        np.minimum(np.linspace(0, length, parts + 1).astype(int)[:-1], length - 1)
        for length, parts in zip(image.shape, (rows, columns), strict=True)
    ]

    def sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(np.add.reduceat(values, edges[0], axis=0), edges[1], axis=1))

    return sums(image.astype(np.float64)) / sums(np.ones(image.shape))


def haematoxylin(pixels: Pixels) -> Field:
    """Return (height, width) amounts of haematoxylin, by Ruifrok and Johnston's colours.

    Channels are kept off zero: the logarithm of one black pixel would outweigh a field of nuclei.
    """
    from skimage.color import rgb2hed

    return np.asarray(rgb2hed(np.maximum(pixels, BLACKEST).astype(np.uint8))[..., 0], dtype=np.float32)


# ---------------------------------------------------------------- nuclei


@dataclass(frozen=True)
class _Typical:
    """Diameter in µm of the typical nucleus under an assumed resolution, and how many were measured."""

    um: float
    nuclei: int


def _typical(fields: list[Field], mpp: float) -> _Typical:
    found = np.sort(np.concatenate([diameters_um(field, mpp) for field in fields]))
    return _Typical(_weighted_median(found) if len(found) else 0.0, len(found))


def _weighted_median(diameters: NDArray[np.float64]) -> float:
    """Return the median of sorted diameters, each weighing as much as it is wide: crumbs of chromatin are many."""
    weight = np.cumsum(diameters)
    return float(diameters[np.searchsorted(weight, weight[-1] / 2)])


def diameters_um(field: Field, mpp: float) -> NDArray[np.float64]:
    """Return the equivalent diameters of the nuclei in a field of haematoxylin, were its pixels `mpp` µm wide."""
    from skimage.measure import label, regionprops_table
    from skimage.morphology import remove_small_objects

    smallest = int(math.pi / 4 * (SMALLEST_UM / WORKING_MPP) ** 2)
    blobs = remove_small_objects(_nuclear(_resized(field, mpp / WORKING_MPP)), max_size=smallest)
    table = regionprops_table(label(blobs), properties=("area", "solidity"))
    diameter = np.asarray(2 * WORKING_MPP * np.sqrt(table["area"] / math.pi), dtype=np.float64)
    whole = np.asarray(table["solidity"] > SOLID) & (diameter < LARGEST_UM)
    return np.asarray(diameter[whole])


def _resized(field: Field, factor: float) -> Field:
    size = tuple(max(1, round(length * factor)) for length in field.shape[::-1])
    return np.asarray(Image.fromarray(field).resize((size[0], size[1]), Image.Resampling.BILINEAR))


def _nuclear(field: Field) -> NDArray[np.bool_]:
    """Return where there is more haematoxylin than around, at `WORKING_MPP`, with nuclei that touch cut apart."""
    from scipy.ndimage import binary_fill_holes, binary_opening, gaussian_filter
    from skimage.filters import threshold_otsu
    from skimage.morphology import disk

    smooth = gaussian_filter(field, SMOOTH_UM / WORKING_MPP)
    rise = smooth - gaussian_filter(smooth, GROUND_UM / WORKING_MPP, truncate=2.5)
    usual = rise.clip(*np.percentile(rise, (0.5, 99.5)))  # ink and dirt must not set the threshold
    mask = binary_fill_holes(rise > threshold_otsu(usual)) if np.ptp(usual) > 0 else np.zeros(rise.shape, dtype=bool)
    opened: NDArray[np.bool_] = binary_opening(mask, disk(round(OPENING_UM / WORKING_MPP)))
    return opened
