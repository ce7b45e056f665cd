"""Which reader a slide's pixels come by: tile by tile where that proves to give OpenSlide's pixels, else OpenSlide."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.geometry import BoxLevel0, Corner, Level, PixelWindow, pixel_aligned_corner
from napari_lrmil.core.slides.jpeg_tiles import JpegTiles, Page, UnsupportedTilingError, find_pages
from napari_lrmil.core.slides.resampling import Pixels, area_average, composite_on_white

if TYPE_CHECKING:
    from napari_lrmil.core.slides.openslide_handle import Handle

AUTO, OPENSLIDE, TILES = READERS = ("auto", "openslide", "tiles")
ASKED = "asked for"  # the reason, where a caller insists on OpenSlide
VENDORS = ("aperio", "generic-tiff")  # others place their tiles by rules of their own
PROOF_PX = 64  # side of what is compared within a tile
INTERPOLATED = 2  # grey levels by which two ways to interpolate may differ
REDUCED_MEAN = 1.0  # grey levels by which reduced tiles may differ from area averages in the mean


def require_reader(name: str) -> None:
    """Raise `ConfigError` for a reader that there is not."""
    if name not in READERS:
        raise ConfigError(f"the reader {name!r} is unknown; expected {', '.join(READERS)}")


@dataclass(frozen=True)
class ReaderChoice:
    """How a slide's pixels are read, ``tiles`` or ``openslide``, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class TileRead:
    """Pixels of a window, the window, and how many native pixels of the file were asked for."""

    pixels: Pixels
    window: PixelWindow
    asked: int


class TileReader:
    """Reads a slide's windows from its JPEG tiles, once they have been compared with OpenSlide's.

    Nothing is opened before the first window is asked for. Then each level is compared on a few tiles, before its first
    window; one difference, and the slide is OpenSlide's for good. Safe from several threads, picklable.

    Parameters
    ----------
    path, levels, vendor
        The slide as OpenSlide tells it.
    open_reference
        Opens the slide with OpenSlide. A handle of its own is compared with: one that met a damaged tile is useless.
    refused
        Why the tiles are not to be tried at all.
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
        self._unsuitable = self._refused
        self._tiles: JpegTiles | None = None
        self._compared: dict[int, int] = {}  # level -> tiles
        self._reducible: dict[tuple[int, int], bool] = {}  # level and scale -> whether that is near an area average
        self._windows = 0  # that were read here
        self._left = 0  # windows that were left to OpenSlide
        self._decoded_before = 0  # pixels, by tiles that were closed since

    @property
    def choice(self) -> ReaderChoice:
        """How windows have been read so far; where none was, the levels are compared now."""
        with self._lock:
            if not self._compared:
                for level in self._levels:
                    self._ready(level)
            if self._unsuitable is None:
                return ReaderChoice(TILES, self._told())
            before = f"; {self._windows} windows had been read tile by tile until then" if self._windows else ""
            return ReaderChoice(OPENSLIDE, f"{self._unsuitable}{before}")

    @property
    def refused(self) -> str | None:
        """Why tiles are not read; None as long as they are."""
        return self._unsuitable

    @property
    def pixels_decoded(self) -> int:
        """Native pixels of the tiles that were decoded so far."""
        with self._lock:
            return self._decoded_before + (0 if self._tiles is None else self._tiles.pixels_decoded)

    def _told(self) -> str:
        told = f"the pixels are OpenSlide's on {sum(self._compared.values())} tiles compared"
        reduced = sorted({scale for (_, scale), near in self._reducible.items() if near})
        if reduced:
            told += f"; where a level is missing, decoded at 1/{', 1/'.join(map(str, reduced))}"
        return f"{told}; {self._left} windows were left to OpenSlide" if self._left else told

    def read(self, box: BoxLevel0, level: Level, scale: int = 1) -> TileRead | None:
        """Return the smallest window of `level` around `box`; None where OpenSlide is to be asked.

        Parameters
        ----------
        box, level
            What is asked for.
        scale
            By how much the level may be reduced while it is decoded. It is not at the slide's edge, nor where a pixel
            would be cut or that proves to be far from an area average.
        """
        tiles = self._ready(level)
        if tiles is None:
            return None
        found = self._reduced(tiles, box, level, scale) if scale > 1 else None
        found = found or self._whole(tiles, box, level)
        with self._lock:
            self._windows += found is not None
            self._left += found is None
        return found

    def _whole(self, tiles: JpegTiles, box: BoxLevel0, level: Level) -> TileRead | None:
        window = PixelWindow.around(box, level)
        pixels = tiles.read(level.index, window)
        return None if pixels is None else TileRead(pixels, window, window.pixels_inside(level))

    def _reduced(self, tiles: JpegTiles, box: BoxLevel0, level: Level, scale: int) -> TileRead | None:
        virtual = level.reduced(scale)
        window = PixelWindow.around(box, virtual)
        if not window.whole or not window.within(virtual) or not self._near(tiles, level, scale):
            return None
        pixels = tiles.read(level.index, window, scale)
        return None if pixels is None else TileRead(pixels, window, window.pixels_inside(virtual) * scale**2)

    def _ready(self, level: Level) -> JpegTiles | None:
        """Return the tiles once `level` has been compared; None where they are not to be used."""
        if level.index not in self._compared:
            with self._lock:
                if self._unsuitable is None and level.index not in self._compared:
                    try:
                        self._compare(level)
                    except UnsupportedTilingError as reason:
                        self._give_up(str(reason))
                    except Exception as error:  # of tifffile, of OpenSlide: whatever it is, OpenSlide is left
                        self._give_up(f"the tiles could not be compared with OpenSlide's ({error})")
        return None if self._unsuitable is not None else self._tiles

    def _compare(self, level: Level) -> None:
        if self._tiles is None:
            if self._vendor not in VENDORS:
                raise UnsupportedTilingError(
                    f"only Aperio and generic TIFF are read tile by tile, and this is {self._vendor}"
                )
            pages = find_pages(self._path, self._levels)
            self._tiles = JpegTiles(self._path, pages, sparse_is_white=self._vendor == "generic-tiff")
        self._compared[level.index] = verify_against_openslide(self._tiles, level, self._open_reference(self._path))

    def _near(self, tiles: JpegTiles, level: Level, scale: int) -> bool:
        with self._lock:
            key = level.index, scale
            if key not in self._reducible:
                self._reducible[key] = reduced_decode_matches(tiles, level, scale)
            return self._reducible[key]

    def _give_up(self, reason: str) -> None:
        self._unsuitable = reason  # the tiles stay open: another thread may be reading a level that was compared

    def close(self) -> None:
        """Give the file back; later windows are OpenSlide's."""
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
    """Return on how many tiles of a level the pixels are those of `reference`, which is closed after.

    Bit for bit where OpenSlide shows the pixels as they are. Where a level's downsample is no whole number it
    interpolates between them, and is compared with the same done here.

    Raises
    ------
    UnsuitableError
        Where a pixel differs, or there was none to compare.
    """
    page, compared = tiles.pages[level.index], 0
    try:
        for index in probe_tiles(page):
            x, y = (pixel_aligned_corner(*span, level.downsample) for span in _spans(page, index))
            window = _around(page, x, y)
            mine = tiles.read(level.index, window)
            if mine is None:  # nothing was scanned, or it is damaged: OpenSlide is asked for that part anyway
                continue
            size = (max(1, window.width - 1), max(1, window.height - 1))  # a level may be one pixel wide
            theirs = composite_on_white(reference.read_region((x.level0, y.level0), level.index, size))
            _require_same(mine, theirs, x, y, level)
            compared += 1
    finally:
        reference.close()
    if not compared:
        raise UnsupportedTilingError(f"level {level.index} has no tile that could be compared with OpenSlide's")
    return compared


