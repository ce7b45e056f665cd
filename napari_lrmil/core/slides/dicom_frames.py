"""Check of the table of frames of DICOM files, because libdicom ends the process on a wrong one."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slides.dicom_headers import dicom_series
from napari_lrmil.core.slides.slide_files import dicom_in

MAX_HEADER_BYTES = 2**27  # before the pixels: the positions of a million frames
PIXELS = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0"  # encapsulated, up to the table's item tag
EXTENDED = b"\xe0\x7f\x01\x00OV\0\0"  # extended offset table of 64-bit numbers, for more than 4 GB
ITEM = b"\xfe\xff\x00\xe0"


def require_frame_tables(path: Path) -> None:
    """Check the tables of frames of a DICOM file and of the files of its series in the same folder.

    libdicom takes a frame for what lies between two offsets. Between equal or falling offsets there is nothing, and
    decoding nothing ends the process.

    Raises
    ------
    SlideError
        If a table does not list frames one after the other.
    """
    for file in _files_of_slide(path):
        if not _is_table_valid(file):
            raise SlideError(
                path,
                f"the table of frames in {file.name} is damaged: its offsets do not rise from frame to frame; copy the "
                "slide again from its source",
            )


def _files_of_slide(path: Path) -> Iterator[Path]:
    """Yield the files that OpenSlide opens together with a DICOM file; nothing for other files."""
    series = dicom_series(path)
    if series is None:
        return
    yield path
    # OpenSlide adds the files of the series, whatever their names.
    yield from (file for file in dicom_in(path.parent).members if file != path and dicom_series(file) == series)


def _is_table_valid(path: Path) -> bool:
    """Return whether the offsets of encapsulated frames rise and end at a frame; an empty table is valid."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(PIXELS, 0, MAX_HEADER_BYTES)
        if at < 0:
            return True
        start = at + len(PIXELS) + 4
        length = int.from_bytes(content[start - 4 : start], "little")
        basic = np.frombuffer(content[start : start + length // 4 * 4], "<u4")
        extended = content.find(EXTENDED, 0, at)
        tables = [basic] if extended < 0 else [basic, _extended_table(content, extended + len(EXTENDED))]
        return all(_are_offsets_valid(content, start + length, table) for table in tables)


def _extended_table(content: mmap.mmap, at: int) -> NDArray[np.unsignedinteger]:
    """Return the 64-bit offsets of the element whose length is at byte `at`."""
    length = int.from_bytes(content[at : at + 4], "little")
    return np.frombuffer(content[at + 4 : at + 4 + length // 8 * 8], "<u8")


def _are_offsets_valid(content: mmap.mmap, first_frame: int, offsets: NDArray[np.unsignedinteger]) -> bool:
    """Return whether offsets, counted from the byte of the first frame, rise and end at an item."""
    if len(offsets) == 0:
        return True
    last = first_frame + int(offsets[-1])
    return bool((offsets[1:] > offsets[:-1]).all()) and content[last : last + 4] == ITEM
