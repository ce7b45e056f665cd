"""Reader of the few DICOM attributes that tell which files are one slide, without decoding and without a library.

Only the beginning of a file is read. DICOM part 10 is followed: preamble, file meta information in explicit little
endian, then the data set in the transfer syntax that the meta information states.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DICOM = ".dcm"
MAGIC_AT, MAGIC = 128, b"DICM"
HEADER_BYTES = 1 << 16  # the attributes lie in the first groups; larger elements before them are skipped over
WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
IMPLICIT, DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
SYNTAX, IMAGE_TYPE, CLASS, MODALITY, SERIES = 0x00020010, 0x00080008, 0x00080016, 0x00080060, 0x0020000E
LONG_LENGTH = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
FRAMES, ROWS, COLUMNS = 0x00280008, 0x00280010, 0x00280011
MATRIX_COLUMNS, MATRIX_ROWS = 0x00480006, 0x00480007  # of the whole level
_FRAME_TAGS = (FRAMES, ROWS, COLUMNS, MATRIX_COLUMNS, MATRIX_ROWS)
UNDEFINED = 0xFFFFFFFF
MAX_FRAME_HEADER_BYTES = 2**27  # the positions of a million frames
_PIXEL_DATA = b"\xe0\x7f\x10\x00OB"
# Elements (0048,021E) and (0048,021F) with 4 bytes of value, in explicit or implicit little endian.
_COLUMN_POSITION = re.compile(rb"\x48\x00\x1e\x02(?:SL\x04\x00|\x04\x00\x00\x00)(.{4})", re.DOTALL)
_ROW_POSITION = re.compile(rb"\x48\x00\x1f\x02(?:SL\x04\x00|\x04\x00\x00\x00)(.{4})", re.DOTALL)
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


@dataclass(frozen=True)
class DicomHeader:
    r"""Attributes of a DICOM file.

    Attributes
    ----------
    sop_class
        UID of the kind of object, see `WSI_CLASS`.
    series
        UID of the series; empty if the file states none.
    modality
        Such as ``SM`` for slide microscopy or ``SR`` for a report.
    image_type
        Such as ``ORIGINAL\PRIMARY\VOLUME\\NONE``.
    """

    sop_class: str
    series: str
    modality: str = ""
    image_type: str = ""

    @property
    def is_slide(self) -> bool:
        """Whether the file is part of a whole-slide image."""
        return self.sop_class == WSI_CLASS and bool(self.series)

    @property
    def is_volume(self) -> bool:
        """Whether the file holds a level of the slide; if not, it is its label or an overview."""
        kind = self.image_type.upper()
        return not any(word in kind for word in ("LABEL", "OVERVIEW", "THUMBNAIL"))


def may_be_dicom(path: Path) -> bool:
    """Return whether a file has the ending of DICOM, or none: archives name objects by number or UID."""
    ending = path.suffix.lower()
    return ending in (DICOM, "") or ending[1:].isdigit()


def read_dicom_header(path: Path) -> DicomHeader | None:
    """Return the attributes of a DICOM file; None for other files and for files that cannot be read."""
    if not os.path.isfile(path):  # a pipe would be waited for
        return None
    try:
        with path.open("rb") as file:
            file.seek(MAGIC_AT)
            if file.read(len(MAGIC)) != MAGIC:
                return None
            content = file.read(HEADER_BYTES)
    except OSError:
        return None
    try:
        values = _wanted_values(content)
    except (IndexError, ValueError, zlib.error):  # cut short or not valid
        return None
    return DicomHeader(
        values.get(CLASS, ""), values.get(SERIES, ""), values.get(MODALITY, ""), values.get(IMAGE_TYPE, "")
    )


def dicom_series(path: Path) -> str | None:
    """Return the series of a file of a DICOM slide; None for other files and for folders."""
    header = read_dicom_header(path) if may_be_dicom(path) else None
    return header.series if header is not None and header.is_slide else None


def _wanted_values(content: bytes) -> dict[int, str]:
    """Return attribute -> text of the first elements, up to the series."""
    values = _first_values(content, (IMAGE_TYPE, CLASS, MODALITY, SERIES))
    return {tag: _text(value) for tag, value in values.items()}


def _first_values(content: bytes, tags: Sequence[int]) -> dict[int, bytes]:
    """Return attribute -> value of the file meta information and of `tags`, in ascending order."""
    values: dict[int, bytes] = {}
    start = 0
    for tag, value, end in _elements(content, 0, explicit=True, order="little"):
        if tag >> 16 != 2:
            break
        values[tag], start = value, end
    syntax = _text(values.get(SYNTAX, b""))
    rest = content[start:]
    if syntax == DEFLATED:
        rest = zlib.decompressobj(-zlib.MAX_WBITS).decompress(rest, HEADER_BYTES)
    order = "big" if syntax == BIG_ENDIAN else "little"
    for tag, value, _ in _elements(rest, 0, explicit=syntax != IMPLICIT, order=order):
        if tag in tags:
            values[tag] = value
        if tag >= tags[-1]:  # elements are in ascending order
            break
    return values


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")


def _elements(content: bytes, at: int, *, explicit: bool, order: str) -> Iterator[tuple[int, bytes, int]]:
    """Yield (tag, value, end) of the elements from byte `at` on; sequences have an empty value."""
    while at + 8 <= len(content):
        tag, kind, length, start = _element_head(content, at, explicit=explicit, order=order)
        if length == UNDEFINED:
            at = _end_of_sequence(content, start, explicit=explicit, order=order)
            yield tag, b"", at
            continue
        at = start + length
        yield tag, b"" if kind == b"SQ" else content[start:at], at


def _element_head(content: bytes, at: int, *, explicit: bool, order: str) -> tuple[int, bytes, int, int]:
    """Return tag, value representation, length and start of the value of the element at byte `at`."""

    def number(start: int, size: int) -> int:
        return int.from_bytes(content[start : start + size], "big" if order == "big" else "little")

    tag = number(at, 2) << 16 | number(at + 2, 2)
    if not explicit or tag in (ITEM, ITEM_END, SEQUENCE_END):  # these three have no value representation
        return tag, b"", number(at + 4, 4), at + 8
    kind = content[at + 4 : at + 6]
    if kind in LONG_LENGTH:
        return tag, kind, number(at + 8, 4), at + 12
    return tag, kind, number(at + 6, 2), at + 8


def _end_of_sequence(content: bytes, at: int, *, explicit: bool, order: str) -> int:
    """Return the byte after a sequence, or item, of undefined length that begins at byte `at`."""
    depth = 1
    while depth and at + 8 <= len(content):
        tag, _, length, start = _element_head(content, at, explicit=explicit, order=order)
        if tag in (ITEM_END, SEQUENCE_END):
            depth, at = depth - 1, start
        elif length == UNDEFINED:
            depth, at = depth + 1, start
        else:
            at = start + length
    return at


@dataclass(frozen=True)
class FrameLayout:
    """Frames of one level of a DICOM slide.

    Attributes
    ----------
    path
        The file.
    series
        UID of the series.
    size, tile
        Width and height of the level and of a frame, in pixels.
    frames
        Number of frames in the file.
    """

    path: Path
    series: str
    size: tuple[int, int]
    tile: tuple[int, int]
    frames: int

    def frame_positions(self) -> list[tuple[int, int]]:
        """Return the column and row, from 1, of each frame's corner; of a file that states them (TILED_SPARSE)."""
        with self.path.open("rb") as file:
            head = file.read(MAX_FRAME_HEADER_BYTES).partition(_PIXEL_DATA)[0]
        columns, rows = (
            [int.from_bytes(value, "little") for value in pattern.findall(head)]
            for pattern in (_COLUMN_POSITION, _ROW_POSITION)
        )
        width, height = self.size
        positions = zip(columns, rows, strict=False)
        return [(x, y) for x, y in positions if 1 <= x <= width and 1 <= y <= height]


def read_frame_layout(path: Path) -> FrameLayout | None:
    """Return the frames of a level; None for files that are no level of a slide."""
    header = read_dicom_header(path) if may_be_dicom(path) else None
    if header is None or not header.is_slide or not header.is_volume:
        return None
    with path.open("rb") as file:
        file.seek(MAGIC_AT + len(MAGIC))
        content = file.read(HEADER_BYTES)
    try:
        values = _first_values(content, _FRAME_TAGS)
        frames, rows, columns, width, height = (_whole_number(tag, values[tag]) for tag in _FRAME_TAGS)
    except (IndexError, KeyError, ValueError, zlib.error):  # cut short, or the attributes are missing
        return None
    if 0 in (columns, rows, width, height):
        return None
    return FrameLayout(path, header.series, (width, height), (columns, rows), frames)


def _whole_number(tag: int, value: bytes) -> int:
    return int(_text(value)) if tag == FRAMES else int.from_bytes(value, "little")
