"""Slides: where the resolution comes from, exact pixels at any resolution, ownership and threads, bad files."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_lrmil.core.errors import GeometryError, ResolutionError, SlideError
from napari_lrmil.core.geometry import Bounds, BoxLevel0, BoxUm, Mpp
from napari_lrmil.core.slides.slide import Slide, find_mpp, mpp_warnings
from support.fake_slides import (
    GLASS,
    OPENED,
    Array,
    FakeSlide,
    area_reference,
    fake_slide,
    glass,
    l_shape,
    one_sentence,
    resolution,
    write_tiff,
)

NON_INTEGER = (1.0, 2.0003, 4.002, 8.017)


def noise(width: int, height: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@lru_cache
def waves(width: int, height: int) -> Array:
    """Smooth, different along x, y and per colour: bilinear reads of shifted levels must reproduce it."""
    x, y = np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5
    planes = [np.sin(x / 61 + 0.3) * np.cos(y / 83), np.sin(y / 47), np.cos(x / 97 + y / 71)]
    return np.rint(127.5 + 110 * np.stack([p + 0 * x + 0 * y for p in planes], axis=2)).astype(np.uint8)


@lru_cache
def wave_levels(properties: bool) -> FakeSlide:
    return FakeSlide(waves(1500, 1100), NON_INTEGER, resolution(0.5, 0.4) if properties else {})


def wave_slide(*, properties: bool = False) -> FakeSlide:
    """Return smooth pixels at levels 1, 2.0003, 4.002 and 8.017."""
    return copy(wave_levels(properties))


@pytest.fixture(scope="module")
def wave_tiff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lossless pyramid whose levels OpenSlide itself finds at 2.002 and 4.004; unequal sides and mpp."""
    folder = tmp_path_factory.mktemp("waves")
    return write_tiff(folder / "a.tif", waves(2002, 1001), (1.0, 2.002, 4.004), mpp=(0.5, 0.4))


# ---------------------------------------------------------------- resolution

EVERYTHING = {
    "openslide.mpp-x": "0.5",
    "openslide.mpp-y": "0.25",
    "tiff.ResolutionUnit": "centimeter",
    "tiff.XResolution": "25000",
    "tiff.YResolution": "20000",
    "openslide.comment": "Scanner|AppMag = 20|MPP = 0.3",
    "openslide.objective-power": "10",
}


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ((), Mpp(0.5, 0.25, "openslide")),
        (("openslide.mpp-x",), Mpp(0.4, 0.5, "tiff resolution")),
        (("openslide.mpp-x", "tiff.ResolutionUnit"), Mpp(0.3, 0.3, "vendor comment")),
        (("openslide.mpp-x", "tiff.XResolution", "openslide.comment"), Mpp(1.0, 1.0, "objective power")),
        (("openslide.mpp-y", "tiff.YResolution", "openslide.comment", "openslide.objective-power"), None),
    ],
)
def test_resolution_sources_in_their_order_of_belief(gone: tuple[str, ...], expected: Mpp | None) -> None:
    found = find_mpp({k: v for k, v in EVERYTHING.items() if k not in gone})
    if expected is None:
        assert found is None
    else:
        assert found is not None and found.source == expected.source
        assert (found.x, found.y) == pytest.approx((expected.x, expected.y))


def test_the_users_resolution_is_believed_above_the_file_and_says_so(tmp_path: Path) -> None:
    with fake_slide(tmp_path, FakeSlide(glass(300, 200), properties=EVERYTHING), mpp=0.31) as slide:
        assert slide.mpp == Mpp(0.31, 0.31, "override")


@pytest.mark.parametrize("mpp", [0.0, -0.5, float("nan")])
def test_an_impossible_override_is_one_sentence(tmp_path: Path, mpp: float) -> None:
    with pytest.raises(GeometryError, match="positive") as caught:
        fake_slide(tmp_path, FakeSlide(glass(30, 20)), mpp=mpp)
    assert one_sentence(caught.value)


def test_an_impossible_override_leaves_no_file_open(tmp_path: Path) -> None:
    fake = FakeSlide(glass(30, 20))
    with pytest.raises(GeometryError):
        fake_slide(tmp_path, fake, mpp=-1.0)
    assert all(handle.closed for handle in fake.handles)


