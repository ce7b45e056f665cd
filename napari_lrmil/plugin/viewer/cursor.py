"""Position of the mouse on the slide."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QWidget

from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.viewer.navigation import world_to_slide

if TYPE_CHECKING:
    from napari.components import ViewerModel

THROTTLE_MS = 40


class CursorTracker(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Invisible widget that reports the mouse position in µm, at most once per `THROTTLE_MS`.

    It is a widget because Qt then deletes it, and with it its connections, together with the dock.

    Parameters
    ----------
    viewer
        Viewer whose cursor is tracked.
    on_move
        Called with x and y in µm from the slide's corner.
    parent
        The dock.
    """

    def __init__(self, viewer: ViewerModel, on_move: Callable[[float, float], None], parent: QWidget) -> None:
        super().__init__(parent)
        self.setVisible(False)
        self._viewer, self._on_move = viewer, on_move
        self._has_reported = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(THROTTLE_MS)
        self._timer.timeout.connect(self._report)
        connect_until_destroyed(self, [(viewer.cursor.events.position, self._schedule)])

    def _schedule(self, _: Any = None) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def repeat(self) -> None:
        """Report the last position again, because something else is shown there; nothing if there was none."""
        if self._has_reported:
            self._report()

    def _report(self) -> None:
        self._has_reported = True
        self._on_move(*world_to_slide(self._viewer, self._viewer.cursor.position))
