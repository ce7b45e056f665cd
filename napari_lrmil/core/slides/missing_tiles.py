"""Tiles without pixels: not stored, as the tables of the file say, or damaged, as the reads of windows show.

The tables are TIFF byte counts and DICOM frame positions. Formats whose levels are sparse by design (MRXS, SCN) and
formats without such a table are not judged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import Level, OpenSlideWindow
from napari_lrmil.core.slides.openslide_handle import Handle
from napari_lrmil.core.slides.pixel_source import ORIENTATIONS, UPRIGHT
from napari_lrmil.core.slides.resolution import number

APERIO = "aperio"
# Formats of OpenSlide whose pages are levels, tile by tile. A level without a page of its size is not judged.
TIFF_VENDORS = (APERIO, "generic-tiff", "philips", "trestle")

MAX_TILES = 10**7  # of a DICOM level

BLOCK_PX = 256  # side of the squares that are tried one by one if the tiles are not known
LEAST_PX = 128  # thinner tiles are tried several at once
INSET_PX = 2  # at a fractional downsample OpenSlide reads this far into the neighbouring tiles
MOST_DAMAGED = 2000  # tiles; each costs opening the slide again

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TileMap:
    """Tiles of a level that have no pixels: not stored, or damaged.

    Attributes
    ----------
    level
        The level.
    tile
        Width and height of a tile in stored pixels.
    is_missing
        (rows, columns) of tiles as they are stored.
    orientation
        TIFF's code of how the picture is stored.
    """

    level: Level
    tile: tuple[int, int]
    is_missing: Mask
    orientation: int = UPRIGHT

    def numbers(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int32]:
        """Return the (len(y), len(x)) tiles, counted row by row, at level-0 pixels; -1 outside the level."""
        swap, flip_x, flip_y = ORIENTATIONS[self.orientation]
        across, is_in_x = self._places(x, self.level.width, flip=flip_x)
        down, is_in_y = self._places(y, self.level.height, flip=flip_y)
        columns, rows = (down, across) if swap else (across, down)
        columns, rows = columns // self.tile[0], rows // self.tile[1]
        total = rows[None, :] * self.is_missing.shape[1] + columns[:, None]  # of a swapped picture
        if not swap:
            total = rows[:, None] * self.is_missing.shape[1] + columns[None, :]
        numbers: NDArray[np.int32] = np.where(is_in_y[:, None] & is_in_x[None, :], total, np.int32(-1))
        return numbers

    def _places(self, at: NDArray[np.float64], size: int, *, flip: bool) -> tuple[NDArray[np.int32], Mask]:
        places = np.floor(at / self.level.downsample).astype(np.int32)
        is_inside = (places >= 0) & (places < size)
        places = np.clip(places, 0, size - 1)
        return (size - 1 - places if flip else places), is_inside

    def at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Mask:
        """Return the (len(y), len(x)) mask of places without pixels, at level-0 pixels."""
        numbers = self.numbers(x, y)
        missing: Mask = self.is_missing.ravel()[numbers] & (numbers >= 0)
        return missing


@dataclass(frozen=True, eq=False)
class TileTable:
    """Offsets and byte counts of the tiles of a page, row by row, and the size of a tile."""

    tile: tuple[int, int]
    offsets: Sequence[int]
    counts: Sequence[int]

    def missing(self, level: Level, orientation: int = UPRIGHT) -> TileMap | None:
        """Return the tiles without bytes; None if there are none. `level` is upright, the table as stored."""
        if 0 not in self.counts and 0 not in self.offsets:
            return None
        size = (level.height, level.width) if ORIENTATIONS[orientation][0] else (level.width, level.height)
        columns, rows = (-(-side // tile) for side, tile in zip(size, self.tile, strict=True))
        if len(self.counts) % (columns * rows) or len(self.counts) != len(self.offsets):  # the readers judge it
            return None
        empty = (np.asarray(self.counts) == 0) | (np.asarray(self.offsets) == 0)
        is_missing = empty.reshape(-1, rows, columns).all(axis=0)  # planes of colours have tiles of their own
        return TileMap(level, self.tile, is_missing, orientation) if is_missing.any() else None


def missing_in_tiff(tables: Sequence[TileTable | None], levels: Sequence[Level], vendor: str) -> list[TileMap | None]:
    """Return the tiles that each level of a TIFF lacks in OpenSlide's view; their map may be of another level."""
    maps = [None if table is None else table.missing(level) for table, level in zip(tables, levels, strict=True)]
    # Over missing tiles of Aperio, and what lies above these in coarser levels, OpenSlide shows the next finer level.
    return [maps[0]] * len(maps) if vendor == APERIO else maps


def read_tile_tables(path: Path, levels: Sequence[Level]) -> list[TileTable | None]:
    """Return the table of each level: that of the only tiled page of its size, else None."""
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
            return [_table_of_size(pages, level.width, level.height) for level in levels]
    except Exception:  # tifffile raises many kinds on tables that OpenSlide accepts; they do not tell then
        return [None] * len(levels)


def _table_of_size(pages: Sequence[Any], width: int, height: int) -> TileTable | None:
    fits = [page for page in pages if (page.imagewidth, page.imagelength) == (width, height)]
    if len(fits) != 1:
        return None
    page = fits[0]
    return TileTable((int(page.tilewidth), int(page.tilelength)), page.dataoffsets, page.databytecounts)


def missing_in_dicom(path: Path, level: Level) -> TileMap | None:
    """Return the tiles of a level for which a DICOM series has no frame; None if all are there or it does not tell.

    Parameters
    ----------
    path
        A file of the series. The others lie in its folder.
    level
        The level.
    """
    from napari_lrmil.core.slides.dicom_headers import dicom_series, read_frame_layout

    series = dicom_series(path)
    for file in sorted(path.parent.iterdir()):
        layout = read_frame_layout(file) if file.is_file() else None
        if layout is None or layout.series != series or layout.size != (level.width, level.height):
            continue
        columns, rows = (-(-side // tile) for side, tile in zip(layout.size, layout.tile, strict=True))
        if layout.frames >= columns * rows or columns * rows > MAX_TILES:
            return None
        is_missing = np.ones((rows, columns), np.bool_)
        for x, y in layout.frame_positions():
            is_missing[(y - 1) // layout.tile[1], (x - 1) // layout.tile[0]] = False
        return None if is_missing.all() else TileMap(level, layout.tile, is_missing)
    return None


# ---------------------------------------------------------------- damaged tiles


def tile_sizes(properties: Mapping[str, str], file_levels: Sequence[int]) -> list[tuple[int, int]]:
    """Return width and height of the tiles that are tried one by one, of levels by their number in the file."""
    return [
        (_side(properties, f"openslide.level[{i}].tile-width"), _side(properties, f"openslide.level[{i}].tile-height"))
        for i in file_levels
    ]


def _side(properties: Mapping[str, str], name: str) -> int:
    tile = int(number(properties.get(name)) or BLOCK_PX)
    return tile * -(-LEAST_PX // tile)


class DamagedTileError(Exception):
    """A stored tile does not decode. The handle can be used further."""


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
        except DamagedTileError:
            return None
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
