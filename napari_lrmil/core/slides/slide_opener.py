"""Opener of slide files: OpenSlide, or a reader of this package if OpenSlide cannot open a file or reads it wrongly."""

from __future__ import annotations

from pathlib import Path

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slides.ome_metadata import is_ome_zarr
from napari_lrmil.core.slides.openslide_handle import Handle, open_with_openslide

# OpenSlide's messages for formats that it does not know. Its other errors are about damage, and no reader mends that.
_UNKNOWN_FORMAT = ("Unsupported TIFF compression", "Unsupported or missing image file")


def open_slide_file(path: Path) -> Handle:
    """Return an open slide.

    Raises
    ------
    SlideError
        If the file is missing, empty, not readable, or no brightfield slide.
    """
    if path.is_dir() and is_ome_zarr(path):
        from napari_lrmil.core.slides.ome_zarr import open_ome_zarr

        return open_ome_zarr(path)
    try:
        handle = open_with_openslide(path)
    except Exception as error:  # OpenSlide raises many kinds
        if path.is_dir() or not any(text in str(error) for text in _UNKNOWN_FORMAT):
            raise
        return _open_without_openslide(path, error)
    vendor = handle.properties.get("openslide.vendor")
    if vendor not in ("generic-tiff", "aperio"):
        return handle
    from napari_lrmil.core.slides.tiff_slide import is_stored_upright, open_tiff

    # OpenSlide knows the levels of Aperio slides. Of generic TIFF it sees the pages that are marked as levels.
    return handle if vendor == "aperio" and is_stored_upright(path) else open_tiff(path, handle)


def _open_without_openslide(path: Path, refusal: Exception) -> Handle:
    """Return a handle of a file that OpenSlide refuses; raises `refusal` if it is no TIFF, or broken."""
    from napari_lrmil.core.slides.tiff_slide import is_tiff, open_tiff

    if not is_tiff(path):
        raise refusal
    try:
        return open_tiff(path)
    except SlideError:
        raise
    except Exception:  # tifffile raises many kinds on a broken file
        raise refusal from None
