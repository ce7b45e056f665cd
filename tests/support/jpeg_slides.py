"""TIFF slides of JPEG tiles, in the encodings of different writers: colours, subsampling, tables, sizes, damage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.phantom import LESION, PhantomSlide, paint
from support.fake_slides import Array, reduced

APERIO = "Aperio Image Library v12.0\r\n{0}x{1} [0,0 {0}x{1}] ({2}x{2}) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
JPEG_TABLES, SUBSAMPLING = 347, {"444": (1, 1), "422": (2, 1), "420": (2, 2)}


@dataclass(frozen=True)
class Kind:
    """Encoding of the tiles of a slide."""

    vendor: str = "generic"
    ycbcr: bool = True
    subsampling: str = "420"
    shared_tables: bool = False
    tile: tuple[int, int] = (256, 256)  # width, height

    def __str__(self) -> str:
        colours = f"ycbcr{self.subsampling}" if self.ycbcr else "rgb"
        tables = "-tables" if self.shared_tables else ""
        return f"{self.vendor}-{colours}{tables}-{self.tile[0]}x{self.tile[1]}"


@lru_cache
def tissue(width: int, height: int, seed: int = 5) -> Array:
    """Return painted tissue with nuclei and glass."""
    pixels: Array = paint(PhantomSlide("p", LESION, seed, (max(width, 1024), max(height, 1024)))).pixels
    return np.ascontiguousarray(pixels[:height, :width])


def write_jpeg_slide(
    path: Path, base: Array, downsamples: Sequence[float] = (1,), kind: Kind | None = None, *, empty: Sequence[int] = ()
) -> Path:
    """Write a pyramid of JPEG tiles with 0.5 µm per pixel; `empty` tiles of level 0 have no bytes."""
    import tifffile

    kind = kind or Kind()
    width, height = kind.tile
    with tifffile.TiffWriter(path) as file:
        for downsample in downsamples:
            level = base if downsample == 1 else reduced(base, downsample)
            tiles, tables = coded(level, kind)
            tiles = [b"" if downsample == 1 and i in empty else tile for i, tile in enumerate(tiles)]
            options: dict[str, Any] = {"subsampling": SUBSAMPLING[kind.subsampling]} if kind.ycbcr else {}
            if kind.vendor == "aperio":
                options["description"] = APERIO.format(base.shape[1], base.shape[0], width)
            elif downsample != 1:
                options["subfiletype"] = 1
            file.write(
                iter(tiles),
                shape=level.shape,
                dtype=np.uint8,
                tile=(height, width),
                photometric="ycbcr" if kind.ycbcr else "rgb",
                compression="jpeg",
                compressionargs={"outcolorspace": "ycbcr" if kind.ycbcr else "rgb"},
                metadata=None,
                resolution=(2e4, 2e4),
                resolutionunit="CENTIMETER",
                extratags=[(JPEG_TABLES, 7, len(tables), tables, True)] if tables else [],
                **options,
            )
    return path


def coded(level: Array, kind: Kind) -> tuple[list[bytes], bytes]:
    """Return a level's tiles and the tables that they share, if they do."""
    from imagecodecs import jpeg8_encode

    tiles = []
    for pixels in _cut(level, kind.tile):
        tiles.append(
            jpeg8_encode(
                pixels,
                level=90,
                colorspace="RGB",
                outcolorspace="YCBCR" if kind.ycbcr else "RGB",
                subsampling=kind.subsampling if kind.ycbcr else "444",
            )
        )
    if not kind.shared_tables:
        return tiles, b""
    tables = b"".join(s for s in segments(tiles[0]) if s[1] in (0xDB, 0xC4))
    return [_without_tables(tile) for tile in tiles], b"\xff\xd8" + tables + b"\xff\xd9"


def _cut(level: Array, tile: tuple[int, int]) -> Iterator[Array]:
    width, height = tile
    for y in range(0, level.shape[0], height):
        for x in range(0, level.shape[1], width):
            part = level[y : y + height, x : x + width]
            missing = ((0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0))
            yield np.ascontiguousarray(np.pad(part, missing, mode="edge"))


def segments(data: bytes) -> Iterator[bytes]:
    """Yield the marker segments of a JPEG stream before its coded data."""
    at = 2
    while data[at + 1] != 0xDA:
        stop = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at:stop]
        at = stop


def _without_tables(data: bytes) -> bytes:
    markers = list(segments(data))
    scan = 2 + sum(map(len, markers))
    return data[:2] + b"".join(s for s in markers if s[1] not in (0xDB, 0xC4)) + data[scan:]


def damaged(path: Path, index: int, data: bytes | None = None, *, level: int = 0, at: float = 0.5) -> Path:
    """Overwrite the middle of a tile's bytes with `data`, or its second half with zeros."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        assert isinstance(page, tifffile.TiffPage)
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    skipped = int(count * at)
    with path.open("r+b") as handle:
        handle.seek(offset + skipped)
        handle.write(bytes(count - skipped) if data is None else data)
    return path
