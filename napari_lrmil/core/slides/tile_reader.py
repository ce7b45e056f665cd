"""Reader of a slide's windows: from its JPEG tiles if they prove to be OpenSlide's pixels, else from OpenSlide."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.geometry import BoxLevel0, Corner, Level, PixelWindow, pixel_aligned_corner
from napari_lrmil.core.slides.jpeg_tiles import (
    JpegTiles,
    Page,
    UnsupportedTilingError,
    find_pages,
    spread_missing_tiles,
)
from napari_lrmil.core.slides.missing_tiles import APERIO, TileTable
from napari_lrmil.core.slides.resampling import Pixels, area_average, composite_on_white

if TYPE_CHECKING:
    from napari_lrmil.core.slides.openslide_handle import Handle

AUTO, OPENSLIDE, TILES = READERS = ("auto", "openslide", "tiles")
REQUESTED = "asked for"  # the reason if a caller insists on OpenSlide; stored in prediction.json
VENDORS = ("aperio", "generic-tiff")  # other vendors place tiles by rules that TIFF does not state
PROOF_PX = 64  # side of the square that is compared within a tile
INTERPOLATED = 2  # grey levels: two implementations of bilinear interpolation round differently
REDUCED_MEAN = 1.0  # grey levels, mean: a reduced decode is close to an area average, never equal


def require_reader(name: str) -> None:
    """Raise `ConfigError` if there is no reader of this name."""
    if name not in READERS:
        raise ConfigError(f"the reader {name!r} is unknown; expected {', '.join(READERS)}")


@dataclass(frozen=True)
class ReaderChoice:
    """Reader of a slide's pixels, ``tiles`` or ``openslide``, and the reason for it."""

    name: str
    reason: str


@dataclass(frozen=True)
class TileRead:
    """Pixels of a window.

    Attributes
    ----------
    pixels
        (height, width, 3) uint8.
    window
        The window, in pixels of its level.
    native_pixels
        Pixels of the file that the window covers: the unit of reading cost.
    """

    pixels: Pixels
    window: PixelWindow
    native_pixels: int


