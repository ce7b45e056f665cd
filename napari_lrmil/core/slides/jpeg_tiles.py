"""Pixels of Aperio and generic TIFF slides from the bytes of their JPEG tiles, without a slide library in between.

`opentile` reads raw tiles too. It would replace about 130 of the 680 lines of tile reading, the search for pages, and
needs Python 3.12 and libturbojpeg as a system library. The check against OpenSlide, the detection of damaged tiles and
the reduced decoding would stay here.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.byte_lru import ByteLru
from napari_lrmil.core.geometry import Level, PixelWindow
from napari_lrmil.core.slides.jpeg_decoder import Coding, decode, make_room
from napari_lrmil.core.slides.resampling import Pixels

TILE_BYTES = 64 * 2**20  # of decoded tiles for one slide: two rows of tiles of a slide of 40,000 px across
_JPEG, _RGB, _YCBCR = 7, 2, 6  # TIFF's numbers of a compression and of two colour spaces

TileKey = tuple[int, int, int]  # level, tile, scale


class UnsupportedTilingError(Exception):
    """Why a file is not read tile by tile: a clause for people, without the path."""


@dataclass(frozen=True, eq=False)
class Page:
    """One level's tiles in the file.

    Attributes
    ----------
    width, height
        Of the level in pixels.
    coding
        What its tiles share.
    offsets, counts
        Where each tile starts and how many bytes it has, row by row. No bytes: nothing was scanned there.
    """

    width: int
    height: int
    coding: Coding
    offsets: Sequence[int]
    counts: Sequence[int]

    @property
    def columns(self) -> int:
        """Tiles across."""
        return -(-self.width // self.coding.width)

    @property
    def rows(self) -> int:
        """Tiles down."""
        return -(-self.height // self.coding.height)


def find_pages(path: Path, levels: Sequence[Level]) -> tuple[Page, ...]:
    """Return the page of each level.

    Raises
    ------
    UnsuitableError
        Where a level is not there as JPEG tiles.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
        return tuple(_page_of(level, pages) for level in levels)


def _page_of(level: Level, pages: Sequence[Any]) -> Page:
    """Return the one page of a level's size; which of two is meant only OpenSlide knows."""
    fits = [page for page in pages if (page.imagewidth, page.imagelength) == (level.width, level.height)]
    if len(fits) != 1:
        raise UnsupportedTilingError(f"level {level.index} is {len(fits)} tiled pages of the file, not one")
    page = fits[0]
    if page.compression != _JPEG:
        raise UnsupportedTilingError(
            f"level {level.index} is compressed by TIFF's scheme {int(page.compression)}, not JPEG"
        )
    layout = (page.samplesperpixel, page.bitspersample, page.planarconfig, getattr(page, "imagedepth", 1))
    if page.photometric not in (_RGB, _YCBCR) or layout != (3, 8, 1, 1):
        raise UnsupportedTilingError(f"level {level.index} is not RGB or YCbCr of 8 bits, pixel by pixel")
    if page.tilewidth % 8 or page.tilelength % 8:  # they could not be reduced
        raise UnsupportedTilingError(f"level {level.index} has tiles of {page.tilewidth} x {page.tilelength} px")
    coding = Coding(page.jpegtables, page.photometric == _YCBCR, page.tilewidth, page.tilelength)
    found = Page(level.width, level.height, coding, page.dataoffsets, page.databytecounts)
    if not len(found.offsets) == len(found.counts) == found.columns * found.rows:
        raise UnsupportedTilingError(
            f"level {level.index} has {len(found.counts)} tiles, not {found.columns} x {found.rows}"
        )
    return found


