"""Tests of measuring, going to a position, links and full screen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.slides.place_link import parse_link
from napari_lrmil.plugin.analyse.widget import DOCK_MIN_WIDTH_PX
from napari_lrmil.plugin.viewer.layers import add_layers, lrmil_layers
from napari_lrmil.plugin.viewer.navigation.camera import (
    current_magnification,
    shows_whole_slide,
    view_centre_um,
    world_to_slide,
)
from napari_lrmil.plugin.viewer.navigation.places import format_distance, go_to_link, go_to_text
from napari_lrmil.plugin.viewer.navigation.rotation import current_rotation, rotate_view
from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers
from support.window import WAIT_MS, MakeDock, require_screen, timers_rest

require_screen()


@pytest.fixture
def tools(viewer: Any, slide_path: Path, qtbot: Any) -> Any:
    """Return the tools of a window with a slide of 640 x 500 µm."""
    from napari_lrmil.plugin.viewer.navigation.tools import NavigationTools

    add_layers(viewer, read_slide_layers(slide_path))
    viewer.reset_view()
    tools = NavigationTools(viewer)
    qtbot.addWidget(tools)
    tools.show()
    return tools


def centre(viewer: Any) -> tuple[float, float]:
    y, x = viewer.scene.camera.center[-2:]
    return x, y


def test_two_clicks_measure_a_distance_in_micrometres(tools: Any, viewer: Any, qtbot: Any) -> None:
    from qtpy.QtCore import QPoint, Qt

    tools.measure.click()
    assert "two points" in tools.distance.text()
    canvas = viewer.window._qt_viewer.canvas.native
    first = QPoint(canvas.width() // 2 - 60, canvas.height() // 2)
    for point in (first, first + QPoint(120, 0)):
        qtbot.mouseMove(canvas, point)
        qtbot.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=point)
    expected = 120 / viewer.scene.camera.zoom
    qtbot.waitUntil(lambda: "Distance" in tools.distance.text(), timeout=WAIT_MS)
    assert float(tools.distance.text().split()[1]) == pytest.approx(expected, rel=0.02)
    line, label = lrmil_layers(viewer, role="distance")
    assert f"Distance {str(label.text.values).strip()}." == tools.distance.text() and line.visible and label.visible
    assert label.data[-1] == pytest.approx(line.data[0].mean(axis=0)), "the length stands at the line"
    halo = np.ptp(label.data, axis=0)
    viewer.scene.camera.zoom *= 4
    assert np.ptp(label.data, axis=0) == pytest.approx(halo / 4), "its halo is as wide on the screen"
    assert label.data[-1] == pytest.approx(line.data[0].mean(axis=0))
    tools.measure.click()
    assert not lrmil_layers(viewer, role="distance") and not tools.distance.isVisible()
    assert tools._press not in viewer.mouse_drag_callbacks


def test_a_drag_moves_the_slide_and_measures_nothing(tools: Any, viewer: Any) -> None:
    class Event:
        type, pos, position = "mouse_press", (10, 10), (0.0, 0.0)

    tools.measure.click()
    steps = tools.take_press(Event)
    next(steps)
    Event.type, Event.pos = "mouse_move", (90, 10)
    next(steps)
    Event.type = "mouse_release"
    next(steps, None)
    assert "two points" in tools.distance.text()
    tools.measure.click()


@pytest.mark.parametrize(
    ("degrees", "end", "anchor"),
    [
        (0, (300.0, 300.0), "upper_left"),  # falls to the right: the text stands above it, to the right
        (0, (300.0, 100.0), "lower_left"),
        (0, (100.0, 300.0), "lower_left"),
        (90, (300.0, 300.0), "lower_left"),  # falls to the left on the screen
    ],
)
def test_the_length_stands_beside_the_line_and_not_on_it(
    tools: Any, viewer: Any, degrees: float, end: tuple[float, float], anchor: str
) -> None:
    tools.measure.click()
    rotate_view(viewer, degrees)
    for point in ((200.0, 200.0), end):
        tools.add_point(point)
    label = lrmil_layers(viewer, role="distance")[1]
    assert label.text.anchor == anchor
    tools.measure.click()
    rotate_view(viewer, 0)


def test_distances_have_units() -> None:
    assert format_distance((0, 0), (3, 4)) == "5.0 µm"
    assert format_distance((0, 0), (0, 12345)) == "12.345 mm"


def test_a_position_in_micrometres_or_pixels_moves_the_view(tools: Any, viewer: Any) -> None:
    tools.position.setText("100, 200.5")
    tools.go.click()
    assert centre(viewer) == pytest.approx((100, 200.5))
    tools.unit.setCurrentText("px")
    tools.position.setText("100 400")
    tools.position.returnPressed.emit()
    assert centre(viewer) == pytest.approx((50, 200))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no position"),
        ("1", "no position"),
        ("1, 2, 3", "no position"),
        ("a, b", "no position"),
        ("9999, 1", "outside"),
    ],
)
def test_what_is_no_position_on_the_slide_is_said(tools: Any, viewer: Any, text: str, reason: str) -> None:
    before = centre(viewer)
    with pytest.raises(LrmilError, match=reason):
        go_to_text(viewer, text, "µm")
    assert centre(viewer) == before


def test_a_copied_link_leads_back(tools: Any, viewer: Any, slide_path: Path) -> None:
    from qtpy.QtGui import QGuiApplication

    go_to_text(viewer, "300, 150", "µm")
    viewer.scene.camera.zoom *= 3
    magnification = current_magnification(viewer, tools.devicePixelRatioF())
    tools.link.click()
    text = QGuiApplication.clipboard().text()
    viewer.reset_view()
    tools.position.setText(text)
    tools.go.click()
    assert centre(viewer) == pytest.approx((300, 150), abs=0.1)
    assert current_magnification(viewer, tools.devicePixelRatioF()) == pytest.approx(magnification, rel=1e-3)
    link = parse_link(text)
    assert link.slide == slide_path
    with pytest.raises(LrmilError, match=r"leads to other\.svs"):
        go_to_link(viewer, replace(link, slide=slide_path.with_name("other.svs")))


def test_without_a_slide_the_tools_say_why(tools: Any, viewer: Any) -> None:
    tools.measure.click()
    viewer.layers.clear()
    tools.show_slide()
    assert not tools.measure.isChecked() and not tools.measure.isEnabled() and "slide first" in tools.go.toolTip()


def test_the_window_fills_the_screen_and_comes_back(tools: Any, qtbot: Any) -> None:
    tools.full_screen.click()
    assert tools.isFullScreen()
    tools.full_screen.click()
    assert not tools.isFullScreen()


def test_the_view_is_rotated_by_buttons_keys_and_a_field(tools: Any, viewer: Any) -> None:
    from qtpy.QtGui import QKeySequence
    from qtpy.QtWidgets import QShortcut

    go_to_text(viewer, "300, 150", "µm")
    tools.right.click()
    assert current_rotation(viewer) == 90 and view_centre_um(viewer) == pytest.approx((300, 150))
    tools.left.click()
    tools.left.click()
    assert current_rotation(viewer) == tools.rotation.value() == -90
    for expected in (180, 90):
        tools.left.click()
        assert current_rotation(viewer) == expected
    tools.rotation.setValue(37.5)
    assert current_rotation(viewer) == pytest.approx(37.5)
    # Without a window manager no window is active, so Qt delivers no shortcut.
    [key] = [key for key in tools.findChildren(QShortcut) if key.key() == QKeySequence("Alt+R")]
    key.activated.emit()
    assert current_rotation(viewer) == pytest.approx(127.5)
    rotate_view(viewer, 10)
    assert tools.rotation.value() == 10


def test_a_slide_that_is_all_in_the_view_still_is_after_a_quarter_turn(tools: Any, viewer: Any) -> None:
    assert shows_whole_slide(viewer)
    tools.right.click()
    assert current_rotation(viewer) == 90 and shows_whole_slide(viewer)
    viewer.scene.camera.zoom *= 4
    zoom, middle = viewer.scene.camera.zoom, view_centre_um(viewer)
    tools.left.click()
    assert viewer.scene.camera.zoom == zoom and view_centre_um(viewer) == pytest.approx(middle)


def test_the_measured_distance_is_one_line(make_dock: MakeDock, slide_path: Path, qtbot: Any) -> None:
    """A second line would be cut off: the section keeps the height that it had with the hint before."""
    dock = make_dock(slide_path)
    dock.navigation.expand(animate=False)
    tools, label = dock.navigation.tools, dock.navigation.tools.distance
    tools.measure.click()
    qtbot.waitUntil(lambda: label.isVisible() and timers_rest(dock), timeout=WAIT_MS)
    for point in ((0.0, 0.0), (600.0, 480.0)):
        tools.add_point(point)
    assert label.heightForWidth(DOCK_MIN_WIDTH_PX - 60) < 2 * label.fontMetrics().height()


def test_a_distance_is_measured_on_the_slide_in_a_rotated_view(tools: Any, viewer: Any) -> None:
    tools.measure.click()
    rotate_view(viewer, 90)
    for position in ((200.0, -100.0), (250.0, -100.0)):  # 50 µm down on the screen, to the right on the slide
        tools.add_point(world_to_slide(viewer, position))
    line, label = lrmil_layers(viewer, role="distance")
    assert label.data_to_world(label.data[-1]) == pytest.approx((225, -100)), "at the line in a rotated view too"
    assert line.data[0] == pytest.approx(np.array([(100, 200), (100, 250)]))
    assert line.data_to_world(line.data[0][1]) == pytest.approx((250, -100))
    tools.measure.click()
