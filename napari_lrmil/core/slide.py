"""A slide: its resolution and where that came from, and pixels of any region at any resolution."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.errors import ResolutionError, SlideError
from napari_lrmil.core.geometry import Bounds, BoxLevel0, BoxUm, Level, LevelWindow, Mpp, choose_level
from napari_lrmil.core.resolution import find_mpp, mpp_warnings, number

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB

BLOCK_PX = 2048  # native pixels along a side of one read of an overview: 16 MiB as RGBA
FINGERPRINT_BYTES = 1 << 20  # read from each end of a file that has no quick hash


class ColourProfile(Protocol):
    """The part of ``PIL.ImageCms.ImageCmsProfile`` that a `Slide` needs."""

    def tobytes(self) -> bytes: ...  # noqa: D102


class Handle(Protocol):
    """The part of ``openslide.OpenSlide`` that a `Slide` needs; OpenSlide documents it, tests pass their own."""

    @property
    def dimensions(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]: ...  # noqa: D102
    @property
    def level_downsamples(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def properties(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def associated_images(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def color_profile(self) -> ColourProfile | None: ...  # noqa: D102
    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


Opener = Callable[[Path], Handle]
CACHE_BYTES = 64 * 2**20  # of decoded tiles, for all open slides together


class Slide:
    """An open slide. Use it in a ``with``; reads may come from several threads; a pickled slide opens again by itself.

    Parameters
    ----------
    path
        A file that OpenSlide knows, or a folder that holds one DICOM slide.
    mpp
        Micrometres per level-0 pixel, believed above anything that the file says.
    remembered
        Fingerprint -> what the user said of that slide earlier (`Remembered.remembered_mpp`); asked only where neither
        `mpp` nor the file tells the resolution.
    opener
        Replaces OpenSlide, for tests.

    Raises
    ------
    SlideError
        Where the file is missing, or OpenSlide cannot read it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        mpp: float | None = None,
        remembered: Callable[[str], float | None] | None = None,
        opener: Opener | None = None,
    ) -> None:
        self.path = Path(path)
        self._override = mpp
        self._opener = opener or _open_with_openslide
        self._state = threading.Condition()
        self._reads = 0
        self._closed = False
        self._handle: Handle | None = None
        self.pixels_decoded = 0  # native pixels asked of the file so far, the honest unit of reading cost
        with self._open() as handle:
            self.properties = dict(handle.properties)
            self.levels = _levels(handle)
            self.associated = tuple(handle.associated_images)
            self.bounds = _bounds(self.properties, self.levels[0])
            asked = (lambda: remembered(self.fingerprint)) if remembered is not None else None
            self._mpp = find_mpp(self.properties, override=mpp, remembered=asked)

    # ------------------------------------------------------------ facts

    @property
    def name(self) -> str:
        """The file's name without its ending; a folder's whole name, which may be a DICOM number full of dots."""
        return self.path.name if self.path.is_dir() else self.path.stem

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
        """Micrometres per level-0 pixel and their source.

        Raises
        ------
        ResolutionError
            Where neither the caller nor the file says it.
        """
        if self._mpp is None:
            raise ResolutionError(
                self.path,
                "no microns per pixel in the file (OpenSlide, TIFF tags, vendor comment and power are silent); "
                "pass --mpp (mpp= in Python) if you know it, for example 0.5 for a 20x scan",
            )
        return self._mpp

    @property
    def objective_power(self) -> float | None:
        """The objective's magnification, where the file states it."""
        return number(self.properties.get("openslide.objective-power"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about a resolution that deserves a second look."""
        return () if self._mpp is None else mpp_warnings(self._mpp, find_mpp(self.properties))

    @property
    def fingerprint(self) -> str:
        """A short hash that tells this slide from others; OpenSlide's quick hash where the format has one."""
        quick = self.properties.get("openslide.quickhash-1")
        return quick[:32] if quick else _file_hash(self.path)

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC profile that the scanner left in the file, where there is one."""
        with self._reading() as handle:
            profile = handle.color_profile
            return None if profile is None else profile.tobytes()

    # ------------------------------------------------------------ pixels

    def read(self, box: BoxLevel0, size: tuple[int, int]) -> Pixels:
        """Return the pixels of `box`, area-averaged to `size` (width, height), white where there is no slide.

        The level is the coarsest that is fine enough for the resolution that `box` and `size` imply. Nothing is
        rounded to whole pixels of that level: fractions at the edges weigh as the fractions they are.
        """
        wanted = math.sqrt((box.width / size[0]) * (box.height / size[1]))
        level = choose_level(self.levels, Mpp(1.0, 1.0), wanted)
        window = LevelWindow.around(box, level)
        return area_average(self._read_window(window), window, size)

    def read_blocks(self, box: BoxLevel0, size: tuple[int, int]) -> Iterator[tuple[slice, slice, Pixels]]:
        """Yield `box` at `size` (width, height) in blocks as (rows, columns, pixels); see `read`.

        A block asks the file for about `BLOCK_PX` pixels a side at most, so that memory does not grow with the slide,
        nor where coarse levels are missing.
        """
        across, down = box.width / size[0], box.height / size[1]  # level-0 pixels to one of the result
        level = choose_level(self.levels, Mpp(1.0, 1.0), math.sqrt(across * down))
        step = max(1, int(BLOCK_PX * level.downsample / max(across, down)))
        for y in range(0, size[1], step):
            for x in range(0, size[0], step):
                width, height = min(step, size[0] - x), min(step, size[1] - y)
                part = BoxLevel0(box.x + x * across, box.y + y * down, width * across, height * down)
                yield slice(y, y + height), slice(x, x + width), self.read(part, (width, height))

    def read_at(self, region: BoxLevel0 | BoxUm, mpp: float) -> Pixels:
        """Return `region` at `mpp` µm per pixel; see `read`."""
        box = region.to_level0(self.mpp) if isinstance(region, BoxUm) else region
        return self.read(box, box.size_at(mpp, self.mpp))

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return a rectangle given in whole pixels of one level, as the screen wants it."""
        downsample = self.levels[level].downsample
        box = BoxLevel0(x * downsample, y * downsample, width * downsample, height * downsample)
        window = LevelWindow.around(box, self.levels[level])
        return area_average(self._read_window(window), window, (width, height))

    def associated_image(self, name: str) -> Pixels:
        """Return one of `associated`, for a person who asked to see it: labels carry names, so nothing may save it."""
        with self._reading() as handle:
            images = handle.associated_images
            if name not in images:
                known = ", ".join(self.associated) or "none"
                raise SlideError(self.path, f"has no associated image {name}; there are: {known}")
            return on_white(images[name])

    def _read_window(self, window: LevelWindow) -> Pixels:
        with self._reading() as handle:
            try:
                image = handle.read_region(window.location, window.level, window.size)
            except Exception as error:
                raise SlideError(
                    self.path,
                    f"level {window.level} could not be read at level-0 pixel {window.location} ({error}); "
                    "the file seems damaged or cut short, copy it again from its source",
                ) from error
        with self._state:
            self.pixels_decoded += window.pixels_inside(self.levels[window.level])
        return on_white(image)

    # ------------------------------------------------------------ ownership

    @contextmanager
    def _reading(self) -> Iterator[Handle]:
        """Lend the handle; `close` waits until it is given back, so no read meets a freed handle."""
        with self._state:
            if self._closed:
                raise SlideError(self.path, "the slide has been closed; open it again to read from it")
            if self._handle is None:
                self._handle = self._opened()
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
            self.close()
            raise

    def _opened(self) -> Handle:
        try:
            return self._opener(self.path)
        except SlideError:
            raise
        except Exception as error:
            raise SlideError(
                self.path,
                f"not a slide that OpenSlide can open ({error}); expected SVS, NDPI, MRXS, SCN, tiled TIFF or DICOM, "
                "whole and not cut short",
            ) from error

    def another(self, mpp: float | None = None) -> Slide:
        """Return the same slide, opened apart from this one, with the same override unless another is given."""
        return Slide(self.path, mpp=self._override if mpp is None else mpp, opener=self._opener)

    def close(self) -> None:
        """Give the file back. Waits for reads under way; later reads raise `SlideError`."""
        with self._state:
            self._closed = True
            self._state.wait_for(lambda: self._reads == 0)
            handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

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


# ---------------------------------------------------------------- opening


def _open_with_openslide(path: Path) -> Handle:
    import openslide

    if not path.exists():  # another opener may need no file
        raise SlideError(path, "there is no such file; check the path")
    _require_content(path)
    handle = openslide.OpenSlide(slide_file(path))
    handle.set_cache(_shared_cache())
    opened: Handle = handle
    return opened


def _require_content(path: Path) -> None:
    """Raise `SlideError` for a file that may not be read, or is empty: OpenSlide calls both an unsupported format."""
    if path.is_dir():
        return
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except PermissionError as error:
        raise SlideError(path, "it may not be read (permission denied); ask whoever owns it") from error
    if not first:
        raise SlideError(path, "the file is empty (0 bytes); copy it again from its source")


@lru_cache(maxsize=1)
def _shared_cache() -> Any:
    """Return the one cache of decoded tiles; a cache for each handle would make memory grow with the slides open."""
    import openslide

    return openslide.OpenSlideCache(CACHE_BYTES)


def slide_file(path: Path) -> Path:
    """Return the file to open: `path` itself, or any DICOM file of a folder (OpenSlide finds the rest).

    Raises
    ------
    SlideError
        Where a folder holds no DICOM file.
    """
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.dcm"))
    if not files:
        raise SlideError(path, "a folder without .dcm files; expected a slide file or the folder of one DICOM slide")
    return files[0]


def _levels(handle: Handle) -> tuple[Level, ...]:
    sizes = zip(handle.level_dimensions, handle.level_downsamples, strict=True)
    return tuple(Level(i, w, h, float(downsample)) for i, ((w, h), downsample) in enumerate(sizes))


def _bounds(properties: Mapping[str, str], level0: Level) -> Bounds:
    """Return the scanned part where the format states it (MRXS, some DICOM), else all of level 0."""
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


# ---------------------------------------------------------------- pixels


def on_white(image: Image.Image) -> Pixels:
    """Return RGB pixels with transparent ones shown on white, as a slide on a light box."""
    pixels = np.asarray(image)
    if pixels.shape[-1] == 3:
        return pixels
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() == 255:
        return rgb
    share = alpha.astype(np.float32) / 255
    return np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)


def area_average(pixels: Pixels, window: LevelWindow, size: tuple[int, int]) -> Pixels:
    """Return the wanted box of a window, every output pixel the exact mean over its area of the window's pixels."""
    height, width = pixels.shape[:2]
    across = _weights(window.left, window.right, size[0], width)
    down = _weights(window.top, window.bottom, size[1], height)
    if across is None and down is None:
        x, y = round(window.left), round(window.top)
        return np.ascontiguousarray(pixels[y : y + size[1], x : x + size[0]])
    down = down if down is not None else _exact(round(window.top), size[1], height)
    across = across if across is not None else _exact(round(window.left), size[0], width)
    rows = (down @ pixels.reshape(height, -1).astype(np.float32)).reshape(size[1], width, 3)
    both = across @ rows.transpose(1, 0, 2).reshape(width, -1)  # (size[0], size[1] * 3)
    out = both.reshape(size[0], size[1], 3).transpose(1, 0, 2)
    return np.ascontiguousarray(np.rint(out).clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=64)
def _weights(start: float, stop: float, n_out: int, n_in: int) -> Any | None:
    """Return a sparse (n_out, n_in) matrix of area shares; None where pixels map one to one."""
    step = (stop - start) / n_out
    if abs(step - 1) * n_out < 1e-3 and abs(start - round(start)) < 1e-3 and round(start) + n_out <= n_in:
        return None
    return _area_matrix(np.linspace(start, stop, n_out + 1), n_in)


def _area_matrix(edges: NDArray[np.float64], n_in: int) -> Any:
    from scipy.sparse import csr_array

    first = np.floor(edges[:-1] + 1e-9).astype(int)
    reach = int(np.ceil(np.diff(edges).max())) + 1
    column = first[:, None] + np.arange(reach)  # (n_out, reach)
    low = np.maximum(edges[:-1, None], column)
    share = np.clip(np.minimum(edges[1:, None], column + 1) - low, 0, None)
    column = column.clip(0, n_in - 1)  # rounding may leave a share of 1e-9 past the end
    row = np.repeat(np.arange(len(first)), reach)
    share = share / share.sum(axis=1, keepdims=True)
    return csr_array((share.ravel().astype(np.float32), (row, column.ravel())), shape=(len(first), n_in))


def _exact(start: int, n_out: int, n_in: int) -> Any:
    return _area_matrix(np.arange(start, start + n_out + 1, dtype=np.float64), n_in)
