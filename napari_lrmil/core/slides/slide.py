"""Whole-slide image: resolution with its source, and pixels of any region at any resolution."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.errors import ResolutionError, SlideError
from napari_lrmil.core.geometry import (
    MPP_TOLERANCE,
    Bounds,
    BoxLevel0,
    BoxUm,
    Int64,
    Level,
    Mpp,
    OpenSlideWindow,
    choose_level,
    choose_scale,
)
from napari_lrmil.core.slides.levels import LevelSelection, check_levels
from napari_lrmil.core.slides.missing_tiles import (
    APERIO,
    TIFF_VENDORS,
    DamagedTileError,
    DamagedTileReader,
    TileMap,
    missing_in_dicom,
    missing_in_tiff,
    read_tile_tables,
    tile_sizes,
)
from napari_lrmil.core.slides.openslide_handle import (
    READER,
    READER_REASON,
    READER_WARNINGS,
    TIFFFILE,
    Handle,
    Opener,
    open_with_openslide,
    slide_file,
)
from napari_lrmil.core.slides.resampling import Pixels as Pixels  # re-exported: the type of every read
from napari_lrmil.core.slides.resampling import area_average, composite_on_white
from napari_lrmil.core.slides.resolution import find_mpp, mpp_warnings, number, why_not_believed
from napari_lrmil.core.slides.slide_names import slide_name
from napari_lrmil.core.slides.slide_opener import open_slide_file
from napari_lrmil.core.slides.tile_reader import (
    AUTO,
    OPENSLIDE,
    REQUESTED,
    TILES,
    ReaderChoice,
    TileReader,
    require_reader,
)

logger = logging.getLogger(__name__)

BLOCK_PX = 1024  # side of one read of an overview, native pixels; buffers of this size are reused by malloc
FINGERPRINT_BYTES = 1 << 20  # read from each end of a file that has no quick hash
SILENT = "OME metadata, ImageJ, OpenSlide, TIFF tags, vendor comment and power are silent"
UNIT = Mpp(1.0, 1.0)  # chooses levels by level-0 pixels instead of µm


@dataclass(frozen=True)
class FinestRead:
    """Resolution of the finest level that was read, in µm per pixel, and whether and why it is finer than required."""

    mpp: float
    reason: str


class Slide:
    """An open slide and a context manager. Reads are thread-safe. A pickled slide reopens on its first read.

    Parameters
    ----------
    path
        A file that OpenSlide can open, or a folder that holds one DICOM slide.
    mpp
        µm per level-0 pixel. It overrides the file.
    remembered
        Returns the resolution that the user gave earlier for a fingerprint (`SettingsStore.remembered_mpp`). It is
        called only if neither `mpp` nor the file states the resolution.
    opener
        Replaces OpenSlide, for tests and for arrays. Nothing else reads the file then.
    reader
        ``auto`` reads the file's JPEG tiles if they prove to be OpenSlide's pixels, and else calls OpenSlide.
        ``openslide`` and ``tiles`` insist on one. `Slide.reader` states the outcome. OpenSlide always handles damaged
        tiles: a read of one raises `SlideError`, or leaves it white after `count_damaged_tiles`.

    Raises
    ------
    SlideError
        If the file is missing, or OpenSlide cannot read it.
    ConfigError
        If the reader is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        mpp: float | None = None,
        remembered: Callable[[str], float | None] | None = None,
        opener: Opener | None = None,
        reader: str = AUTO,
    ) -> None:
        require_reader(reader)
        self.path = Path(path)
        self._override = mpp
        self._given_opener = opener
        self._opener = opener or open_slide_file
        self._wanted_reader = reader
        self._state = threading.Condition()
        self._reads = 0
        self._closed = False
        self._handle: Handle | None = None
        self._finest_read: Level | None = None
        self.pixels_decoded = 0  # native pixels requested so far from either reader: the unit of reading cost
        with self._open() as handle:
            self.properties = dict(handle.properties)
            # Before any pixel: a tile that cannot be read leaves OpenSlide's handle in a state of error.
            self.associated = tuple(handle.associated_images)
            levels = _levels(handle)
            self.level_check = check_levels(handle, levels, compare=opener is None)
            self.levels = _select(levels, self.level_check.trusted)
            self.bounds = _bounds(self.properties, self.levels[0])
            recall = (lambda: remembered(self.fingerprint)) if remembered is not None else None
            self._mpp = find_mpp(self.properties, override=mpp, remembered=recall)
        if self.level_check.failure is not None or len(self.levels) < len(levels):
            self._reopen_with(LevelSelection(self._opener, self.level_check.trusted))
        reference = LevelSelection(opener or open_with_openslide, self.level_check.trusted)
        self._tiles = TileReader(self.path, self.levels, self.vendor, reference, self._why_no_tiles())
        self._prepare_tile_counts()
        logger.debug("%s: opened, %s, %d levels", self.path, self.vendor, len(self.levels))

    def _prepare_tile_counts(self) -> None:
        self._missing: dict[int, TileMap | None] = {}  # level -> tiles without bytes, if they were looked up
        self._counts_damage = False
        sizes = tile_sizes(self.properties, self.level_check.trusted)
        self._damage = DamagedTileReader(self.path, self.levels, sizes, self._new_handle)
        self._judging_pixels = 0  # read by `read_from`

    def _why_no_tiles(self) -> str | None:
        """Return why tiles are not read one by one; None if that may be tried.

        Raises
        ------
        SlideError
            If the caller insists on OpenSlide, which does not read this file rightly.
        """
        reason = self.properties.get(READER_REASON)
        if self._wanted_reader != OPENSLIDE:
            return reason or ("the slide does not come from a file" if self._given_opener else None)
        if reason is not None:
            self._close_handle()
            raise SlideError(self.path, f"OpenSlide does not read this file rightly ({reason}); use --reader auto")
        return REQUESTED

    # ------------------------------------------------------------ facts

    @property
    def name(self) -> str:
        """File name without its ending, or the full name of a folder; see `slide_name`."""
        return slide_name(self.path)

    @property
    def vendor(self) -> str:
        """OpenSlide's name of the format."""
        return self.properties.get("openslide.vendor", "unknown")

    @property
    def width(self) -> int:
        """Level-0 pixels across."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Level-0 pixels down."""
        return self.levels[0].height

    @property
    def has_mpp(self) -> bool:
        """Whether a resolution is known."""
        return self._mpp is not None

    @property
    def mpp(self) -> Mpp:
        """µm per level-0 pixel, and where the value comes from.

        Raises
        ------
        ResolutionError
            If neither the caller nor the file states it.
        """
        if self._mpp is None:
            raise ResolutionError(
                self.path,
                f"no microns per pixel in the file ({why_not_believed(self.properties) or SILENT}); "
                "pass --mpp (mpp= in Python) if you know it, for example 0.5 for a 20x scan",
            )
        return self._mpp

    @property
    def objective_power(self) -> float | None:
        """Magnification of the objective, if the file states it."""
        return number(self.properties.get("openslide.objective-power"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the resolution, what the reader guessed, and levels that are left out."""
        if self._mpp is not None:
            about_mpp = mpp_warnings(self._mpp, find_mpp(self.properties))
        else:
            reason = why_not_believed(self.properties)
            about_mpp = () if reason is None else (f"the resolution is not known ({reason}); pass --mpp",)
        return (*about_mpp, *self.properties.get(READER_WARNINGS, "").splitlines(), *self.level_check.warnings)

    @property
    def fingerprint(self) -> str:
        """Short hash that identifies the slide: OpenSlide's quick hash, or a hash of both ends of the file."""
        quick = self.properties.get("openslide.quickhash-1")
        return quick[:32] if quick else _file_hash(self.path)

    @property
    def icc_profile(self) -> bytes | None:
        """ICC profile of the scanner, if the file has one."""
        with self._reading() as handle:
            profile = handle.color_profile
            return None if profile is None else profile.tobytes()

    @property
    def reader(self) -> ReaderChoice:
        """Reader in use and the reason for it. Before the first read it is chosen now."""
        if READER in self.properties:
            return ReaderChoice(self.properties[READER], self.properties[READER_REASON])
        with self._reading():
            return self._tiles.choice

    @property
    def tile_pixels_decoded(self) -> int:
        """Native pixels of all tiles decoded so far, comparisons and repeats included.

        It exceeds `pixels_decoded` if patches cut tiles. It is 0 if OpenSlide reads: OpenSlide decodes whole tiles too,
        but does not report how many.
        """
        return self._tiles.pixels_decoded

    def forget_finest_read(self) -> None:
        """Let `finest_read` count from the next read on."""
        with self._state:
            self._finest_read = None

    def finest_read(self, wanted_mpp: float) -> FinestRead | None:
        """Return the finest level read so far, and why if it is finer than `wanted_mpp`; None before the first read."""
        level = self._finest_read
        if level is None:
            return None
        mpp, compared = level.mpp(self.mpp), self.level_check.pixels_compared
        if mpp * (1 + MPP_TOLERANCE) >= wanted_mpp:
            reason = f"no level finer than {wanted_mpp:g} µm per pixel was read"
        else:
            reason = (
                f"the file has no level between {mpp:.4g} and {wanted_mpp:g} µm per pixel, so finer pixels were read "
                "and averaged"
            )
        if compared:
            reason += f"; {compared} pixels of level 0 were read to check that all levels show the same picture"
        if self.vendor == APERIO and self.known_missing_tiles:
            reason += "; OpenSlide looks for tiles that are not stored at the next finer levels"
        if self._judging_pixels:
            reason += f"; {self._judging_pixels} pixels of other levels were read to judge missing tiles"
        return FinestRead(mpp, reason)

    # ------------------------------------------------------------ missing and damaged tiles

    def count_damaged_tiles(self) -> None:
        """From now on, read tiles that do not decode as white and count them; the caller has to look at the count."""
        self._counts_damage = True

    @property
    def damaged_tile_count(self) -> int:
        """Number of damaged tiles that were met so far."""
        return self._damage.count

    def damaged_tiles(self, level: Level) -> TileMap | None:
        """Return the damaged tiles of a level that were met so far; None if there are none."""
        return self._damage.damaged(level)

    def missing_tiles(self, level: Level) -> TileMap | None:
        """Return the tiles that are not stored and that a level needs; None if all are there or the file does not tell.

        The map can be of another level, from which the reader takes these places.
        """
        if level.index not in self._missing:
            self._missing |= self._find_missing(level)
        return self._missing[level.index]

    @property
    def known_missing_tiles(self) -> tuple[TileMap, ...]:
        """Missing tiles of all levels that were looked up."""
        return tuple(tiles for tiles in self._missing.values() if tiles is not None)

    def _find_missing(self, level: Level) -> dict[int, TileMap | None]:
        """Return level -> missing tiles, of `level` at least."""
        nothing: dict[int, TileMap | None] = dict.fromkeys(range(len(self.levels)))
        with self._reading() as handle:
            own = getattr(handle, "missing_tiles", None)  # a reader of this package knows its tiles
            if own is not None and READER in self.properties:
                # The tables of a TIFF are in memory; files of chunks are looked up.
                levels = self.levels if self.properties[READER] == TIFFFILE else (level,)
                return {each.index: own(each) for each in levels}
        if self._given_opener is not None:
            return nothing
        if self.vendor == "dicom":
            return {level.index: missing_in_dicom(slide_file(self.path), level)}
        if self.vendor not in TIFF_VENDORS:
            return nothing
        tables = self._tiles.tables or read_tile_tables(self.path, self.levels)
        return dict(enumerate(missing_in_tiff(tables, self.levels, self.vendor)))

    def level_for(self, width: float, height: float, size: tuple[int, int]) -> Level:
        """Return the level from which a box of `width` x `height` level-0 pixels is read at `size`."""
        return self._finest_needed(width, height, size)

    def read_from(self, level: Level, box: BoxLevel0, size: tuple[int, int]) -> Pixels:
        """Return `box` at `size` from one level, to judge what another level lacks; not counted by `finest_read`."""
        with self._state:
            finest = self._finest_read
        before = self.pixels_decoded
        with self._reading():
            pixels = self._averaged(box, size, level)
        with self._state:
            self._finest_read = finest
            self._judging_pixels += self.pixels_decoded - before
        return pixels

    # ------------------------------------------------------------ pixels

    def read(self, box: BoxLevel0, size: tuple[int, int]) -> Pixels:
        """Return the pixels of `box`, area-averaged to `size` and white outside the slide.

        The coarsest level that is fine enough for the result is read. `box` is not rounded to whole pixels of that
        level: pixels at its edges count by the fraction that lies inside.

        Parameters
        ----------
        box
            Area in level-0 pixels.
        size
            Width and height of the result in pixels.

        Returns
        -------
        ndarray
            (height, width, 3) uint8.

        Raises
        ------
        SlideError
            If the file is damaged or the slide is closed.
        """
        with self._reading():
            return self._averaged(box, size, self._finest_needed(box.width, box.height, size))

    def read_patches(self, corners: Int64, size_level0: tuple[int, int], patch_px: int) -> NDArray[np.uint8]:
        """Return (N, patch_px, patch_px, 3) uint8 pixels of boxes of one size, as input of a network.

        Like `read`. If the file lacks a level that is coarse enough, and no pixel would be cut, JPEG tiles may be
        reduced while they are decoded. That is faster than averaging, with slightly different values: see
        `jpeg_decoder.decode`.

        Parameters
        ----------
        corners
            (N, 2) level-0 pixels, x then y.
        size_level0
            Width and height of a box in level-0 pixels.
        patch_px
            Side of the result.
        """
        size = patch_px, patch_px
        level = self._finest_needed(*size_level0, size)
        scale = choose_scale(level, size_level0[0] / patch_px, size_level0[1] / patch_px)
        out = np.empty((len(corners), *size, 3), np.uint8)
        with self._reading():
            for patch, (x, y) in zip(out, corners.tolist(), strict=True):
                pixels = self._averaged(BoxLevel0(x, y, *size_level0), size, level, scale, memory=patch)
                if not np.may_share_memory(pixels, patch):  # else they were read in place
                    patch[...] = pixels
        return out

    def read_blocks(
        self, box: BoxLevel0, size: tuple[int, int], *, reduced: bool = False
    ) -> Iterator[tuple[slice, slice, Pixels]]:
        """Yield `box` at `size` (width, height) in blocks of (rows, columns, pixels); see `read`.

        A block covers at most about `BLOCK_PX` native pixels a side. Memory therefore grows neither with the slide nor
        with missing coarse levels. `reduced` lets JPEG tiles be reduced while they are decoded, as in `read_patches`.
        """
        across, down = box.width / size[0], box.height / size[1]  # level-0 pixels per pixel of the result
        level = self._finest_needed(box.width, box.height, size)
        scale = choose_scale(level, across, down) if reduced else 1
        step = max(1, int(BLOCK_PX * level.downsample / max(across, down)))
        for y in range(0, size[1], step):
            for x in range(0, size[0], step):
                width, height = min(step, size[0] - x), min(step, size[1] - y)
                part = BoxLevel0(box.x + x * across, box.y + y * down, width * across, height * down)
                yield slice(y, y + height), slice(x, x + width), self._averaged(part, (width, height), level, scale)

    def read_at(self, region: BoxLevel0 | BoxUm, mpp: float) -> Pixels:
        """Return `region` at `mpp` µm per pixel; see `read`."""
        box = region.to_level0(self.mpp) if isinstance(region, BoxUm) else region
        return self.read(box, box.size_at(mpp, self.mpp))

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) pixels of a rectangle in whole pixels of one level, for display."""
        downsample = self.levels[level].downsample
        box = BoxLevel0(x * downsample, y * downsample, width * downsample, height * downsample)
        window = OpenSlideWindow.around(box, self.levels[level])
        return area_average(self._read_window(window), window, (width, height))

    def associated_image(self, name: str) -> Pixels:
        """Return one of `associated` for display on request.

        Labels carry patient names, so callers must not save it.
        """
        with self._reading() as handle:
            images = handle.associated_images
            if name not in images:
                names = ", ".join(self.associated) or "none"
                raise SlideError(self.path, f"has no associated image {name}; available: {names}")
            return composite_on_white(images[name])

    def _finest_needed(self, width: float, height: float, size: tuple[int, int]) -> Level:
        """Return the level from which to read a box of `width` x `height` level-0 pixels at `size`."""
        return choose_level(self.levels, UNIT, _pixel_side(width, height, size))

    def _averaged(
        self, box: BoxLevel0, size: tuple[int, int], level: Level, scale: int = 1, memory: Pixels | None = None
    ) -> Pixels:
        """Return `box` at `size`, perhaps in `memory`. The caller is `_reading`."""
        tile_read = self._tiles.read(box, level, scale, memory)
        if tile_read is None:
            if self._wanted_reader == TILES and self._tiles.refused:
                raise SlideError(self.path, f"cannot be read tile by tile ({self._tiles.refused}); use --reader auto")
            window = OpenSlideWindow.around(box, level)
            return area_average(self._read_window(window), window, size)
        self._count(level, tile_read.native_pixels)
        return area_average(tile_read.pixels, tile_read.window, size)

    def _read_window(self, window: OpenSlideWindow) -> Pixels:
        level = self.levels[window.level]
        if self._counts_damage and self._damage.knows(window):
            image = self._damage.read(window)
        else:
            image = self._read_with_handle(window)
        self._count(level, window.pixels_inside(level))
        return composite_on_white(image)

    def _read_with_handle(self, window: OpenSlideWindow) -> Image.Image:
        with self._reading() as handle:
            try:
                return handle.read_region(window.location, window.level, window.size)
            except Exception as error:
                if self._counts_damage:
                    if not isinstance(error, DamagedTileError):
                        self._drop(handle)
                    return self._damage.read(window)
                raise SlideError(
                    self.path,
                    f"level {window.level} could not be read at level-0 pixel {window.location} ({error}); "
                    "the file seems damaged or cut short, copy it again from its source",
                ) from error

    def _drop(self, handle: Handle) -> None:
        """Let later reads open another handle: OpenSlide's fails at each of them. Python closes it after the last."""
        with self._state:
            if self._handle is handle and READER not in self.properties:
                self._handle = None

    def _count(self, level: Level, native_pixels: int) -> None:
        with self._state:
            self.pixels_decoded += native_pixels
            if self._finest_read is None or level.downsample < self._finest_read.downsample:
                self._finest_read = level

    # ------------------------------------------------------------ ownership

    @contextmanager
    def _reading(self) -> Iterator[Handle]:
        """Yield the handle. `close` waits for its return, because a read with a freed handle would crash."""
        with self._state:
            if self._closed:
                raise SlideError(self.path, "the slide has been closed; open it again to read from it")
            if self._handle is None:
                self._handle = self._new_handle()
            handle = self._handle
            self._reads += 1
        try:
            yield handle
        finally:
            with self._state:
                self._reads -= 1
                self._state.notify_all()

    @contextmanager
    def _open(self) -> Iterator[Handle]:
        try:
            with self._reading() as handle:
                yield handle
        except BaseException:
            self._close_handle()
            raise

    def _new_handle(self) -> Handle:
        try:
            return self._opener(self.path)
        except SlideError:
            raise
        except Exception as error:
            raise SlideError(
                self.path,
                f"not a slide that OpenSlide can open ({error}); expected SVS, NDPI, MRXS, SCN, BIF, tiled TIFF or "
                "DICOM, complete and not truncated",
            ) from error

    def _reopen_with(self, opener: Opener) -> None:
        """Close the handle and open the next one with `opener`."""
        with self._state:
            handle, self._handle = self._handle, None
            self._opener = opener
        if handle is not None:
            handle.close()

    def another(self, mpp: float | None = None) -> Slide:
        """Open the slide a second time, with this one's `mpp` unless another is given."""
        mpp = self._override if mpp is None else mpp
        return Slide(self.path, mpp=mpp, opener=self._given_opener, reader=self._wanted_reader)

    def close(self) -> None:
        """Close the file after running reads have ended. Later reads raise `SlideError`."""
        self._close_handle()
        self._tiles.close()

    def _close_handle(self) -> None:
        with self._state:
            self._closed = True
            self._state.wait_for(lambda: self._reads == 0)
            handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()
        damage = getattr(self, "_damage", None)  # a slide that could not be opened has none
        if damage is not None:
            damage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_state"], state["_handle"], state["_reads"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _state=threading.Condition(), _handle=None, _reads=0)


# ---------------------------------------------------------------- facts


def _pixel_side(width: float, height: float, size: tuple[int, int]) -> float:
    """Return the side, in level-0 pixels, of one pixel of a box that is read at `size`."""
    return math.sqrt((width / size[0]) * (height / size[1]))


def _levels(handle: Handle) -> tuple[Level, ...]:
    sizes = zip(handle.level_dimensions, handle.level_downsamples, strict=True)
    return tuple(Level(i, w, h, float(downsample)) for i, ((w, h), downsample) in enumerate(sizes))


def _select(levels: Sequence[Level], trusted: Sequence[int]) -> tuple[Level, ...]:
    """Return the levels of these indices, numbered from 0."""
    return tuple(replace(levels[index], index=place) for place, index in enumerate(trusted))


def _bounds(properties: Mapping[str, str], level0: Level) -> Bounds:
    """Return the scanned area if the format states it (MRXS, some DICOM), else all of level 0."""
    names = ("bounds-x", "bounds-y", "bounds-width", "bounds-height")
    values = [number(properties.get(f"openslide.{name}")) for name in names]
    if any(v is None for v in values[2:]):
        return Bounds(0, 0, level0.width, level0.height)
    x, y, width, height = (int(v or 0) for v in values)
    return Bounds(x, y, width, height)


def _file_hash(path: Path) -> str:
    file = slide_file(path)
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as handle:
        digest.update(handle.read(FINGERPRINT_BYTES))
        handle.seek(max(0, size - FINGERPRINT_BYTES))
        digest.update(handle.read(FINGERPRINT_BYTES))
    return digest.hexdigest()[:32]
