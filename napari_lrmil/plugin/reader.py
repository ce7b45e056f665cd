"""Slides dropped on the window become layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slide import Slide, slide_file

if TYPE_CHECKING:
    from napari_lrmil.plugin.layers import LayerData

Paths = str | Path | Sequence[str | Path]


def get_reader(path: Paths) -> Callable[[Paths], list[LayerData]] | None:
    """Return a reader where every path is a slide that OpenSlide knows; None leaves the file to other readers."""
    return read_slides if all(is_slide(p) for p in _paths(path)) else None


def read_slides(path: Paths, mpp: float | None = None) -> list[LayerData]:
    """Return the layers of one or more slides; pixels are read when they are looked at.

    Raises
    ------
    SlideError
        Where a slide cannot be opened.
    ResolutionError
        Where neither the file nor `mpp` says how large a pixel is.
    """
    return [layer for one in _paths(path) for layer in _read(one, mpp)]


def _read(path: Path, mpp: float | None) -> list[LayerData]:
    from napari_lrmil.plugin.layers import slide_layers

    slide = Slide(path, mpp=mpp)
    try:
        return slide_layers(slide, underlay=_slices_asynchronously())
    except BaseException:
        slide.close()
        raise


def _slices_asynchronously() -> bool:
    from napari.settings import get_settings

    return bool(get_settings().experimental.async_)


def _paths(path: Paths) -> list[Path]:
    return [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]


def is_slide(path: Path) -> bool:
    """Whether a file, or a folder of DICOM files, is a slide; looks at the file's head only."""
    import openslide

    try:
        file = slide_file(path)
        vendor = openslide.OpenSlide.detect_format(file)
    except (SlideError, OSError, openslide.OpenSlideError):
        return False
    return vendor is not None and (vendor != "generic-tiff" or _is_colour(file))


def _is_colour(file: Path) -> bool:
    """Whether a tiled TIFF holds 8-bit RGB; OpenSlide would also take the grey stacks of a microscope."""
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            return bool(page.dtype == "uint8" and page.samplesperpixel >= 3)
    except (tifffile.TiffFileError, OSError, ValueError):
        return False
