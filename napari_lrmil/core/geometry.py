"""Coordinate frames and units: level-0 pixels, pixels of a level, µm, and the nested lattice of HR and LR patches.

Only this module multiplies or divides by a downsample. A point is (x, y). An array is (rows, columns).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import GeometryError

MPP_TOLERANCE = 0.05  # a level up to 5 % coarser than required counts as fine enough (docs/explanation/method.md 1)

Int64 = NDArray[np.int64]
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Mpp:
    """µm per level-0 pixel along x and y, and the source of the values."""

    x: float
    y: float
    source: str = "given"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.y) and self.x > 0 and self.y > 0):
            raise GeometryError(f"microns per pixel must be positive numbers, got {self.x} and {self.y}")

    @property
    def mean(self) -> float:
        """Side in µm of a square with the area of one pixel."""
        return math.sqrt(self.x * self.y)


def footprint_um(size_level0: tuple[int, int], mpp: float) -> float:
    """Return the side in µm of a square with the area of a patch of `size_level0` pixels of `mpp` µm."""
    return math.sqrt(size_level0[0] * size_level0[1]) * mpp


def nominal_magnification(mpp: float) -> int:
    """Return the objective magnification nearest to `mpp` µm per pixel: 20 for 0.5, 40 for 0.25 and 0.2282."""
    return max(1, round(20 * 2.0 ** -round(math.log2(mpp / 0.5))))


@dataclass(frozen=True)
class Bounds:
    """Scanned area of a slide in whole level-0 pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class BoxLevel0:
    """Rectangle in level-0 pixels, not necessarily whole numbers."""

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.height > 0):
            raise GeometryError(f"a region needs a positive size, got {self.width} x {self.height} level-0 pixels")

    def size_at(self, wanted_mpp: float, mpp: Mpp) -> tuple[int, int]:
        """Return width and height of the box in whole pixels of `wanted_mpp` µm."""
        width = max(1, round(self.width * mpp.x / wanted_mpp))
        return width, max(1, round(self.height * mpp.y / wanted_mpp))


@dataclass(frozen=True)
class BoxUm:
    """Rectangle in µm from the slide's level-0 corner, the world coordinates of the viewer."""

    x: float
    y: float
    width: float
    height: float

    def to_level0(self, mpp: Mpp) -> BoxLevel0:
        """Return the same rectangle in level-0 pixels."""
        return BoxLevel0(self.x / mpp.x, self.y / mpp.y, self.width / mpp.x, self.height / mpp.y)


@dataclass(frozen=True)
class Level:
    """Level of a pyramid: its size in its own pixels, and its downsample unrounded (8.02, not 8)."""

    index: int
    width: int
    height: int
    downsample: float

    def mpp(self, mpp0: Mpp) -> float:
        """Return µm per pixel of this level."""
        return mpp0.mean * self.downsample

    def reduced(self, scale: int) -> Level:
        """Return this level as decoding at 1 / `scale` gives it. Cut pixels at the right and bottom are dropped."""
        return Level(self.index, self.width // scale, self.height // scale, self.downsample * scale)


def choose_level(levels: Sequence[Level], mpp0: Mpp, wanted_mpp: float) -> Level:
    """Return the coarsest level that is fine enough for `wanted_mpp`, or the finest level if none is."""
    enough = [level for level in levels if level.mpp(mpp0) <= wanted_mpp * (1 + MPP_TOLERANCE)]
    return max(enough, key=lambda level: level.downsample) if enough else levels[0]


def choose_scale(level: Level, across: float, down: float) -> int:
    """Return the largest reduction (1, 2, 4 or 8) for decoding `level` that cuts no reduced pixel.

    A target pixel of `across` x `down` level-0 pixels must be a whole number of reduced pixels. Fractions of pixels
    that large would blur details that the level shows sharply.
    """
    for scale in (8, 4, 2):
        shares = [side / (level.downsample * scale) for side in (across, down)]
        if all(round(share) >= 1 and abs(share - round(share)) < 1e-6 for share in shares):
            return scale
    return 1


@dataclass(frozen=True)
class PixelWindow:
    """Rectangle in whole pixels of a level, and the position of a box inside it.

    Attributes
    ----------
    x, y, width, height
        The rectangle in pixels of the level. It can reach beyond the level.
    left, top, right, bottom
        Edges of the box in pixels from (x, y), not rounded.
    """

    x: int
    y: int
    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, box: BoxLevel0, level: Level) -> PixelWindow:
        """Return the smallest window of `level` that covers `box`; like `OpenSlideWindow` without interpolation."""
        x, left, right = _whole_pixels(box.x, box.x + box.width, level.downsample)
        y, top, bottom = _whole_pixels(box.y, box.y + box.height, level.downsample)
        return cls(x, y, _pixels(right), _pixels(bottom), left, top, right, bottom)

    @property
    def cuts_no_pixel(self) -> bool:
        """Whether the edges of the box lie between pixels."""
        rests = self.left, self.top, self.right - self.width, self.bottom - self.height
        return max(map(abs, rests)) < 1e-6

    def within(self, level: Level) -> bool:
        """Return whether the rectangle lies inside `level`."""
        across = self.x >= 0 and self.x + self.width <= level.width
        return across and self.y >= 0 and self.y + self.height <= level.height

    def pixels_inside(self, level: Level) -> int:
        """Return the number of pixels of the rectangle that lie inside `level`."""
        width = min(level.width, self.x + self.width) - max(0, self.x)
        return max(0, width) * max(0, min(level.height, self.y + self.height) - max(0, self.y))


