"""A notification that closes leaves the focus in the field that the user types into."""

from __future__ import annotations

from typing import Any

from napari._qt.dialogs.qt_notification import NapariQtNotification
from napari.utils.notifications import show_error
from qtpy.QtWidgets import QApplication

from napari_lrmil.plugin.viewer.layers import lrmil_layers
from support.window import WAIT_MS, MakeDock, timers_rest


def open_notification() -> Any:
    show_error("The position is not on the slide.")
    return NapariQtNotification._instances[-1]


def test_typing_goes_on_while_a_notification_fades(
    make_dock: MakeDock, viewer: Any, slide_path: Any, qtbot: Any
) -> None:
    dock = make_dock(slide_path)
    dock.navigation.expand(animate=False)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    viewer.window._qt_window.activateWindow()
    field, zoom = dock.navigation.tools.position, viewer.scene.camera.zoom
    field.setFocus()
    qtbot.waitUntil(lambda: QApplication.focusWidget() is field, timeout=WAIT_MS)
    notification = open_notification()
    qtbot.keyClicks(QApplication.focusWidget(), "1")
    with qtbot.waitSignal(notification.destroyed, timeout=WAIT_MS):
        notification.close_with_fade()  # as it does by itself after a while
    qtbot.keyClicks(QApplication.focusWidget(), "23v")
    assert field.text() == "123v" and viewer.scene.camera.zoom == zoom
    assert all(layer.visible for layer in lrmil_layers(viewer, role="slide"))


def test_a_notification_that_has_the_focus_gives_it_to_the_canvas(viewer: Any, qtbot: Any) -> None:
    canvas = viewer.window._qt_viewer.canvas.native
    viewer.window._qt_window.activateWindow()
    notification = open_notification()
    notification.close_button.setFocus()
    qtbot.waitUntil(lambda: QApplication.focusWidget() is notification.close_button, timeout=WAIT_MS)
    notification.close_button.click()
    assert QApplication.focusWidget() is canvas
