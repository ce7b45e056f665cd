"""Handle of a TIFF whose stored tiles are checked before OpenSlide shows them.

OpenSlide reports a damaged JPEG tile, but shows what is left of a damaged deflate or LZW tile without an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from napari_lrmil.core.slides.missing_tiles import DamagedTileError, TileTable
from napari_lrmil.core.slides.openslide_handle import Handle

LZW, ADOBE_DEFLATE, DEFLATE = 5, 8, 32946  # TIFF codes of compressions


class CheckedHandle:
    """OpenSlide's handle, with a check of the tiles that a window touches, each once.

    Parameters
    ----------
    handle, path
        OpenSlide's handle of the file.
    pages
        The page of each of its levels, as `tifffile` describes it, or None if it is not known.
    """

    def __init__(self, handle: Handle, path: Path, pages: Sequence[Any | None]) -> None:
        self._handle, self._path = handle, path
        self._levels = [None if page is None else _LevelCheck(page) for page in pages]
        self._good: set[tuple[int, int]] = set()  # level and tile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Return RGBA pixels of a window as OpenSlide does.

        Raises
        ------
        DamagedTileError
            If a tile that the window touches does not decode.
        """
        check = self._levels[level]
        if check is not None:
            downsample = self._handle.level_downsamples[level]
            tiles = check.tiles_of((location[0] / downsample, location[1] / downsample), size)
            new = [tile for tile in tiles if (level, tile) not in self._good]
            if new:
                check.require_decodable(self._path, new)
                self._good.update((level, tile) for tile in new)
        return self._handle.read_region(location, level, size)


class _LevelCheck:
    """Check of the tiles of one page."""

    def __init__(self, page: Any) -> None:
        self._decode = _decoder(int(page.compression))
        self._table = TileTable((int(page.tilewidth), int(page.tilelength)), page.dataoffsets, page.databytecounts)
        self._size = int(page.imagewidth), int(page.imagelength)
        self._bytes = int(page.tilewidth) * int(page.tilelength) * page.samplesperpixel * page.bitspersample // 8

    def tiles_of(self, corner: tuple[float, float], size: tuple[int, int]) -> list[int]:
        """Return the numbers of the tiles, row by row, that a window in pixels of the level touches."""
        columns, rows = (
            range(max(0, int(start)) // tile, -(-min(side, -int(-(start + length) // 1)) // tile))
            for start, length, tile, side in zip(corner, size, self._table.tile, self._size, strict=True)
        )
        across = -(-self._size[0] // self._table.tile[0])
        return [row * across + column for row in rows for column in columns]

    def require_decodable(self, path: Path, tiles: Sequence[int]) -> None:
        most = 2 * self._bytes  # a few bytes may hold gigabytes
        with path.open("rb") as file:
            for tile in tiles:
                offset, count = self._table.offsets[tile], self._table.counts[tile]
                if not offset or not count:
                    continue  # it is not stored, which is no damage
                file.seek(offset)
                try:
                    n_bytes = self._decode(file.read(count), most)
                except Exception as error:  # zlib and imagecodecs raise kinds of their own
                    raise DamagedTileError(f"tile {tile} does not decode: {error}") from error
                if not self._bytes <= n_bytes < most:
                    raise DamagedTileError(f"tile {tile} has {n_bytes} bytes of {self._bytes}")


def _decoder(compression: int) -> Callable[[bytes, int], int]:
    """Return a function that decodes a tile, up to a number of bytes, and returns how many there are."""
    if compression != LZW:  # a stream without its end may hold all pixels
        return lambda data, most: len(zlib.decompressobj().decompress(data, most))
    import imagecodecs

    return lambda data, most: len(imagecodecs.lzw_decode(data, out=most))


def checked(handle: Handle, path: Path, pages: Sequence[Any]) -> Handle:
    """Return a handle whose tiles are checked if OpenSlide would not notice their damage, else the handle itself.

    Parameters
    ----------
    handle, path
        OpenSlide's handle of the file.
    pages
        The pages of its levels, as `tifffile` describes them, in any order.
    """
    by_size = {(page.imagewidth, page.imagelength): page for page in pages if _is_checkable(page)}
    if not by_size:
        return handle
    return CheckedHandle(handle, path, [by_size.get(size) for size in handle.level_dimensions])


def _is_checkable(page: Any) -> bool:
    if not page.is_tiled or int(page.compression) not in (LZW, ADOBE_DEFLATE, DEFLATE):
        return False
    columns, rows = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    return bool(len(page.dataoffsets) == columns * rows)
