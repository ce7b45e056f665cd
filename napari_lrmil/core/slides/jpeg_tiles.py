"""JPEG tiles of Aperio and generic TIFF slides, decoded directly from the bytes of the file.

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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.geometry import Level, PixelWindow
from napari_lrmil.core.slides.byte_lru import ByteLru
from napari_lrmil.core.slides.jpeg_decoder import Coding, allocate_tile, decode
from napari_lrmil.core.slides.missing_tiles import TileTable
from napari_lrmil.core.slides.resampling import Pixels

TILE_BYTES = 64 * 2**20  # most decoded tiles of one slide: two rows of tiles of a slide 40,000 px wide
FEWEST_TILE_BYTES = 8 * 2**20  # the least that they are limited to: 42 tiles of 256 x 256 px
_JPEG, _RGB, _YCBCR = 7, 2, 6  # TIFF codes: compression, photometric interpretations

TileKey = tuple[int, int, int]  # level, tile, scale


class UnsupportedTilingError(Exception):
    """A file whose tiles cannot be read directly. The message is a clause that states the reason."""


@dataclass(frozen=True, eq=False)
class Page:
    """Tiles of one level in the file.

    Attributes
    ----------
    width, height
        Size of the level in pixels.
    coding
        Properties that all tiles share.
    offsets, counts
        Byte offset and byte count of each tile, row by row. A count of 0 means that the area was not scanned.
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

    @property
    def table(self) -> TileTable:
        """Places of the tiles in the file."""
        return TileTable((self.coding.width, self.coding.height), self.offsets, self.counts)


def find_pages(path: Path, levels: Sequence[Level]) -> tuple[Page, ...]:
    """Return the page of each level.

    Raises
    ------
    UnsupportedTilingError
        If a level is not stored as JPEG tiles.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        len(file.pages)  # lists all pages; iteration alone would go round for ever if one leads back to an earlier one
        pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
        return tuple(_page_of(level, pages) for level in levels)


def _page_of(level: Level, pages: Sequence[Any]) -> Page:
    """Return the page of a level's size. Two pages of one size are refused: only OpenSlide knows which it uses."""
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
    if page.tilewidth % 8 or page.tilelength % 8:  # the decoder could not reduce them
        raise UnsupportedTilingError(f"level {level.index} has tiles of {page.tilewidth} x {page.tilelength} px")
    coding = Coding(page.jpegtables, page.photometric == _YCBCR, page.tilewidth, page.tilelength)
    tiles = Page(level.width, level.height, coding, page.dataoffsets, page.databytecounts)
    if not len(tiles.offsets) == len(tiles.counts) == tiles.columns * tiles.rows:
        raise UnsupportedTilingError(
            f"level {level.index} has {len(tiles.counts)} tiles, not {tiles.columns} x {tiles.rows}"
        )
    return tiles


def spread_missing_tiles(pages: Sequence[Page]) -> tuple[Page, ...]:
    """Return pages of an Aperio slide without the tiles that overlap a missing tile of the next finer page.

    OpenSlide does not trust what Aperio stored there, and shows the finer page.
    """
    spread = [pages[0]]
    for page in pages[1:]:
        counts, finer = list(page.counts), spread[-1]
        across, down = finer.width / page.width, finer.height / page.height
        for index in (i for i, count in enumerate(finer.counts) if count == 0):
            row, column = divmod(index, finer.columns)
            columns = _tiles_over(column * finer.coding.width / across, finer.coding.width / across, page.coding.width)
            for above in _tiles_over(row * finer.coding.height / down, finer.coding.height / down, page.coding.height):
                for i in columns:
                    if above < page.rows and i < page.columns:
                        counts[above * page.columns + i] = 0
        spread.append(replace(page, counts=counts))
    return tuple(spread)


