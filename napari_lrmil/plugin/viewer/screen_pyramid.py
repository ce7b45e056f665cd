"""Image pyramid of a slide for the screen: lazy dask arrays over tiles in a byte-bounded cache.

Levels of the file are used as they are. Missing levels are averaged from the next finer one.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
from psygnal import Signal

from napari_lrmil.core.geometry import Bounds, BoxLevel0, BoxUm, Level, OpenSlideWindow
from napari_lrmil.core.slides.byte_lru import ByteLru
from napari_lrmil.core.slides.resampling import Pixels, area_average
from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    import dask.array as da

TILE_PX = 512  # side of a tile; square, because napari requests rows and columns alike
DEFAULT_CACHE_BYTES = 256 << 20
MAX_COARSEST_PX = 1024  # longer side of the coarsest level; napari keeps that level in memory as a whole
MAX_LEVEL_STEP = 4  # between neighbouring levels; napari loads up to this many times the screen's pixels per side

ScreenTileKey = tuple[int, int, int]  # level, tile row, tile column
ColourTransform = Callable[[Pixels], Pixels]  # keeps the shape; called from several threads


class TileCache(ByteLru[ScreenTileKey, Pixels]):
    """Cache of the screen's tiles of all levels of a slide."""

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        super().__init__(max_bytes)


@dataclass(frozen=True)
class ScreenLevel:
    """Level of the screen's pyramid.

    Attributes
    ----------
    width, height
        Size in pixels of this level. The level covers the scanned part of the slide exactly: the side of its pixel
        in level-0 pixels is the quotient of the sizes, which may be fractional.
    in_file
        Whether the file has a level of this resolution; else the level is averaged from the next finer one.
    """

    width: int
    height: int
    in_file: bool


def plan_levels(levels: Sequence[Level], bounds: Bounds) -> tuple[ScreenLevel, ...]:
    """Return the levels for the screen: those of the file, and added ones where a step exceeds `MAX_LEVEL_STEP`.

    Parameters
    ----------
    levels
        Levels of the file, finest first.
    bounds
        Scanned part of the slide.
    """
    planned = [ScreenLevel(bounds.width, bounds.height, True)]
    for level in levels[1:]:
        width, height = round(bounds.width / level.downsample), round(bounds.height / level.downsample)
        if min(width, height) < 1 or width >= planned[-1].width:
            continue
        planned += _steps_between(planned[-1], width)
        planned.append(ScreenLevel(width, height, True))
    while max(planned[-1].width, planned[-1].height) > MAX_COARSEST_PX:
        planned.append(_reduced(planned[-1], MAX_LEVEL_STEP))
    return tuple(planned)


def _steps_between(finer: ScreenLevel, width: int) -> list[ScreenLevel]:
    """Return the missing levels between `finer` and a level of `width`, in equal steps."""
    ratio = finer.width / width
    steps = math.ceil(math.log(ratio, MAX_LEVEL_STEP) - 0.05)  # 4.1 still counts as one step
    return [_reduced(finer, ratio ** (i / steps)) for i in range(1, steps)]


def _reduced(level: ScreenLevel, factor: float) -> ScreenLevel:
    return ScreenLevel(max(1, math.ceil(level.width / factor)), max(1, math.ceil(level.height / factor)), False)


