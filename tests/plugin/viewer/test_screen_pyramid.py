"""Image pyramid for the screen: lazy, exact, bounded in memory, closed with its last array."""

from __future__ import annotations

import gc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from napari_lrmil.core.geometry import Bounds, BoxUm, Level
from napari_lrmil.plugin.viewer.screen_pyramid import (
    MAX_COARSEST_PX,
    MAX_LEVEL_STEP,
    ScreenSlide,
    TileCache,
    plan_levels,
)
from support.fake_slides import FakeSlide, area_reference, fake_slide, resolution, speckled

WIDTH, HEIGHT = 1500, 1111  # neither is a multiple of a tile or of a downsample


def test_cache_never_holds_more_bytes_than_allowed_and_drops_what_was_not_used() -> None:
    cache = TileCache(max_bytes=1000)
    for column in range(3):
        cache.put((0, 0, column), np.zeros((10, 10, 3), np.uint8))
    cache.get((0, 0, 0))
    cache.put((0, 0, 3), np.zeros((10, 10, 3), np.uint8))
    assert cache.bytes == 900
    assert cache.get((0, 0, 1)) is None
    assert cache.get((0, 0, 0)) is not None


def test_cache_takes_a_tile_twice_without_counting_it_twice() -> None:
    cache = TileCache(max_bytes=1000)
    for _ in range(5):
        cache.put((0, 0, 0), np.zeros((10, 10, 3), np.uint8))
    assert cache.bytes == 300


def test_a_tile_larger_than_the_cache_is_not_kept() -> None:
    cache = TileCache(max_bytes=10)
    cache.put((0, 0, 0), np.zeros((10, 10, 3), np.uint8))
    assert cache.bytes == 0


@pytest.mark.parametrize("downsamples", [(1.0,), (1.0, 4.0001, 16.0008), (1.0, 64.3), (1.0, 8.02)])
def test_levels_end_small_and_no_step_is_large(downsamples: tuple[float, ...]) -> None:
    size = (100_001, 80_003)
    levels = [Level(i, int(size[0] / d), int(size[1] / d), d) for i, d in enumerate(downsamples)]
    planned = plan_levels(levels, Bounds(0, 0, *size))
    widths = [level.width for level in planned]
    assert max(planned[-1].width, planned[-1].height) <= MAX_COARSEST_PX
    assert all(a / b < MAX_LEVEL_STEP * 1.1 for a, b in pairwise(widths))
    assert [round(size[0] / level.width) for level in planned if level.in_file] == [round(d) for d in downsamples]


def test_making_arrays_reads_no_pixel_and_a_view_reads_only_its_tiles(tmp_path: Path) -> None:
    fake = FakeSlide(speckled(WIDTH, HEIGHT), (1.0, 4.0), resolution(0.5))
    screen = ScreenSlide(fake_slide(tmp_path, fake))
    arrays = screen.arrays()
    assert fake.reads == []
    np.asarray(arrays[0][100:200, 100:200])
    assert [size for _, _, size in fake.reads] == [(512, 512)]


def test_layers_of_one_slide_share_the_cache(tmp_path: Path) -> None:
    fake = FakeSlide(speckled(WIDTH, HEIGHT), (1.0,), resolution(0.5))
    screen = ScreenSlide(fake_slide(tmp_path, fake))
    first, second = screen.array(0), screen.array(0)
    assert np.array_equal(np.asarray(first), np.asarray(second))
    assert len(fake.reads) == 9


def test_finest_level_is_the_file_bit_by_bit(tmp_path: Path) -> None:
    base = speckled(WIDTH, HEIGHT)
    screen = ScreenSlide(fake_slide(tmp_path, FakeSlide(base, (1.0, 4.0), resolution(0.5))))
    assert np.array_equal(np.asarray(screen.array(0)), base)


