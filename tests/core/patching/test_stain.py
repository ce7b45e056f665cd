"""Colour normalisation: by hand, the same at every resolution, identity at the target, and doubtful slides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.patching.stain import (
    FEWEST_PIXELS,
    StainMethod,
    StainStatistics,
    StainTransform,
    lab_to_rgb,
    mean_stain,
    measure_stain,
    rgb_to_lab,
)

BLUISH = StainStatistics((0.4, 0.5, 0.2), (60.0, 20.0, -15.0), (15.0, 8.0, 6.0), 4000)
TARGET = StainStatistics((0.2, 0.5, 0.3), (70.0, 25.0, -10.0), (12.0, 9.0, 5.0), 90_000)
methods = pytest.mark.parametrize("method", ["density_gain", "reinhard"])


def pixels(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def test_a_gain_by_hand() -> None:
    """Half the density in red, the same in green, one and a half times in blue."""
    out = StainTransform("density_gain", BLUISH, TARGET).apply(np.full((1, 1, 3), 63, np.uint8))  # 64/256: OD 0.602
    expected = [256 * 0.25**gain - 1 for gain in (0.5, 1.0, 1.5)]
    assert out[0, 0].tolist() == pytest.approx(expected, abs=0.51)


@methods
@given(seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_every_resolution_gets_the_same(method: StainMethod, seed: int) -> None:
    """A pixel has one result, in whatever patch it comes."""
    transform, hr = StainTransform(method, BLUISH, TARGET), pixels(seed, 4, 8, 8)
    lr = hr[:, ::4, ::4]
    np.testing.assert_array_equal(transform.apply(hr)[:, ::4, ::4], transform.apply(lr))


@methods
def test_flat_colour_averages_alike(method: StainMethod) -> None:
    """Where tissue is flat, transforming HR and averaging is averaging and transforming, within rounding."""
    transform = StainTransform(method, BLUISH, TARGET)
    hr = (150 + np.random.default_rng(0).integers(-2, 3, (32, 32, 3))).astype(np.uint8)
    lr = np.rint(hr.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))).astype(np.uint8)
    by_hr = transform.apply(hr).reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(by_hr, transform.apply(lr), atol=1.5)


@methods
def test_the_targets_colour_stays(method: StainMethod) -> None:
    image = pixels(1, 5, 5)
    assert StainTransform(method, TARGET, TARGET).apply(image) is image
    nearly = replace(TARGET, density=(0.2, 0.5, 0.3 + 1e-12))
    off = np.abs(StainTransform(method, nearly, TARGET).apply(image).astype(int) - image)
    assert off.max() <= 1


def test_white_stays_white() -> None:
    white = np.full((2, 2, 3), 255, np.uint8)
    assert np.array_equal(StainTransform("density_gain", BLUISH, TARGET).apply(white), white)


def test_lab_is_that_of_the_standard() -> None:
    """Red, white and black of sRGB, and there and back."""
    lab = rgb_to_lab(np.array([[255, 0, 0], [255, 255, 255], [0, 0, 0]], np.uint8))
    np.testing.assert_allclose(lab, [[53.24, 80.09, 67.20], [100, 0, 0], [0, 0, 0]], atol=0.05)
    image = pixels(2, 500)
    np.testing.assert_array_equal(lab_to_rgb(rgb_to_lab(image)), image)


def test_reinhard_moves_mean_and_deviation() -> None:
    lab = np.random.default_rng(3).normal(BLUISH.lab_mean, np.array(BLUISH.lab_deviation) / 3, (4000, 3))
    image = lab_to_rgb(lab)
    own = rgb_to_lab(image)
    slide = replace(BLUISH, lab_mean=tuple(own.mean(0)), lab_deviation=tuple(own.std(0)))
    target = replace(TARGET, lab_deviation=(4.0, 3.0, 2.0))
    out = rgb_to_lab(StainTransform("reinhard", slide, target).apply(image))
    np.testing.assert_allclose(out.mean(0), target.lab_mean, atol=0.3)
    np.testing.assert_allclose(out.std(0), target.lab_deviation, atol=0.3)


def test_too_little_tissue_says_so_and_changes_nothing() -> None:
    few = StainTransform("density_gain", replace(BLUISH, pixels=FEWEST_PIXELS - 1), TARGET)
    assert "is not normalised" in few.warning and few.is_identity
    assert StainTransform("density_gain", BLUISH, TARGET).warning == ""


def test_a_pale_slide_has_an_upper_bound() -> None:
    pale = StainTransform("density_gain", replace(BLUISH, density=(0.03, 0.5, 0.2)), TARGET)
    assert "so pale" in pale.warning
    assert pale.apply(np.full((1, 3), 127, np.uint8))[0, 0] == round(256 * 0.5**4 - 1)


class Flat:
    """A slide of one colour."""

    path = Path("flat.svs")

    def __init__(self, *colour: int) -> None:
        self.colour = colour

    def read(self, box: object, size: tuple[int, int]) -> Any:
        return np.full((*size[::-1], 3), self.colour, np.uint8)


GRID: Any = SimpleNamespace(
    lr_index=np.zeros((9, 2)), lr_corners=np.zeros((9, 2)), lattice=SimpleNamespace(lr_um=128.0, lr_cell=(256, 256))
)


def test_statistics_of_a_flat_slide_by_hand() -> None:
    stain = measure_stain(cast(Any, Flat(127, 63, 127)), GRID)
    assert stain.density == pytest.approx((0.30103, 0.60206, 0.30103), abs=1e-5)
    assert stain.pixels == 9 * 8 * 8 and stain.lab_deviation == pytest.approx((0, 0, 0), abs=1e-9)
    assert mean_stain([stain, replace(stain, density=(0.1, 0.2, 0.3))]).density[0] == pytest.approx(0.200515, abs=1e-5)


@pytest.mark.parametrize("colour", [(240, 240, 240), (255, 254, 255)])
def test_glass_is_refused(colour: tuple[int, int, int]) -> None:
    with pytest.raises(SlideError, match=r"which is glass"):
        measure_stain(cast(Any, Flat(*colour)), GRID)
