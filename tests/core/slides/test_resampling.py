"""Area averages: blocks of whole pixels are exact means, halves rounded to even, as the general way gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array

from napari_lrmil.core.geometry import PixelWindow
from napari_lrmil.core.slides.resampling import Pixels, area_average


def window_of(x: float, y: float, width: float, height: float) -> PixelWindow:
    return PixelWindow(0, 0, 1, 1, x, y, x + width, y + height)


def picture(height: int, width: int, highest: int = 255, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, highest + 1, (height, width, 3), dtype=np.uint8)


@settings(deadline=None)
@given(
    sides=st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8])),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    corner=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    highest=st.sampled_from([1, 3, 255]),
)
def test_blocks_are_means_with_halves_to_even(
    sides: tuple[int, int], size: tuple[int, int], corner: tuple[int, int], highest: int
) -> None:
    (high, wide), (rows, columns), (y, x) = sides, size, corner
    pixels = picture(rows * high + 5, columns * wide + 4, highest)
    part = pixels[y : y + rows * high, x : x + columns * wide].astype(np.float64)
    expected = np.rint(part.reshape(rows, high, columns, wide, 3).mean(axis=(1, 3))).astype(np.uint8)
    averaged = area_average(pixels, window_of(x, y, columns * wide, rows * high), (columns, rows))
    np.testing.assert_array_equal(averaged, expected)


def by_sparse_products(pixels: Pixels, window: PixelWindow, size: tuple[int, int]) -> Pixels:
    """Return the average as version 0.1 computed it: shares in float32, rows first, then columns."""
    rows = shares(window.top, window.bottom, size[1], len(pixels)) @ pixels.reshape(len(pixels), -1).astype(np.float32)
    columns = rows.reshape(size[1], -1, 3).transpose(1, 0, 2).reshape(pixels.shape[1], -1)
    both = shares(window.left, window.right, size[0], pixels.shape[1]) @ columns
    result: Pixels = np.rint(both).astype(np.uint8).reshape(size[0], size[1], 3).transpose(1, 0, 2)
    return result


def shares(start: float, stop: float, n_out: int, n_in: int) -> Any:
    edges: NDArray[np.float64] = np.linspace(start, stop, n_out + 1)
    dense = np.diff(np.clip(edges[:, None] - np.arange(n_in), 0, 1), axis=0)
    return csr_array((dense / dense.sum(axis=1, keepdims=True)).astype(np.float32))


@pytest.mark.parametrize("step", [2, 16, 2 + 1e-11, 2.004, 1.002, 1.5, 3, 6, 16.05, 0.7])
@pytest.mark.parametrize("corner", [0.0, 1.0, 0.3])
def test_every_step_is_as_sparse_products_give_it(step: float, corner: float) -> None:
    pixels = picture(round(40 * step) + 3, round(50 * step) + 3, seed=3)
    window, size = window_of(corner, corner, 50 * step, 40 * step), (50, 40)
    np.testing.assert_array_equal(area_average(pixels, window, size), by_sparse_products(pixels, window, size))
