"""What is read under the mouse is right after the slide was rotated below it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import QPoint

from napari_lrmil.plugin.analyse.result_view import HOVER_HINT
from napari_lrmil.plugin.viewer.navigation import cursor
from napari_lrmil.plugin.viewer.navigation.camera import fly_to, view_centre_um
from support.window import WAIT_MS, MakeDock, timers_rest

RIGHT_PX, DOWN_PX = 60, -25  # of the mouse from the middle of the canvas


@pytest.fixture
def dock(make_dock: MakeDock, slide_path: Path, qtbot: Any) -> Any:
    """Return a dock with an answer."""
    dock = make_dock(slide_path)
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not None and timers_rest(dock), timeout=WAIT_MS)
    return dock


def point(viewer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the mouse on the canvas, beside its middle."""
    canvas = viewer.window._qt_viewer.canvas.native
    place = QPoint(canvas.width() // 2 + RIGHT_PX, canvas.height() // 2 + DOWN_PX)
    monkeypatch.setattr(cursor, "find_mouse", lambda _: place)
    assert cursor.move_mouse(viewer)


def read_place(dock: Any) -> tuple[float, float]:
    match = re.match(r"x (\S+) µm, y (\S+) µm", dock.result_view.hover.text())
    assert match is not None, dock.result_view.hover.text()
    x, y = (float(number.replace(",", "").replace("−", "-")) for number in match.groups())
    return x, y


def test_the_place_under_a_still_mouse_is_read_after_a_rotation(
    dock: Any, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fly_to(viewer, (320.0, 250.0), 20)
    (x, y), um = view_centre_um(viewer), 1 / viewer.scene.camera.zoom
    point(viewer, monkeypatch)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    assert read_place(dock) == pytest.approx((x + RIGHT_PX * um, y + DOWN_PX * um), abs=2)
    fly_to(viewer, (320.0, 250.0), 20)
    dock.navigation.tools.rotation.setValue(90)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    assert read_place(dock) == pytest.approx((x + DOWN_PX * um, y - RIGHT_PX * um), abs=2)


def test_nothing_is_read_if_the_mouse_is_elsewhere(
    dock: Any, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    point(viewer, monkeypatch)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    read_place(dock)
    monkeypatch.setattr(cursor, "find_mouse", lambda _: None)
    dock.navigation.tools.right.click()
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    assert dock.result_view.hover.text() == HOVER_HINT
