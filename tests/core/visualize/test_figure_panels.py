"""Panels of matplotlib figures are in level-0 pixels, so that attention lies on its own tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from napari_lrmil.core.events import Finished
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.visualize.figure_panels import show_attention, show_slide
from napari_lrmil.core.visualize.overlay import make_heatmap, slide_thumbnail
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, resolution, speckled


def test_attention_is_drawn_over_its_own_tissue(tmp_path: Path) -> None:
    """The axes are level-0 pixels of the scanned part: the dark square's place is the brightest of the map."""
    from matplotlib.figure import Figure

    base = speckled(1400, 900)
    base[217 + 330 : 217 + 400, 333 + 520 : 333 + 600] = (70, 30, 90)
    names = {"bounds-x": "333", "bounds-y": "217", "bounds-width": "1000", "bounds-height": "600"}
    properties = resolution(0.5) | {f"openslide.{k}": v for k, v in names.items()}
    with fake_slide(tmp_path, FakeSlide(base, (1.0, 4.0), properties)) as slide:
        *_, last = predict(slide, DarknessBundle(), device=torch.device("cpu"))  # type: ignore[arg-type]
        assert isinstance(last, Finished)
        heat = make_heatmap(last.result.student)
        axes = Figure().subplots()
        show_slide(axes, *slide_thumbnail(slide), slide)
        shown = show_attention(axes, heat, 0.0, 5.0)
    assert axes.get_xlim() == (333, 1333) and axes.get_ylim() == (817, 217), "y grows downwards"
    left, right, bottom, top = shown.get_extent()
    row, column = np.unravel_index(np.nanargmax(heat.image), heat.image.shape)
    rows, columns = heat.image.shape
    x = left + (column + 0.5) * (right - left) / columns
    y = top + (row + 0.5) * (bottom - top) / rows
    assert abs(x - (333 + 560)) <= 128 and abs(y - (217 + 365)) <= 128
