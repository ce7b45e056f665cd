"""Tiles that a slide file does not store, from the tables of the file: TIFF byte counts and DICOM frame positions.

Formats whose levels are sparse by design (MRXS, SCN) and formats without such a table are not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.geometry import Level
from napari_lrmil.core.slides.pixel_source import ORIENTATIONS, UPRIGHT

APERIO = "aperio"
# Formats of OpenSlide whose pages are levels, tile by tile. A level without a page of its size is not judged.
TIFF_VENDORS = (APERIO, "generic-tiff", "philips", "trestle")

MAX_TILES = 10**7  # of a DICOM level

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
