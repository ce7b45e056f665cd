"""A slide's pixels for the screen: tiles of every level, kept in a byte-bounded cache, as lazy dask arrays.

The levels are those of the file where they are there, and averages of the level above where they are missing.
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

from napari_lrmil.core.byte_lru import ByteLru
from napari_lrmil.core.geometry import Bounds, BoxLevel0, BoxUm, Level, OpenSlideWindow
from napari_lrmil.core.slides.resampling import Pixels, area_average
from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    import dask.array as da

TILE_PX = 512  # side of a tile; square, as napari asks for rows and columns alike
DEFAULT_CACHE_BYTES = 256 << 20
MAX_COARSEST_PX = 1024  # napari keeps the coarsest level whole, so it has to be small
MAX_LEVEL_STEP = 4  # between neighbouring levels; napari loads a view at up to this many times the screen's pixels

ScreenTileKey = tuple[int, int, int]  # level, tile row, tile column
ColourTransform = Callable[[Pixels], Pixels]  # the same shape in other colours; called from several threads


class TileCache(ByteLru[ScreenTileKey, Pixels]):
    """Tiles of all levels for the screen."""

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        super().__init__(max_bytes)


@dataclass(frozen=True)
class ScreenLevel:
    """One level that the viewer gets.

    Attributes
    ----------
    width, height
        In its own pixels; together they cover the scanned part of the slide exactly, so a pixel's side in level-0
        pixels is the quotient of the sizes and need not be whole.
    in_file
        Whether the file has a level as fine; else it is averaged from the screen level above.
    """

    width: int
    height: int
    in_file: bool


def plan_levels(levels: Sequence[Level], bounds: Bounds) -> tuple[ScreenLevel, ...]:
    """Return the levels for the screen: the file's, and missing ones in steps of at most `MAX_LEVEL_STEP`."""
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
    """Return what is missing between `finer` and a level of `width`, in equal steps."""
    ratio = finer.width / width
    steps = math.ceil(math.log(ratio, MAX_LEVEL_STEP) - 0.05)  # 4.1 still counts as one step
    return [_reduced(finer, ratio ** (i / steps)) for i in range(1, steps)]


def _reduced(level: ScreenLevel, factor: float) -> ScreenLevel:
    return ScreenLevel(max(1, math.ceil(level.width / factor)), max(1, math.ceil(level.height / factor)), False)


class ScreenSlide:
    """A slide as the viewer sees it. It owns `slide`, which is closed when the last array made here is gone.

    Parameters
    ----------
    slide
        An open slide with a known resolution.
    cache
        Where tiles are kept; shared by all arrays made here.
    colour
        Changes the colours of what the file holds, such as an ICC profile would; None leaves them.

    Attributes
    ----------
    colour_changed
        Tiles look different from now on; who shows some has to ask for them again.
    """

    colour_changed = Signal()

    def __init__(self, slide: Slide, cache: TileCache | None = None, colour: ColourTransform | None = None) -> None:
        self.slide = slide
        self.cache = TileCache() if cache is None else cache
        self.levels = plan_levels(slide.levels, slide.bounds)
        self._colour = colour
        self._recolouring = threading.Lock()  # no tile in old colours may reach the cache after a change
        self._id = uuid4().hex  # dask tells arrays apart by name
        weakref.finalize(self, slide.close)

    @property
    def extent_um(self) -> BoxUm:
        """Where the scanned part lies in the viewer's world."""
        bounds, mpp = self.slide.bounds, self.slide.mpp
        return BoxUm(bounds.x * mpp.x, bounds.y * mpp.y, bounds.width * mpp.x, bounds.height * mpp.y)

    @property
    def colour(self) -> ColourTransform | None:
        """What changes the colours, if anything does."""
        return self._colour

    def set_colour(self, colour: ColourTransform | None) -> None:
        """Show other colours from now on; kept tiles are forgotten."""
        with self._recolouring:
            self._colour = colour
            self.cache.clear()
        self.colour_changed.emit()

    def pixel_level0(self, level: int) -> tuple[float, float]:
        """Return width and height of a pixel of `level` in level-0 pixels, exactly."""
        at, bounds = self.levels[level], self.slide.bounds
        return bounds.width / at.width, bounds.height / at.height

    def array(self, level: int) -> da.Array:
        """Return a level as a lazy (height, width, 3) uint8 array; no pixel is read before it is asked for."""
        import dask.array as da

        at = self.levels[level]
        chunks = (_chunks(at.height), _chunks(at.width), (3,))
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
        """Return a tile of at most `TILE_PX` squared, from the cache or from the file."""
        tile = self.cache.get(key)
        if tile is None:
            colour = self._colour
            tile = self._make(key, colour)
            with self._recolouring:
                if colour is self._colour:
                    self.cache.put(key, tile)
        return tile

    def _make(self, key: ScreenTileKey, colour: ColourTransform | None) -> Pixels:
        level, row, column = key
        at = self.levels[level]
        x, y = column * TILE_PX, row * TILE_PX
        size = min(TILE_PX, at.width - x), min(TILE_PX, at.height - y)
        if not at.in_file:
            return self._averaged(level, (x, y), size)
        fx, fy = self.pixel_level0(level)
        bounds = self.slide.bounds
        box = BoxLevel0(bounds.x + x * fx, bounds.y + y * fy, size[0] * fx, size[1] * fy)
        pixels = self.slide.read(box, size)
        return pixels if colour is None else colour(pixels)

    def _averaged(self, level: int, corner: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Return a rectangle of a missing level as exact means over the tiles of the level above."""
        at, above = self.levels[level], self.levels[level - 1]
        left, right = (above.width * v / at.width for v in (corner[0], corner[0] + size[0]))
        top, bottom = (above.height * v / at.height for v in (corner[1], corner[1] + size[1]))
        x, y = math.floor(left + 1e-6), math.floor(top + 1e-6)
        stop = min(above.width, math.ceil(right - 1e-6)), min(above.height, math.ceil(bottom - 1e-6))
        pixels = self._region(level - 1, (x, y), stop)
        shape = (pixels.shape[1], pixels.shape[0])
        left, top = max(0.0, left - x), max(0.0, top - y)
        return area_average(pixels, OpenSlideWindow(0, (0, 0), shape, left, top, right - x, bottom - y), size)

    def _region(self, level: int, start: tuple[int, int], stop: tuple[int, int]) -> Pixels:
        """Return the pixels from `start` to `stop` (x, y) of a level, put together from its tiles."""
        out = np.empty((stop[1] - start[1], stop[0] - start[0], 3), np.uint8)
        for row in range(start[1] // TILE_PX, math.ceil(stop[1] / TILE_PX)):
            for column in range(start[0] // TILE_PX, math.ceil(stop[0] / TILE_PX)):
                (to_y, from_y), (to_x, from_x) = _overlap(row, start[1], stop[1]), _overlap(column, start[0], stop[0])
                out[to_y, to_x] = self.tile((level, row, column))[from_y, from_x]
        return out


def _overlap(index: int, start: int, stop: int) -> tuple[slice, slice]:
    """Return where tile `index` lies between `start` and `stop`, and which part of the tile that is, along one axis."""
    first, last = max(start, index * TILE_PX), min(stop, (index + 1) * TILE_PX)
    return slice(first - start, last - start), slice(first - index * TILE_PX, last - index * TILE_PX)


def _chunks(length: int) -> tuple[int, ...]:
    return tuple(min(TILE_PX, length - at) for at in range(0, length, TILE_PX))
