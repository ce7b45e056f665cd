"""Reader of the few DICOM attributes that tell which files are one slide, without decoding and without a library.

Only the beginning of a file is read. DICOM part 10 is followed: preamble, file meta information in explicit little
endian, then the data set in the transfer syntax that the meta information states.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DICOM = ".dcm"
MAGIC_AT, MAGIC = 128, b"DICM"
HEADER_BYTES = 1 << 16  # the attributes lie in the first groups; larger elements before them are skipped over
WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
IMPLICIT, DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
SYNTAX, IMAGE_TYPE, CLASS, MODALITY, SERIES = 0x00020010, 0x00080008, 0x00080016, 0x00080060, 0x0020000E
LONG_LENGTH = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
UNDEFINED = 0xFFFFFFFF
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
    values: dict[int, str] = {}
    start = 0
    for tag, value, end in _elements(content, 0, explicit=True, order="little"):
        if tag >> 16 != 2:
            break
        values[tag], start = _text(value), end
    syntax = values.get(SYNTAX, "")
    rest = content[start:]
    if syntax == DEFLATED:
        rest = zlib.decompressobj(-zlib.MAX_WBITS).decompress(rest, HEADER_BYTES)
    order = "big" if syntax == BIG_ENDIAN else "little"
    for tag, value, _ in _elements(rest, 0, explicit=syntax != IMPLICIT, order=order):
        if tag in (IMAGE_TYPE, CLASS, MODALITY, SERIES):
            values[tag] = _text(value)
        if tag >= SERIES:  # elements are in ascending order
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