@pytest.mark.parametrize("unit", ["inch", "Inch"])
def test_a_screens_72_dpi_is_not_a_resolution(unit: str) -> None:
    screen = {"tiff.ResolutionUnit": unit, "tiff.XResolution": "72", "tiff.YResolution": "72"}
    assert find_mpp(screen) is None
    power = find_mpp(screen | {"openslide.objective-power": "40"})
    assert power is not None and (power.x, power.source) == (0.25, "objective power")


def test_implausible_openslide_values_fall_through_to_the_next_source() -> None:
    found = find_mpp({"openslide.mpp-x": "352.8", "openslide.mpp-y": "352.8", "openslide.comment": "MPP: 0.46"})
    assert found == Mpp(0.46, 0.46, "vendor comment")


@pytest.mark.parametrize(
    "comment", ["a|MPP = 0.252|b", "mpp=0.252", "microns per pixel: 0.252", "Microns_per_pixel = .252"]
)
def test_vendor_comments_in_several_spellings(comment: str) -> None:
    for key in ("openslide.comment", "tiff.ImageDescription"):
        assert find_mpp({key: comment}) == Mpp(0.252, 0.252, "vendor comment")


def test_a_decimal_comma_is_read() -> None:
    assert find_mpp({"openslide.mpp-x": "0,5", "openslide.mpp-y": "0,25"}) == Mpp(0.5, 0.25, "openslide")


@pytest.mark.parametrize("junk", ["", "unknown", "nan", "inf", "0"])
def test_junk_in_a_property_is_no_resolution(junk: str) -> None:
    assert find_mpp({"openslide.mpp-x": junk, "openslide.mpp-y": junk, "openslide.objective-power": junk}) is None


def test_without_any_resolution_the_slide_opens_and_the_error_names_the_option(tmp_path: Path) -> None:
    with fake_slide(tmp_path, FakeSlide(glass(300, 200))) as slide:
        assert not slide.has_mpp and slide.warnings == ()
        assert slide.read(BoxLevel0(0, 0, 30, 20), (3, 2)).shape == (2, 3, 3)  # pixels need no µm
        with pytest.raises(ResolutionError, match="--mpp") as caught:
            _ = slide.mpp
    assert one_sentence(caught.value) and str(tmp_path) in str(caught.value)


def test_odd_resolutions_and_guessed_ones_deserve_a_warning() -> None:
    assert mpp_warnings(Mpp(0.5, 0.5)) == () and mpp_warnings(Mpp(0.2282, 0.2282)) == ()
    assert "15 %" in mpp_warnings(Mpp(0.35, 0.35))[0]


def test_a_resolution_given_against_the_files_own_is_told() -> None:
    given, stated = Mpp(0.25, 0.25, "override"), Mpp(0.5, 0.5, "openslide")
    [told] = mpp_warnings(given, stated)
    assert "0.5" in told and "0.25" in told and "openslide" in told
    assert mpp_warnings(Mpp(0.51, 0.51, "override"), stated) == () and mpp_warnings(stated, stated) == ()
    assert "objective power" in mpp_warnings(Mpp(0.5, 0.5, "objective power"))[0]


def test_what_a_user_said_earlier_counts_only_where_the_file_is_silent(tmp_path: Path) -> None:
    """The objective's power alone is a word of the file: it is believed above what is remembered."""
    asked: list[str] = []

    def remembered(fingerprint: str) -> float | None:
        asked.append(fingerprint)
        return 0.37

    silent = FakeSlide(glass(60, 40), properties={"openslide.quickhash-1": "a" * 64})
    with fake_slide(tmp_path, silent, remembered=remembered) as slide:
        assert slide.mpp == Mpp(0.37, 0.37, "remembered") and asked == ["a" * 32]
        assert any("earlier" in text for text in slide.warnings)
        assert pickle.loads(pickle.dumps(slide)).mpp == slide.mpp, "the answer travels, the function need not"
    with fake_slide(tmp_path, silent, mpp=0.4, remembered=remembered) as slide:
        assert slide.mpp == Mpp(0.4, 0.4, "override")
    power = FakeSlide(glass(60, 40), properties={"openslide.objective-power": "40"})
    with fake_slide(tmp_path, power, remembered=remembered) as slide:
        assert slide.mpp == Mpp(0.25, 0.25, "objective power")
    assert len(asked) == 1
    with fake_slide(tmp_path, silent, remembered=lambda _: None) as slide:
        assert not slide.has_mpp


