"""Heatmaps are aligned with the patches, share one scale, and change nothing outside the patches."""

from __future__ import annotations

import numpy as np
import pytest

from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.prediction import NetworkPrediction
from napari_lrmil.core.visualize.overlay import OPACITY, Heatmap, blend_heatmap, color_limits, make_heatmap


def reading(coords: list[list[int]], attention: list[float], size: tuple[int, int] = (256, 320)) -> NetworkPrediction:
    return NetworkPrediction(
        coords=np.array(coords, dtype=np.int64), patch_level0=size, attention=np.array(attention, dtype=np.float32),
        evidence=np.zeros((len(coords), 2), np.float32), logits={"a": 0.0, "b": 1.0},
        probabilities={"a": 0.27, "b": 0.73},
        target_mpp=2.0, pixels_decoded=0, seconds={}, cpu_seconds=0.0,
    )  # fmt: skip


def test_each_patch_is_one_raster_pixel_at_its_place_and_nan_elsewhere() -> None:
    """Corners on a lattice hung at (333, 217); the raster starts at the leftmost and topmost patch."""
    corners = [[333 + 256 * 3, 217 + 320], [333 + 256, 217 + 640], [333 + 256 * 2, 217 + 320]]
    heat = make_heatmap(reading(corners, [0.5, 0.3, 0.2]))
    assert heat.origin_level0 == (333 + 256, 217 + 320) and heat.pixel_level0 == (256, 320)
    assert heat.image.shape == (2, 3) and heat.image.dtype == np.float32
    expected = np.array([[np.nan, 0.6, 1.5], [0.9, np.nan, np.nan]])
    np.testing.assert_allclose(heat.image, expected, rtol=1e-6)


def test_a_raster_pixel_leads_back_to_its_patchs_level0_box() -> None:
    rng = np.random.default_rng(0)
    index = rng.permutation(12 * 7)[:40]
    corners = np.stack([50 + 256 * (index % 12), 70 + 320 * (index // 12)], 1)
    attention = rng.dirichlet(np.ones(40))
    heat = make_heatmap(reading(corners.tolist(), attention.tolist()))
    row, column = np.unravel_index(np.nanargmax(heat.image), heat.image.shape)
    x = heat.origin_level0[0] + column * heat.pixel_level0[0]
    y = heat.origin_level0[1] + row * heat.pixel_level0[1]
    assert [x, y] == corners[attention.argmax()].tolist()
    assert np.isfinite(heat.image).sum() == 40


def test_grids_of_different_fineness_share_a_scale() -> None:
    """Uniform attention is 1 everywhere, with 3 patches as with 48."""
    for count in (3, 48):
        heat = make_heatmap(reading([[256 * i, 0] for i in range(count)], [1 / count] * count))
        np.testing.assert_allclose(heat.image, 1.0, rtol=1e-6)


def test_side_by_side_maps_have_one_scale_from_zero() -> None:
    flat = reading([[256 * i, 0] for i in range(4)], [0.25] * 4)
    blunt = reading([[256 * i, 0] for i in range(4)], [0.70, 0.10, 0.10, 0.10])
    sharp = reading([[256 * i, 0] for i in range(4)], [0.97, 0.01, 0.01, 0.01])
    assert color_limits([flat]) == (0.0, 2.0)  # noise round the average must not fill the scale
    low, high = color_limits([blunt, sharp])
    assert (
        low == 0 and 2.6 < high <= 2.8 and color_limits([sharp, blunt]) == (low, high)
    )  # the blunt one stays readable


def test_blended_attention_lies_over_its_own_patch_and_nothing_else_changes() -> None:
    """A thumbnail of 2 level-0 px per pixel along x and 4 along y, of a box that begins at (100, 40)."""
    thumbnail = np.full((60, 90, 3), 200, np.uint8)
    heat = Heatmap(np.array([[np.nan, 3.0, 0.0]], np.float32), (90, 80), (40, 80))
    seen = blend_heatmap(thumbnail, BoxLevel0(100.0, 40.0, 180.0, 240.0), heat, (0.0, 3.0))
    changed = (seen != 200).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 15, 54)
    assert changed[10:30, 15:55].all()
    bright, dark = seen[15, 20].astype(int), seen[15, 40].astype(int)
    np.testing.assert_allclose(bright, 0.6 * np.array([253, 231, 37]) + 80, atol=1.5)
    np.testing.assert_allclose(dark, 0.6 * np.array([68, 1, 84]) + 80, atol=1.5)


@pytest.mark.parametrize("origin", [(-130, -50), (300, 10_000), (0, 0)])
def test_blended_attention_is_that_of_matplotlibs_colours_pixel_by_pixel(origin: tuple[int, int]) -> None:
    """Each pixel's centre decides which patch it shows; rasters may reach beyond the picture, or miss it."""
    from matplotlib import colormaps

    rng = np.random.default_rng(1)
    thumbnail = rng.integers(0, 256, (43, 61, 3), dtype=np.uint8)
    image = np.where(rng.random((9, 7)) < 0.3, np.nan, 4 * rng.random((9, 7))).astype(np.float32)
    box, heat = BoxLevel0(20.0, 30.0, 610.0, 430.0), Heatmap(image, origin, (77, 55))
    expected = thumbnail.astype(np.float64)
    for y, x in np.ndindex(43, 61):
        row = int((30 + 10 * (y + 0.5) - origin[1]) // 55)
        column = int((20 + 10 * (x + 0.5) - origin[0]) // 77)
        if 0 <= row < 9 and 0 <= column < 7 and np.isfinite(image[row, column]):
            colour = 255 * np.array(colormaps["viridis"](float(image[row, column]) / 2.5)[:3])
            expected[y, x] = OPACITY * colour + (1 - OPACITY) * expected[y, x]
    np.testing.assert_allclose(blend_heatmap(thumbnail, box, heat, (0.0, 2.5)), expected, atol=1.0)
