"""Magnification buttons in a real window, by mouse and by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.plugin.viewer.layers import add_layers
from napari_lrmil.plugin.viewer.navigation.camera import current_magnification
from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers
from support.fake_slides import speckled, write_tiff
from support.window import WAIT_MS, require_screen, timers_rest

require_screen()

from qtpy.QtCore import Qt  # noqa: E402  # Qt needs the screen

from napari_lrmil.plugin.viewer.navigation.panel import MagnificationRow  # noqa: E402


@pytest.fixture
def row(viewer: Any, qtbot: Any) -> Any:
    widget = MagnificationRow(viewer)
    viewer.window.add_dock_widget(widget, name="magnification", area="right")
    viewer.window._qt_window.activateWindow()
    qtbot.waitUntil(widget.isVisible, timeout=WAIT_MS)
    return widget


def _open(viewer: Any, row: Any, path: Path, qtbot: Any) -> None:
    add_layers(viewer, read_slide_layers(path))
    qtbot.waitUntil(lambda: row.buttons[1.25].isEnabled(), timeout=WAIT_MS)


def test_without_a_slide_nothing_can_be_pressed_and_the_row_says_why(row: Any) -> None:
    assert not any(button.isEnabled() for button in row.buttons.values())
    assert {button.toolTip() for button in row.buttons.values()} == {"Open a slide first."}
    assert row.current.text() == ""


def test_a_button_shows_the_slide_at_its_magnification(row: Any, viewer: Any, slide_path: Path, qtbot: Any) -> None:
    _open(viewer, row, slide_path, qtbot)
    for magnification, button in row.buttons.items():
        button.click()
        assert current_magnification(viewer, row.devicePixelRatioF()) == pytest.approx(magnification)
        assert [b.text() for b in row.buttons.values() if b.isChecked()] == [f"{magnification:g}x"]
    viewer.scene.camera.zoom *= 0.3
    qtbot.waitUntil(lambda: row.current.text() == "12x", timeout=WAIT_MS)
    assert not any(button.isChecked() for button in row.buttons.values())


def test_what_the_slide_cannot_show_is_off_and_says_why(row: Any, viewer: Any, tmp_path: Path, qtbot: Any) -> None:
    path = write_tiff(tmp_path / "coarse.tif", speckled(640, 512), (1.0,), mpp=(1.0, 1.0))
    _open(viewer, row, path, qtbot)
    assert [m for m, b in row.buttons.items() if not b.isEnabled()] == [40.0]
    assert "1 µm per pixel" in row.buttons[40.0].toolTip() and "key 5" in row.buttons[20.0].toolTip()


def test_keys_choose_but_not_where_they_choose_a_drawing_tool(
    row: Any, viewer: Any, slide_path: Path, qtbot: Any
) -> None:
    _open(viewer, row, slide_path, qtbot)
    canvas = viewer.window._qt_viewer.canvas.native
    canvas.setFocus()
    qtbot.keyClick(canvas, Qt.Key.Key_4)
    assert current_magnification(viewer, row.devicePixelRatioF()) == pytest.approx(10)
    labels = viewer.add_labels(np.zeros((40, 70), int), scale=(8, 8), units=("um", "um"))
    qtbot.waitUntil(lambda: timers_rest(row), timeout=WAIT_MS)
    qtbot.keyClick(canvas, Qt.Key.Key_2)
    assert current_magnification(viewer, row.devicePixelRatioF()) == pytest.approx(10)
    assert labels.mode == "paint"