def test_tiff_resolution_tags_through_openslide_keep_x_and_y_apart(tmp_path: Path) -> None:
    with Slide(write_tiff(tmp_path / "a.tif", glass(600, 300), mpp=(0.5, 0.25))) as slide:
        assert (slide.mpp.x, slide.mpp.y) == pytest.approx((0.5, 0.25))
        assert (slide.width, slide.height) == (600, 300)
        assert slide.name == "a" and slide.vendor == "generic-tiff"


# ---------------------------------------------------------------- pixels


def test_every_output_pixel_is_the_mean_over_its_area_integer_factor(tmp_path: Path) -> None:
    """8-bit output within rounding of a float64 brute-force mean, on noise, where any shift would show."""
    base = noise(640, 410)
    with fake_slide(tmp_path, FakeSlide(base)) as slide:
        found = slide.read(BoxLevel0(37, 51, 512, 256), (128, 64))
    expected = base[51 : 51 + 256, 37 : 37 + 512].reshape(64, 4, 128, 4, 3).mean(axis=(1, 3))
    assert found.shape == (64, 128, 3) and found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, atol=0.5001)


@pytest.mark.parametrize("box", [(10.25, 20.75, 301.3, 203.9), (0.5, 0.0, 333.3, 100.1), (3.999, 7.001, 64.5, 129.25)])
@pytest.mark.parametrize("size", [(50, 31), (7, 90), (64, 64)])
def test_fractions_at_the_edges_weigh_as_the_fractions_they_are(
    tmp_path: Path, box: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    base = noise(400, 300, seed=1)
    with fake_slide(tmp_path, FakeSlide(base)) as slide:
        found = slide.read(BoxLevel0(*box), size)
    np.testing.assert_allclose(found, area_reference(base, box, size), atol=0.51)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    x=st.floats(0, 200), y=st.floats(0, 150), width=st.floats(8, 150), height=st.floats(8, 120),
    across=st.integers(1, 40), down=st.integers(1, 40),
)  # fmt: skip
def test_any_region_at_any_size_equals_the_brute_force_mean(
    tmp_path: Path, x: float, y: float, width: float, height: float, across: int, down: int
) -> None:
    base = noise(360, 280, seed=2)
    with fake_slide(tmp_path, FakeSlide(base)) as slide:
        found = slide.read(BoxLevel0(x, y, width, height), (across, down))
    np.testing.assert_allclose(found, area_reference(base, (x, y, width, height), (across, down)), atol=0.52)


def shift(found: Array, expected: Array, step: float) -> Array:
    """Return by how many level-0 pixels, x then y, `found` lies off `expected`: least squares on its gradient.

    A constant is fitted beside it, for OpenSlide cuts fractions of a grey level off where it interpolates.
    """
    down, across = np.gradient(expected, step, axis=(0, 1))
    columns = (across, down, np.ones_like(across))
    slopes = np.stack([c[1:-1, 1:-1].ravel() for c in columns], axis=1)
    solution: Array = np.linalg.lstsq(slopes, (expected - found)[1:-1, 1:-1].ravel(), rcond=None)[0][:2]
    return solution


@pytest.mark.parametrize("wanted", [2.0, 4.0, 8.0, 9.7])
@pytest.mark.parametrize("corner", [(0, 0), (483, 322), (1101, 735), (1000.5, 123.25)])
def test_non_integer_downsamples_do_not_shift_the_picture(
    tmp_path: Path, wanted: float, corner: tuple[float, float]
) -> None:
    """Levels at 2.0003, 4.002 and 8.017 agree with level 0; taking 8.017 for 8 would be 2 px off at pixel 1000."""
    box = (*corner, 40 * wanted, 33 * wanted)
    with fake_slide(tmp_path, wave_slide()) as slide:
        found = slide.read(BoxLevel0(*box), (40, 33))
    expected = area_reference(waves(1500, 1100), box, (40, 33))
    np.testing.assert_allclose(found, expected, atol=3.0)  # two roundings to 8 bits, one bilinear step
    assert np.abs(shift(found, expected, wanted)).max() < max(0.3, wanted / 20)


def test_the_measure_of_shift_sees_a_tenth_of_a_pixel() -> None:
    base, box = waves(400, 300), (40.0, 30.0, 200.0, 160.0)
    expected = area_reference(base, box, (50, 40))
    moved = np.rint(area_reference(base, (40.3, 29.8, 200.0, 160.0), (50, 40)))
    np.testing.assert_allclose(shift(moved, expected, 4.0), (-0.3, 0.2), atol=0.05)