class TileReader:
    """Reader of windows from a slide's JPEG tiles, after a comparison with OpenSlide's pixels.

    The file is opened when the first window is read. Each level is compared on a few tiles before its first window.
    After one difference OpenSlide reads the whole slide. Instances are thread-safe and can be pickled.

    Parameters
    ----------
    path, levels, vendor
        The slide as OpenSlide describes it.
    open_reference
        Opens the slide with OpenSlide. The comparison has a handle of its own, because a handle that met a damaged
        tile fails from then on.
    refused
        Reason not to try the tiles at all.
    """

    def __init__(
        self,
        path: Path,
        levels: Sequence[Level],
        vendor: str,
        open_reference: Callable[[Path], Handle],
        refused: str | None = None,
    ) -> None:
        self._path, self._levels, self._vendor = path, tuple(levels), vendor
        self._open_reference = open_reference
        self._refused = refused
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._refusal = self._refused
        self._tiles: JpegTiles | None = None
        self._compared: dict[int, int] = {}  # level -> number of tiles compared
        self._reducible: dict[
            tuple[int, int], bool
        ] = {}  # (level, scale) -> a reduced decode is close to an area average
        self._windows = 0  # read from tiles
        self._left_to_openslide = 0  # windows
        self._decoded_before = 0  # pixels, by files that have been closed since

    @property
    def choice(self) -> ReaderChoice:
        """Reader in use. If no window has been read yet, the levels are compared now."""
        with self._lock:
            if not self._compared:
                for level in self._levels:
                    self._ready(level)
            if self._refusal is None:
                return ReaderChoice(TILES, self._reason())
            before = f"; {self._windows} windows had been read tile by tile until then" if self._windows else ""
            return ReaderChoice(OPENSLIDE, f"{self._refusal}{before}")

    @property
    def refused(self) -> str | None:
        """Reason why tiles are not read; None while they are."""
        return self._refusal

    @property
    def tables(self) -> list[TileTable] | None:
        """Tile table of each level; None if the tiles are not read."""
        with self._lock:
            return None if self._tiles is None else [page.table for page in self._tiles.pages]

    @property
    def pixels_decoded(self) -> int:
        """Native pixels of all tiles decoded so far."""
        with self._lock:
            return self._decoded_before + (0 if self._tiles is None else self._tiles.pixels_decoded)

    def _reason(self) -> str:
        reason = f"the pixels are OpenSlide's on {sum(self._compared.values())} tiles compared"
        scales = sorted({scale for (_, scale), is_close in self._reducible.items() if is_close})
        if scales:
            reason += f"; where a level is missing, decoded at 1/{', 1/'.join(map(str, scales))}"
        left = self._left_to_openslide
        return f"{reason}; {left} windows were left to OpenSlide" if left else reason

    def read(self, box: BoxLevel0, level: Level, scale: int = 1, memory: Pixels | None = None) -> TileRead | None:
        """Return the smallest window of `level` around `box`, or None if OpenSlide has to read it.

        Parameters
        ----------
        box, level
            Area, and the level to read it from.
        scale
            Factor by which the level may be reduced while it is decoded. The window is read in full at the slide's
            edge, if a pixel would be cut, and if the reduced decode is not close to an area average.
        memory
            Array for the pixels, used if it has the window's shape.
        """
        tiles = self._ready(level)
        if tiles is None:
            return None
        tile_read = self._read_reduced(tiles, box, level, scale, memory) if scale > 1 else None
        tile_read = tile_read or self._read_full(tiles, box, level, memory)
        with self._lock:
            self._windows += tile_read is not None
            self._left_to_openslide += tile_read is None
        return tile_read

    def _read_full(self, tiles: JpegTiles, box: BoxLevel0, level: Level, memory: Pixels | None) -> TileRead | None:
        window = PixelWindow.around(box, level)
        pixels = tiles.read(level.index, window, memory=memory)
        return None if pixels is None else TileRead(pixels, window, window.pixels_inside(level))

    def _read_reduced(
        self, tiles: JpegTiles, box: BoxLevel0, level: Level, scale: int, memory: Pixels | None
    ) -> TileRead | None:
        virtual = level.reduced(scale)
        window = PixelWindow.around(box, virtual)
        if not window.cuts_no_pixel or not window.within(virtual) or not self._is_reducible(tiles, level, scale):
            return None
        pixels = tiles.read(level.index, window, scale, memory)
        return None if pixels is None else TileRead(pixels, window, window.pixels_inside(virtual) * scale**2)

    def _ready(self, level: Level) -> JpegTiles | None:
        """Return the tiles after `level` has been compared, or None if they must not be used."""
        if level.index not in self._compared:
            with self._lock:
                if self._refusal is None and level.index not in self._compared:
                    try:
                        self._compare(level)
                    except UnsupportedTilingError as reason:
                        self._give_up(str(reason))
                    except Exception as error:  # tifffile and OpenSlide raise many kinds; OpenSlide alone remains
                        self._give_up(f"the tiles could not be compared with OpenSlide's ({error})")
        return None if self._refusal is not None else self._tiles

    def _compare(self, level: Level) -> None:
        if self._tiles is None:
            if self._vendor not in VENDORS:
                raise UnsupportedTilingError(
                    f"only Aperio and generic TIFF are read tile by tile, and this is {self._vendor}"
                )
            pages = find_pages(self._path, self._levels)
            if self._vendor == APERIO and any(0 in page.counts for page in pages):
                pages = spread_missing_tiles(pages)
            self._tiles = JpegTiles(self._path, pages, sparse_is_white=self._vendor == "generic-tiff")
        self._compared[level.index] = verify_against_openslide(self._tiles, level, self._open_reference(self._path))

    def _is_reducible(self, tiles: JpegTiles, level: Level, scale: int) -> bool:
        with self._lock:
            key = level.index, scale
            if key not in self._reducible:
                self._reducible[key] = reduced_decode_matches(tiles, level, scale)
            return self._reducible[key]

    def _give_up(self, reason: str) -> None:
        self._refusal = reason  # tiles stay open: another thread may be reading a level that passed

    def close(self) -> None:
        """Close the file. OpenSlide reads later windows."""
        with self._lock:
            self._decoded_before, tiles, self._tiles = self.pixels_decoded, self._tiles, None
        if tiles is not None:
            tiles.close()

    def __getstate__(self) -> dict[str, Any]:
        names = ("_path", "_levels", "_vendor", "_open_reference", "_refused")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def verify_against_openslide(tiles: JpegTiles, level: Level, reference: Handle) -> int:
    """Compare tiles of a level with OpenSlide's pixels and return how many were compared.

    Pixels must be equal if the level's downsample is a whole number. Otherwise OpenSlide interpolates between pixels,
    and the same interpolation of the tile must agree within `INTERPOLATED`.

    Parameters
    ----------
    tiles, level
        The tiles, and the level to compare.
    reference
        Handle of OpenSlide; it is closed afterwards.

    Raises
    ------
    UnsupportedTilingError
        If a pixel differs, or no tile could be compared.
    """
    page, compared = tiles.pages[level.index], 0
    try:
        for index in probe_tiles(page):
            x, y = (pixel_aligned_corner(*span, level.downsample) for span in _spans(page, index))
            window = _around(page, x, y)
            mine = tiles.read(level.index, window)
            if mine is None:  # not scanned, or damaged: OpenSlide reads that part anyway
                continue
            size = (max(1, window.width - 1), max(1, window.height - 1))  # a level can be one pixel wide
            theirs = composite_on_white(reference.read_region((x.level0, y.level0), level.index, size))
            _require_same(mine, theirs, x, y, level)
            compared += 1
    finally:
        reference.close()
    if not compared:
        raise UnsupportedTilingError(f"level {level.index} has no tile that could be compared with OpenSlide's")
    return compared


