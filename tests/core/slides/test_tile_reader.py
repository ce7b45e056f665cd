"""Reading JPEG tiles directly: OpenSlide's pixels bit for bit, and OpenSlide itself wherever that is in doubt."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from napari_lrmil.core.errors import ConfigError, SlideError
from napari_lrmil.core.geometry import BoxLevel0, Level, PixelWindow
from napari_lrmil.core.phantom import BOUNDS_OFFSET, LESION, PhantomSlide, write_slide
from napari_lrmil.core.slides import jpeg_tiles
from napari_lrmil.core.slides import tile_reader as tilereader
from napari_lrmil.core.slides.jpeg_tiles import JpegTiles, Page, find_pages
from napari_lrmil.core.slides.openslide_handle import Handle, open_with_openslide
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import Array, FakeSlide, fake_slide, one_sentence, resolution, write_tiff
from support.jpeg_slides import Kind, damaged, tissue, write_jpeg_slide

CODINGS = [(True, "420"), (True, "422"), (True, "444"), (False, "444")]
KINDS = [
    Kind(vendor, ycbcr, subsampling, tables, tile)
    for (vendor, (ycbcr, subsampling), tables), tile in zip(
        itertools.product(("generic", "aperio"), CODINGS, (False, True)),
        itertools.cycle([(256, 256), (240, 240), (128, 256)]),
        strict=False,
    )
]
WHOLE = BoxLevel0(0, 0, 1100, 790)
MIDDLE = 3 * 9 + 4  # a tile of a 2051 x 1533 slide, full of tissue


@pytest.fixture
def slide_file(tmp_path: Path) -> Path:
    """Return 5 x 4 tiles on level 0, 3 x 2 on a level at 2."""
    return write_jpeg_slide(tmp_path / "a.svs", tissue(1100, 790), (1, 2), Kind("aperio"))


def boxes(slide: Slide, level: Level, seed: int = 0) -> list[tuple[BoxLevel0, tuple[int, int]]]:
    """Return boxes in whole pixels of a level, and their size in those: within tiles, across them, past the edges."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(12):
        x, y = int(rng.integers(-40, level.width)), int(rng.integers(-40, level.height))
        width, height = (int(side) for side in rng.integers(1, 400, 2))
        d = round(level.downsample)
        found.append((BoxLevel0(x * d, y * d, width * d, height * d), (width, height)))
    return found


def both(path: Path) -> tuple[Slide, Slide]:
    return Slide(path, reader="tiles"), Slide(path, reader="openslide")


# ---------------------------------------------------------------- the same pixels


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_pixels_are_openslides_bit_for_bit(tmp_path: Path, kind: Kind) -> None:
    base = tissue(1100, 790)
    fast, reference = both(write_jpeg_slide(tmp_path / "a.svs", base, (1, 2), kind))
    with fast, reference:
        assert [level.downsample for level in fast.levels] == [1, 2] and fast.levels == reference.levels
        for level in fast.levels:
            for box, size in boxes(fast, level):
                np.testing.assert_array_equal(fast.read(box, size), reference.read(box, size))
        assert fast.reader.name == "tiles" and reference.reader == tilereader.ReaderChoice("openslide", "asked for")
        assert "on 9 tiles compared" in fast.reader.reason
        assert fast.pixels_decoded == reference.pixels_decoded > 0
        near = np.abs(fast.read(WHOLE, (1100, 790)).astype(int) - base).mean()
        assert near < 2.5, "the colours are those that were written, not the same mistake twice"


@pytest.mark.parametrize("size", [(1003, 757), (257, 255), (40, 33), (2, 300)])
def test_odd_and_tiny_slides(tmp_path: Path, size: tuple[int, int]) -> None:
    fast, reference = both(write_jpeg_slide(tmp_path / "a.tif", tissue(1003, 757)[: size[1], : size[0]]))
    with fast, reference:
        for box, shown in [*boxes(fast, fast.levels[0]), (BoxLevel0(0, 0, *size), size)]:
            np.testing.assert_array_equal(fast.read(box, shown), reference.read(box, shown))


@pytest.mark.parametrize("box", [(10.25, 20.75, 301.3, 203.9), (-3.5, 700.1, 64.25, 200.0)])
def test_fractions_are_averaged_as_they_are_of_openslides_pixels(
    slide_file: Path, box: tuple[float, float, float, float]
) -> None:
    fast, reference = both(slide_file)
    with fast, reference:
        differ = np.abs(fast.read(BoxLevel0(*box), (61, 43)).astype(int) - reference.read(BoxLevel0(*box), (61, 43)))
    assert differ.max() <= 1, "the window starts at another pixel, so sums of fractions may round otherwise"


