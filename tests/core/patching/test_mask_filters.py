"""Smoothing and tidying give what scipy and scikit-image give, in a third of their time and less."""

from __future__ import annotations

import hashlib

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


def test_smoothing_stays_the_same_to_the_last_bit() -> None:
    """Otsu's bins and thus masks depend on the order of additions. The digest is that of version 0.1."""
    grey = np.random.default_rng(1).integers(0, 256, (203, 158), dtype=np.uint8)
    assert hashlib.sha256(gaussian_smooth(grey).astype("<f4").tobytes()).hexdigest()[:16] == "246cddb5f3558357"


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


@pytest.mark.parametrize("largest_px", [0, 30, 300, 5000])
@pytest.mark.parametrize("shape", ["comb", "comb upside down", "spiral", "stairs"])
def test_tidying_of_winding_objects(shape: str, largest_px: int) -> None:
    """Parts of these meet only far from where they begin, which takes several rounds of joining."""
    mask = np.zeros((64, 128), np.bool_)
    if shape == "spiral":
        for i in range(0, 30, 4):
            mask[i, i : 127 - i] = mask[i : -i or None, 127 - i] = mask[63 - i, i : 128 - i] = mask[
                i + 4 : -i or None, i
            ] = True
            mask[i + 4, i : i + 4] = True
    elif shape == "stairs":
        mask[np.arange(64), np.arange(64) * 2] = mask[np.arange(64), np.arange(64) * 2 - 1] = True
    else:
        mask[:, ::2] = True
        mask[np.arange(128) // 2, np.arange(128)] = True
        mask[-1] = True
        mask = mask[::-1] if shape.endswith("down") else mask
    np.testing.assert_array_equal(remove_small_objects_and_holes(mask, largest_px), reference(mask, largest_px))


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
