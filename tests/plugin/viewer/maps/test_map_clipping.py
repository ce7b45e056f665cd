"""Maps end where the slide ends, although its last patches reach beyond it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_lrmil.plugin.viewer.layers import lrmil_layers
from napari_lrmil.plugin.viewer.maps.image_shader import find_visual
from napari_lrmil.plugin.viewer.maps.map_clipping import clip_maps
from support.fake_slides import speckled, write_tiff
from support.window import WAIT_MS, MakeDock, timers_rest

WIDTH, HEIGHT, PATCH = 150, 330, 256  # level-0 pixels: one column of two LR patches, of which half lies outside
MPP = 0.5


@pytest.fixture
def dock(make_dock: MakeDock, tmp_path: Path, qtbot: Any) -> Any:
    """Return a dock with the answer of a slide whose patches reach beyond it, with room around it on the canvas."""
    slide = write_tiff(tmp_path / "small.tif", speckled(WIDTH, HEIGHT), (1.0,), mpp=(MPP, MPP))
    dock = make_dock(slide)
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not None and timers_rest(dock), timeout=WAIT_MS)
    return dock


def draw_alone(viewer: Any, layer: Any) -> NDArray[np.bool_]:
    """Return where a layer changes the canvas, without colour bar and texts; a pixel shows 1 µm around the slide."""
    layer.colorbar.visible = viewer.canvas.overlays.text.visible = viewer.canvas.overlays.scale_bar.visible = False
    camera = viewer.scene.camera
    middle_um = np.array([HEIGHT * MPP / 2, WIDTH * MPP / 2, 1.0])
    camera.center, camera.zoom = tuple((layer.affine.affine_matrix @ middle_um)[:2]), 1.0
    pictures = []
    for opacity in (1.0, 0.0):
        layer.opacity = opacity
        pictures.append(viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int))
    layer.opacity = 1.0
    is_changed: NDArray[np.bool_] = np.abs(pictures[0] - pictures[1]).sum(axis=-1) > 3
    return is_changed


def drawn_um(viewer: Any, is_drawn: NDArray[np.bool_]) -> tuple[float, float]:
    """Return height and width of what is drawn, in µm."""
    rows, columns = np.nonzero(is_drawn)
    per_px = 1 / viewer.scene.camera.zoom
    return (np.ptp(rows) + 1) * per_px, (np.ptp(columns) + 1) * per_px


def test_a_map_is_drawn_up_to_the_edge_of_its_slide(dock: Any, viewer: Any) -> None:
    [layer] = lrmil_layers(viewer, role="attention")
    assert drawn_um(viewer, draw_alone(viewer, layer)) == pytest.approx((HEIGHT * MPP, WIDTH * MPP), abs=1.5)
    assert layer.data.shape == (2, 1) and tuple(layer.scale) == (PATCH * MPP, PATCH * MPP), "the map itself is whole"


def test_evidence_and_a_smooth_map_end_there_too(dock: Any, viewer: Any, qtbot: Any) -> None:
    dock.result_view.attention.smooth.click()
    [layer] = lrmil_layers(viewer, role="attention")
    assert drawn_um(viewer, draw_alone(viewer, layer)) == pytest.approx((HEIGHT * MPP, WIDTH * MPP), abs=1.5)
    dock.result_view.evidence.show_box.click()
    qtbot.waitUntil(lambda: bool(lrmil_layers(viewer, role="evidence")) and timers_rest(dock), timeout=WAIT_MS)
    [layer] = lrmil_layers(viewer, role="evidence")
    assert drawn_um(viewer, draw_alone(viewer, layer)) == pytest.approx((HEIGHT * MPP, WIDTH * MPP), abs=1.5)


def test_a_turned_view_cuts_the_same_edge(dock: Any, viewer: Any) -> None:
    [layer] = lrmil_layers(viewer, role="attention")
    turn = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    layer.affine = turn
    height, width = drawn_um(viewer, draw_alone(viewer, layer))
    assert (height, width) == pytest.approx((WIDTH * MPP, HEIGHT * MPP), abs=1.5)


def test_maps_of_a_closed_slide_are_left_alone(dock: Any, viewer: Any) -> None:
    path = dock.session.slide.path
    viewer.layers.remove(lrmil_layers(viewer, path, role="slide")[0])
    clip_maps(viewer, path)


def test_a_removed_map_leaves_nothing_behind(dock: Any, viewer: Any, qtbot: Any) -> None:
    """The shader of a map refers to its visual, which holds the pixels."""
    [layer] = lrmil_layers(viewer, role="attention")
    viewer.screenshot(canvas_only=True, flash=False)
    visual = ref(find_visual(viewer, layer))
    viewer.layers.remove(layer)
    del layer
    qtbot.waitUntil(lambda: gc.collect() >= 0 and visual() is None, timeout=WAIT_MS)