def test_a_level_at_a_fraction_is_read_without_openslides_interpolation(tmp_path: Path) -> None:
    """At 2.004 OpenSlide blends neighbours; tiles are compared with the same blend, and read without it."""
    x, y = np.arange(1403)[None, :, None], np.arange(1101)[:, None, None]
    smooth = np.rint(127 + 90 * np.sin(x / 60 + np.arange(3)) * np.cos(y / 80)).astype(np.uint8)
    fast, reference = both(write_jpeg_slide(tmp_path / "a.tif", smooth, (1, 2.003, 4.01)))
    with fast, reference:
        assert not any(level.downsample.is_integer() for level in fast.levels[1:])
        for level in fast.levels:
            box = BoxLevel0(101, 55, 200 * level.downsample, 150 * level.downsample)
            found, expected = (slide.read(box, (200, 150)).astype(int) for slide in (fast, reference))
            assert np.abs(found - expected).max() <= 4 * (level.index > 0)
        assert fast.reader.name == "tiles"


def test_real_slides_are_read_tile_by_tile(shared_data: Path) -> None:
    names = ("CMU-1-Small-Region.svs", "derived/monuseg_TCGA-A7-A13E_40x_aperio.svs")
    for name in (*names, "derived/monuseg_TCGA-A7-A13E_40x_generic.tif"):
        fast, reference = both(shared_data / "slides" / name)
        with fast, reference:
            for box, size in boxes(fast, fast.levels[0], seed=3):
                np.testing.assert_array_equal(fast.read(box, size), reference.read(box, size))


@pytest.mark.parametrize("vendor", ["generic", "aperio"])
def test_tiles_that_were_never_scanned(tmp_path: Path, vendor: str) -> None:
    """OpenSlide shows them white, but where Aperio has another level it takes that: those are left to it."""
    fast, reference = both(
        write_jpeg_slide(tmp_path / "a.svs", tissue(1100, 790), (1, 2), Kind(vendor), empty=(6, 7, 11))
    )
    with fast, reference:
        for box, size in [*boxes(fast, fast.levels[0]), (WHOLE, (1100, 790))]:
            np.testing.assert_array_equal(fast.read(box, size), reference.read(box, size))
        assert ("left to OpenSlide" in fast.reader.reason) == (vendor == "aperio")


# ---------------------------------------------------------------- reduced while decoding


def corners(step: int, first: int = 0) -> Array:
    return np.array([(x, y) for y in range(first, 900, step) for x in range(first, 1400, step)])


@pytest.mark.parametrize(("factor", "most"), [(2, 20), (4, 15), (8, 10), (16, 8)])
@pytest.mark.parametrize("kind", [Kind(), Kind("aperio", False, "444", True)], ids=str)
def test_a_missing_level_is_near_the_area_average(tmp_path: Path, kind: Kind, factor: int, most: int) -> None:
    fast, reference = both(write_jpeg_slide(tmp_path / "a.tif", tissue(2051, 1533), kind=kind))
    with fast, reference:
        side = 32 * factor
        found, expected = (
            slide.read_patches(corners(side), (side, side), 32).astype(int) for slide in (fast, reference)
        )
        assert f"decoded at 1/{min(factor, 8)}" in fast.reader.reason
        assert fast.pixels_decoded == reference.pixels_decoded == len(found) * side**2
    assert np.abs(found - expected).mean() < 0.8 and np.abs(found - expected).max() <= most


def test_blocks_are_reduced_if_the_caller_wants_it(tmp_path: Path) -> None:
    """The default is the exact average, which the tissue mask rests on."""
    fast, reference = both(write_jpeg_slide(tmp_path / "a.tif", tissue(2051, 1533)))
    with fast, reference:
        box, size = BoxLevel0(8.0, 4.0, 2000.0, 1500.0), (500, 375)
        exact, near = np.zeros((375, 500, 3), int), np.zeros((375, 500, 3), int)
        for rows, columns, pixels in fast.read_blocks(box, size):
            exact[rows, columns] = pixels
        assert "decoded at" not in fast.reader.reason
        for rows, columns, pixels in fast.read_blocks(box, size, reduced=True):
            near[rows, columns] = pixels
        assert "decoded at 1/4" in fast.reader.reason
        np.testing.assert_array_equal(exact, reference.read(box, size))
    assert np.abs(near - exact).mean() < 0.8 and np.abs(near - exact).max() <= 15


