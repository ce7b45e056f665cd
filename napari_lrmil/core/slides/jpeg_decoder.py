"""Decoder of one JPEG tile: checks for damage, and pixels in full or reduced while decoding.

The libraries used here do not report damage in the middle of the data, but OpenSlide does. A tile that looks damaged is
therefore left to OpenSlide: a false alarm costs time, never a pixel. Detected are a missing start or end, a segment
that leads to no other, a marker or a run of zeros within the data, and data that ends before the picture does. Changes
of a few bytes are not detected. OpenSlide decodes most of them to the same pixels and refuses some
(docs/explanation/decisions.md).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from napari_lrmil.core.slides.resampling import Pixels

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAME, _SCAN = b"\xc0", b"\xda"  # markers of two segments: start of frame, start of scan
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # within coded data 255 is followed by 0 or by a restart marker
_ZEROS = bytes(16)  # coded pictures have no such run, except flat ones with unusual Huffman tables
_PADDING = 16  # bytes that some writers leave after the end marker
_NOTHING = 128  # grey value of blocks that the decoder had no data for
_BLOCK = 8  # px
_SIMD_BYTES = 32  # libjpeg-turbo's widest store
_ADOBE = (
    b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # the marker without its last byte, which states the colour space
)


@dataclass(frozen=True)
class Coding:
    """Properties that all tiles of a page share.

    Attributes
    ----------
    tables
        JPEG tables that the page stores once for all tiles.
    is_ycbcr
        Whether the colours are YCbCr. If not they are RGB, even if the tiles have no marker that states it.
    width, height
        Size of a tile in pixels.
    """

    tables: bytes | None
    is_ycbcr: bool
    width: int
    height: int


def decode(data: bytes, coding: Coding, scale: int = 1, buffer: Pixels | None = None) -> Pixels | None:
    """Return the pixels of a tile, or None if it looks damaged and OpenSlide has to read it.

    At scale 1 the pixels equal OpenSlide's. A reduced tile is not an area average: the decoder drops high
    frequencies of the cosine transform instead. On stained tissue the two differ by 0.1 to 0.2 grey levels in the mean,
    and at sharp edges by up to 19, 9 and 4 levels at 1/2, 1/4 and 1/8.

    Parameters
    ----------
    data
        Bytes of the tile.
    coding
        Properties of the page's tiles.
    scale
        Reduction along each side: 1, 2, 4 or 8.
    buffer
        Memory from `allocate_tile` to decode into, at scale 1 only. None allocates.

    Returns
    -------
    ndarray or None
        (height / scale, width / scale, 3) uint8.
    """
    tile = _trimmed(data)
    if tile is None:
        return None
    tile, rows_below = _claim_rows_below(tile)
    try:
        if scale == 1:
            rows = coding.height + rows_below
            pixels = _decode_full(tile, coding, _allocate(rows, coding) if buffer is None else buffer[:rows])
        else:
            pixels = _decode_reduced(tile, coding, scale)
    except Exception:  # the decoders raise many kinds; OpenSlide reads the tile next and reports what is wrong
        return None
    rows = coding.height // scale
    if pixels.shape != (rows + rows_below // scale, coding.width // scale, 3):
        return None
    last = pixels[rows:, : _BLOCK // scale] if rows_below else pixels[-1, -1]
    return None if last.tobytes().count(_NOTHING) == last.size else pixels[:rows]


def allocate_tile(coding: Coding) -> Pixels:
    """Return memory into which `decode` can write one tile."""
    return _allocate(coding.height + _BLOCK, coding)


def _allocate(rows: int, coding: Coding) -> Pixels:
    """Return memory for (rows, width, 3) pixels of which no row begins at a multiple of `_SIMD_BYTES`.

    If a row does, libjpeg-turbo writes it past the CPU cache. Decoding then takes 20 % longer (EPYC, AVX2), and the
    pixels have to be fetched from main memory again. Rows are multiples of 24 bytes, so an odd multiple of 4 stays one.
    """
    shape = rows, coding.width, 3
    memory = np.empty(math.prod(shape) + _SIMD_BYTES, np.uint8)
    start = (4 - memory.ctypes.data) % _SIMD_BYTES
    return memory[start : start + math.prod(shape)].reshape(shape)


def _trimmed(data: bytes) -> bytes | None:
    """Return the tile up to its end marker, or None if it looks damaged."""
    end = data.rfind(_END, max(0, len(data) - _PADDING))
    scan = _segment(data, _SCAN)
    if not data.startswith(_START) or end < 0 or scan < 0:
        return None
    if data.find(_ZEROS, scan, end) >= 0 or _MARKER.search(data, scan + 2, end + 1):
        return None
    return data[: end + 2]


def _segment(data: bytes, kind: bytes) -> int:
    """Return the offset of the first segment of a kind, or -1 if there is none before the scan."""
    at = 2
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1 : at + 2]
        if marker == kind:
            return at
        if marker == _SCAN:
            return -1
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return -1


def _claim_rows_below(data: bytes) -> tuple[bytes, int]:
    """Return the tile with a header that claims one more row of blocks, and the height of that row in pixels.

    The decoder fills the first extra block with the data that is left. A whole tile leaves noise there. If the data
    ended too early, the block stays grey. The height is 0 for 4:2:0 sampling, where two rows of pixels share their
    colours and the claimed row would show through.
    """
    frame = _segment(data, _FRAME)
    if frame < 0 or any(data[frame + 11 + 3 * i] & 15 != 1 for i in range(3)):  # vertical sampling of each colour
        return data, 0
    height = int.from_bytes(data[frame + 5 : frame + 7], "big") + _BLOCK
    return data[: frame + 5] + height.to_bytes(2, "big") + data[frame + 7 :], _BLOCK


def _decode_full(data: bytes, coding: Coding, out: Pixels) -> Pixels:
    from imagecodecs import jpeg8_decode

    colours = "YCBCR" if coding.is_ycbcr else "RGB"
    pixels: Pixels = jpeg8_decode(data, tables=coding.tables, colorspace=colours, outcolorspace="RGB", out=out)
    return pixels


def _decode_reduced(data: bytes, coding: Coding, scale: int) -> Pixels:
    from PIL.JpegImagePlugin import JpegImageFile

    with JpegImageFile(BytesIO(_self_contained(data, coding))) as image:
        image.draft("RGB", (coding.width // scale, coding.height // scale))
        return np.asarray(image)


def _self_contained(data: bytes, coding: Coding) -> bytes:
    """Return a tile with the page's tables and a marker of the colour space, as a decoder of single files needs it."""
    tables = (coding.tables or b"").removeprefix(_START).removesuffix(_END)
    at = 2
    while (
        data[at] == 0xFF and 0xE0 <= data[at + 1] <= 0xEF
    ):  # skip application segments: their colour space may contradict the page
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return _START + _ADOBE + bytes((coding.is_ycbcr,)) + tables + data[at:]
