"""The bytes of a JPEG tile: damage is suspected where there is some, and what is decoded is never another picture."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.slides.jpeg_decoder import Coding, allocate_tile, decode
from napari_lrmil.core.slides.slide import Slide
from support.jpeg_slides import Kind, coded, damaged, segments, tissue, write_jpeg_slide

TILE = tissue(1024, 1024)[512:768, 512:768]
KINDS = [
    Kind(ycbcr=ycbcr, subsampling=s, shared_tables=t) for ycbcr, s in ((True, "420"), (False, "444")) for t in (0, 1)
]


def one_tile(kind: Kind = KINDS[0]) -> tuple[bytes, Coding]:
    [data], tables = coded(TILE, kind)
    return data, Coding(tables or None, kind.ycbcr, 256, 256)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tables_and_colours_come_from_the_page(kind: Kind) -> None:
    found = decode(*one_tile(kind))
    assert found is not None and np.abs(found.astype(int) - TILE).mean() < 2.5


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_reduced_tiles_are_near_the_mean_of_their_pixels(kind: Kind, scale: int) -> None:
    data, coding = one_tile(kind)
    whole, reduced = decode(data, coding), decode(data, coding, scale)
    assert whole is not None and reduced is not None and reduced.shape == (256 // scale, 256 // scale, 3)
    means = whole.reshape(256 // scale, scale, 256 // scale, scale, 3).mean(axis=(1, 3))
    assert np.abs(reduced - means).mean() < 0.8


def test_what_an_application_wrote_of_the_colours_is_not_believed() -> None:
    """The page says YCbCr and the tile says RGB: OpenSlide believes the page."""
    data, coding = one_tile()
    lying = data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + data[2:]
    for scale in (1, 2):
        honest, found = decode(data, coding, scale), decode(lying, coding, scale)
        assert honest is not None and found is not None
        np.testing.assert_array_equal(found, honest)


def test_pixels_go_where_they_are_wanted() -> None:
    for kind in KINDS:
        data, coding = one_tile(kind)
        buffer = allocate_tile(coding)
        found = decode(data, coding, buffer=buffer)
        assert found is not None and np.shares_memory(found, buffer)
        np.testing.assert_array_equal(found, decode(data, coding))


@pytest.mark.parametrize("width", [240, 256, 512])
def test_no_row_of_a_tile_begins_where_the_decoder_would_bypass_the_cache(width: int) -> None:
    """libjpeg-turbo writes rows at multiples of 32 bytes past the CPU cache."""
    for _ in range(4):
        pixels = allocate_tile(Coding(None, True, width, 64))
        assert pixels.shape == (72, width, 3) and pixels.flags.c_contiguous
        assert all(row.ctypes.data % 32 for row in pixels)


def test_a_tile_of_another_size_than_the_page_says_is_left() -> None:
    data, _ = one_tile()
    for scale in (1, 2):
        assert decode(data, Coding(None, True, 240, 256), scale) is None


def test_padding_after_the_end_is_no_damage_and_restarts_are_none() -> None:
    data, coding = one_tile()
    np.testing.assert_array_equal(decode(data + bytes(12), coding), decode(data, coding))
    with BytesIO() as file:
        Image.fromarray(TILE).save(file, "JPEG", quality=90, restart_marker_rows=1)
        restarting = file.getvalue()
    assert any(bytes((0xFF, n)) in restarting for n in range(0xD0, 0xD8))
    assert decode(restarting, coding) is not None


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
        lambda data: data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :],
        lambda data: data[: len(data) // 2] + b"\xff" * 8 + data[len(data) // 2 + 8 :],
        lambda data: data[: len(data) // 2] + data[-2:],
        lambda data: data[:2] + data[8:],
        lambda data: data[2:],
    ],
    ids=["none", "zeros", "half", "half zeros", "a hole", "255", "ended early", "no segment", "no start"],
)  # fmt: skip
@pytest.mark.parametrize("scale", [1, 4])
def test_damage_is_left_to_openslide(harm: object, scale: int) -> None:
    data, coding = one_tile()
    assert callable(harm) and decode(harm(data), coding, scale) is None


def test_few_changed_bytes_never_show_another_picture_than_openslide(tmp_path: Path) -> None:
    """Most such tiles OpenSlide shows, with a block or two gone wrong; of those it refuses a few are not seen here."""
    rng, kind = np.random.default_rng(4), KINDS[0]
    whole, coding = one_tile(kind)
    unseen = 0
    for number in range(60):
        path = write_jpeg_slide(tmp_path / f"{number}.tif", TILE, kind=kind)
        at = float(rng.uniform(0.1, 0.99))
        damaged(path, 0, rng.bytes(int(rng.choice([1, 4, 16]))), at=at)
        data = path.read_bytes()
        start = data.index(whole[:100])
        found = decode(data[start : start + len(whole)], coding)
        with Slide(path, reader="openslide") as slide:
            try:
                shown = slide.read(BoxLevel0(0, 0, 256, 256), (256, 256))
            except SlideError:
                unseen += found is not None
            else:
                assert found is None or np.array_equal(found, shown)
    assert unseen <= 9


def test_the_streams_that_the_tests_write_are_what_they_say() -> None:
    assert {s[1] for s in segments(one_tile(KINDS[0])[0])} >= {0xDB, 0xC4, 0xC0}
    assert not {s[1] for s in segments(one_tile(KINDS[1])[0])} & {0xDB, 0xC4}
    with Image.open(BytesIO(one_tile(KINDS[0])[0])) as image:
        np.testing.assert_array_equal(np.asarray(image), decode(*one_tile()))