@pytest.mark.parametrize("wanted", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("corner", [(301.0, 203.0), (1717.0, 777.0)])
def test_area_averages_through_real_openslide(wave_tiff: Path, wanted: float, corner: tuple[float, float]) -> None:
    box = (*corner, 64 * wanted, 48 * wanted)
    with Slide(wave_tiff) as slide:
        assert [level.downsample for level in slide.levels] == pytest.approx([1.0, 2.002, 4.004])
        found = slide.read(BoxLevel0(*box), (64, 48))
    expected = area_reference(waves(2002, 1001), box, (64, 48))
    np.testing.assert_allclose(found, expected, atol=3.0)  # OpenSlide cuts fractions off where it interpolates
    assert np.abs(shift(found, expected, wanted)).max() < 0.3


def test_noise_on_level_zero_through_real_openslide_is_exact(tmp_path: Path) -> None:
    base = noise(700, 500, seed=3)
    with Slide(write_tiff(tmp_path / "a.tif", base, mpp=(0.5, 0.5))) as slide:
        np.testing.assert_array_equal(slide.read(BoxLevel0(123, 45, 300, 200), (300, 200)), base[45:245, 123:423])
        np.testing.assert_allclose(
            slide.read(BoxLevel0(200.5, 99.25, 301, 150.5), (43, 29)),
            area_reference(base, (200.5, 99.25, 301, 150.5), (43, 29)),
            atol=0.51,
        )  # across tile borders at 256


def test_reading_uses_the_coarsest_level_that_is_fine_enough(tmp_path: Path) -> None:
    fake = wave_slide(properties=True)
    with fake_slide(tmp_path, fake) as slide:
        for size, level in (
            ((256, 256), 0),
            ((128, 128), 1),
            ((64, 64), 2),
            ((32, 32), 3),
            ((16, 16), 3),
            ((70, 70), 1),
        ):
            slide.read(BoxLevel0(0, 0, 256, 256), size)
            assert fake.reads[-1][1] == level, f"{256 / size[0]} level-0 px per pixel"


def test_regions_in_micrometres_and_level0_pixels_agree(tmp_path: Path) -> None:
    with fake_slide(tmp_path, wave_slide(properties=True)) as slide:
        um = slide.read_at(BoxUm(100, 80, 128, 64), 2.0)
        level0 = slide.read_at(BoxLevel0(200, 200, 256, 160), 2.0)
    assert um.shape == (32, 64, 3)
    np.testing.assert_array_equal(um, level0)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_reading_a_level_returns_that_levels_own_pixels(tmp_path: Path, level: int) -> None:
    fake = wave_slide()
    with fake_slide(tmp_path, fake) as slide:
        found = slide.read_level(level, 30, 41, 90, 60)
    np.testing.assert_allclose(found, fake.levels[level][41:101, 30:120], atol=1.5)
    assert {read[1] for read in fake.reads} == {level}


@pytest.mark.parametrize("corner", [(-64, 32), (32, -64), (560, 32), (32, 370)])
def test_past_the_edge_is_white_and_the_slide_is_not_shifted(tmp_path: Path, corner: tuple[int, int]) -> None:
    base = noise(600, 400, seed=4)
    padded = np.full((400 + 512, 600 + 512, 3), 255, np.uint8)
    padded[256 : 256 + 400, 256 : 256 + 600] = base
    x, y = corner
    with fake_slide(tmp_path, FakeSlide(base)) as slide:
        found = slide.read(BoxLevel0(x, y, 128, 96), (128, 96))
    np.testing.assert_array_equal(found, padded[y + 256 : y + 352, x + 256 : x + 384])


def test_wholly_outside_is_white(tmp_path: Path) -> None:
    with Slide(write_tiff(tmp_path / "a.tif", noise(300, 260))) as slide:
        assert slide.read(BoxLevel0(9000, -9000, 64, 64), (16, 16)).min() == 255


def test_transparent_holes_are_white_and_half_transparency_is_half_white(tmp_path: Path) -> None:
    base = np.zeros((200, 300, 4), np.uint8)
    base[...] = (100, 50, 0, 255)
    base[40:80, 100:160, 3] = 0
    base[100:140, 100:160, 3] = 128
    with fake_slide(tmp_path, FakeSlide(base)) as slide:
        found = slide.read(BoxLevel0(0, 0, 300, 200), (300, 200))
    assert found[10, 10].tolist() == [100, 50, 0]
    assert found[60, 130].tolist() == [255, 255, 255]
    share = 128 / 255
    np.testing.assert_allclose(found[120, 130], np.array([100, 50, 0]) * share + 255 * (1 - share), atol=1.01)


def test_pixels_decoded_counts_native_pixels_of_the_file_and_no_padding(tmp_path: Path) -> None:
    with fake_slide(tmp_path, FakeSlide(waves(1200, 800), (1.0, 4.0))) as slide:
        assert slide.pixels_decoded == 0
        slide.read(BoxLevel0(0, 0, 512, 256), (128, 64))
        assert slide.pixels_decoded == 128 * 64
        slide.read(BoxLevel0(0, 0, 512, 256), (512, 256))
        assert slide.pixels_decoded == 128 * 64 + 512 * 256
        slide.read(BoxLevel0(1100, 700, 200, 200), (200, 200))  # half of it past the edge, on both sides
        assert slide.pixels_decoded == 128 * 64 + 512 * 256 + 100 * 100


# ---------------------------------------------------------------- bounds


def test_bounds_come_from_the_file_else_from_level_zero(tmp_path: Path) -> None:
    scanned = {"bounds-x": "37", "bounds-y": "11", "bounds-width": "200", "bounds-height": "150"}
    with fake_slide(
        tmp_path, FakeSlide(glass(300, 200), properties={f"openslide.{k}": v for k, v in scanned.items()})
    ) as s:
        assert s.bounds == Bounds(37, 11, 200, 150)
    with fake_slide(tmp_path, FakeSlide(glass(300, 200))) as s:
        assert s.bounds == Bounds(0, 0, 300, 200)


# ---------------------------------------------------------------- ownership and threads


def test_a_pickled_slide_opens_again_on_the_first_read_and_not_before(tmp_path: Path) -> None:
    base = waves(300, 200)
    with fake_slide(tmp_path, FakeSlide(base, properties=resolution(0.5, 0.4)), name="pickled.svs") as slide:
        slide.read(BoxLevel0(0, 0, 30, 20), (30, 20))
        twin = pickle.loads(pickle.dumps(slide))
    assert OPENED["pickled.svs"] == 1
    assert twin.mpp == Mpp(0.5, 0.4, "openslide")
    with twin:
        np.testing.assert_array_equal(twin.read(BoxLevel0(5, 6, 30, 20), (30, 20)), base[6:26, 5:35])
    assert OPENED["pickled.svs"] == 2


def test_a_pickled_slide_reads_the_same_through_real_openslide(tmp_path: Path) -> None:
    box, size = BoxLevel0(17, 9, 200, 100), (50, 25)
    with Slide(write_tiff(tmp_path / "a.tif", noise(400, 300)), mpp=0.5) as slide:
        expected = slide.read(box, size)
        with pickle.loads(pickle.dumps(slide)) as twin:
            np.testing.assert_array_equal(twin.read(box, size), expected)
            assert twin.mpp.source == "override"


def test_threads_read_what_one_thread_reads(tmp_path: Path) -> None:
    boxes = [BoxLevel0(13.5 * i, 7.25 * i, 128, 96) for i in range(48)]
    with Slide(write_tiff(tmp_path / "a.tif", noise(1000, 600), (1.0, 2.0))) as slide:
        alone = [slide.read(box, (48, 36)) for box in boxes]
        decoded = slide.pixels_decoded
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda box: slide.read(box, (48, 36)), boxes))
        assert slide.pixels_decoded == 2 * decoded, "a count was lost between threads"
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_close_waits_for_the_read_under_way(tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()
    fake = FakeSlide(glass(300, 200))
    slide = fake_slide(tmp_path, fake)
    fake.before_read = lambda: (inside.set(), go_on.wait(240))[0]
    with ThreadPoolExecutor(2) as pool:
        read = pool.submit(slide.read, BoxLevel0(0, 0, 30, 20), (30, 20))
        assert inside.wait(240)
        close = pool.submit(slide.close)
        with pytest.raises(TimeoutError):
            close.result(0.1)
        assert not fake.handles[0].closed
        with pytest.raises(SlideError, match="closed"):
            slide.read(BoxLevel0(0, 0, 3, 2), (3, 2))  # no new read while closing
        go_on.set()
        assert read.result(240)[0, 0].tolist() == list(GLASS)
        close.result(240)
    assert fake.handles[0].closed and not fake.handles[0].closed_while_reading


def test_many_threads_and_one_close_never_meet_a_freed_handle(tmp_path: Path) -> None:
    fake = FakeSlide(glass(300, 200))
    slide = fake_slide(tmp_path, fake)

    def read_on() -> str:
        while True:
            try:
                slide.read(BoxLevel0(1, 2, 40, 30), (20, 15))
            except SlideError as error:
                return str(error)

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read_on) for _ in range(4)]
        while len(fake.reads) < 20:
            assert not any(reader.done() for reader in readers)
        slide.close()
        assert all("closed" in reader.result(240) for reader in readers)
    assert fake.handles[0].closed and not fake.handles[0].closed_while_reading
    assert len(fake.handles) == 1


