"""Answers that keep up with the user: the newest question counts, and one that is overtaken is dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer
from qtpy.QtWidgets import QWidget

from napari_lrmil.core.events import Event
from napari_lrmil.plugin.listening import listen
from napari_lrmil.plugin.navigate import visible_um
from napari_lrmil.plugin.worker import Run, Work

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_lrmil.plugin.session import Session

SETTLE_MS = 150  # a view that moved on within this was only passed through


class Latest:
    """Works on one question at a time; a newer one cancels it and comes next.

    Parameters
    ----------
    handle
        Takes the events.
    parent
        Work ends with it.
    """

    def __init__(self, handle: Callable[[Event], None], parent: QObject) -> None:
        self._handle, self._parent = handle, parent
        self._run: Run | None = None
        self._next: Work | None = None

    @property
    def busy(self) -> bool:
        """Whether a question is being worked on."""
        return self._run is not None

    def ask(self, work: Work | None) -> None:
        """Begin `work`, at once or when what is under way has let go; None asks nothing."""
        if work is None:
            return
        if self._run is not None:
            self._next = work
            self._run.cancel()
            return
        self._run = Run(work, self._handle, self._ended, self._parent)
        self._run.start()

    def stop(self) -> None:
        """Drop what is under way."""
        self._next = None
        if self._run is not None:
            self._run.cancel()

    def _ended(self) -> None:
        self._run, work, self._next = None, self._next, None
        self.ask(work)


class Follower(QWidget):  # type: ignore[misc]  # qtpy has no types
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
        self.answers = Latest(session.handle_answer, self)
        self.tissue = Latest(session.handle_ground, self)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE_MS)
        self._timer.timeout.connect(self.look)
        camera = viewer.scene.camera.events
        moves = (camera.center, camera.zoom, viewer.canvas.events.size)
        listen(self, [(emitter, self._moved) for emitter in moves])

    def _moved(self, _: Any = None) -> None:
        self._timer.start()

    def look(self) -> None:
        """Tell what is visible now, and ask about it where that is wanted."""
        session = self._session
        if session.slide is not None and session.ground is not None:
            session.look_at(visible_um(self._viewer).to_level0(session.ground.grid.lattice.mpp))
            self.answers.ask(session.follow_view())

    def prepare(self) -> None:
        """Find the tissue of the chosen slide, if it is not known."""
        self.tissue.ask(self._session.find_tissue())

    def stop(self) -> None:
        """Drop what is under way."""
        self._timer.stop()
        self.answers.stop()
        self.tissue.stop()
