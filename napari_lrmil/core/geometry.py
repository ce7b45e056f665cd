"""Frames and units: level-0 pixels, pixels of a level, micrometres, and the nested lattice of HR and LR patches.

Only this file multiplies or divides by a downsample. A point is x then y; an array is rows then columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import GeometryError

MPP_TOLERANCE = 0.05  # a level up to 5 % coarser than wanted still counts as fine enough (Method 1)

Int64 = NDArray[np.int64]
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Mpp:
    """Micrometres per level-0 pixel along x and y, and where the figures came from."""

    x: float
    y: float
    source: str = "given"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.y) and self.x > 0 and self.y > 0):
            raise GeometryError(f"microns per pixel must be positive numbers, got {self.x} and {self.y}")

    @property
    def mean(self) -> float:
        """The side in µm of the square that covers as much as one pixel."""
        return math.sqrt(self.x * self.y)


def footprint_um(size_level0: tuple[int, int], mpp: float) -> float:
    """Return the side in µm of the square as large as a patch of `size_level0` pixels of `mpp` µm."""
    return math.sqrt(size_level0[0] * size_level0[1]) * mpp


def nominal_magnification(mpp: float) -> int:
    """Return the objective's magnification nearest to `mpp` µm per pixel: 0.5 is 20, 0.25 and 0.2282 are 40."""
    return max(1, round(20 * 2.0 ** -round(math.log2(mpp / 0.5))))


@dataclass(frozen=True)
class Bounds:
    """The scanned part of a slide in whole level-0 pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class BoxLevel0:
    """A rectangle in level-0 pixels; its corners need not be whole numbers."""

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.height > 0):
            raise GeometryError(f"a region needs a positive size, got {self.width} x {self.height} level-0 pixels")

    def size_at(self, wanted_mpp: float, mpp: Mpp) -> tuple[int, int]:
        """Return the whole number of pixels, width then height, that the box has at `wanted_mpp` µm per pixel."""
        width = max(1, round(self.width * mpp.x / wanted_mpp))
        return width, max(1, round(self.height * mpp.y / wanted_mpp))


@dataclass(frozen=True)
class BoxUm:
    """A rectangle in micrometres from the slide's level-0 corner, as the viewer's world has it."""

    x: float
    y: float
    width: float
    height: float

    def to_level0(self, mpp: Mpp) -> BoxLevel0:
        """Return the same rectangle in level-0 pixels."""
        return BoxLevel0(self.x / mpp.x, self.y / mpp.y, self.width / mpp.x, self.height / mpp.y)


@dataclass(frozen=True)
class Level:
    """One level of a pyramid: its size in its own pixels and the downsample that the file states (8.02, never 8)."""

    index: int
    width: int
    height: int
    downsample: float

    def mpp(self, mpp0: Mpp) -> float:
        """Return micrometres per pixel of this level."""
        return mpp0.mean * self.downsample

    def reduced(self, scale: int) -> Level:
        """Return what decoding this level at 1 / `scale` makes of it: its whole pixels only."""
        return Level(self.index, self.width // scale, self.height // scale, self.downsample * scale)


def choose_level(levels: Sequence[Level], mpp0: Mpp, wanted_mpp: float) -> Level:
    """Return the coarsest level that is fine enough for `wanted_mpp`; the finest one where none is."""
    enough = [level for level in levels if level.mpp(mpp0) <= wanted_mpp * (1 + MPP_TOLERANCE)]
    return max(enough, key=lambda level: level.downsample) if enough else levels[0]


def choose_scale(level: Level, across: float, down: float) -> int:
    """Return by how much `level` may be reduced while it is decoded (1, 2, 4 or 8) without a pixel being cut.

    A wanted pixel of `across` x `down` level-0 pixels has to be a whole number of reduced ones: parts of pixels that
    large blur what all pixels of the level show sharply.
    """
    for scale in (8, 4, 2):
        shares = [side / (level.downsample * scale) for side in (across, down)]
        if all(round(share) >= 1 and abs(share - round(share)) < 1e-6 for share in shares):
            return scale
    return 1


@dataclass(frozen=True)
class PixelWindow:
    """A rectangle in whole pixels of a level, and where a wanted box lies inside it.

    Attributes
    ----------
    x, y, width, height
        In pixels of the level; parts of it may lie beyond the level.
    left, top, right, bottom
        The wanted box in pixels from (x, y), not rounded.
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
        x, left, right = _whole(box.x, box.x + box.width, level.downsample)
        y, top, bottom = _whole(box.y, box.y + box.height, level.downsample)
        return cls(x, y, _pixels(right), _pixels(bottom), left, top, right, bottom)

    @property
    def whole(self) -> bool:
        """Whether the wanted box cuts no pixel."""
        rests = self.left, self.top, self.right - self.width, self.bottom - self.height
        return max(map(abs, rests)) < 1e-6

    def within(self, level: Level) -> bool:
        """Return whether `level` has all of it."""
        across = self.x >= 0 and self.x + self.width <= level.width
        return across and self.y >= 0 and self.y + self.height <= level.height

    def pixels_inside(self, level: Level) -> int:
        """Return how many of its pixels `level` has."""
        width = min(level.width, self.x + self.width) - max(0, self.x)
        return max(0, width) * max(0, min(level.height, self.y + self.height) - max(0, self.y))


