"""Reader of windows of a damaged slide: tiles that do not decode stay transparent and are counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import Level, OpenSlideWindow
from napari_lrmil.core.slides.missing_tiles import TileMap
from napari_lrmil.core.slides.openslide_handle import Handle
from napari_lrmil.core.slides.resolution import number

BLOCK_PX = 256  # side of the squares that are tried one by one if the tiles are not known
LEAST_PX = 128  # thinner tiles are tried several at once
INSET_PX = 2  # at a fractional downsample OpenSlide reads this far into the neighbouring tiles
MOST_DAMAGED = 2000  # tiles; each costs opening the slide again


def tile_sizes(properties: Mapping[str, str], file_levels: Sequence[int]) -> list[tuple[int, int]]:
    """Return width and height of the tiles that are tried one by one, of levels by their number in the file."""
    return [
        (_side(properties, f"openslide.level[{i}].tile-width"), _side(properties, f"openslide.level[{i}].tile-height"))
        for i in file_levels
    ]


def _side(properties: Mapping[str, str], name: str) -> int:
    tile = int(number(properties.get(name)) or BLOCK_PX)
    return tile * -(-LEAST_PX // tile)


class DamagedTileReader:
    """Reader of windows with a handle of its own, opened again after each tile that does not decode.

    OpenSlide's handle fails at every later read once a tile did not decode. Instances are thread-safe: one window is
    read at a time.

    Parameters
    ----------
    path, levels, tiles
        The slide, its levels, and width and height of the tiles of each.
    open_handle
        Opens the slide.
    """

    def __init__(
        self,
        path: Path,
        levels: Sequence[Level],
        tiles: Sequence[tuple[int, int]],
        open_handle: Callable[[], Handle],
    ) -> None:
        self._path, self._levels, self._tiles, self._open = path, tuple(levels), tuple(tiles), open_handle
        self._damaged: dict[int, set[tuple[int, int]]] = {level.index: set() for level in levels}  # row and column
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._handle: Handle | None = None

    @property
    def count(self) -> int:
        """Number of damaged tiles that were met so far, of all levels."""
        return sum(map(len, self._damaged.values()))

    def damaged(self, level: Level) -> TileMap | None:
        """Return the damaged tiles of a level that were met so far; None if there are none."""
        with self._lock:
            places = sorted(self._damaged[level.index])
        if not places:
            return None
        width, height = self._tiles[level.index]
        is_damaged = np.zeros((-(-level.height // height), -(-level.width // width)), np.bool_)
        is_damaged[tuple(np.transpose(places))] = True
        return TileMap(level, (width, height), is_damaged)

    def knows(self, window: OpenSlideWindow) -> bool:
        """Return whether a window touches a tile that is known to be damaged."""
        damaged = self._damaged[window.level]
        return bool(damaged) and any(tile in damaged for tile, _, _ in self._parts(window))

    def read(self, window: OpenSlideWindow) -> Image.Image:
        """Return RGBA pixels of a window, transparent where tiles do not decode.

        Raises
        ------
        SlideError
            If the slide cannot be opened again, or has more than `MOST_DAMAGED` damaged tiles.
        """
        with self._lock:
            parts = list(self._parts(window))
            if not any(tile in self._damaged[window.level] for tile, _, _ in parts):
                image = self._try(window)
                if image is not None:
                    return image
            out = Image.new("RGBA", window.size)
            for tile, part, at in parts:
                if tile not in self._damaged[window.level]:
                    self._read_part(out, tile, part, at)
            return out

    def _parts(self, window: OpenSlideWindow) -> Iterator[tuple[tuple[int, int], OpenSlideWindow, tuple[int, int]]]:
        """Yield row and column of each tile in a window, its part of the window, and the part's place in it."""
        level, (width, height) = self._levels[window.level], self._tiles[window.level]
        left, top = (value / level.downsample for value in window.location)
        for row in _tiles_along(top, window.size[1], height, level.height):
            for column in _tiles_along(left, window.size[0], width, level.width):
                x, x_end = _overlap(left, window.size[0], column * width, width)
                y, y_end = _overlap(top, window.size[1], row * height, height)
                if x < x_end and y < y_end:
                    yield (row, column), _part(window, level, x, y, x_end - x, y_end - y), (x, y)

    def _read_part(self, out: Image.Image, tile: tuple[int, int], part: OpenSlideWindow, at: tuple[int, int]) -> None:
        """Paste the part of a window that lies in a tile, or note that the tile does not decode."""
        image = self._try(part)
        if image is None and min(part.size) > 2 * INSET_PX:
            level = self._levels[part.level]
            size = part.size[0] - 2 * INSET_PX, part.size[1] - 2 * INSET_PX
            image = self._try(_part(part, level, INSET_PX, INSET_PX, *size))
            at = at[0] + INSET_PX, at[1] + INSET_PX
        if image is not None:
            out.paste(image, at)
            return
        self._damaged[part.level].add(tile)
        if self.count > MOST_DAMAGED:
            raise SlideError(
                self._path,
                f"more than {MOST_DAMAGED} tiles do not decode; the file is damaged, copy it again from its source",
            )

    def _try(self, window: OpenSlideWindow) -> Image.Image | None:
        """Return RGBA pixels, or None if they do not decode."""
        if self._handle is None:
            self._handle = self._open()
        try:
            return self._handle.read_region(window.location, window.level, window.size).convert("RGBA")
        except Exception:  # OpenSlide and the decoders raise many kinds; the tile is counted
            handle, self._handle = self._handle, None
            handle.close()
            return None

    def close(self) -> None:
        """Close the file. It is opened again for the next window."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_handle")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _tiles_along(start: float, length: int, tile: int, level: int) -> range:
    """Return the tiles, along one axis, that a stretch of `length` pixels from `start` on touches."""
    first, last = max(0.0, start), min(float(level), start + length)
    return range(int(first + 1e-6) // tile, -(-int(np.ceil(last - 1e-6)) // tile) if last > first else 0)


def _overlap(start: float, length: int, tile: int, side: int) -> tuple[int, int]:
    """Return first and last pixel of a window, along one axis, that lie in a tile."""
    first, last = (int(np.ceil(edge - start - 1e-6)) for edge in (tile, tile + side))
    return max(0, first), min(length, last)


def _part(window: OpenSlideWindow, level: Level, x: int, y: int, width: int, height: int) -> OpenSlideWindow:
    """Return a rectangle of a window, in its pixels."""
    location = round(window.location[0] + x * level.downsample), round(window.location[1] + y * level.downsample)
    return replace(window, location=location, size=(width, height))
