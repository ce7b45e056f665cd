"""Answers that keep up with the user: the newest question counts, and one that is overtaken is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QWidget

from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.worker import LatestOnly
from napari_lrmil.plugin.viewer.navigation import visible_um

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_lrmil.plugin.session.session import Session


VIEW_SETTLE_MS = 150  # a view that moved on within this was only passed through


class LiveView(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Tells the session what is visible, finds tissue before it is asked for, and lets the student follow the view.

    It shows nothing; it is a widget so that it goes with the dock.

    Parameters
    ----------
    viewer
        What is looked through.
    session
        What is to be known and asked.
    """

    def __init__(self, viewer: ViewerModel, session: Session, parent: QWidget) -> None:
        super().__init__(parent)
        self.setVisible(False)
        self._viewer, self._session = viewer, session
        self.answers = LatestOnly(session.on_live_event, self)
        self.tissue = LatestOnly(session.on_tissue_event, self)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(VIEW_SETTLE_MS)
        self._timer.timeout.connect(self.look)
        camera = viewer.scene.camera.events
        moves = (camera.center, camera.zoom, viewer.canvas.events.size)
        connect_until_destroyed(self, [(emitter, self._moved) for emitter in moves])

    def _moved(self, _: Any = None) -> None:
        self._timer.start()

    def look(self) -> None:
        """Tell what is visible now, and ask about it where that is wanted."""
        session = self._session
        if session.slide is not None and session.tissue_grid is not None:
            session.set_view(visible_um(self._viewer).to_level0(session.tissue_grid.grid.lattice.mpp))
            self.answers.submit(session.prepare_live_view())

    def prepare(self) -> None:
        """Find the tissue of the chosen slide, if it is not known."""
        self.tissue.submit(self._session.prepare_tissue_search())

    def stop(self) -> None:
        """Drop what is under way."""
        self._timer.stop()
        self.answers.stop()
        self.tissue.stop()
