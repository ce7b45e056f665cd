"""Estimate of µm per pixel from nuclear size, for slides without resolution metadata.

It is only a suggestion: the user has to confirm it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.slides.slide import Pixels, Slide

Field = NDArray[np.float32]  # (height, width)

NUCLEUS_UM = 5.2  # diameter, as `diameters_um` measures it; see `estimate_mpp`
ERROR_FACTOR = 1.4  # likely error of an estimate, up and down; see `estimate_mpp`
NOMINAL = (0.25, 0.5)  # 40x and 20x
ASSUMED_MPP = tuple(0.125 * math.sqrt(2) ** i for i in range(7))  # 0.125 to 1; at coarser resolutions nuclei are dots
ENOUGH_NUCLEI = 50
FIELDS, FIELD_PX = 4, 1024  # number of fields to read, and the approximate side of each in level-0 pixels
OVERVIEW_PX = 1024  # longer side of the overview from which the fields are chosen
DARKEST = 60.0  # mean grey level; darker fields are not a stained section on a light ground
BLACKEST = 10  # grey level to which darker channels are raised
FAINTEST = 0.006  # mean haematoxylin that a field needs, as `haematoxylin` measures it; clean glass has 0.004

WORKING_MPP = 0.5  # resolution to which a field is resized under an assumed resolution
SMOOTH_UM, GROUND_UM = 0.4, 8.0  # sd of the Gaussians that remove grain and the surrounding tissue
OPENING_UM = 0.75  # radius of the disc that separates touching nuclei
SMALLEST_UM, LARGEST_UM = 2.0, 25.0
SOLID = 0.88  # area divided by that of the convex hull; a smaller value is a clump


@dataclass(frozen=True)
class MppEstimate:
    """Resolution of a slide as estimated from nuclear size.

    Attributes
    ----------
    mpp
        µm per level-0 pixel.
    low, high
        Likely range, a factor of 2 wide.
    nuclei
        Number of measured nuclei.
    """

    mpp: float
    low: float
    high: float
    nuclei: int

    @property
    def nominal(self) -> float | None:
        """Nearest nominal resolution, 0.25 or 0.5, or None if it lies outside `low` to `high`."""
        nearest = min(NOMINAL, key=lambda value: abs(math.log(value / self.mpp)))
        return nearest if self.low <= nearest <= self.high else None


def estimate_mpp(slide: Slide) -> MppEstimate | None:
    """Estimate µm per level-0 pixel from the size of nuclei. Return None if too few nuclei are detected.

    The slide's stated resolution is not used. A measured diameter depends on the scale of the segmentation, and that
    scale depends on the resolution. Fields are therefore segmented under several assumed resolutions. The result is the
    one at which nuclei have a diameter of `NUCLEUS_UM`.

    The method assumes that nuclei of routine sections are alike. Nuclei outlined by hand in two breast fields (MoNuSeg,
    Kumar et al., IEEE Trans. Med. Imaging 36, 2017) have a median equivalent diameter of 5.4 and 6.0 µm. Thresholding
    keeps less of a nucleus: 5.2 µm, chosen so that breast at 0.25, colon at 0.62 and CMU-1 at 0.5 µm agree. The ratio
    of estimate to truth was then 0.87 and 0.95 for breast and 1.14 to 1.19 for CMU-1. For twelve sets of colon fields
    it was 0.96 to 1.31, once 1.53, and once there was no estimate. Phantoms have larger nuclei: 0.64 to 0.79.
    """
    fields = [haematoxylin(slide.read(box, (round(box.width), round(box.height)))) for box in choose_fields(slide)]
    return estimate_of(fields) if fields else None


def estimate_of(fields: list[Field]) -> MppEstimate | None:
    """Return the estimate from (height, width) fields of haematoxylin at level 0; see `estimate_mpp`."""
    low, high = -1, len(ASSUMED_MPP)
    nuclei: dict[int, _Typical] = {}
    while high - low > 1:  # bisection: the diameter in µm grows with the assumed resolution
        middle = (low + high) // 2
        nuclei[middle] = _typical(fields, ASSUMED_MPP[middle])
        low, high = (low, middle) if nuclei[middle].um > NUCLEUS_UM else (middle, high)
    if low not in nuclei or high not in nuclei:
        return None  # finer or coarser than every assumed resolution
    below, above = nuclei[low], nuclei[high]
    if min(below.nuclei, above.nuclei) < ENOUGH_NUCLEI or not below.um <= NUCLEUS_UM < above.um:
        return None
    share = math.log(NUCLEUS_UM / below.um) / math.log(above.um / below.um)
    mpp = ASSUMED_MPP[low] * (ASSUMED_MPP[high] / ASSUMED_MPP[low]) ** share
    return MppEstimate(mpp, mpp / ERROR_FACTOR, mpp * ERROR_FACTOR, min(below.nuclei, above.nuclei))


# ---------------------------------------------------------------- fields


def choose_fields(slide: Slide) -> list[BoxLevel0]:
    """Return up to `FIELDS` fields of an even division of level 0, the richest in haematoxylin first."""
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
    """Return (height, width, 3) pixels of the scanned area, with at most `OVERVIEW_PX` pixels on the longer side."""
    bounds = slide.bounds
    shrink = max(1.0, max(bounds.width, bounds.height) / OVERVIEW_PX)
    size = (max(1, round(bounds.width / shrink)), max(1, round(bounds.height / shrink)))
    overview = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for rows, columns, pixels in slide.read_blocks(BoxLevel0(bounds.x, bounds.y, bounds.width, bounds.height), size):
        overview[rows, columns] = pixels
    return overview


def _part_means(image: NDArray[np.floating], rows: int, columns: int) -> NDArray[np.float64]:
    """Return (rows, columns) means of the parts of an evenly divided image."""
    edges = [
        np.minimum(np.linspace(0, length, parts + 1).astype(int)[:-1], length - 1)
        for length, parts in zip(image.shape, (rows, columns), strict=True)
    ]

    def sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(np.add.reduceat(values, edges[0], axis=0), edges[1], axis=1))

    return sums(image.astype(np.float64)) / sums(np.ones(image.shape))


def haematoxylin(pixels: Pixels) -> Field:
    """Return (height, width) amounts of haematoxylin (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 2001).

    Channels are raised to `BLACKEST`, because the logarithm of one black pixel would outweigh a field of nuclei.
    """
    from skimage.color import rgb2hed

    return np.asarray(rgb2hed(np.maximum(pixels, BLACKEST).astype(np.uint8))[..., 0], dtype=np.float32)


# ---------------------------------------------------------------- nuclei


@dataclass(frozen=True)
class _Typical:
    """Diameter in µm of the typical nucleus under an assumed resolution, and the number of measured nuclei."""

    um: float
    nuclei: int


def _typical(fields: list[Field], mpp: float) -> _Typical:
    diameters = np.sort(np.concatenate([diameters_um(field, mpp) for field in fields]))
    return _Typical(_weighted_median(diameters) if len(diameters) else 0.0, len(diameters))


def _weighted_median(diameters: NDArray[np.float64]) -> float:
    """Return the median of sorted diameters, weighted by diameter, so that many small fragments count little."""
    weight = np.cumsum(diameters)
    return float(diameters[np.searchsorted(weight, weight[-1] / 2)])


def diameters_um(field: Field, mpp: float) -> NDArray[np.float64]:
    """Return equivalent diameters in µm of the nuclei in a (height, width) field, if its pixels are `mpp` µm wide."""
    from skimage.measure import label, regionprops_table
    from skimage.morphology import remove_small_objects

    smallest = int(math.pi / 4 * (SMALLEST_UM / WORKING_MPP) ** 2)
    blobs = remove_small_objects(_nuclear(_resized(field, mpp / WORKING_MPP)), max_size=smallest)
    table = regionprops_table(label(blobs), properties=("area", "solidity"))
    diameter = np.asarray(2 * WORKING_MPP * np.sqrt(table["area"] / math.pi), dtype=np.float64)
    is_single = np.asarray(table["solidity"] > SOLID) & (diameter < LARGEST_UM)
    return np.asarray(diameter[is_single])


def _resized(field: Field, factor: float) -> Field:
    size = tuple(max(1, round(length * factor)) for length in field.shape[::-1])
    return np.asarray(Image.fromarray(field).resize((size[0], size[1]), Image.Resampling.BILINEAR))


def _nuclear(field: Field) -> NDArray[np.bool_]:
    """Return the mask of pixels with more haematoxylin than their surroundings, with touching nuclei separated."""
    from scipy.ndimage import binary_fill_holes, binary_opening, gaussian_filter
    from skimage.filters import threshold_otsu
    from skimage.morphology import disk

    smooth = gaussian_filter(field, SMOOTH_UM / WORKING_MPP)
    rise = smooth - gaussian_filter(smooth, GROUND_UM / WORKING_MPP, truncate=2.5)
    usual = rise.clip(*np.percentile(rise, (0.5, 99.5)))  # clip ink and dirt, which would shift the threshold
    mask = binary_fill_holes(rise > threshold_otsu(usual)) if np.ptp(usual) > 0 else np.zeros(rise.shape, dtype=bool)
    nuclei: NDArray[np.bool_] = binary_opening(mask, disk(round(OPENING_UM / WORKING_MPP)))
    return nuclei
