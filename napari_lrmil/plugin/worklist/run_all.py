"""Button and progress bar of *Run all*, which fills a worklist in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QProgressBar

from napari_lrmil.core.cohort.task import Outcome
from napari_lrmil.core.events import Event, Failed, Partial, Progress
from napari_lrmil.core.formatting import format_count, format_duration
from napari_lrmil.plugin.qt.errors import show_error
from napari_lrmil.plugin.qt.section import enable_unless, make_button
from napari_lrmil.plugin.qt.worker import BackgroundWorker
from napari_lrmil.plugin.worklist.jobs import SkippedSlide

if TYPE_CHECKING:
    from napari_lrmil.plugin.worklist.jobs import RunAllJob

RUN_ALL, CANCEL = "Run all", "Cancel"


class RunAll(QObject):  # type: ignore[misc]  # qtpy has no types
    """Runs a `RunAllJob` and shows its progress.

    Parameters
    ----------
    parent
        The dock.

    Attributes
    ----------
    button, progress
        Its widgets, for the dock to place.
    requested
        Emitted when the user presses *Run all*; the dock answers with `start`.
    predicted
        Emitted with the file of each slide that has an answer now.
    skipped
        Emitted with the file of each slide for which no model is chosen.
    failed
        Emitted with the file name of each slide that has failed.
    ended
        Emitted at the end, also after a cancel.
    """

    requested = Signal()
    predicted = Signal(object)
    skipped = Signal(object)
    failed = Signal(str)
    ended = Signal()

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.button, self.progress = make_button(RUN_ALL, ""), QProgressBar()
        self.progress.setVisible(False)
        self._worker: BackgroundWorker | None = None
        self.button.clicked.connect(self._toggle)

    @property
    def is_running(self) -> bool:
        """Whether slides are being predicted."""
        return self._worker is not None

    def start(self, job: RunAllJob) -> None:
        """Predict the slides of a job."""
        self._worker = BackgroundWorker(job.events, self._on_event, self._on_end, self)
        self._worker.start()
        self.progress.setRange(0, len(job.slides))
        self.progress.setValue(0)
        self.progress.setFormat("starting")
        self.progress.setVisible(True)

    def stop(self) -> None:
        """End after the present slide."""
        if self._worker is not None:
            self._worker.cancel()
            self.progress.setFormat("cancelling")

    def refresh(self, missing: str, tip: str) -> None:
        """Enable the button unless something is missing.

        Parameters
        ----------
        missing
            Why no run can start; empty if one can.
        tip
            Tooltip if one can.
        """
        self.button.setText(CANCEL if self.is_running else RUN_ALL)
        enable_unless(self.button, "" if self.is_running else missing, tip)

    def _toggle(self, *_: Any) -> None:
        if self.is_running:
            self.stop()
        else:
            self.requested.emit()

    def _on_event(self, event: Event) -> None:
        match event:
            case Progress("cohort", done, total, _, left):
                remaining = f", {format_duration(left)} left" if left else ""
                self.progress.setRange(0, total)  # without those that were skipped
                self.progress.setValue(done)
                self.progress.setFormat(f"{done} of {format_count(total, 'slide')}{remaining}")
            case Partial(Outcome() as outcome):
                self.predicted.emit(outcome.job.path)
            case Partial(SkippedSlide(path)):
                self.skipped.emit(path)
            case Failed(message, subject):
                self.failed.emit(subject)
                if not subject:
                    show_error(message)

    def _on_end(self) -> None:
        self._worker = None
        self.progress.setVisible(False)
        self.ended.emit()