def _tiles_over(start: float, length: float, tile: int) -> range:
    """Return the tiles, along one axis, that a stretch of pixels touches."""
    return range(int(start // tile), int(-(-(start + length) // tile)))


class JpegTiles:
    """Open file of JPEG tiles. Reads are thread-safe, but must not overlap `close`.

    A tile that a window covers in part is cached, because neighbouring windows need the rest of it. Patches on a grid
    then decode each tile once. A tile that a window covers whole is not cached, and each thread reuses one buffer for
    such tiles.

    The cache holds the rows of tiles that a row of windows needs. More would hardly be needed again, and memory that is
    touched for the first time costs page faults: 49 for a tile of 256 x 256 px, a quarter of the time of its decoding.

    Parameters
    ----------
    path, pages
        The file, and one page per level.
    sparse_is_white
        Show tiles without bytes as white, as OpenSlide does for generic TIFF. In Aperio slides OpenSlide fills them
        from another level.
    max_bytes
        Limit of the cache of decoded tiles.
    """

    def __init__(
        self, path: Path, pages: Sequence[Page], *, sparse_is_white: bool = False, max_bytes: int = TILE_BYTES
    ) -> None:
        self.pages = tuple(pages)
        self._sparse_is_white = sparse_is_white
        self._file = _Bytes(path)
        self._cache = _TileCache(max_bytes)
        self._buffers = _ThreadBuffers()

    def read(self, level: int, window: PixelWindow, scale: int = 1, memory: Pixels | None = None) -> Pixels | None:
        """Return the pixels of a window, white outside the level, or None if OpenSlide has to read one of its tiles.

        Parameters
        ----------
        level
            Index of the level.
        window
            In pixels of the level reduced by `scale`.
        scale
            Reduction while decoding: 1, 2, 4 or 8.
        memory
            Array that is filled and returned if it has the window's shape. Otherwise a new one is returned.
        """
        page = self.pages[level]
        width, height = page.coding.width // scale, page.coding.height // scale  # of a decoded tile
        left, right = max(0, window.x), min(page.width // scale, window.x + window.width)
        top, bottom = max(0, window.y), min(page.height // scale, window.y + window.height)
        shape = window.height, window.width, 3
        out = memory if memory is not None and memory.shape == shape else np.empty(shape, np.uint8)
        if (right - left, bottom - top) != (window.width, window.height):
            out.fill(255)
        if left >= right or top >= bottom:
            return out
        rows = -(-window.height // height) + 1  # of tiles that a window of this height can touch
        self._cache.reserve(rows * page.columns * width * height * 3)
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                x, y = column * width, row * height
                inside = left <= x and x + width <= right and top <= y and y + height <= bottom
                make = partial(self._decode, buffer=self._buffer(page.coding) if inside and scale == 1 else None)
                tile = self._cache.get((level, row * page.columns + column, scale), make, keep=not inside)
                if tile is None:
                    return None
                x0, x1, y0, y1 = max(left, x), min(right, x + width), max(top, y), min(bottom, y + height)
                target = out[y0 - window.y : y1 - window.y, x0 - window.x : x1 - window.x]
                target[...] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return out

    @property
    def pixels_decoded(self) -> int:
        """Native pixels of all decoded tiles, repeats included, whatever the reduction."""
        decoded = self._cache.decoded
        return sum(page.coding.width * page.coding.height * decoded[level] for level, page in enumerate(self.pages))

    def _buffer(self, coding: Coding) -> Pixels:
        size, by_size = (coding.width, coding.height), self._buffers.by_size
        if size not in by_size:
            by_size[size] = allocate_tile(coding)
        return by_size[size]

    def _decode(self, key: TileKey, buffer: Pixels | None) -> Pixels | None:
        level, index, scale = key
        page = self.pages[level]
        offset, count = page.offsets[index], page.counts[index]
        if count == 0:
            shape = (page.coding.height // scale, page.coding.width // scale, 3)
            return np.full(shape, 255, np.uint8) if self._sparse_is_white else None
        data = self._file.read(offset, count)
        return decode(data, page.coding, scale, buffer) if len(data) == count else None

    def close(self) -> None:
        """Close the file and free the cache."""
        self._file.close()
        self._cache.clear()


class _ThreadBuffers(threading.local):
    """One buffer per thread and tile size, for tiles that are not cached."""

    def __init__(self) -> None:
        self.by_size: dict[tuple[int, int], Pixels] = {}


class _Bytes:
    """Bytes of a file by position, for concurrent threads. Windows reads one at a time."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, os.close, self._file)  # closes the file of a slide that is never closed

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes, or fewer at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(self._file, count, offset)
        with self._lock:  # Windows has no pread: all threads share one position
            os.lseek(self._file, offset, os.SEEK_SET)
            return os.read(self._file, count)


class _TileCache:
    """Least-recently-used cache of tiles. If several threads need a tile, one decodes it and the others wait."""

    def __init__(self, max_bytes: int) -> None:
        self.decoded: Counter[int] = Counter()  # level -> number of tiles
        self._max_bytes = max_bytes
        self._tiles: ByteLru[TileKey, Pixels] = ByteLru(min(max_bytes, FEWEST_TILE_BYTES))
        self._in_progress: set[TileKey] = set()
        self._state = threading.Condition()

    def get(self, key: TileKey, make: Callable[[TileKey], Pixels | None], *, keep: bool) -> Pixels | None:
        """Return a tile, decoded by `make` if it is not cached. `keep` caches it for later windows."""
        with self._state:
            while key in self._in_progress:
                self._state.wait()
            tile = self._tiles.get(key)
            if tile is not None:
                return tile
            self._in_progress.add(key)
        try:
            tile = make(key)
            if tile is not None and keep:
                self._tiles.put(key, tile)
        finally:
            with self._state:
                self._in_progress.discard(key)
                self.decoded[key[0]] += tile is not None
                self._state.notify_all()
        return tile

    def reserve(self, needed: int) -> None:
        """Raise the limit to `needed` bytes if it is lower, but not above `max_bytes`."""
        if needed > self._tiles.max_bytes:
            self._tiles.max_bytes = min(self._max_bytes, needed)

    def clear(self) -> None:
        self._tiles.clear()