@pytest.mark.parametrize(("first", "side", "patch"), [(1, 256, 64), (0, 254, 64), (0, 96, 64)])
def test_where_a_reduced_pixel_would_be_cut_nothing_is_reduced(
    tmp_path: Path, first: int, side: int, patch: int
) -> None:
    """A corner at an odd pixel, or patches of 3.97 or 1.5 pixels to one: parts of large pixels would blur."""
    fast, reference = both(write_jpeg_slide(tmp_path / "a.tif", tissue(2051, 1533)))
    with fast, reference:
        found, expected = (s.read_patches(corners(side, first)[:20], (side, side), patch) for s in (fast, reference))
        assert "decoded at" not in fast.reader.reason
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_reducing_that_is_far_from_the_average_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", tissue(2051, 1533))
    monkeypatch.setattr(tilereader, "REDUCED_MEAN", 0.01)
    fast, reference = both(path)
    with fast, reference:
        found, expected = (slide.read_patches(corners(128), (128, 128), 32) for slide in (fast, reference))
        np.testing.assert_array_equal(found, expected)
        assert "decoded at" not in fast.reader.reason


# ---------------------------------------------------------------- OpenSlide for everything else


def test_what_is_not_read_tile_by_tile_says_why(tmp_path: Path) -> None:
    base = tissue(1100, 790)
    lossless = write_tiff(tmp_path / "lossless.tif", base, mpp=(0.5, 0.5))
    leica = write_slide(tmp_path, PhantomSlide("leica", LESION, 3, (1024, 768)), variants=["bounds"])
    twice = write_jpeg_slide(tmp_path / "twice.svs", base, (1, 2, 2), Kind("aperio"))
    cases: Sequence[tuple[Path, str]] = [(lossless, "scheme 8, not JPEG"), (leica, "this is leica"), (twice, "2 tiled")]
    for path, reason in cases:
        with Slide(path) as slide:
            x, y = BOUNDS_OFFSET if path is leica else (0, 0)
            assert slide.read(BoxLevel0(x, y, 300, 200), (300, 200)).mean() < 254
            assert slide.reader.name == "openslide" and reason in slide.reader.reason
            assert slide.tile_pixels_decoded == 0 < slide.pixels_decoded
        with Slide(path, reader="tiles") as slide, pytest.raises(SlideError, match="--reader auto") as caught:
            slide.read(BoxLevel0(0, 0, 300, 200), (300, 200))
        assert one_sentence(caught.value) and reason in str(caught.value)


def test_a_slide_that_comes_from_elsewhere_is_not_looked_at(tmp_path: Path) -> None:
    with fake_slide(tmp_path, FakeSlide(tissue(300, 200), properties=resolution(0.5))) as slide:
        slide.read(BoxLevel0(0, 0, 30, 20), (30, 20))
        assert slide.reader == tilereader.ReaderChoice("openslide", "the slide does not come from a file")


def test_a_reader_that_there_is_not_is_refused(slide_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"'fast'.*auto, openslide, tiles") as caught:
        Slide(slide_file, reader="fast")
    assert one_sentence(caught.value)


