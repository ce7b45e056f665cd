"""Live view: tissue search and predictions for the visible area, in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import shapely
from qtpy.QtWidgets import QWidget

from napari_lrmil.core.patching.regions import Region
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.timers import single_shot
from napari_lrmil.plugin.qt.worker import LatestOnly
from napari_lrmil.plugin.viewer.navigation.camera import visible_outline_um

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_lrmil.plugin.session.session import Session


VIEW_SETTLE_MS = 150  # a view that the user leaves sooner was only passed through


class LiveView(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Reports the visible area to the session, and starts the tissue search and the live predictions.

    It is never shown. It is a widget because Qt then deletes it together with the dock.

    Parameters
    ----------
    viewer
        The viewer whose camera is followed.
    session
        Prepares the jobs and receives their events.
    parent
        The dock.

    Attributes
    ----------
    predictions
        Runs live and what-if predictions; a newer one replaces one that is still running.
    tissue
        Runs the tissue search.
    """

    def __init__(self, viewer: ViewerModel, session: Session, parent: QWidget) -> None:
        super().__init__(parent)
        self.setVisible(False)
        self._viewer, self._session = viewer, session
        self.predictions = LatestOnly(session.on_live_event, self)
        self.tissue = LatestOnly(session.on_tissue_event, self)
        self._timer = single_shot(self, VIEW_SETTLE_MS, self.update_view)
        camera = viewer.scene.camera.events
        emitters = (camera.center, camera.zoom, viewer.canvas.events.size)
        connect_until_destroyed(self, [(emitter, self._on_moved) for emitter in emitters])

    def _on_moved(self, _: Any = None) -> None:
        self._timer.start()  # starts again with every move, so it fires when the view is still

    def update_view(self) -> None:
        """Report the visible area; start a live prediction if the session wants one."""
        session = self._session
        if session.slide is not None and session.tissue_grid is not None:
            mpp = session.tissue_grid.grid.lattice.mpp
            outline = shapely.Polygon(visible_outline_um(self._viewer) / (mpp.x, mpp.y))
            session.set_view(Region("view", outline))
            self.predictions.submit(session.prepare_live_view())

    def find_tissue(self) -> None:
        """Start the tissue search of the chosen slide, unless its tissue is known."""
        self.tissue.submit(self._session.prepare_tissue_search())

    def stop(self) -> None:
        """Cancel all jobs."""
        self._timer.stop()
        self.predictions.stop()
        self.tissue.stop()
