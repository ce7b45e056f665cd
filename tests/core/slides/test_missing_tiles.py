"""Which tiles a file does not store, from its tables: TIFF of every reader, Aperio's filling, orientations, DICOM."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import BoxLevel0, Level
from napari_lrmil.core.slides.dicom_headers import read_frame_layout
from napari_lrmil.core.slides.missing_tiles import TileTable, missing_in_dicom
from napari_lrmil.core.slides.pixel_source import ORIENTATIONS
from napari_lrmil.core.slides.slide import Slide
from support.dicom_objects import EXPLICIT, IMPLICIT, WSI, element
from support.jpeg_slides import Kind, damaged, write_jpeg_slide
from support.tile_slides import COLUMNS, HEIGHT, ROWS, WIDTH, rectangle, tile, write_deflate_slide

LEVEL0 = Level(0, WIDTH, HEIGHT, 1.0)
EMPTY = [tile(2, 1), tile(7, 5)]


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_missing_tiles_are_white_in_every_orientation(tmp_path: Path, code: int) -> None:
    path = write_deflate_slide(tmp_path / "a.tif", empty={1: EMPTY}, extratags=[(274, 3, 1, code, True)])
    with Slide(path) as slide:
        tiles = slide.missing_tiles(slide.levels[0])
        pixels = slide.read_level(0, 0, 0, slide.width, slide.height)
    assert tiles is not None and tiles.is_missing.sum() == 2
    x, y = np.arange(slide.width) + 0.5, np.arange(slide.height) + 0.5
    np.testing.assert_array_equal(tiles.at(x, y), (pixels == 255).all(axis=2))
    assert not tiles.at(np.array([-1.0, slide.width + 1.0]), y).any()


def test_openslide_shows_the_next_finer_level_of_aperio(tmp_path: Path) -> None:
    """Level 1 lacks nothing, but OpenSlide does not trust it above a hole of level 0, and neither does our reader."""
    path = write_jpeg_slide(tmp_path / "a.svs", rectangle(), (1, 4), Kind("aperio"), empty=EMPTY)
    with Slide(path) as slide, Slide(path, reader="openslide") as reference:
        box = BoxLevel0(0, 0, WIDTH, HEIGHT)
        pixels = slide.read(box, (WIDTH // 4, HEIGHT // 4))
        np.testing.assert_array_equal(pixels, reference.read(box, (WIDTH // 4, HEIGHT // 4)))
        assert slide.reader.name == "tiles" and "left to OpenSlide" in slide.reader.reason
        for level in slide.levels:
            tiles = slide.missing_tiles(level)
            assert tiles is not None and tiles.level.index == 0 and tiles.is_missing.sum() == 2
        finest = slide.finest_read(2.0)
        assert finest is not None and "next finer levels" in finest.reason


def test_a_whole_file_has_none(tmp_path: Path) -> None:
    for path in (
        write_jpeg_slide(tmp_path / "a.tif", rectangle(), (1, 4)),
        write_deflate_slide(tmp_path / "b.tif", (1, 4)),
        write_deflate_slide(tmp_path / "c.tif", extratags=[(274, 3, 1, 3, True)]),
    ):
        with Slide(path) as slide:
            assert all(slide.missing_tiles(level) is None for level in slide.levels)
            assert slide.known_missing_tiles == ()


def test_a_table_of_another_length_is_left_to_the_readers() -> None:
    counts = [0] * (COLUMNS * ROWS)
    assert TileTable((256, 256), counts, counts).missing(LEVEL0) is not None
    assert TileTable((256, 256), counts[1:], counts[1:]).missing(LEVEL0) is None


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
@pytest.mark.parametrize("at", [0.05, 0.5, 1.0])
def test_damage_that_openslide_does_not_notice_is_counted(tmp_path: Path, compression: str, at: float) -> None:
    """At the beginning or in the middle of the bytes of a tile, or the end is lost."""
    path, options = tmp_path / "a.tif", {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, rectangle(), compression=compression, resolution=(2e4, 2e4), resolutionunit=3, **options)
    with Slide(path) as slide:
        whole = slide.read_level(0, 0, 0, WIDTH, HEIGHT)
        assert (slide.vendor, slide.reader.name) == ("generic-tiff", "openslide")
    np.testing.assert_array_equal(whole, rectangle())
    break_tile(path, EMPTY[0], at)
    with Slide(path) as slide, pytest.raises(SlideError, match="damaged"):
        slide.read_level(0, 0, 0, WIDTH, HEIGHT)
    with Slide(path) as slide:
        slide.count_damaged_tiles()
        pixels = slide.read_level(0, 0, 0, WIDTH, HEIGHT)
        tiles = slide.damaged_tiles(slide.levels[0])
        assert tiles is not None and tiles.is_missing.ravel().nonzero()[0].tolist() == EMPTY[:1]
    assert (pixels[256:512, 512:768] == 255).all()
    pixels[256:512, 512:768] = whole[256:512, 512:768]
    np.testing.assert_array_equal(pixels, whole)


def break_tile(path: Path, index: int, at: float) -> None:
    """Overwrite the bytes of a tile from a place on."""
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[index], file.pages[0].databytecounts[index]
    content = bytearray(path.read_bytes())
    first = min(int(count * at), count - 64)
    content[offset + first : offset + first + 64] = b"\xff" * 64
    path.write_bytes(content)


def test_damage_is_counted_by_a_pickled_slide_too(tmp_path: Path) -> None:
    path = damaged(write_jpeg_slide(tmp_path / "a.tif", rectangle()), EMPTY[0], at=0.3)
    with Slide(path) as slide:
        slide.count_damaged_tiles()
        again = pickle.loads(pickle.dumps(slide))
        for each in (slide, again):
            assert each.read(BoxLevel0(512, 256, 256, 256), (256, 256)).min() == 255
            tiles = each.damaged_tiles(each.levels[0])
            assert each.damaged_tile_count == 1 and tiles.is_missing.ravel().nonzero()[0].tolist() == EMPTY[:1]
        assert slide.read(BoxLevel0(768, 256, 256, 256), (256, 256)).min() < 200
        assert slide.icc_profile is None  # OpenSlide's handle is a new one
        again.close()


def write_frames(path: Path, positions: list[tuple[int, int]], syntax: str, frames: int | None = None) -> Path:
    """Write a DICOM level of 1000 x 700 px with frames of 256 px at these positions, without their pixels."""
    explicit = syntax != IMPLICIT

    def add(tag: int, kind: str, value: str | bytes) -> bytes:
        return element(tag, kind, value, explicit=explicit)

    def short(tag: int, value: int) -> bytes:
        return add(tag, "US", struct.pack("<H", value))

    content = add(0x00080008, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE") + add(0x00080016, "UI", WSI)
    content += add(0x00080060, "CS", "SM") + add(0x0020000E, "UI", "1.2.3")
    content += add(0x00280008, "IS", str(len(positions) if frames is None else frames))
    content += short(0x00280010, 256) + short(0x00280011, 256)
    content += add(0x00480006, "UL", struct.pack("<I", 1000)) + add(0x00480007, "UL", struct.pack("<I", 700))
    for x, y in positions:
        content += add(0x0048021E, "SL", struct.pack("<i", x)) + add(0x0048021F, "SL", struct.pack("<i", y))
    content += add(0x7FE00010, "OB", add(0x0048021E, "SL", struct.pack("<i", 1)))  # not a position
    meta = element(0x00020002, "UI", WSI) + element(0x00020010, "UI", syntax)
    path.write_bytes(b"\0" * 128 + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta + content)
    return path


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_frames_that_a_sparse_dicom_level_lacks(tmp_path: Path, syntax: str) -> None:
    positions = [(1 + 256 * c, 1 + 256 * r) for r in range(3) for c in range(4)]
    level = Level(0, 1000, 700, 1.0)
    path = write_frames(tmp_path / "a.dcm", [p for i, p in enumerate(positions) if i not in (5, 6)], syntax)
    tiles = missing_in_dicom(path, level)
    assert tiles is not None and tiles.is_missing.ravel().nonzero()[0].tolist() == [5, 6]
    assert missing_in_dicom(write_frames(path, positions, syntax), level) is None
    assert missing_in_dicom(write_frames(path, [], syntax, frames=9), level) is None  # it does not tell which
    assert missing_in_dicom(path, Level(1, 500, 350, 2.0)) is None
    path.write_bytes(path.read_bytes()[:300])
    assert read_frame_layout(path) is None


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
def test_a_tile_that_unpacks_to_far_more_than_its_pixels_is_damaged(tmp_path: Path, compression: str) -> None:
    """It must not fill the memory: a thousand times its bytes can be in it."""
    path, options = tmp_path / "a.tif", {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, rectangle(), compression=compression, resolution=(2e4, 2e4), resolutionunit=3, **options)
    pack = imagecodecs.zlib_encode if compression == "zlib" else imagecodecs.lzw_encode
    bomb = pack(bytes(16 * 2**20))
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        counts = list(page.databytecounts)
        offsets = list(page.dataoffsets)
        counts[0], offsets[0] = len(bomb), path.stat().st_size
        page.tags["TileOffsets"].overwrite(offsets)
        page.tags["TileByteCounts"].overwrite(counts)
    with path.open("r+b") as raw:
        raw.seek(offsets[0])
        raw.write(bomb)
    with Slide(path) as slide:
        slide.count_damaged_tiles()
        tracemalloc.start()
        slide.read_level(0, 0, 0, 256, 256)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert slide.damaged_tile_count == 1
    assert peak < 8 * 2**20