def _whole(start: float, stop: float, downsample: float) -> tuple[int, float, float]:
    """Return the pixel at or before `start`, and both ends in pixels from it."""
    pixel = math.floor(start / downsample + 1e-6)
    return pixel, max(0.0, start / downsample - pixel), stop / downsample - pixel


def _pixels(stop: float) -> int:
    return max(1, math.ceil(stop - 1e-6))


@dataclass(frozen=True)
class Corner:
    """A whole level-0 coordinate, the pixel of a level in which it lies, and how far into that, 0 to 1."""

    level0: int
    pixel: int
    rest: float


def pixel_aligned_corner(first: int, last: int, downsample: float) -> Corner:
    """Return the whole level-0 coordinate between two pixels of a level that lies nearest to the edge of a pixel.

    Slide libraries take level-0 coordinates and interpolate between the pixels of a level; there they do it least.
    """
    level0 = np.arange(math.ceil(first * downsample), math.floor(last * downsample) + math.ceil(downsample))
    at = level0 / downsample
    pixel = np.floor(at + 1e-6)
    rest = np.clip(at - pixel, 0.0, 1.0)
    best = int(np.argmin(np.minimum(rest, 1 - rest)))
    return Corner(int(level0[best]), int(pixel[best]), float(rest[best]))


@dataclass(frozen=True)
class OpenSlideWindow:
    """What to ask a slide library for, and where the wanted box lies inside the answer.

    Attributes
    ----------
    level
        Index of the level.
    location
        Corner in whole level-0 pixels, as OpenSlide wants it.
    size
        Width and height in pixels of the level.
    left, top, right, bottom
        The wanted box in the answer's pixels, not rounded.
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
        """Return how many pixels of the window the level really has."""
        x, y = (round(at / level.downsample) for at in self.location)
        width = min(level.width, x + self.size[0]) - max(0, x)
        return max(0, width) * max(0, min(level.height, y + self.size[1]) - max(0, y))


def _cover(start: float, stop: float, downsample: float) -> tuple[int, float, float]:
    """Return a whole level-0 corner at or before `start`, and both ends in level pixels from it.

    OpenSlide places a window at exactly corner / downsample and interpolates where that is no whole number, so the
    corner is chosen next to a pixel of the level and what is left over is kept, not rounded away.
    """
    pixel = math.floor(start / downsample + 1e-6)
    corner = round(pixel * downsample)
    if corner > start + 1e-6 * downsample:
        corner = math.floor(pixel * downsample)
    at = corner / downsample
    return corner, max(0.0, start / downsample - at), stop / downsample - at


@dataclass(frozen=True)
class PatchPlan:
    """The two working resolutions and patch sizes; checked to nest when built.

    Attributes
    ----------
    hr_mpp, lr_mpp
        µm per pixel of the patches that the teacher and the student see.
    hr_patch_px, lr_patch_px
        Their sides in those pixels. The footprint in µm is the product.
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
    """HR cells hung on a slide's origin, `n` x `n` of them to an LR cell.

    Attributes
    ----------
    origin
        Level-0 pixel, x then y, of the first cell's corner.
    cell
        Width and height of an HR cell in whole level-0 pixels.
    columns, rows
        HR cells across and down; multiples of `n`, so the last ones may reach past the slide.
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
        """Side in µm that an HR cell really has on this slide."""
        return math.sqrt(self.cell[0] * self.mpp.x * self.cell[1] * self.mpp.y)

    @property
    def lr_um(self) -> float:
        """Side in µm that an LR cell really has on this slide."""
        return self.hr_um * self.n

    @property
    def box(self) -> BoxLevel0:
        """What the lattice covers."""
        return BoxLevel0(*self.origin, self.columns * self.cell[0], self.rows * self.cell[1])

    def hr_corners(self, index: Int64) -> Int64:
        """Return level-0 corners (K, 2), x then y, of HR cells given as (K, 2) column then row."""
        return np.asarray(self.origin, dtype=np.int64) + index * np.asarray(self.cell, dtype=np.int64)

    def lr_corners(self, index: Int64) -> Int64:
        """Return level-0 corners (N, 2), x then y, of LR cells given as (N, 2) column then row."""
        return np.asarray(self.origin, dtype=np.int64) + index * np.asarray(self.lr_cell, dtype=np.int64)
