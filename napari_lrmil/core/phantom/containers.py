"""File formats of phantoms: the TIFF tags and descriptions by which OpenSlide recognises each format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_lrmil.core.errors import GeometryError
from napari_lrmil.core.slides.phantom_mark import PHANTOM_MARK

BOUNDS_OFFSET = (1280, 768)  # level-0 px left of and above the scanned area of a Leica file
_MARGIN_AFTER = (640, 384)  # level-0 px right of and below the scanned area


@dataclass(frozen=True)
class PyramidFacts:
    """Properties of a pyramid that a container can state."""

    sizes: tuple[tuple[int, int], ...]  # width and height of each level
    mpp: float | None  # µm per level-0 px horizontally; None if the file does not state it
    mpp_y: float | None  # µm per level-0 px vertically
    quality: int  # JPEG quality of the tiles

    @property
    def width(self) -> int:
        """Width of level 0, px."""
        return self.sizes[0][0]

    @property
    def height(self) -> int:
        """Height of level 0, px."""
        return self.sizes[0][1]


@dataclass(frozen=True)
class Container:
    """File format of a slide."""

    suffix: str
    own_tags: Callable[
        [PyramidFacts, int], dict[str, Any]
    ]  # of a level: what ``TiffWriter.write`` is told beside the pixels
    offset: tuple[int, int] = (0, 0)  # position of the first pixel, level-0 px
    needs_mpp: bool = False
    two_mpp: bool = True  # whether x and y can have different resolutions
    always_big: bool = False  # BigTIFF whatever the size
    is_ome: bool = False

    def check(self, path: Path, pyramid: PyramidFacts) -> None:
        """Raise `GeometryError` if this container cannot state these properties."""
        if not self.two_mpp and pyramid.mpp != pyramid.mpp_y:
            stated = f"{pyramid.mpp} x {pyramid.mpp_y} µm"
            raise GeometryError(f"{path}: such a slide states one resolution; write {stated} as generic or ome")
        if self.needs_mpp and pyramid.mpp is None:
            raise GeometryError(f"{path}: a Leica slide is laid out in nm; give an mpp, or choose aperio or generic")

    def tags(self, pyramid: PyramidFacts, level: int) -> dict[str, Any]:
        """Return the arguments of ``TiffWriter.write`` that set the tags of a level."""
        tags: dict[str, Any] = {"metadata": None, "subfiletype": 0}
        if pyramid.mpp is not None and pyramid.mpp_y is not None:
            per_cm = tuple(1e4 / (m * 2**level) for m in (pyramid.mpp, pyramid.mpp_y))
            tags |= {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
        return tags | self.own_tags(pyramid, level)


def _aperio(pyramid: PyramidFacts, level: int) -> dict[str, Any]:
    """Return the image description that OpenSlide's Aperio reader expects: vendor, then properties between bars."""
    cols, rows = pyramid.sizes[level]
    size = f"{pyramid.width}x{pyramid.height}" + (f" -> {cols}x{rows}" if level else "")
    text = f"Aperio Image Library v12 {PHANTOM_MARK}\r\n{size} [0,0 {cols}x{rows}] JPEG/RGB Q={pyramid.quality}"
    if pyramid.mpp is not None:
        text += f"|AppMag = {10 / pyramid.mpp:g}|MPP = {pyramid.mpp:.6g}"
    return {"description": text}


def _generic(pyramid: PyramidFacts, level: int) -> dict[str, Any]:
    """Mark lower levels as reduced images, by which OpenSlide separates levels from pages."""
    del pyramid
    return {"subfiletype": int(level > 0), "description": None if level else PHANTOM_MARK}


def _ome(pyramid: PyramidFacts, level: int) -> dict[str, Any]:
    """Store the lower levels as sub-IFDs of level 0, whose description tifffile writes from the metadata."""
    if level:
        return {"subfiletype": 1}
    sizes = {"PhysicalSizeX": pyramid.mpp, "PhysicalSizeY": pyramid.mpp_y} if pyramid.mpp is not None else {}
    return {"subifds": len(pyramid.sizes) - 1, "metadata": {"axes": "YXS", "Name": PHANTOM_MARK, **sizes}}


def _leica(pyramid: PyramidFacts, level: int) -> dict[str, Any]:
    """Describe a scanned area away from the corner of its slide, in nm; only the first page needs it."""
    return {"description": None if level else _scn(pyramid)}


def _scn(pyramid: PyramidFacts) -> str:
    nm = 1000 * (pyramid.mpp or 0.0)  # `Container.check` has refused None
    spans = tuple(round(n * nm) for n in pyramid.sizes[0])
    offset = tuple(round(n * nm) for n in BOUNDS_OFFSET)
    extent = tuple(o + s + round(b * nm) for o, s, b in zip(offset, spans, _MARGIN_AFTER, strict=True))
    levels = "".join(
        f'<dimension sizeX="{w}" sizeY="{h}" r="{i}" ifd="{i}"/>' for i, (w, h) in enumerate(pyramid.sizes)
    )
    return (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="phantom" sizeX="{extent[0]}" sizeY="{extent[1]}"><image name="phantom">'
        f'<pixels sizeX="{pyramid.width}" sizeY="{pyramid.height}">{levels}</pixels>'
        f'<device model="{PHANTOM_MARK}"/>'
        f'<view sizeX="{spans[0]}" sizeY="{spans[1]}" offsetX="{offset[0]}" offsetY="{offset[1]}"/>'
        f"<scanSettings><objectiveSettings><objective>{10_000 / nm:.0f}</objective></objectiveSettings>"
        "<illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings>"
        "</scanSettings></image></collection></scn>"
    )


CONTAINERS = {
    "aperio": Container(".svs", _aperio, two_mpp=False),
    "generic": Container(".tif", _generic),
    "leica": Container(".scn", _leica, offset=BOUNDS_OFFSET, needs_mpp=True, two_mpp=False, always_big=True),
    "ome": Container(".ome.tif", _ome, is_ome=True),
}
