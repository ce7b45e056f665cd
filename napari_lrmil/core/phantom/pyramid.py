"""Pyramids of JPEG tiles that OpenSlide opens; they know nothing of phantoms but the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from napari_lrmil.core.errors import GeometryError
from napari_lrmil.core.files import whole
from napari_lrmil.core.phantom.look import Pixels


def write_pyramid(
    path: Path,
    level0: Pixels,
    mpp: float,
    *,
    container: str = "aperio",
    levels: int = 5,
    quality: int = 90,
    mpp_y: float | None = None,
) -> None:
    """Write a tiled JPEG pyramid that OpenSlide opens, whole or not at all; each level halves the one before.

    Parameters
    ----------
    path
        The file to write; its folder is made.
    level0
        (height, width, 3) uint8 RGB.
    mpp
        Micrometres per level-0 pixel, across; down too unless `mpp_y` says otherwise.
    container
        ``aperio`` as an SVS holds it, or ``generic``: a plain pyramidal TIFF, whose resolution stands in its tags.
    levels
        At most so many; five give 20x, 10x, 5x, 2.5x and 1.25x of a 20x slide.
    quality
        Of the JPEG tiles.
    mpp_y
        Micrometres per level-0 pixel down, for a generic container: Aperio's has one resolution only.
    """
    if container not in ("aperio", "generic"):
        raise GeometryError(f"{path}: container {container!r} is unknown; use aperio or generic")
    if container == "aperio" and mpp_y not in (None, mpp):
        raise GeometryError(f"{path}: an Aperio slide states one resolution; write {mpp} x {mpp_y} µm as generic")
    image = np.ascontiguousarray(level0)
    with whole(Path(path)) as partial, tifffile.TiffWriter(partial) as writer:
        for level in range(levels):
            if level and min(image.shape[:2]) < 2:
                break
            image = image if level == 0 else _halve(image)
            description = _aperio(level0, image, mpp, quality) if container == "aperio" else None
            per_cm = tuple(1e4 / (m * 2**level) for m in (mpp, mpp_y or mpp))
            writer.write(
                image,
                photometric="rgb",  # tifffile makes it YCbCr for JPEG itself
                compression="jpeg",
                compressionargs={"level": quality},
                subsampling=(2, 2),
                tile=(256, 256),
                description=description,
                subfiletype=int(level > 0 and container == "generic"),  # how OpenSlide tells generic levels from pages
                resolution=per_cm,
                resolutionunit="CENTIMETER",
                software=False,
                metadata=None,
            )


def _halve(image: Pixels) -> Pixels:
    """Return means of 2 x 2 pixels; an odd last row or column is left out, as scanners do."""
    height, width = (n // 2 * 2 for n in image.shape[:2])
    a = image[:height, :width].astype(np.uint16)
    total = a[0::2, 0::2] + a[1::2, 0::2] + a[0::2, 1::2] + a[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def _aperio(level0: Pixels, image: Pixels, mpp: float, quality: int) -> str:
    """Return an image description as OpenSlide's Aperio reader expects it: vendor, then facts between bars."""
    (height, width), (rows, cols) = level0.shape[:2], image.shape[:2]
    size = f"{width}x{height}" if image.shape == level0.shape else f"{width}x{height} -> {cols}x{rows}"
    facts = f"AppMag = {10 / mpp:g}|MPP = {mpp:.6g}"
    return f"Aperio Image Library v12 (phantom)\r\n{size} [0,0 {cols}x{rows}] JPEG/RGB Q={quality}|{facts}"