def test_closed_slides_say_so_and_closing_twice_is_harmless(tmp_path: Path) -> None:
    slide = fake_slide(tmp_path, FakeSlide(glass(300, 200)))
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="has been closed; open it again") as caught:
        slide.read(BoxLevel0(0, 0, 30, 20), (30, 20))
    assert one_sentence(caught.value)


def test_a_with_block_closes_even_when_it_fails(tmp_path: Path) -> None:
    fake = FakeSlide(glass(300, 200))
    with pytest.raises(RuntimeError), fake_slide(tmp_path, fake):
        raise RuntimeError
    assert fake.handles[0].closed


# ---------------------------------------------------------------- bad files


def check_refused(path: Path) -> None:
    with pytest.raises(SlideError) as caught:
        Slide(path)
    assert str(path) in str(caught.value) and one_sentence(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    check_refused(tmp_path / "no such slide.svs")


def test_a_text_file_with_a_slides_name_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("slide,label\n")
    check_refused(tmp_path / "a.svs")


def test_an_empty_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    check_refused(tmp_path / "a.tif")


def test_a_plain_picture_is_one_sentence(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(glass(60, 40)).save(tmp_path / "a.png")
    check_refused(tmp_path / "a.png")


def test_an_empty_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "dicom").mkdir()
    check_refused(tmp_path / "dicom")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_a_truncated_slide_is_one_sentence_on_opening_or_on_the_read_that_meets_the_end(
    tmp_path: Path, kept: float
) -> None:
    whole = write_tiff(tmp_path / "whole.tif", noise(900, 700), mpp=(0.5, 0.5)).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(SlideError) as caught, Slide(tmp_path / "cut.tif") as slide:
        slide.read(BoxLevel0(0, 0, 900, 700), (90, 70))
    assert str(tmp_path / "cut.tif") in str(caught.value) and one_sentence(caught.value)


def test_the_failed_read_gives_its_handle_back_so_that_close_returns(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("disk gone")

    fake = FakeSlide(glass(300, 200))
    slide = fake_slide(tmp_path, fake)
    fake.before_read = fail
    with pytest.raises(SlideError, match=r"level 0 could not be read at level-0 pixel \(1, 2\).*disk gone"):
        slide.read(BoxLevel0(1, 2, 30, 20), (30, 20))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(slide.close).result(240)
    assert fake.handles[0].closed


# ---------------------------------------------------------------- fingerprints


def test_fingerprints_tell_slides_apart_and_not_names(tmp_path: Path) -> None:
    first = write_tiff(tmp_path / "a.tif", noise(300, 260, 5))
    (tmp_path / "copy.tif").write_bytes(first.read_bytes())
    other = write_tiff(tmp_path / "b.tif", noise(300, 260, 6))
    prints = [Slide(p).fingerprint for p in (first, tmp_path / "copy.tif", other)]
    assert prints[0] == prints[1] != prints[2]


def test_slides_without_a_quick_hash_are_told_apart_by_their_ends(tmp_path: Path) -> None:
    prints = []
    for content in (b"a" * 100, b"a" * 99 + b"b", b"a" * 101):
        (tmp_path / "x.svs").write_bytes(content)
        prints.append(Slide(tmp_path / "x.svs", opener=FakeSlide(glass(30, 20))).fingerprint)
    assert len(set(prints)) == 3


# ---------------------------------------------------------------- real slides


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("CMU-1-Small-Region.svs", ("aperio", 2220, 2967, 1, 0.499, 20.0)),
        ("CMU-1-Small-Region_dicom", ("dicom", 2220, 2967, 1, 0.499, None)),
        ("derived/CMU-1-Small-Region_pyramid_aperio.svs", ("aperio", 2220, 2967, 5, 0.499, 20.0)),
        ("test3-TRITC 2 (560).ndpi", ("hamamatsu", 3968, 4864, 7, 0.22818, 40.0)),
        ("camelyon_overview_jpeg", ("dicom", 1152, 700, 1, 28.9685, None)),
    ],
)
def test_facts_of_the_shared_slides(shared_data: Path, name: str, facts: tuple[Any, ...]) -> None:
    with Slide(shared_data / "slides" / name) as slide:
        found = (slide.vendor, slide.width, slide.height, len(slide.levels), slide.mpp.mean, slide.objective_power)
        assert slide.mpp.source == "openslide" and len(slide.fingerprint) == 32
    assert found[:4] == facts[:4] and found[5] == facts[5]
    assert found[4] == pytest.approx(facts[4], rel=1e-4)