class ScreenSlide:
    """Pyramid of a slide for the viewer. It owns the slide, and closes it when the last of its arrays is deleted.

    Parameters
    ----------
    slide
        An open slide with a known resolution.
    cache
        Cache of the tiles, shared by all arrays of this pyramid.
    colour
        Changes the colours of the file's pixels, for example by an ICC profile; None leaves them.

    Attributes
    ----------
    colour_changed
        Signal: the colours have changed, and views of this slide have to be drawn again.
    """

    colour_changed = Signal()

    def __init__(self, slide: Slide, cache: TileCache | None = None, colour: ColourTransform | None = None) -> None:
        self.slide = slide
        self.cache = TileCache() if cache is None else cache
        self.levels = plan_levels(slide.levels, slide.bounds)
        self._colour = colour
        self._colour_lock = threading.Lock()  # after a change, no tile in the old colours may enter the cache
        self._id = uuid4().hex  # dask identifies arrays by name
        weakref.finalize(self, slide.close)

    @property
    def extent_um(self) -> BoxUm:
        """Scanned part of the slide in the viewer's world, in µm."""
        bounds, mpp = self.slide.bounds, self.slide.mpp
        return BoxUm(bounds.x * mpp.x, bounds.y * mpp.y, bounds.width * mpp.x, bounds.height * mpp.y)

    @property
    def colour(self) -> ColourTransform | None:
        """Function that changes the colours; None for the colours of the file."""
        return self._colour

    def set_colour(self, colour: ColourTransform | None) -> None:
        """Change the colours and empty the cache."""
        with self._colour_lock:
            self._colour = colour
            self.cache.clear()
        self.colour_changed.emit()

    def pixel_level0(self, level: int) -> tuple[float, float]:
        """Return the exact width and height of a pixel of `level` in level-0 pixels."""
        screen_level, bounds = self.levels[level], self.slide.bounds
        return bounds.width / screen_level.width, bounds.height / screen_level.height

    def array(self, level: int) -> da.Array:
        """Return a level as a (height, width, 3) uint8 array; each chunk is read when it is computed."""
        import dask.array as da

        screen_level = self.levels[level]
        chunks = (_chunks(screen_level.height), _chunks(screen_level.width), (3,))
        return da.map_blocks(
            self._block,
            level=level,
            chunks=chunks,
            dtype=np.uint8,
            meta=np.empty((0, 0, 3), np.uint8),
            name=f"slide-{self._id}-{level}",
        )

    def arrays(self) -> list[da.Array]:
        """Return all levels, finest first."""
        return [self.array(i) for i in range(len(self.levels))]

    def _block(self, *, level: int, block_id: tuple[int, ...]) -> Pixels:
        return self.tile((level, block_id[0], block_id[1]))

    def tile(self, key: ScreenTileKey) -> Pixels:
        """Return a tile, at most `TILE_PX` squared, from the cache or from the file.

        Parameters
        ----------
        key
            Level, tile row, tile column.
        """
        tile = self.cache.get(key)
        if tile is None:
            colour = self._colour
            tile = self._read_tile(key, colour)
            with self._colour_lock:
                if colour is self._colour:  # the colours may have changed while the tile was read
                    self.cache.put(key, tile)
        return tile

    def _read_tile(self, key: ScreenTileKey, colour: ColourTransform | None) -> Pixels:
        level, row, column = key
        screen_level = self.levels[level]
        x, y = column * TILE_PX, row * TILE_PX
        size = min(TILE_PX, screen_level.width - x), min(TILE_PX, screen_level.height - y)
        if not screen_level.in_file:  # averaged from tiles whose colours are transformed already
            return self._average_tile(level, (x, y), size)
        fx, fy = self.pixel_level0(level)
        bounds = self.slide.bounds
        box = BoxLevel0(bounds.x + x * fx, bounds.y + y * fy, size[0] * fx, size[1] * fy)
        pixels = self.slide.read(box, size)
        return pixels if colour is None else colour(pixels)

    def _average_tile(self, level: int, corner: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Return a rectangle of a missing level as exact area means over the next finer level."""
        coarse, fine = self.levels[level], self.levels[level - 1]
        left, right = (fine.width * v / coarse.width for v in (corner[0], corner[0] + size[0]))
        top, bottom = (fine.height * v / coarse.height for v in (corner[1], corner[1] + size[1]))
        # 1e-6: without it a rounding error of the quotient would read one more row or column.
        x, y = math.floor(left + 1e-6), math.floor(top + 1e-6)
        stop = min(fine.width, math.ceil(right - 1e-6)), min(fine.height, math.ceil(bottom - 1e-6))
        pixels = self._read_region(level - 1, (x, y), stop)
        shape = (pixels.shape[1], pixels.shape[0])
        left, top = max(0.0, left - x), max(0.0, top - y)
        return area_average(pixels, OpenSlideWindow(0, (0, 0), shape, left, top, right - x, bottom - y), size)

    def _read_region(self, level: int, start: tuple[int, int], stop: tuple[int, int]) -> Pixels:
        """Return the pixels from `start` to `stop` (x, y) of a level, assembled from its tiles."""
        out = np.empty((stop[1] - start[1], stop[0] - start[0], 3), np.uint8)
        for row in range(start[1] // TILE_PX, math.ceil(stop[1] / TILE_PX)):
            for column in range(start[0] // TILE_PX, math.ceil(stop[0] / TILE_PX)):
                (to_y, from_y), (to_x, from_x) = _overlap(row, start[1], stop[1]), _overlap(column, start[0], stop[0])
                out[to_y, to_x] = self.tile((level, row, column))[from_y, from_x]
        return out


def _overlap(index: int, start: int, stop: int) -> tuple[slice, slice]:
    """Return the overlap of tile `index` with the range `start` to `stop` along one axis, as slices of both."""
    first, last = max(start, index * TILE_PX), min(stop, (index + 1) * TILE_PX)
    return slice(first - start, last - start), slice(first - index * TILE_PX, last - index * TILE_PX)


def _chunks(length: int) -> tuple[int, ...]:
    return tuple(min(TILE_PX, length - start) for start in range(0, length, TILE_PX))
