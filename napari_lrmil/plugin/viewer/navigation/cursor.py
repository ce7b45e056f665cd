"""Position of the mouse on the slide."""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QCursor, QGuiApplication, QMouseEvent
from qtpy.QtWidgets import QApplication, QWidget

from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.timers import single_shot
from napari_lrmil.plugin.viewer.navigation.camera import world_to_slide
from napari_lrmil.plugin.viewer.navigation.rotation_watcher import RotationWatcher

if TYPE_CHECKING:
    from napari.components import ViewerModel

THROTTLE_MS = 40


class CursorTracker(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Invisible widget that reports the mouse position in µm, at most once per `THROTTLE_MS`.

    napari does not notice that a rotated slide has another point under the mouse. The position is then read anew if the
    mouse is on the canvas; else no position is known.

    It is a widget because Qt then deletes it, and with it its connections, together with the dock.

    Parameters
    ----------
    viewer
        Viewer whose cursor is tracked.
    on_move
        Called with x and y in µm from the slide's corner.
    on_leave
        Called if the slide was rotated while the mouse was elsewhere: what was read last is under it no more.
    parent
        The dock.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        on_move: Callable[[float, float], None],
        on_leave: Callable[[], None],
        parent: QWidget,
    ) -> None:
        super().__init__(parent)
        self.setVisible(False)
        self._viewer, self._on_move, self._on_leave = viewer, on_move, on_leave
        self._has_reported = False
        self._timer = single_shot(self, THROTTLE_MS, self._report)
        self._turn_timer = single_shot(self, 0, self._follow_rotation)  # after all layers and the camera have moved
        self._rotation = RotationWatcher(viewer, self)
        self._rotation.rotated.connect(self._turn_timer.start)
        connect_until_destroyed(self, [(viewer.cursor.events.position, self._schedule)])

    def _schedule(self, _: Any = None) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def repeat(self) -> None:
        """Report the last position again, because something else is shown there; nothing if there was none."""
        if self._has_reported:
            self._report()

    def _report(self) -> None:
        if self._turn_timer.isActive():  # the position is that of before the rotation
            return
        self._has_reported = True
        self._on_move(*world_to_slide(self._viewer, self._viewer.cursor.position))

    def _follow_rotation(self) -> None:
        self._timer.stop()
        if QGuiApplication.mouseButtons() != Qt.MouseButton.NoButton:
            return  # a drag reports its next move itself
        if move_mouse(self._viewer):
            self.repeat()
        elif self._has_reported:
            self._has_reported = False
            self._on_leave()


def move_mouse(viewer: ViewerModel) -> bool:
    """Let napari read the position of the mouse anew, and return whether the mouse is on the canvas."""
    window = getattr(unwrap(viewer), "window", None)
    if window is None:
        return False
    canvas = window._qt_viewer.canvas.native
    place = find_mouse(canvas)
    if place is None:
        return False
    no_button, on_screen = Qt.MouseButton.NoButton, QPointF(canvas.mapToGlobal(place))
    keys = Qt.KeyboardModifier.NoModifier
    move = QMouseEvent(QEvent.Type.MouseMove, QPointF(place), on_screen, no_button, no_button, keys)
    QApplication.sendEvent(canvas, move)
    return True


def find_mouse(canvas: QWidget) -> QPoint | None:
    """Return the place of the mouse on a canvas; None if it is elsewhere, or if something else lies over the canvas."""
    return canvas.mapFromGlobal(QCursor.pos()) if canvas.underMouse() else None