def probe_tiles(page: Page) -> list[int]:
    """Return a few tiles: three corners, the middle, and the one of most bytes, for glass hides many a mistake."""
    last = page.columns * page.rows - 1
    middle = page.rows // 2 * page.columns + page.columns // 2
    return sorted({0, page.columns - 1, middle, last, page.counts.index(max(page.counts))})


def _spans(page: Page, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return between which pixels, across and down, the corner of what is compared in a tile may lie.

    Nothing at a tile's border: there OpenSlide lets neighbours show through where it interpolates.
    """
    row, column = divmod(index, page.columns)
    return _span(column, page.coding.width, page.width), _span(row, page.coding.height, page.height)


def _span(place: int, side: int, whole: int) -> tuple[int, int]:
    start, stop = max(0, min(place * side, whole - 3)), min((place + 1) * side, whole)
    return start, max(start, stop - PROOF_PX - 2)


def _around(page: Page, x: Corner, y: Corner) -> PixelWindow:
    """Return what is compared, and a pixel more right and below to interpolate with."""
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
    """Return whether a few tiles, reduced while they are decoded, are near the area averages of the same pixels."""
    page, differences = tiles.pages[level.index], []
    for index in probe_tiles(page):
        row, column = divmod(index, page.columns)
        small = _tile_window(column, row, page.coding.width // scale, page.coding.height // scale)
        large = _tile_window(column, row, page.coding.width, page.coding.height)
        if not large.within(level):  # what lies beyond the slide is white in one and the tile's own in the other
            continue
        mine, native = tiles.read(level.index, small, scale), tiles.read(level.index, large)
        if mine is not None and native is not None:
            average = area_average(native, large, (small.width, small.height))
            differences.append(float(np.abs(mine.astype(np.float32) - average).mean()))
    return bool(differences) and max(differences) <= REDUCED_MEAN


def _tile_window(column: int, row: int, width: int, height: int) -> PixelWindow:
    return PixelWindow(column * width, row * height, width, height, 0.0, 0.0, float(width), float(height))
