"""Storage of answers that the user computes in the Analyse dock for slides of a worklist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, Signal

from napari_lrmil.core.events import Event, Failed, Partial
from napari_lrmil.plugin.qt.errors import show_error
from napari_lrmil.plugin.qt.worker import BackgroundWorker
from napari_lrmil.plugin.worklist.answer_jobs import SlideAnswer

if TYPE_CHECKING:
    from napari_lrmil.plugin.worklist.answer_jobs import StoreAnswerJob


class RunStore(QObject):  # type: ignore[misc]  # qtpy has no types
    """Stores answers in the background, each in a thread of its own.

    Parameters
    ----------
    parent
        The dock.

    Attributes
    ----------
    stored
        Emitted with the `SlideAnswer` that is on disk now.
    """

    stored = Signal(object)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._workers: list[BackgroundWorker] = []

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being stored."""
        return bool(self._workers)

    def store(self, job: StoreAnswerJob) -> None:
        """Store an answer."""
        worker = BackgroundWorker(job.events, self._on_event, lambda: self._workers.remove(worker), self)
        self._workers.append(worker)
        worker.start()

    def _on_event(self, event: Event) -> None:
        match event:
            case Partial(SlideAnswer() as answer):
                self.stored.emit(answer)
            case Failed(message):
                show_error(message)
