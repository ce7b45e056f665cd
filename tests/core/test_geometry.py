"""Frames and units: level choice, windows of a level, and the nested lattice in exact level-0 pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lrmil.core.errors import GeometryError
from napari_lrmil.core.geometry import (
    Bounds,
    BoxLevel0,
    BoxUm,
    Level,
    Mpp,
    OpenSlideWindow,
    PatchPlan,
    PixelWindow,
    choose_level,
    choose_scale,
    nominal_magnification,
    pixel_aligned_corner,
)

CMU = (1.0, 2.000337154416723, 4.002024291497976, 8.016679676065959)  # downsamples of a real pyramid, none whole


def levels(*downsamples: float) -> tuple[Level, ...]:
    return tuple(Level(i, int(9001 / d), int(7003 / d), d) for i, d in enumerate(downsamples))


# ---------------------------------------------------------------- resolution


@pytest.mark.parametrize("bad", [(0.0, 0.5), (0.5, -1.0), (math.nan, 0.5), (0.5, math.inf)])
def test_impossible_resolutions_are_refused_when_built(bad: tuple[float, float]) -> None:
    with pytest.raises(GeometryError, match="positive"):
        Mpp(*bad)


def test_mean_mpp_keeps_the_area_of_an_oblong_pixel() -> None:
    assert Mpp(0.5, 0.125).mean == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("mpp", "magnification"),
    [(0.5, 20), (0.499, 20), (0.25, 40), (0.2282, 40), (0.1, 80), (0.6, 20), (0.8, 10), (1.0, 10), (2.0, 5), (4.0, 2),
     (8.0, 1), (64.0, 1)],
)  # fmt: skip
def test_the_nominal_magnification_is_an_objective_that_there_is(mpp: float, magnification: int) -> None:
    """Halving and doubling from 20x at 0.5 µm, never less than 1: 0.2282 is 40x, not 44x."""
    assert nominal_magnification(mpp) == magnification


def test_micrometres_and_level0_pixels_convert_per_axis() -> None:
    assert BoxUm(10, 20, 30, 40).to_level0(Mpp(0.5, 0.25)) == BoxLevel0(20, 80, 60, 160)


def test_size_at_a_resolution_uses_each_axis_own_mpp() -> None:
    assert BoxLevel0(3, 5, 200, 300).size_at(2.0, Mpp(0.5, 0.25)) == (50, 38)  # 100 µm and 75 µm at 2 µm: 37.5 is 38


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_empty_boxes_are_refused(size: tuple[float, float]) -> None:
    with pytest.raises(GeometryError, match="positive size"):
        BoxLevel0(0, 0, *size)


# ---------------------------------------------------------------- level choice


@pytest.mark.parametrize(
    ("mpp0", "wanted", "index"),
    [
        (0.499, 2.0, 2),  # 1.997
        (0.499, 1.99, 2),  # 1.997 is coarser by less than 5 %
        (0.499, 1.90, 1),  # 1.997 is 5.1 % coarser
        (0.499, 4.0, 3),
        (0.499, 3.99, 3),
        (0.499, 0.5, 0),
        (0.499, 100.0, 3),
        (0.25, 2.0, 3),  # the same wish on a 40x slide is another index: never chosen by index
        (0.25, 0.5, 1),
        (2.0, 0.5, 0),  # nothing is fine enough: the finest there is
    ],
)
def test_the_coarsest_level_that_is_fine_enough_within_five_percent(mpp0: float, wanted: float, index: int) -> None:
    assert choose_level(levels(*CMU), Mpp(mpp0, mpp0), wanted).index == index


@settings(deadline=None)
@given(st.floats(0.1, 2.0), st.floats(0.1, 40.0))
def test_no_level_between_the_chosen_one_and_the_wish_is_left_out(mpp0: float, wanted: float) -> None:
    mpp, pyramid = Mpp(mpp0, mpp0), levels(*CMU)
    chosen = choose_level(pyramid, mpp, wanted)
    limit = wanted * 1.05
    assert chosen.mpp(mpp) <= limit * (1 + 1e-12) or chosen.index == 0
    assert not [x for x in pyramid if chosen.mpp(mpp) < x.mpp(mpp) <= limit * (1 - 1e-12)]


# ---------------------------------------------------------------- windows of a level

boxes = st.builds(
    BoxLevel0,
    st.floats(-3000, 90_000),
    st.floats(-3000, 90_000),
    st.floats(0.5, 5000),
    st.floats(0.5, 5000),
)
downsamples = st.one_of(st.sampled_from([1.0, 2.0, 4.0, *CMU, 16.062397, 63.7]), st.floats(1.0, 70.0))


@settings(deadline=None)
@given(boxes, downsamples)
def test_a_window_covers_its_box_and_remembers_the_fractions(box: BoxLevel0, downsample: float) -> None:
    window = OpenSlideWindow.around(box, Level(0, 10**6, 10**6, downsample))
    assert all(isinstance(v, int) for v in (*window.location, *window.size))
    assert window.location[0] / downsample + window.left == pytest.approx(box.x / downsample, abs=1e-5)
    assert window.location[1] / downsample + window.top == pytest.approx(box.y / downsample, abs=1e-5)
    assert window.location[0] / downsample + window.right == pytest.approx((box.x + box.width) / downsample, abs=1e-5)
    assert window.location[1] / downsample + window.bottom == pytest.approx((box.y + box.height) / downsample, abs=1e-5)
    assert 0 <= window.left < 2 and 0 <= window.top < 2, (
        "more than a pixel and a corner's rounding would be decoded in vain"
    )
    assert window.right <= window.size[0] + 1e-5 and window.bottom <= window.size[1] + 1e-5
    assert window.size[0] < window.right + 1 and window.size[1] < window.bottom + 1


def test_an_aligned_box_asks_for_no_pixel_more_than_it_has() -> None:
    window = OpenSlideWindow.around(BoxLevel0(1024, 512, 512, 256), Level(2, 5000, 5000, 4.0))
    assert (window.location, window.size) == ((1024, 512), (128, 64))
    assert (window.left, window.top, window.right, window.bottom) == (0, 0, 128, 64)


@pytest.mark.parametrize("downsample", [1.0, 4.0, 4.002, 8.017])
@pytest.mark.parametrize("box", [BoxLevel0(0, 0, 64, 48), BoxLevel0(37, 51, 512, 256), BoxLevel0(-5.5, 3.25, 100.1, 7)])
def test_a_window_of_whole_pixels_covers_its_box(box: BoxLevel0, downsample: float) -> None:
    window = PixelWindow.around(box, Level(1, 4000, 3000, downsample))
    x, y = (window.x + window.left) * downsample, (window.y + window.top) * downsample
    assert (x, y) == pytest.approx((box.x, box.y), abs=1e-5 * downsample)
    assert (window.right - window.left) * downsample == pytest.approx(box.width)
    assert (window.bottom - window.top) * downsample == pytest.approx(box.height)
    assert 0 <= window.left < 1 and window.width - 1 < window.right <= window.width + 1e-6
    assert 0 <= window.top < 1 and window.height - 1 < window.bottom <= window.height + 1e-6


def test_whether_a_window_cuts_pixels_and_lies_within() -> None:
    level = Level(1, 100, 80, 4.0)
    whole = PixelWindow.around(BoxLevel0(8, 4, 80, 40), level)
    assert whole.cuts_no_pixel and whole.within(level) and whole.pixels_inside(level) == 20 * 10
    assert not PixelWindow.around(BoxLevel0(9, 4, 80, 40), level).cuts_no_pixel
    assert not PixelWindow.around(BoxLevel0(8, 4, 80, 41), level).cuts_no_pixel
    beyond = PixelWindow.around(BoxLevel0(360, -8, 80, 40), level)
    assert not beyond.within(level) and beyond.pixels_inside(level) == 10 * 8
    assert PixelWindow.around(BoxLevel0(4000, 0, 80, 40), level).pixels_inside(level) == 0


@pytest.mark.parametrize(
    ("downsample", "across", "down", "scale"),
    [
        (1.0, 8.0, 8.0, 8), (1.0, 16.0, 8.0, 8), (1.0, 4.0, 8.0, 4), (1.0, 12.0, 12.0, 4), (4.0, 8.0, 8.0, 2),
        (1.0, 1.0, 1.0, 1), (1.0, 3.0, 3.0, 1), (1.0, 7.9, 8.0, 1), (1.0, 8.02, 8.02, 1), (4.002, 8.004, 8.004, 2),
        (4.0, 2.0, 2.0, 1),
    ],
)  # fmt: skip
def test_a_level_is_reduced_by_what_cuts_no_pixel(downsample: float, across: float, down: float, scale: int) -> None:
    assert choose_scale(Level(0, 4000, 3000, downsample), across, down) == scale


@pytest.mark.parametrize(("scale", "size"), [(1, (1001, 780)), (2, (500, 390)), (4, (250, 195)), (8, (125, 97))])
def test_a_reduced_level_has_whole_pixels_only(scale: int, size: tuple[int, int]) -> None:
    """The pixel that is cut by the right or the lower edge is left out: decoders fill it up with white."""
    reduced = Level(3, 1001, 780, 4.002).reduced(scale)
    assert (reduced.width, reduced.height) == size
    assert reduced.index == 3 and reduced.downsample == pytest.approx(4.002 * scale)


@pytest.mark.parametrize("downsample", [1.0, 2.0, 4.002, 8.017])
def test_a_clean_corner_is_a_whole_level0_pixel_between_two_of_the_level(downsample: float) -> None:
    corner = pixel_aligned_corner(100, 600, downsample)
    assert 100 <= corner.pixel <= 600 and isinstance(corner.level0, int)
    assert (corner.pixel + corner.rest) * downsample == pytest.approx(corner.level0, abs=1e-4)
    assert min(corner.rest, 1 - corner.rest) < 0.02


def test_pixels_inside_counts_only_what_the_level_has() -> None:
    level = Level(1, 300, 200, 4.0)
    assert OpenSlideWindow.around(BoxLevel0(-40, 720, 80, 120), level).pixels_inside(level) == 10 * 20
    assert OpenSlideWindow.around(BoxLevel0(-400, 0, 80, 80), level).pixels_inside(level) == 0


# ---------------------------------------------------------------- plans and lattices


@pytest.mark.parametrize("n", [2, 4, 8])
def test_ratios_two_four_and_eight_nest(n: int) -> None:
    assert PatchPlan(lr_mpp=0.5 * n).n == n
    assert PatchPlan(lr_mpp=4.0, lr_patch_px=32 * n).n == n  # patch sizes are set apart from resolutions


@pytest.mark.parametrize("values", [{"lr_mpp": 1.25}, {"lr_patch_px": 250}, {"hr_mpp": 0.3}, {"lr_mpp": 0.25}])
def test_ratios_that_are_no_whole_number_are_refused_with_both_footprints(values: dict[str, float]) -> None:
    with pytest.raises(GeometryError, match="µm holds no whole number of HR patches of") as caught:
        PatchPlan(**values)  # type: ignore[arg-type]  # a dict of numbers
    assert "ratio" in str(caught.value)


@pytest.mark.parametrize("values", [{"hr_mpp": 0.0}, {"lr_patch_px": -256}])
def test_nonpositive_plans_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(GeometryError, match="positive"):
        PatchPlan(**values)  # type: ignore[arg-type]  # a dict of numbers


def test_rounding_of_decimal_resolutions_does_not_refuse_a_plan() -> None:
    assert PatchPlan(hr_mpp=0.1, lr_mpp=0.3).n == 3  # 0.3 / 0.1 is 2.9999999999999996


def test_lattice_of_the_methods_example_slide_is_483_and_1932_pixels() -> None:
    lattice = PatchPlan().lattice(Bounds(0, 0, 10_000, 7_000), Mpp(0.2649, 0.2649))
    assert lattice.cell == (483, 483)
    assert lattice.lr_cell == (1932, 1932)
    assert lattice.hr_um == pytest.approx(483 * 0.2649)  # the footprint that results, not the nominal 128
    assert lattice.lr_um == pytest.approx(1932 * 0.2649)


def test_lattice_cells_follow_each_axis_own_mpp_and_hang_on_the_bounds() -> None:
    lattice = PatchPlan().lattice(Bounds(100, 70, 5000, 3000), Mpp(0.5, 0.4))
    assert lattice.cell == (256, 320)
    assert lattice.origin == (100, 70)
    assert lattice.hr_corners(np.array([[3, 1]])).tolist() == [[100 + 3 * 256, 70 + 320]]
    assert lattice.lr_corners(np.array([[1, 2]])).tolist() == [[100 + 1024, 70 + 2 * 1280]]


@settings(deadline=None)
@given(
    st.sampled_from([2, 3, 4, 8]),
    st.floats(0.1, 1.1),
    st.floats(0.1, 1.1),
    st.integers(0, 5000),
    st.integers(1, 30_000),
    st.integers(1, 20_000),
)
def test_lattices_cover_the_bounds_in_whole_lr_cells(
    n: int, mx: float, my: float, at: int, width: int, height: int
) -> None:
    lattice = PatchPlan(lr_mpp=0.5 * n).lattice(Bounds(at, at // 2, width, height), Mpp(mx, my))
    assert lattice.columns % n == 0 and lattice.rows % n == 0
    assert lattice.lr_cell == (n * lattice.cell[0], n * lattice.cell[1]), "an LR cell is exactly n HR cells, unrounded"
    assert lattice.box.width >= width > lattice.box.width - lattice.lr_cell[0]
    assert lattice.box.height >= height > lattice.box.height - lattice.lr_cell[1]
    assert abs(lattice.cell[0] * mx - 128) <= mx / 2 + 1e-9 and abs(lattice.cell[1] * my - 128) <= my / 2 + 1e-9
