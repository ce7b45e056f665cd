"""The colour table that is drawn without matplotlib is matplotlib's."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps

from napari_lrmil.core.visualize.colormaps import viridis, viridis_colors
from napari_lrmil.core.visualize.overlay import COLORMAP


def test_the_table_is_matplotlibs_viridis() -> None:
    colours = colormaps[COLORMAP](np.arange(256))[:, :3]
    np.testing.assert_array_equal(viridis(), np.rint(255 * colours).astype(np.uint8))


def test_positions_get_the_colours_that_matplotlib_gives_them() -> None:
    """Between two colours, at both ends, and beyond them."""
    shares = np.concatenate([np.linspace(-0.5, 1.5, 1001), [0.0, 1.0, np.nextafter(1, 0)]]).reshape(2, -1)
    expected = np.rint(255 * colormaps[COLORMAP](shares)[..., :3]).astype(np.uint8)
    np.testing.assert_array_equal(viridis_colors(shares), expected)
