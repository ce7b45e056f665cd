"""Tests of the check of TIFF directories: plain slides pass, impossible ones are refused before OpenSlide sees them."""

import struct
import sys
from pathlib import Path

import pytest

from napari_lrmil.core.errors import LrmilError, SlideError
from napari_lrmil.core.slides import openslide_handle
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.tiff_structure import find_oddities
from napari_lrmil.plugin.viewer.opening.reader import is_slide
from support.plain_tiffs import change, write_slide


@pytest.mark.parametrize(("big", "byteorder"), [(False, "<"), (False, ">"), (True, "<"), (True, ">")])
def test_a_plain_slide_has_no_oddity(tmp_path: Path, big: bool, byteorder: str) -> None:
    assert find_oddities(write_slide(tmp_path / "a.svs", big=big, byteorder=byteorder)) == ()


@pytest.mark.parametrize("page", [0, 2])
@pytest.mark.parametrize(
    "size", [(65535, 1), (1, 65535), (16, 65535), (0, 256), (256, 0), (65520, 65520), (16384, 16384), (16, 16), (1, 1)]
)
def test_impossible_tiles_are_refused_before_the_library_reads_them(
    tmp_path: Path, page: int, size: tuple[int, int]
) -> None:
    path = change(write_slide(tmp_path / "a.svs"), page, {"TileWidth": size[0], "TileLength": size[1]})
    with pytest.raises(SlideError, match=rf"directory {page} .*{size[0]} x {size[1]} px.*copy it again"):
        Slide(path)
    assert is_slide(path)  # so that the window's reader opens it and says why


def test_directories_in_a_circle_are_an_oddity(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs")
    content = bytearray(path.read_bytes())
    at = first = struct.unpack_from("<I", content, 4)[0]
    for _ in range(3):
        end = at + 2 + 12 * struct.unpack_from("<H", content, at)[0]
        at = struct.unpack_from("<I", content, end)[0]
    struct.pack_into("<I", content, end, first)
    path.write_bytes(content)
    assert find_oddities(path) == ("directory 3 is an earlier one",)


def test_a_first_directory_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 10**6) + bytes(100))
    with pytest.raises(SlideError, match="first directory, at byte 1000000"):
        Slide(path)


@pytest.mark.parametrize("description", ["<?xml version='1.0'?><OME/>", " <scn/>"])
def test_what_a_vendors_reader_interprets_is_an_oddity(tmp_path: Path, description: str) -> None:
    assert "vendor" in find_oddities(write_slide(tmp_path / "a.tif", description=description))[0]


def test_a_file_cut_short_is_an_oddity_not_a_refusal(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs")
    path.write_bytes(path.read_bytes()[: 1024 * 1024 * 3 + 4000])
    assert find_oddities(path) == ("directory 2 is cut short",)


def test_a_missing_library_is_a_sentence_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(LrmilError, match="pip install openslide-python openslide-bin"):
        openslide_handle.open_with_openslide(write_slide(tmp_path / "a.svs"))
