"""TIFF slides of a tissue rectangle on glass, with tiles that are missing or damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from support.fake_slides import Array, reduced

GLASS, TISSUE_COLOUR = (243, 243, 243), (190, 90, 160)
WIDTH, HEIGHT, TILE = 2048, 1536, 256
COLUMNS, ROWS = WIDTH // TILE, HEIGHT // TILE
TISSUE = (256, 256, 1536, 1024)  # x, y, width, height: 6 x 4 tiles in a frame of glass


def rectangle() -> Array:
    """Return glass with a rectangle of textured tissue."""
    pixels = np.full((HEIGHT, WIDTH, 3), GLASS, np.uint8)
    x, y, width, height = TISSUE
    texture = np.random.default_rng(0).integers(-12, 13, (height, width, 1))
    pixels[y : y + height, x : x + width] = np.clip(np.array(TISSUE_COLOUR) + texture, 0, 255)
    return pixels


def tile(column: int, row: int, columns: int = COLUMNS) -> int:
    """Return the number of a tile."""
    return row * columns + column


FRAME = [tile(c, r) for r in range(ROWS) for c in range(COLUMNS) if r in (0, ROWS - 1) or c in (0, COLUMNS - 1)]


def write_deflate_slide(
    path: Path,
    downsamples: Sequence[int] = (1,),
    empty: dict[int, Sequence[int]] | None = None,
    *,
    side: int = TILE,
    **tags: Any,
) -> Path:
    """Write a TIFF of 0.5 µm per pixel; `empty` tiles, by downsample, have no bytes. `side` is that of a tile."""
    import zlib

    base = rectangle()
    with tifffile.TiffWriter(path) as file:
        for downsample in downsamples:
            level = base if downsample == 1 else reduced(base, float(downsample)).astype(np.uint8)
            tiles = [zlib.compress(part.tobytes()) for part in _cut(level, side)]
            tiles = [b"" if i in (empty or {}).get(downsample, ()) else part for i, part in enumerate(tiles)]
            file.write(
                iter(tiles),
                shape=level.shape,
                dtype=np.uint8,
                tile=(side, side),
                photometric="rgb",
                compression="zlib",
                metadata=None,
                resolution=(2e4, 2e4),
                resolutionunit="CENTIMETER",
                subfiletype=int(downsample != 1),
                **tags,
            )
    return path


def _cut(level: Array, side: int) -> list[Array]:
    rows, columns = -(-level.shape[0] // side), -(-level.shape[1] // side)
    padded = np.pad(level, ((0, rows * side - level.shape[0]), (0, columns * side - level.shape[1]), (0, 0)), "edge")
    return [
        np.ascontiguousarray(padded[r * side : (r + 1) * side, c * side : (c + 1) * side])
        for r in range(rows)
        for c in range(columns)
    ]
