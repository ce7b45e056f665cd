"""A DICOM file whose table of frames is damaged is refused: libdicom would end the process."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slides.dicom_frames import require_frame_tables
from napari_lrmil.core.slides.slide import Slide
from support.dicom_objects import element, write_dicom
from support.fake_slides import one_sentence

FRAME = struct.pack("<HHI", 0xFFFE, 0xE000, 8) + b"\xff\xd8..\xff\xd9.."
END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def with_frames(path: Path, offsets: list[int], extended: list[int] | None = None, series: str = "1.2") -> Path:
    write_dicom(path, series)
    table = struct.pack(f"<{len(offsets)}I", *offsets)
    pixels = struct.pack("<HH", 0x7FE0, 0x0010) + b"OB\0\0" + struct.pack("<I", 0xFFFFFFFF)
    pixels += struct.pack("<HHI", 0xFFFE, 0xE000, len(table)) + table + 4 * FRAME + END
    if extended is not None:
        value = struct.pack(f"<{len(extended)}Q", *extended)
        pixels = struct.pack("<HH", 0x7FE0, 0x0001) + b"OV\0\0" + struct.pack("<I", len(value)) + value + pixels
    path.write_bytes(path.read_bytes() + pixels)
    return path


@pytest.mark.parametrize("offsets", [[], [0], [0, 16, 32, 48], [0, 32]], ids=str)
def test_rising_offsets_are_accepted(tmp_path: Path, offsets: list[int]) -> None:
    require_frame_tables(with_frames(tmp_path / "a.dcm", offsets))
    require_frame_tables(with_frames(tmp_path / "b.dcm", [], extended=offsets))


# The last three: beyond the frames, at the end of the sequence, beyond the file.
@pytest.mark.parametrize(
    "offsets",
    [[0, 16, 16, 48], [0, 32, 16, 48], [0, 0, 0, 0], [0, 16, 32, 56], [0, 16, 32, 64], [0, 2**32 - 1]],
    ids=str,
)
def test_other_offsets_are_refused(tmp_path: Path, offsets: list[int]) -> None:
    for name, arguments in (("a.dcm", (offsets,)), ("b.dcm", ([], offsets))):
        with pytest.raises(SlideError, match=r"table of frames .* is damaged") as caught:
            require_frame_tables(with_frames(tmp_path / name, *arguments))
        assert one_sentence(caught.value) and name in str(caught.value)


def test_all_files_of_a_series_are_checked_and_no_others(tmp_path: Path) -> None:
    good = with_frames(tmp_path / "a.dcm", [0, 16, 32, 48])
    with_frames(tmp_path / "other.dcm", [16, 0], series="3.4")
    require_frame_tables(good)
    with_frames(tmp_path / "label", [16, 0])
    with pytest.raises(SlideError, match="label is damaged"):
        require_frame_tables(good)


def test_a_real_slide_is_refused_before_libdicom_reads_it(tmp_path: Path, shared_data: Path) -> None:
    source = max((shared_data / "slides" / "CMU-1-Small-Region_dicom").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(source.read_bytes())
    table = content.index(element(0x7FE00010, "OB", b"")[:6]) + 20
    content[table + 12 : table + 16] = content[table + 16 : table + 20]  # two frames at one place
    (tmp_path / "slide.dcm").write_bytes(content)
    with pytest.raises(SlideError, match="table of frames"):
        Slide(tmp_path / "slide.dcm")
