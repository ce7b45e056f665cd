"""The bytes of one JPEG tile: whether they look whole, and their pixels, all of them or reduced while decoding.

The decoders here say nothing of data that went wrong in the middle; OpenSlide does. So a tile that looks suspicious is
not decoded here but left to OpenSlide: a wrong suspicion costs time, never a pixel. Seen are a start or an end that is
missing, a segment that leads to no other, a marker or a run of zeros within the data, and data that ended before the
picture did. Of what is not seen, changes of a few bytes, OpenSlide shows most, and the same; some it refuses
(docs/explanation/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np

from napari_lrmil.core.slides.resampling import Pixels

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAME, _SCAN = b"\xc0", b"\xda"  # the kinds of two segments
_ZEROS = bytes(16)  # no coded picture has such a run but for flat ones with tables of their own
_PADDING = 16  # bytes that writers may leave after the end
_NOTHING = 128  # the grey of blocks for which no data was left
_BLOCK = 8  # px
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # a marker whose last byte, to follow, is the colour space


@dataclass(frozen=True)
class Coding:
    """What the tiles of a page share.

    Attributes
    ----------
    tables
        JPEG tables that the page keeps apart from its tiles.
    is_ycbcr
        Whether the colours are YCbCr; else they are RGB, which no marker in the tiles may say.
    width, height
        Of a tile in pixels.
    """

    tables: bytes | None
    is_ycbcr: bool
    width: int
    height: int


def decode(data: bytes, coding: Coding, scale: int = 1, room: Pixels | None = None) -> Pixels | None:
    """Return a tile's pixels, reduced to 1 / `scale` (1, 2, 4, 8) along each side; None where it is left to OpenSlide.

    At scale 1 they are OpenSlide's, bit for bit. Reduced ones are not the mean of an area: the decoder drops high
    frequencies of the cosine transform instead. On stained tissue they differ from area averages by 0.1 to 0.2 grey
    levels in the mean, and at sharp edges by up to 19, 9 and 4 levels at 1/2, 1/4 and 1/8.

    Parameters
    ----------
    data, coding, scale
        The tile's bytes, what they share with the page's others, and by how much to reduce.
    room
        As `make_room` gives it, where pixels may be put, at scale 1 only: memory taken anew costs a third of the
        decoding.
    """
    whole = _whole(data)
    if whole is None:
        return None
    whole, below = _with_rows_below(whole)
    try:
        out = None if room is None else room[: coding.height + below]
        pixels = _all(whole, coding, out) if scale == 1 else _reduced(whole, coding, scale)
    except Exception:  # whatever a decoder says: OpenSlide is asked next, and says it in its own words
        return None
    rows = coding.height // scale
    if pixels.shape != (rows + below // scale, coding.width // scale, 3):
        return None
    last = pixels[rows:, : _BLOCK // scale] if below else pixels[-1, -1]
    return None if bool((last == _NOTHING).all()) else pixels[:rows]


def make_room(coding: Coding) -> Pixels:
    """Return memory into which a tile may be decoded."""
    return np.empty((coding.height + _BLOCK, coding.width, 3), np.uint8)


def _whole(data: bytes) -> bytes | None:
    """Return the tile from its start to its end; None where it looks damaged."""
    end = data.rfind(_END, max(0, len(data) - _PADDING))
    scan = _segment(data, _SCAN)
    if not data.startswith(_START) or end < 0 or scan < 0:
        return None
    if data.find(_ZEROS, scan, end) >= 0 or not _without_markers(data, scan + 2, end):
        return None
    return data[: end + 2]


def _segment(data: bytes, kind: bytes) -> int:
    """Return where a kind of segment begins, one after the other from the start; -1 where none is before the scan's."""
    at = 2
    while data[at : at + 1] == b"\xff":
        found = data[at + 1 : at + 2]
        if found == kind:
            return at
        if found == _SCAN:
            return -1
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return -1


def _with_rows_below(data: bytes) -> tuple[bytes, int]:
    """Return a tile that claims a row of blocks more than it has, and how many px high that is.

    Its first block is made of what data is left: of a little noise where the tile was whole, of nothing at all where
    the data ended within it. Not where two rows of pixels share their colours (4:2:0), for there the claimed row would
    show through; then 0.
    """
    frame = _segment(data, _FRAME)
    if frame < 0 or any(data[frame + 11 + 3 * i] & 15 != 1 for i in range(3)):  # of each colour: its rows to a block's
        return data, 0
    height = int.from_bytes(data[frame + 5 : frame + 7], "big") + _BLOCK
    return data[: frame + 5] + height.to_bytes(2, "big") + data[frame + 7 :], _BLOCK


def _without_markers(data: bytes, start: int, end: int) -> bool:
    """Return whether coded data holds no marker but restarts: its own bytes 255 are followed by 0."""
    markers = data.count(b"\xff", start, end) - data.count(b"\xff\x00", start, end)
    if markers:
        markers -= sum(data.count(bytes((0xFF, restart)), start, end) for restart in range(0xD0, 0xD8))
    return markers == 0


def _all(data: bytes, coding: Coding, out: Pixels | None) -> Pixels:
    from imagecodecs import jpeg8_decode

    colours = "YCBCR" if coding.is_ycbcr else "RGB"
    pixels: Pixels = jpeg8_decode(data, tables=coding.tables, colorspace=colours, outcolorspace="RGB", out=out)
    return pixels


def _reduced(data: bytes, coding: Coding, scale: int) -> Pixels:
    from PIL.JpegImagePlugin import JpegImageFile

    with JpegImageFile(BytesIO(_alone(data, coding))) as image:
        image.draft("RGB", (coding.width // scale, coding.height // scale))
        return np.asarray(image)


def _alone(data: bytes, coding: Coding) -> bytes:
    """Return a tile that decoders understand without being told more: its tables and its colours are in it."""
    tables = (coding.tables or b"").removeprefix(_START).removesuffix(_END)
    at = 2
    while data[at] == 0xFF and 0xE0 <= data[at + 1] <= 0xEF:  # what an application says of the colours is not believed
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return _START + _ADOBE + bytes((coding.is_ycbcr,)) + tables + data[at:]
