"""Writer of tiled JPEG pyramids that OpenSlide opens; pixels are streamed, so level 0 is never held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Any, Self

import numpy as np
import tifffile

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.errors import GeometryError
from napari_lrmil.core.phantom.containers import CONTAINERS, PyramidFacts
from napari_lrmil.core.phantom.look import Pixels

_TILE = 256  # px along a side of a tile
_IN_MEMORY = 8 * 2**20  # bytes of a lower level held in memory; more goes to an unnamed file next to the slide
_ENCODED_AT_ONCE = 16 * 2**20  # bytes of tiles in the queue of the JPEG encoder
_CLASSIC_TIFF = 2**32 - 2**25  # bytes that 32-bit offsets can address, minus room for tags


def write_pyramid(
    path: Path,
    level0: Pixels,
    mpp: float | None,
    *,
    container: str = "aperio",
    levels: int = 5,
    quality: int = 90,
    mpp_y: float | None = None,
) -> None:
    """Write a tiled JPEG pyramid atomically; each level has half the side lengths of the previous one.

    Parameters
    ----------
    path
        File to write; its folder is created.
    level0
        (height, width, 3) uint8 RGB.
    mpp
        Micrometres per level-0 pixel, horizontally, and vertically without `mpp_y`. None: the file does not state it.
    container
        ``aperio``: the layout of an SVS; ``generic``: a plain pyramidal TIFF with its resolution in the tags;
        ``leica``: an SCN, which has bounds; ``ome``: an OME-TIFF with lower levels as sub-IFDs of level 0.
    levels
        Maximum number of levels; five give 20x, 10x, 5x, 2.5x and 1.25x of a 20x slide.
    quality
        JPEG quality of the tiles, 0 to 100.
    mpp_y
        Micrometres per level-0 pixel vertically. Aperio and Leica files state one resolution only.
    """
    size = (level0.shape[1], level0.shape[0])
    write_bands(path, [level0], size, mpp, container=container, levels=levels, quality=quality, mpp_y=mpp_y)


def write_bands(
    path: Path,
    bands: Iterable[Pixels],
    size: tuple[int, int],
    mpp: float | None,
    *,
    container: str = "aperio",
    levels: int = 5,
    quality: int = 90,
    mpp_y: float | None = None,
) -> None:
    """Write a pyramid of `size` (width, height) from bands of complete rows, top to bottom; see `write_pyramid`.

    Level 0 is never held in memory. Lower levels are collected while it is encoded, in unnamed files if they are large.

    Raises
    ------
    GeometryError
        If the container is unknown or cannot state the resolution.
    """
    if container not in CONTAINERS:
        raise GeometryError(f"{path}: container {container!r} is unknown; use {', '.join(CONTAINERS)}")
    kind = CONTAINERS[container]
    pyramid = PyramidFacts(_level_sizes(size, levels), mpp, mpp if mpp_y is None else mpp_y, quality)
    kind.check(path, pyramid)
    big = (
        kind.always_big or 4 * pyramid.width * pyramid.height > _CLASSIC_TIFF
    )  # 3 bytes per pixel, plus a third for the lower levels
    with atomic_write(Path(path)) as partial, ExitStack() as stack:
        writer = stack.enter_context(tifffile.TiffWriter(partial, bigtiff=big, ome=kind.is_ome))
        lower = [stack.enter_context(_Reduced(w, partial.parent)) for w, _ in pyramid.sizes[1:]]
        sources = [_feed(bands, lower), *(level.bands() for level in lower)]
        for level, source in enumerate(sources):
            _write_level(writer, source, pyramid, level, kind.tags(pyramid, level))


def _write_level(
    writer: tifffile.TiffWriter, bands: Iterable[Pixels], pyramid: PyramidFacts, level: int, tags: dict[str, Any]
) -> None:
    width, height = pyramid.sizes[level]
    writer.write(
        _tiles(bands, width),
        shape=(height, width, 3),
        dtype=np.uint8,
        photometric="rgb",  # tifffile converts to YCbCr for JPEG
        compression="jpeg",
        compressionargs={"level": pyramid.quality},
        subsampling=(2, 2),
        tile=(_TILE, _TILE),
        software=False,
        buffersize=_ENCODED_AT_ONCE,
        **tags,
    )


def _level_sizes(size: tuple[int, int], levels: int) -> tuple[tuple[int, int], ...]:
    """Return width and height of each level; an odd last row or column is left out, as scanners do."""
    sizes = [size]
    while len(sizes) < levels and min(sizes[-1]) >= 2:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return tuple(sizes)


def _feed(bands: Iterable[Pixels], lower: Sequence[_Reduced]) -> Iterator[Pixels]:
    """Yield the bands unchanged, and add their 2 x 2 means to every lower level."""
    for band in bands:
        rows = band
        for level in lower:
            rows = level.add(rows)
        yield band


def _tiles(bands: Iterable[Pixels], width: int) -> Iterator[Pixels]:
    """Yield tiles row by row; those at the right and lower edge are smaller, and tifffile pads them."""
    for rows in _tile_rows(bands):
        for x in range(0, width, _TILE):
            yield rows[:, x : x + _TILE]


def _tile_rows(bands: Iterable[Pixels]) -> Iterator[Pixels]:
    """Yield bands of `_TILE` rows from bands of any height; the last one can have fewer rows."""
    rest: list[Pixels] = []
    for band in bands:
        start = 0
        while start < len(band):
            taken = band[start : start + _TILE - sum(map(len, rest))]
            start += len(taken)
            rest.append(taken)
            if sum(map(len, rest)) == _TILE:
                yield rest[0] if len(rest) == 1 else np.concatenate(rest)
                rest = []
    if rest:
        yield np.concatenate(rest)


class _Reduced:
    """Level below level 0: collected row by row, then read back from the top."""

    def __init__(self, width: int, folder: Path) -> None:
        self._width = width
        self._rows = SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))  # noqa: SIM115  # closed on exit
        self._odd: Pixels | None = None  # last row of the level above, until the next row completes the pair

    def add(self, above: Pixels) -> Pixels:
        """Store the 2 x 2 means of rows of the level above, and return them; a single row gives none."""
        if self._odd is not None:
            above = np.concatenate([self._odd, above])
        even = len(above) // 2 * 2
        self._odd = above[even:].copy() if even < len(above) else None
        halved = _halve(above[:even])
        self._rows.write(halved.tobytes())
        return halved

    def bands(self) -> Iterator[Pixels]:
        """Yield the stored rows in bands."""
        self._rows.seek(0)
        while rows := self._rows.read(_TILE * self._width * 3):
            yield np.frombuffer(rows, dtype=np.uint8).reshape(-1, self._width, 3)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()


def _halve(image: Pixels) -> Pixels:
    """Return means of 2 x 2 pixels; an odd last row or column is left out."""
    height, width = (n // 2 * 2 for n in image.shape[:2])
    a = image[:height, :width]
    total = a[0::2, 0::2].astype(np.uint16) + 2  # added before the shift by 2 bits, which then rounds to nearest
    for part in (a[1::2, 0::2], a[0::2, 1::2], a[1::2, 1::2]):
        total += part
    total >>= 2
    return total.astype(np.uint8)
