"""Handle of a slide file: OpenSlide's, or one with the same interface for tests and arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from napari_lrmil.core.errors import LrmilError, SlideError
from napari_lrmil.core.slides.dicom_frames import require_frame_tables
from napari_lrmil.core.slides.dicom_headers import may_be_dicom, read_dicom_header
from napari_lrmil.core.slides.probe import require_opens
from napari_lrmil.core.slides.slide_files import dicom_in
from napari_lrmil.core.slides.tiff_structure import MAGIC, find_oddities


class ColourProfile(Protocol):
    """The part of ``PIL.ImageCms.ImageCmsProfile`` that a `Slide` needs."""

    def tobytes(self) -> bytes: ...  # noqa: D102


class Handle(Protocol):
    """The part of ``openslide.OpenSlide`` that a `Slide` needs. OpenSlide documents the members."""

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
# Properties of the readers of this package: name, reason for it, and sentences on what was guessed, one a line.
READER, READER_REASON, READER_WARNINGS = "lrmil.reader", "lrmil.reader-reason", "lrmil.reader-warnings"
TIFFFILE = "tifffile"  # name of the reader of TIFF
CACHE_BYTES = 64 * 2**20  # decoded tiles of all open slides together


def open_with_openslide(path: Path) -> Handle:
    """Return an open slide. Errors of OpenSlide pass through.

    Raises
    ------
    SlideError
        If the file is missing, empty or not readable, or would end the process.
    """
    openslide = import_openslide()

    if not path.exists():  # checked here, as other openers need no file
        raise SlideError(path, "no such file; check the path")
    _require_content(path)
    _require_slide_object(path)
    file = slide_file(path)
    require_harmless(file)
    handle = openslide.OpenSlide(file)
    handle.set_cache(_shared_cache())
    slide_handle: Handle = handle
    return slide_handle


def detect_vendor(file: Path) -> str | None:
    """Return OpenSlide's name of a file's format; None for other files.

    Raises
    ------
    SlideError
        If the file would crash OpenSlide.
    """
    openslide = import_openslide()
    require_harmless(file)
    try:
        vendor: str | None = openslide.OpenSlide.detect_format(file)
    except (OSError, openslide.OpenSlideError):
        return None
    return vendor


def import_openslide() -> Any:
    """Return the module `openslide`.

    Raises
    ------
    LrmilError
        If it, or the C library, is not installed or cannot be loaded.
    """
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise LrmilError(
            f"OpenSlide, which reads slides, cannot be loaded ({error}); "
            "install it with: pip install openslide-python openslide-bin"
        ) from error
    return openslide


def require_harmless(file: Path) -> None:
    """Raise `SlideError` for a file that would crash OpenSlide."""
    require_frame_tables(file)
    with file.open("rb") as content:
        is_tiff = content.read(len(MAGIC[0])) in MAGIC
    if not is_tiff or find_oddities(file):
        require_opens(file)


def _require_content(path: Path) -> None:
    """Raise `SlideError` for an unreadable or empty file, which OpenSlide reports as an unsupported format."""
    if path.is_dir():
        return
    if not path.is_file():  # reading a pipe would wait for whoever writes to it
        raise SlideError(path, "a pipe or device, not a file; expected a slide file")
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except PermissionError as error:
        raise SlideError(path, "the file cannot be read (permission denied); ask its owner for access") from error
    if not first:
        raise SlideError(path, "the file is empty (0 bytes); copy it again from its source")


def _require_slide_object(path: Path) -> None:
    """Raise `SlideError` for a DICOM object of another kind, which OpenSlide reports as an unsupported format."""
    header = read_dicom_header(path) if may_be_dicom(path) else None
    if header is not None and not header.is_slide:
        kind = f" ({header.modality})" if header.modality else ""
        raise SlideError(path, f"a DICOM object that is no whole-slide image{kind}; give a file of the slide's series")


@lru_cache(maxsize=1)
def _shared_cache() -> Any:
    """Return the cache that all handles share. One cache per handle would grow with the number of open slides."""
    import openslide

    return openslide.OpenSlideCache(CACHE_BYTES)


def slide_file(path: Path) -> Path:
    """Return the file to open: `path` itself, or one DICOM file of a folder (OpenSlide adds the rest).

    Raises
    ------
    SlideError
        If a folder has no DICOM slide, or several.
    """
    if not path.is_dir():
        return path
    objects = dicom_in(path)
    if len(objects.slides) > 1:
        names = ", ".join(file.name for file in objects.slides.values())
        raise SlideError(path, f"a folder with {len(objects.slides)} DICOM slides; give one file of a slide: {names}")
    files = [*objects.slides.values(), *objects.broken]
    if not files:
        others = len(objects.others)
        seen = f"a folder with {others} DICOM objects that are no slides" if others else "a folder without DICOM files"
        raise SlideError(path, f"{seen}; expected a slide file or the folder of one DICOM slide")
    return files[0]