def test_missing_levels_are_means_of_the_level_above_across_tile_edges(tmp_path: Path) -> None:
    base = speckled(WIDTH, HEIGHT)
    screen = ScreenSlide(fake_slide(tmp_path, FakeSlide(base, (1.0,), resolution(0.5))))
    coarse = np.asarray(screen.array(1))
    level = screen.levels[1]
    expected = area_reference(base, (0, 0, WIDTH, HEIGHT), (level.width, level.height))
    assert not level.in_file
    assert np.abs(coarse - expected).max() <= 0.51


def test_levels_with_a_crooked_downsample_cover_the_slide_exactly(tmp_path: Path) -> None:
    base = speckled(WIDTH, HEIGHT)
    screen = ScreenSlide(fake_slide(tmp_path, FakeSlide(base, (1.0, 3.02), resolution(0.5))))
    level = screen.levels[1]
    expected = area_reference(base, (0, 0, WIDTH, HEIGHT), (level.width, level.height))
    assert level.in_file
    assert np.abs(np.asarray(screen.array(1))[2:-2, 2:-2] - expected[2:-2, 2:-2]).mean() < 1.5


def test_only_the_scanned_part_is_shown(tmp_path: Path) -> None:
    base = speckled(WIDTH, HEIGHT)
    bounds = {"bounds-x": 301, "bounds-y": 77, "bounds-width": 900, "bounds-height": 800}
    properties = resolution(0.5) | {f"openslide.{k}": str(v) for k, v in bounds.items()}
    screen = ScreenSlide(fake_slide(tmp_path, FakeSlide(base, (1.0, 4.0), properties)))
    assert np.array_equal(np.asarray(screen.array(0)), base[77:877, 301:1201])


def test_other_colours_hold_for_every_level_and_for_tiles_that_were_kept(tmp_path: Path) -> None:
    base = speckled(WIDTH, HEIGHT)
    screen = ScreenSlide(fake_slide(tmp_path, FakeSlide(base, (1.0,), resolution(0.5))))
    emitted: list[bool] = []
    screen.colour_changed.connect(lambda: emitted.append(True))
    before = [np.asarray(array) for array in screen.arrays()]
    screen.set_colour(lambda pixels: 255 - pixels)
    assert emitted == [True] and screen.cache.bytes == 0
    assert np.array_equal(np.asarray(screen.array(0)), 255 - before[0])
    assert np.abs(np.asarray(screen.array(1)).astype(int) - (255 - before[1])).max() <= 1, "averaged once, not twice"
    screen.set_colour(None)
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(screen.arrays(), before, strict=True))


def test_a_tile_that_was_read_in_the_old_colours_is_not_kept(tmp_path: Path) -> None:
    fake = FakeSlide(speckled(700, 600), (1.0,), resolution(0.5))
    screen = ScreenSlide(fake_slide(tmp_path, fake))
    fake.before_read = lambda: screen.set_colour(np.zeros_like) if screen.colour is None else None
    assert screen.tile((0, 0, 0)).any(), "its read began before the change"
    assert not screen.tile((0, 0, 0)).any()


def test_the_extent_is_where_the_scan_lies_in_the_world(tmp_path: Path) -> None:
    bounds = {"bounds-x": 300, "bounds-y": 70, "bounds-width": 900, "bounds-height": 800}
    properties = resolution(0.5, 0.25) | {f"openslide.{k}": str(v) for k, v in bounds.items()}
    screen = ScreenSlide(fake_slide(tmp_path, FakeSlide(speckled(WIDTH, HEIGHT), (1.0,), properties)))
    assert screen.extent_um == BoxUm(150, 17.5, 450, 200)


def test_the_slide_is_closed_when_the_last_array_is_gone(tmp_path: Path) -> None:
    fake = FakeSlide(speckled(600, 500), (1.0,), resolution(0.5))
    array = ScreenSlide(fake_slide(tmp_path, fake)).array(0)[10:20]
    np.asarray(array)
    gc.collect()
    assert not fake.handles[0].closed
    del array
    gc.collect()
    assert fake.handles[0].closed