def _whole_pixels(start: float, stop: float, downsample: float) -> tuple[int, float, float]:
    """Return the pixel at or before `start`, and both ends in pixels relative to it."""
    pixel = math.floor(start / downsample + 1e-6)
    return pixel, max(0.0, start / downsample - pixel), stop / downsample - pixel


def _pixels(stop: float) -> int:
    return max(1, math.ceil(stop - 1e-6))


@dataclass(frozen=True)
class Corner:
    """Whole level-0 coordinate, the pixel of a level that contains it, and the position within that pixel, 0 to 1."""

    level0: int
    pixel: int
    rest: float


def pixel_aligned_corner(first: int, last: int, downsample: float) -> Corner:
    """Return the whole level-0 coordinate, between two pixels of a level, that is nearest to a pixel edge.

    OpenSlide takes level-0 coordinates and interpolates between pixels of the level. It interpolates least there.
    """
    level0 = np.arange(math.ceil(first * downsample), math.floor(last * downsample) + math.ceil(downsample))
    at = level0 / downsample
    pixel = np.floor(at + 1e-6)
    rest = np.clip(at - pixel, 0.0, 1.0)
    best = int(np.argmin(np.minimum(rest, 1 - rest)))
    return Corner(int(level0[best]), int(pixel[best]), float(rest[best]))


@dataclass(frozen=True)
class OpenSlideWindow:
    """Arguments for ``OpenSlide.read_region``, and the position of a box inside its result.

    Attributes
    ----------
    level
        Index of the level.
    location
        Corner in whole level-0 pixels, as OpenSlide requires.
    size
        Width and height in pixels of the level.
    left, top, right, bottom
        Edges of the box in pixels of the result, not rounded.
    """

    level: int
    location: tuple[int, int]
    size: tuple[int, int]
    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, box: BoxLevel0, level: Level) -> OpenSlideWindow:
        """Return the smallest window of `level` that covers `box`."""
        x, left, right = _cover(box.x, box.x + box.width, level.downsample)
        y, top, bottom = _cover(box.y, box.y + box.height, level.downsample)
        return cls(level.index, (x, y), (_pixels(right), _pixels(bottom)), left, top, right, bottom)

    def pixels_inside(self, level: Level) -> int:
        """Return the number of pixels of the window that lie inside the level."""
        x, y = (round(at / level.downsample) for at in self.location)
        width = min(level.width, x + self.size[0]) - max(0, x)
        return max(0, width) * max(0, min(level.height, y + self.size[1]) - max(0, y))


def _cover(start: float, stop: float, downsample: float) -> tuple[int, float, float]:
    """Return a whole level-0 corner at or before `start`, and both ends in level pixels from it.

    OpenSlide places a window at exactly corner / downsample, and interpolates if that is not a whole number. The corner
    is therefore chosen next to a pixel of the level, and the remainder is kept instead of rounded.
    """
    pixel = math.floor(start / downsample + 1e-6)
    corner = round(pixel * downsample)
    if corner > start + 1e-6 * downsample:
        corner = math.floor(pixel * downsample)
    at = corner / downsample
    return corner, max(0.0, start / downsample - at), stop / downsample - at