def probe_tiles(page: Page) -> list[int]:
    """Return the numbers of a few tiles: three corners, the middle, and the largest in bytes.

    The largest tile shows tissue. Blank glass looks the same under many decoding errors.
    """
    last = page.columns * page.rows - 1
    middle = page.rows // 2 * page.columns + page.columns // 2
    return sorted({0, page.columns - 1, middle, last, page.counts.index(max(page.counts))})


def _spans(page: Page, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the range of pixels, across and down, in which the corner of the compared square may lie.

    It excludes the tile's border, where OpenSlide's interpolation mixes in the neighbouring tile.
    """
    row, column = divmod(index, page.columns)
    return _span(column, page.coding.width, page.width), _span(row, page.coding.height, page.height)


def _span(place: int, side: int, length: int) -> tuple[int, int]:
    start, stop = max(0, min(place * side, length - 3)), min((place + 1) * side, length)
    return start, max(start, stop - PROOF_PX - 2)


def _around(page: Page, x: Corner, y: Corner) -> PixelWindow:
    """Return the square to compare, with one more pixel right and below for the interpolation."""
    width = min(PROOF_PX, page.width - x.pixel - 1) + 1
    height = min(PROOF_PX, page.height - y.pixel - 1) + 1
    return PixelWindow(x.pixel, y.pixel, width, height, 0.0, 0.0, width, height)


def _require_same(mine: Pixels, theirs: Pixels, x: Corner, y: Corner, level: Level) -> None:
    expected, allowed = mine[:-1, :-1].astype(np.float64), 0
    if x.rest + y.rest > 1e-6:
        rows = (1 - y.rest) * mine[:-1] + y.rest * mine[1:]
        expected, allowed = (1 - x.rest) * rows[:, :-1] + x.rest * rows[:, 1:], INTERPOLATED
    most = float(np.abs(expected - theirs).max())
    if most > allowed:
        raise UnsupportedTilingError(
            f"at level {level.index} the pixels differ from OpenSlide's by {most:.0f} grey levels"
        )


def reduced_decode_matches(tiles: JpegTiles, level: Level, scale: int) -> bool:
    """Return whether reduced decoding of a few tiles stays within `REDUCED_MEAN` of their area averages."""
    page, differences = tiles.pages[level.index], []
    for index in probe_tiles(page):
        row, column = divmod(index, page.columns)
        small = _tile_window(column, row, page.coding.width // scale, page.coding.height // scale)
        large = _tile_window(column, row, page.coding.width, page.coding.height)
        if not large.within(level):  # beyond the slide one is white, the other shows the tile's padding
            continue
        mine, native = tiles.read(level.index, small, scale), tiles.read(level.index, large)
        if mine is not None and native is not None:
            average = area_average(native, large, (small.width, small.height))
            differences.append(float(np.abs(mine.astype(np.float32) - average).mean()))
    return bool(differences) and max(differences) <= REDUCED_MEAN


def _tile_window(column: int, row: int, width: int, height: int) -> PixelWindow:
    return PixelWindow(column * width, row * height, width, height, 0.0, 0.0, float(width), float(height))