class JpegTiles:
    """An open file of JPEG tiles; reads may come from several threads, but none while it is closed.

    A tile of which a window wants a part only is kept for its neighbours, so that patches on a grid of their own decode
    each tile once. One that a window uses up is not, so that each thread needs memory for one such tile only.

    Parameters
    ----------
    path, pages
        The file, and a page for each level.
    sparse_is_white
        Whether nothing is shown where a tile has no bytes, as OpenSlide does for generic TIFF; it fills such a tile of
        an Aperio slide from another level.
    max_bytes
        Of decoded tiles that are kept for the next window.
    """

    def __init__(
        self, path: Path, pages: Sequence[Page], *, sparse_is_white: bool = False, max_bytes: int = TILE_BYTES
    ) -> None:
        self.pages = tuple(pages)
        self._sparse_is_white = sparse_is_white
        self._file = _Bytes(path)
        self._kept = _TileMemory(max_bytes)
        self._passing = _Passing()

    def read(self, level: int, window: PixelWindow, scale: int = 1) -> Pixels | None:
        """Return a window of a level, or of what decoding at 1 / `scale` makes of it, white beyond the level.

        None where a tile of it has to be left to OpenSlide.
        """
        page = self.pages[level]
        width, height = page.coding.width // scale, page.coding.height // scale  # of a tile
        left, right = max(0, window.x), min(page.width // scale, window.x + window.width)
        top, bottom = max(0, window.y), min(page.height // scale, window.y + window.height)
        out = np.empty((window.height, window.width, 3), np.uint8)
        if (right - left, bottom - top) != (window.width, window.height):
            out.fill(255)
        if left >= right or top >= bottom:
            return out
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                x, y = column * width, row * height
                inside = left <= x and x + width <= right and top <= y and y + height <= bottom
                make = partial(self._decode, room=self._room(page.coding) if inside and scale == 1 else None)
                tile = self._kept.get((level, row * page.columns + column, scale), make, keep=not inside)
                if tile is None:
                    return None
                x0, x1, y0, y1 = max(left, x), min(right, x + width), max(top, y), min(bottom, y + height)
                to = out[y0 - window.y : y1 - window.y, x0 - window.x : x1 - window.x]
                to[...] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return out

    @property
    def pixels_decoded(self) -> int:
        """Native pixels of the tiles that were decoded, each time they were, whatever they were reduced to."""
        made = self._kept.made
        return sum(page.coding.width * page.coding.height * made[level] for level, page in enumerate(self.pages))

    def _room(self, coding: Coding) -> Pixels:
        size, rooms = (coding.width, coding.height), self._passing.rooms
        if size not in rooms:
            rooms[size] = make_room(coding)
        return rooms[size]

    def _decode(self, key: TileKey, room: Pixels | None) -> Pixels | None:
        level, index, scale = key
        page = self.pages[level]
        offset, count = page.offsets[index], page.counts[index]
        if count == 0:
            shape = (page.coding.height // scale, page.coding.width // scale, 3)
            return np.full(shape, 255, np.uint8) if self._sparse_is_white else None
        data = self._file.read(offset, count)
        return decode(data, page.coding, scale, room) if len(data) == count else None

    def close(self) -> None:
        """Give the file and the memory back."""
        self._file.close()
        self._kept.clear()


class _Passing(threading.local):
    """Room for the pixels of a tile that is not kept, for each thread its own."""

    def __init__(self) -> None:
        self.rooms: dict[tuple[int, int], Pixels] = {}


class _Bytes:
    """Bytes of a file by position, for several threads at once where the system can do that."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, os.close, self._file)  # a slide that nobody closes gives its file back too

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes, or fewer at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(self._file, count, offset)
        with self._lock:  # Windows has one position for all
            os.lseek(self._file, offset, os.SEEK_SET)
            return os.read(self._file, count)


class _TileMemory:
    """The most recently used tiles; one that several threads want is made by the first and waited for by the others."""

    def __init__(self, max_bytes: int) -> None:
        self.made: Counter[int] = Counter()  # level -> tiles
        self._tiles: ByteLru[TileKey, Pixels] = ByteLru(max_bytes)
        self._making: set[TileKey] = set()
        self._state = threading.Condition()

    def get(self, key: TileKey, make: Callable[[TileKey], Pixels | None], *, keep: bool) -> Pixels | None:
        """Return a tile, made where it is not there, and kept where `keep` says that a next window may want it."""
        with self._state:
            self._state.wait_for(lambda: key not in self._making)
            tile = self._tiles.get(key)
            if tile is not None:
                return tile
            self._making.add(key)
        try:
            tile = make(key)
            if tile is not None and keep:
                self._tiles.put(key, tile)
        finally:
            with self._state:
                self._making.discard(key)
                self.made[key[0]] += tile is not None
                self._state.notify_all()
        return tile

    def clear(self) -> None:
        self._tiles.clear()
