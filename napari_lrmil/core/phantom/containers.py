"""What each kind of file says of its pixels: the tags and descriptions by which OpenSlide knows a format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_lrmil.core.errors import GeometryError

BOUNDS_OFFSET = (1280, 768)  # level-0 px of the empty slide left of and above what a Leica file has scanned
_BEYOND = (640, 384)  # level-0 px right of and below it


@dataclass(frozen=True)
class PyramidFacts:
    """What a container may tell."""

    sizes: tuple[tuple[int, int], ...]  # width and height of each level
    mpp: float | None  # µm per level-0 px across; None is not told
    mpp_y: float | None  # down
    quality: int  # of the JPEG tiles

    @property
    def width(self) -> int:
        """Level-0 pixels across."""
        return self.sizes[0][0]

    @property
    def height(self) -> int:
        """Level-0 pixels down."""
        return self.sizes[0][1]


@dataclass(frozen=True)
class Container:
    """A kind of file."""

    suffix: str
    own_tags: Callable[
        [PyramidFacts, int], dict[str, Any]
    ]  # of a level: what ``TiffWriter.write`` is told beside the pixels
    offset: tuple[int, int] = (0, 0)  # where the first pixel lies, level-0 px
    needs_mpp: bool = False
    two_mpp: bool = True  # whether x and y may differ in resolution
    always_big: bool = False  # BigTIFF whatever the size
    is_ome: bool = False

    def check(self, path: Path, facts: PyramidFacts) -> None:
        """Raise `GeometryError` where this container cannot tell the facts."""
        if not self.two_mpp and facts.mpp != facts.mpp_y:
            stated = f"{facts.mpp} x {facts.mpp_y} µm"
            raise GeometryError(f"{path}: such a slide states one resolution; write {stated} as generic or ome")
        if self.needs_mpp and facts.mpp is None:
            raise GeometryError(f"{path}: a Leica slide is laid out in nm; give an mpp, or choose aperio or generic")

    def tags(self, facts: PyramidFacts, level: int) -> dict[str, Any]:
        """Return what the TIFF tags of a level hold."""
        told: dict[str, Any] = {"metadata": None, "subfiletype": 0}
        if facts.mpp is not None and facts.mpp_y is not None:
            per_cm = tuple(1e4 / (m * 2**level) for m in (facts.mpp, facts.mpp_y))
            told |= {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
        return told | self.own_tags(facts, level)


def _aperio(facts: PyramidFacts, level: int) -> dict[str, Any]:
    """Return an image description as OpenSlide's Aperio reader expects it: vendor, then facts between bars."""
    cols, rows = facts.sizes[level]
    size = f"{facts.width}x{facts.height}" + (f" -> {cols}x{rows}" if level else "")
    text = f"Aperio Image Library v12 (phantom)\r\n{size} [0,0 {cols}x{rows}] JPEG/RGB Q={facts.quality}"
    if facts.mpp is not None:
        text += f"|AppMag = {10 / facts.mpp:g}|MPP = {facts.mpp:.6g}"
    return {"description": text}


def _generic(facts: PyramidFacts, level: int) -> dict[str, Any]:
    """Mark lower levels as reduced: OpenSlide tells levels from pages by it."""
    del facts
    return {"subfiletype": int(level > 0)}


def _ome(facts: PyramidFacts, level: int) -> dict[str, Any]:
    """Hang the lower levels below level 0, whose description tifffile writes from the metadata."""
    if level:
        return {"subfiletype": 1}
    sizes = {"PhysicalSizeX": facts.mpp, "PhysicalSizeY": facts.mpp_y} if facts.mpp is not None else {}
    return {"subifds": len(facts.sizes) - 1, "metadata": {"axes": "YXS", **sizes}}


def _leica(facts: PyramidFacts, level: int) -> dict[str, Any]:
    """Describe a scanned area that lies off the corner of its slide, lengths in nm; the first page has it all."""
    return {"description": None if level else _scn(facts)}


def _scn(facts: PyramidFacts) -> str:
    nm = 1000 * (facts.mpp or 0.0)  # checked before
    spans = tuple(round(n * nm) for n in facts.sizes[0])
    offset = tuple(round(n * nm) for n in BOUNDS_OFFSET)
    whole = tuple(o + s + round(b * nm) for o, s, b in zip(offset, spans, _BEYOND, strict=True))
    levels = "".join(f'<dimension sizeX="{w}" sizeY="{h}" r="{i}" ifd="{i}"/>' for i, (w, h) in enumerate(facts.sizes))
    return (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="phantom" sizeX="{whole[0]}" sizeY="{whole[1]}"><image name="phantom">'
        f'<pixels sizeX="{facts.width}" sizeY="{facts.height}">{levels}</pixels>'
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
