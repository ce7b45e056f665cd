"""A slide file as OpenSlide opens it, or as a test pretends that it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from napari_lrmil.core.errors import SlideError


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
DICOM = ".dcm"
SLIDE_ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".tif", ".tiff", DICOM)
CACHE_BYTES = 64 * 2**20  # of decoded tiles, for all open slides together


def open_with_openslide(path: Path) -> Handle:
    """Return an open slide; what OpenSlide raises passes through."""
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


def has_slide_ending(path: Path) -> bool:
    """Return whether a path ends as a slide file does; napari.yaml lists the same endings."""
    return path.suffix.lower() in SLIDE_ENDINGS


def dicom_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder, sorted; a folder that holds any is one slide."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == DICOM)


def slide_file(path: Path) -> Path:
    """Return the file to open: `path` itself, or any DICOM file of a folder (OpenSlide finds the rest).

    Raises
    ------
    SlideError
        Where a folder holds no DICOM file.
    """
    if not path.is_dir():
        return path
    files = dicom_files(path)
    if not files:
        raise SlideError(path, "a folder without .dcm files; expected a slide file or the folder of one DICOM slide")
    return files[0]
