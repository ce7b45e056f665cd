"""What the mouse points at, as a place on the slide."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QWidget

from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.viewer.navigation import um_per_unit

if TYPE_CHECKING:
    from napari.components import ViewerModel

THROTTLE_MS = 40


class CursorTracker(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Tells where the mouse is in µm, x then y, at most every `THROTTLE_MS`; shows nothing, goes with the dock."""

    def __init__(self, viewer: ViewerModel, tell: Callable[[float, float], None], parent: QWidget) -> None:
        super().__init__(parent)
        self.setVisible(False)
        self._viewer, self._tell = viewer, tell
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(THROTTLE_MS)
        self._timer.timeout.connect(self._now)
        connect_until_destroyed(self, [(viewer.cursor.events.position, self._moved)])

    def _moved(self, _: Any = None) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _now(self) -> None:
        y, x = (v * um_per_unit(self._viewer) for v in self._viewer.cursor.position[-2:])
        self._tell(x, y)