@dataclass(frozen=True)
class PatchPlan:
    """The two working resolutions and patch sizes. Construction checks that they nest.

    Attributes
    ----------
    hr_mpp, lr_mpp
        µm per pixel of the patches of teacher and student.
    hr_patch_px, lr_patch_px
        Sides of the patches in those pixels. The footprint in µm is the product.

    Raises
    ------
    GeometryError
        If a value is not positive, or an LR patch does not hold a whole number of HR patches.
    """

    hr_mpp: float = 0.5
    lr_mpp: float = 2.0
    hr_patch_px: int = 256
    lr_patch_px: int = 256

    def __post_init__(self) -> None:
        if min(self.hr_mpp, self.lr_mpp, self.hr_patch_px, self.lr_patch_px) <= 0:
            raise GeometryError(f"resolutions and patch sizes must be positive, got {self}")
        ratio = self.lr_um / self.hr_um
        if ratio < 1 - 1e-6 or abs(ratio - round(ratio)) > 1e-6 * ratio:
            raise GeometryError(
                f"an LR patch of {self.lr_um:g} µm holds no whole number of HR patches of {self.hr_um:g} µm along one "
                f"side (ratio {ratio:g}); choose resolutions and patch sizes whose ratio is a whole number, such as 4"
            )

    @property
    def hr_um(self) -> float:
        """Nominal side of an HR patch in µm."""
        return self.hr_mpp * self.hr_patch_px

    @property
    def lr_um(self) -> float:
        """Nominal side of an LR patch in µm."""
        return self.lr_mpp * self.lr_patch_px

    @property
    def n(self) -> int:
        """HR patches along one side of an LR patch."""
        return round(self.lr_um / self.hr_um)

    def lattice(self, bounds: Bounds, mpp: Mpp) -> Lattice:
        """Return the lattice of HR cells over `bounds`, exact in level-0 pixels."""
        cell = (max(1, round(self.hr_um / mpp.x)), max(1, round(self.hr_um / mpp.y)))
        columns = math.ceil(bounds.width / (cell[0] * self.n)) * self.n
        rows = math.ceil(bounds.height / (cell[1] * self.n)) * self.n
        return Lattice((bounds.x, bounds.y), cell, columns, rows, self.n, mpp)


@dataclass(frozen=True)
class Lattice:
    """Regular lattice of HR cells from a slide's origin, with `n` x `n` of them per LR cell.

    Attributes
    ----------
    origin
        Level-0 pixel (x, y) of the first cell's corner.
    cell
        Width and height of an HR cell in whole level-0 pixels.
    columns, rows
        HR cells across and down. Both are multiples of `n`, so the last cells can reach beyond the slide.
    """

    origin: tuple[int, int]
    cell: tuple[int, int]
    columns: int
    rows: int
    n: int
    mpp: Mpp

    @property
    def lr_cell(self) -> tuple[int, int]:
        """Width and height of an LR cell in level-0 pixels."""
        return self.cell[0] * self.n, self.cell[1] * self.n

    @property
    def hr_um(self) -> float:
        """Side in µm of an HR cell on this slide, after rounding to level-0 pixels."""
        return math.sqrt(self.cell[0] * self.mpp.x * self.cell[1] * self.mpp.y)

    @property
    def lr_um(self) -> float:
        """Side in µm of an LR cell on this slide, after rounding to level-0 pixels."""
        return self.hr_um * self.n

    @property
    def box(self) -> BoxLevel0:
        """Area of the lattice."""
        return BoxLevel0(*self.origin, self.columns * self.cell[0], self.rows * self.cell[1])

    def hr_corners(self, index: Int64) -> Int64:
        """Return (K, 2) level-0 corners (x, y) of HR cells given as (K, 2) columns and rows."""
        return np.asarray(self.origin, dtype=np.int64) + index * np.asarray(self.cell, dtype=np.int64)

    def lr_corners(self, index: Int64) -> Int64:
        """Return (N, 2) level-0 corners (x, y) of LR cells given as (N, 2) columns and rows."""
        return np.asarray(self.origin, dtype=np.int64) + index * np.asarray(self.lr_cell, dtype=np.int64)
