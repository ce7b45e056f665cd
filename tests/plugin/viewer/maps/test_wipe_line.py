"""The border between both maps of the wipe view is a line on the screen, and no layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.plugin.viewer.layers import lrmil_layers
from napari_lrmil.plugin.viewer.maps.attention_layers import CompareMode
from napari_lrmil.plugin.viewer.navigation.rotation import rotate_view
from support.window import WAIT_MS, MakeDock, timers_rest

PATCH_UM, COLUMNS, HEIGHT_UM = 128, 5, 500


@pytest.fixture
def dock(make_dock: MakeDock, viewer: Any, slide_path: Path, qtbot: Any) -> Any:
    """Return a dock with the answer of both networks in the wipe view."""
    dock = make_dock(slide_path)
    dock.with_teacher.native.click()
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not None and timers_rest(dock), timeout=WAIT_MS)
    dock.result_view.set_compare_mode(CompareMode("wipe", 2))
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    return dock


def find_line(viewer: Any, shift_px: float = 0.0) -> list[float]:
    """Return x in µm of the white columns of pixels across the middle of the map, from left to right.

    The camera looks at the middle of the map, or past it by so many pixels of the screen.
    """
    for layer in viewer.layers:
        layer.colorbar.visible = False
    viewer.canvas.overlays.text.visible = viewer.canvas.overlays.scale_bar.visible = False
    camera = viewer.scene.camera
    camera.center, camera.zoom = (HEIGHT_UM / 2, COLUMNS * PATCH_UM / 2 + shift_px / 0.5), 0.5
    picture = viewer.screenshot(canvas_only=True, flash=False)[..., :3]
    middle = picture.shape[0] // 2
    is_white = (picture[middle - 50 : middle + 50] == 255).all(axis=(0, 2))
    return (camera.center[-1] + (np.flatnonzero(is_white) + 0.5 - picture.shape[1] / 2) / camera.zoom).tolist()


@pytest.mark.parametrize("left", [1, 2, 4])
def test_the_line_follows_the_wipe(dock: Any, viewer: Any, left: int) -> None:
    dock.result_view.set_compare_mode(CompareMode("wipe", left))
    line = find_line(viewer)
    assert len(line) == 2, "two pixels wide at every zoom"
    assert left * PATCH_UM - 8 <= min(line) < max(line) <= left * PATCH_UM, "left of the border"


@pytest.mark.parametrize("shift_px", [0.0, 0.25, 0.5])
def test_rounding_does_not_decide_how_wide_the_line_is(dock: Any, viewer: Any, shift_px: float) -> None:
    widths = {}
    for columns in (0, 1):  # a canvas of odd width and one of even width
        viewer.window._qt_window.resize(viewer.window._qt_window.width() + columns, viewer.window._qt_window.height())
        for left in range(1, COLUMNS):
            dock.result_view.set_compare_mode(CompareMode("wipe", left))
            widths[columns, left] = len(find_line(viewer, shift_px))
    assert set(widths.values()) == {2}, widths


def test_the_line_stays_if_the_teacher_is_pooled(dock: Any, viewer: Any) -> None:
    dock.result_view.set_compare_mode(CompareMode("wipe", 3, pooled=True))
    line = find_line(viewer)
    assert len(line) == 2 and 3 * PATCH_UM - 8 <= min(line) < max(line) <= 3 * PATCH_UM


def test_napari_shows_no_value_beyond_the_wipe(dock: Any, viewer: Any) -> None:
    [student], [teacher] = lrmil_layers(viewer, role="attention"), lrmil_layers(viewer, role="wipe")
    for layer, x, other_x in ((student, 200.0, 400.0), (teacher, 400.0, 200.0)):
        assert float(layer.get_status((250.0, x), world=True)["value"]) >= 0
        assert layer.get_status((250.0, other_x), world=True)["value"] == ""


def test_the_line_is_no_layer_and_goes_with_its_map(dock: Any, viewer: Any) -> None:
    roles = {layer.metadata["napari_lrmil"]["role"] for layer in viewer.layers}
    assert roles <= {"underlay", "slide", "attention", "wipe"} and find_line(viewer)
    [student] = lrmil_layers(viewer, role="attention")
    student.visible = False
    assert not find_line(viewer)
    student.visible = True
    student.opacity = 0.1
    assert find_line(viewer), "it does not pale with the map"


@pytest.mark.parametrize("mode", [CompareMode("wipe", 0), CompareMode("wipe", COLUMNS), CompareMode("difference")])
def test_without_a_border_there_is_no_line(dock: Any, viewer: Any, mode: CompareMode) -> None:
    dock.result_view.set_compare_mode(mode)
    assert not find_line(viewer)


def test_two_views_have_no_line(dock: Any, viewer: Any) -> None:
    dock.result_view.set_compare_mode(CompareMode("side"))
    assert not find_line(viewer)
    dock.result_view.set_compare_mode(CompareMode("wipe", 3))
    assert find_line(viewer)


@pytest.mark.parametrize(
    ("degrees", "sides"),
    [
        (0, "student left of the wipe, teacher right of it"),
        (90, "student above the wipe, teacher below it"),
        (180, "student right of the wipe, teacher left of it"),
        (-90, "student below the wipe, teacher above it"),
        (15, "student left of the wipe, teacher right of it"),
        (45, "student to the upper left of the wipe, teacher to the lower right of it"),
    ],
)
def test_the_caption_says_where_the_maps_are_on_the_screen(dock: Any, viewer: Any, degrees: float, sides: str) -> None:
    rotate_view(viewer, degrees)
    assert viewer.canvas.overlays.text.text.replace("\n", " ").endswith(f"; {sides}")
    legend = dock.viewer_actions.view_export_job().legend
    assert legend is not None and legend.label.endswith(sides), "the exported picture says the same"


def test_the_caption_follows_napari_s_own_rotation_but_not_in_another_view(dock: Any, viewer: Any, qtbot: Any) -> None:
    from napari.components._viewer_key_bindings import rotate_layers

    rotate_layers(viewer)  # by 90° to the left
    assert "student below" in viewer.canvas.overlays.text.text.replace("\n", " ")
    dock.result_view.set_compare_mode(CompareMode("difference"))
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    rotate_layers(viewer)
    assert "wipe" not in viewer.canvas.overlays.text.text
    dock.result_view.set_compare_mode(CompareMode("wipe", 2))
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    assert "student right" in viewer.canvas.overlays.text.text.replace("\n", " ")