def test_one_wrong_pixel_and_the_slide_is_openslides(slide_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The colours of RGB tiles for YCbCr ones: what a fast path must never show."""

    def mistaken(path: Path, levels: Sequence[Level]) -> tuple[Page, ...]:
        from dataclasses import replace

        pages = find_pages(path, levels)
        return (pages[0], replace(pages[1], coding=replace(pages[1].coding, is_ycbcr=False)))

    monkeypatch.setattr(tilereader, "find_pages", mistaken)
    with Slide(slide_file) as slide, Slide(slide_file, reader="openslide") as reference:
        sizes = [(1100, 790), (550, 395)]  # level 0 is right, and so read before the mistake is found
        for size in [*sizes, *sizes]:
            np.testing.assert_array_equal(slide.read(WHOLE, size), reference.read(WHOLE, size))
        assert slide.reader.name == "openslide"
        assert "at level 1 the pixels differ" in slide.reader.reason and "1 windows had been" in slide.reader.reason


def test_whatever_goes_wrong_while_comparing_leaves_openslide(
    slide_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("of a library")

    monkeypatch.setattr(tilereader, "find_pages", broken)
    with Slide(slide_file) as slide:
        assert slide.read(WHOLE, (1100, 790)).shape == (790, 1100, 3)
        assert slide.reader == tilereader.ReaderChoice(
            "openslide", "the tiles could not be compared with OpenSlide's (of a library)"
        )


# ---------------------------------------------------------------- damage


def outcome(path: Path, reader: str, box: BoxLevel0, size: tuple[int, int]) -> Array | str:
    with Slide(path, reader=reader) as slide:
        try:
            return slide.read(box, size)
        except SlideError as error:
            return str(error)


@pytest.mark.parametrize("data", [None, b"\xff" * 64, np.random.default_rng(1).bytes(2000)], ids=["0", "255", "noise"])
@pytest.mark.parametrize("kind", [Kind("aperio"), Kind("generic", False, "444", True)], ids=str)
def test_a_damaged_tile_says_what_openslide_says(tmp_path: Path, kind: Kind, data: bytes | None) -> None:
    path = write_jpeg_slide(tmp_path / "a.svs", tissue(2051, 1533), kind=kind)
    damaged(path, MIDDLE, data)
    hit, beside = BoxLevel0(1024, 768, 256, 256), BoxLevel0(512, 768, 256, 256)
    said = outcome(path, "openslide", hit, (256, 256))
    assert isinstance(said, str) and "seems damaged" in said and one_sentence(SlideError(path, said))
    for reader in ("auto", "tiles"):
        assert outcome(path, reader, hit, (256, 256)) == said
        np.testing.assert_array_equal(
            outcome(path, reader, beside, (256, 256)), outcome(path, "openslide", beside, (256, 256))
        )


def test_a_tile_beyond_the_end_of_a_file_is_openslides_to_judge(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", tissue(2051, 1533))
    pages = find_pages(path, [Level(0, 2051, 1533, 1.0)])
    with path.open("r+b") as file:
        file.truncate(pages[0].offsets[MIDDLE] + pages[0].counts[MIDDLE] // 2)
    tiles = JpegTiles(path, pages)
    for column, there in ((3, True), (4, False), (5, False)):
        found = tiles.read(0, PixelWindow(column * 256, 768, 256, 256, 0, 0, 256, 256))
        assert (found is not None) == there
    tiles.close()


# ---------------------------------------------------------------- counts, ownership, threads


def sweep(slide: Slide, side: int) -> int:
    """Read level 0 row by row as patches of `side`, and return how many."""
    found = np.array([(x, y) for y in range(0, slide.height, side) for x in range(0, slide.width, side)])
    slide.read_patches(found, (side, side), side)
    return len(found)


@pytest.mark.parametrize("side", [256, 200])
def test_each_tile_is_decoded_once_whatever_the_grid_of_patches(tmp_path: Path, side: int) -> None:
    """54 tiles, some again for the comparison; pixels asked for are those of the slide, no padding."""
    with Slide(write_jpeg_slide(tmp_path / "a.tif", tissue(2051, 1533))) as slide:
        _ = slide.reader
        compared = slide.tile_pixels_decoded
        assert 0 < compared <= 5 * 256**2
        sweep(slide, side)
        assert slide.tile_pixels_decoded - compared <= 54 * 256**2
        assert slide.tile_pixels_decoded >= 54 * 256**2
        assert slide.pixels_decoded == 2051 * 1533
    assert slide.tile_pixels_decoded >= 54 * 256**2, "the count outlives the file"


@pytest.mark.parametrize(("size_level0", "patch_px"), [(512, 256), (514, 257), (500, 256), (256, 256), (300, 100)])
def test_patches_that_are_read_in_place_are_those_that_are_read_one_by_one(
    tmp_path: Path, size_level0: int, patch_px: int
) -> None:
    """Patches on tiles, across tiles, across fractions of pixels, and past the edges."""
    corners = np.array([(0, 0), (512, 1024), (256, 512), (77, 130), (-31, 1400), (1990, -60), (5000, 0)], np.int64)
    with Slide(write_jpeg_slide(tmp_path / "a.tif", tissue(2051, 1533), (1, 2))) as slide:
        patches = slide.read_patches(corners, (size_level0, size_level0), patch_px)
        for (x, y), patch in zip(corners.tolist(), patches, strict=True):
            box = BoxLevel0(x, y, size_level0, size_level0)
            np.testing.assert_array_equal(patch, slide.read(box, (patch_px, patch_px)))


def test_a_window_is_read_into_memory_of_its_shape_only(slide_file: Path) -> None:
    with Slide(slide_file) as slide:
        tiles = JpegTiles(slide_file, find_pages(slide_file, slide.levels))
        window = PixelWindow(200, 100, 300, 280, 0.0, 0.0, 300.0, 280.0)
        expected = tiles.read(0, window)
        for shape, is_used in (((280, 300, 3), True), ((300, 280, 3), False)):
            memory = np.full(shape, 7, np.uint8)
            pixels = tiles.read(0, window, memory=memory)
            assert (pixels is memory) is is_used and (is_used or (memory == 7).all())
            np.testing.assert_array_equal(pixels, expected)
        tiles.close()


def test_nothing_is_looked_at_before_it_is_asked_for(slide_file: Path) -> None:
    opened: list[Path] = []

    def opener(path: Path) -> Handle:
        opened.append(path)
        return open_with_openslide(path)

    slide = Slide(slide_file)
    slide._tiles._open_reference = opener
    with slide:
        assert slide.tile_pixels_decoded == 0 and not opened
        slide.read(BoxLevel0(0, 0, 200, 200), (200, 200))
        assert len(opened) == 1, "one level was wanted, so one was compared"
        slide.read(BoxLevel0(0, 0, 800, 700), (200, 175))
        slide.read(BoxLevel0(0, 0, 800, 700), (200, 175))
        assert len(opened) == 2


def test_threads_read_the_same_and_decode_each_tile_once(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", tissue(2051, 1533))
    fast, reference = both(path)
    with fast, reference:
        wanted = [(BoxLevel0(x, y, 300, 300), (300, 300)) for y in range(0, 1500, 190) for x in range(0, 2000, 190)]
        expected = [reference.read(*one) for one in wanted]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda one: fast.read(*one), wanted))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert fast.tile_pixels_decoded <= (54 + 5) * 256**2
        assert fast.pixels_decoded == reference.pixels_decoded


def test_tiles_take_no_more_memory_than_they_may(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", tissue(2051, 1533))
    tiles = JpegTiles(path, find_pages(path, [Level(0, 2051, 1533, 1.0)]), max_bytes=4 * 256**2 * 3)
    for x in range(0, 1800, 100):
        assert tiles.read(0, PixelWindow(x, 10, 100, 100, 0, 0, 100, 100)) is not None
        cached = tiles._cache._tiles
        assert cached.bytes <= 4 * 256**2 * 3
        assert cached.bytes == sum(tile.nbytes for tile in cached._arrays.values())
    tiles.close()


def test_the_cache_holds_the_rows_of_tiles_that_a_row_of_windows_needs(tmp_path: Path) -> None:
    """9 x 6 tiles of 196 kB; a window of 300 px can touch 3 rows of them."""
    path = write_jpeg_slide(tmp_path / "a.tif", tissue(2051, 1533))
    tiles = JpegTiles(path, find_pages(path, [Level(0, 2051, 1533, 1.0)]))
    limit = tiles._cache._tiles
    tiles.read(0, PixelWindow(0, 0, 300, 300, 0.0, 0.0, 300.0, 300.0))
    assert limit.max_bytes == jpeg_tiles.FEWEST_TILE_BYTES > 3 * 9 * 256**2 * 3
    tiles.read(0, PixelWindow(0, 0, 300, 1100, 0.0, 0.0, 300.0, 1100.0))
    assert limit.max_bytes == 6 * 9 * 256**2 * 3, "five rows, and one more if the window does not begin with a tile"
    tiles.read(0, PixelWindow(0, 0, 300, 300, 0.0, 0.0, 300.0, 300.0))
    assert limit.max_bytes == 6 * 9 * 256**2 * 3, "windows of several sizes take turns in the live view"
    tiles.read(0, PixelWindow(0, 0, 9, 90_000, 0.0, 0.0, 9.0, 90_000.0))
    assert limit.max_bytes == jpeg_tiles.TILE_BYTES
    tiles.close()


def test_a_pickled_slide_reads_by_the_same_reader(slide_file: Path) -> None:
    with Slide(slide_file, reader="tiles") as slide, Slide(slide_file, reader="openslide") as other:
        expected = slide.read(WHOLE, (550, 395))
        for one in (slide, other):
            with pickle.loads(pickle.dumps(one)) as again, one.another() as third:
                np.testing.assert_array_equal(again.read(WHOLE, (550, 395)), expected)
                np.testing.assert_array_equal(third.read(WHOLE, (550, 395)), expected)
                assert again.reader.name == third.reader.name == one.reader.name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("give_back", [Slide.close, lambda _: None], ids=["closed", "forgotten"])
def test_the_file_is_given_back(slide_file: Path, give_back: Callable[[Slide], None]) -> None:
    def holders() -> int:
        links = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
        return sum(link == str(slide_file) for link in links)

    slide = Slide(slide_file)
    slide.read(WHOLE, (550, 395))
    assert holders() >= 1
    give_back(slide)
    del slide
    gc.collect()
    assert holders() == 0