def test_any_file_of_a_dicom_slide_and_its_folder_are_the_same_slide(shared_data: Path) -> None:
    folder = shared_data / "slides" / "CMU-1-Small-Region_dicom"
    box = BoxLevel0(700.5, 900.25, 512, 384)
    pixels = []
    for path in (folder, *sorted(folder.glob("*.dcm"))[1:3]):
        with Slide(path) as slide:
            pixels.append(slide.read_at(box, 2.0))
    assert all((p == pixels[0]).all() for p in pixels[1:])


def test_the_same_tissue_as_svs_dicom_and_pyramid_gives_the_same_pixels(shared_data: Path) -> None:
    """Colour, place and scale agree, the pyramid read from its native 4.002 level, the others averaged from level 0.

    OpenSlide states one downsample for both axes (4.0 across, 4.004 down here), hence a fifth of a pixel of leeway.
    """
    slides, box = shared_data / "slides", BoxLevel0(401, 621, 1024, 800)
    with (
        Slide(slides / "CMU-1-Small-Region.svs") as svs,
        Slide(slides / "CMU-1-Small-Region_dicom") as dicom,
        Slide(slides / "derived" / "CMU-1-Small-Region_pyramid_aperio.svs") as pyramid,
    ):
        one, two, three = (slide.read_at(box, 4 * 0.499).astype(float) for slide in (svs, dicom, pyramid))
        decoded = pyramid.pixels_decoded
        moved = [
            np.abs(svs.read(BoxLevel0(401 + dx, 621 + dy, 1024, 800), (256, 200)) - three).mean()
            for dx, dy in ((4, 0), (-4, 0), (0, 4), (0, -4))
        ]
    assert one.shape == (200, 256, 3) and one.std() > 20
    assert decoded < 1.05 * 256 * 200, "the pyramid's own 5x level was not used"
    assert np.abs(one - two).mean() < 2.0  # recompressed by whoever made the DICOM
    assert np.abs(one - three).mean() < 8.0  # resampled and recompressed by whoever made the pyramid
    assert np.abs(one - three).mean() < 0.6 * min(moved), "one pixel of shift would be as good"


def test_a_truncated_real_slide_is_one_sentence(shared_data: Path, tmp_path: Path) -> None:
    content = (shared_data / "slides" / "CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "cut.svs").write_bytes(content[: len(content) // 2])
    with pytest.raises(SlideError) as caught, Slide(tmp_path / "cut.svs") as slide:
        slide.read(BoxLevel0(0, 0, slide.width, slide.height), (222, 297))
    assert one_sentence(caught.value)


def test_an_l_of_tissue_lies_the_right_way_up(tmp_path: Path) -> None:
    """Guards x/y swaps end to end through OpenSlide: upright at the left, foot at the bottom."""
    with Slide(write_tiff(tmp_path / "a.tif", l_shape(900, 600, (200, 100)))) as slide:
        tissue = slide.read(BoxLevel0(0, 0, 900, 600), (9, 6))[..., 1] < 200
    expected = np.zeros((6, 9), bool)
    expected[:, :2] = True
    expected[5, :] = True
    assert tissue.tolist() == expected.tolist()
