"""Step 3 of the dock: start, stop, resume or open a run; its progress and curves; confirmation dialogs."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QLineEdit, QMessageBox, QProgressBar, QWidget

from napari_lrmil.core.formatting import format_duration
from napari_lrmil.plugin.qt.section import enable_unless, make_button, make_label
from napari_lrmil.plugin.qt.steps import Step
from napari_lrmil.plugin.train.curves import CurveCanvas, PlotTheme
from napari_lrmil.plugin.train.run_monitor import stage_label
from napari_lrmil.plugin.train.run_process import RunPhase, TrainingRun, holds_run

START_TIP = "Train in a process of its own, which can continue after napari is closed"
STOP_TIP = "Stop after the current batch; complete epochs are stored"
RESUME_TIP = "Continue from the last complete epoch or slide, with the same table and settings"
FOLDER_TAKEN = "This folder already holds a run. Open a run… shows it, Resume continues it. Or choose another folder."
OPEN_RUN_TIP = "Show an existing run: finished, stopped or in progress, on this machine or another"
NEWEST_FIT = "newest fit"
MAX_NOTICES_SHOWN = 3  # notices and failures in the dock

PHASE_TEXTS = {
    RunPhase.NONE: "",
    RunPhase.STARTING: "Starting: the program is loading…",
    RunPhase.STOPPING: "Stopping after the current batch…",
    RunPhase.FINISHED: "Finished.",
}


class RunSection(Step):
    """View of a `TrainingRun`."""

    start_wanted = Signal()
    stop_wanted = Signal()
    resume_wanted = Signal()
    open_wanted = Signal()
    folder_wanted = Signal()

    def __init__(self, run: TrainingRun, theme: PlotTheme, parent: QWidget | None = None) -> None:
        super().__init__("train run", "3 · Training (run)", parent)
        self._run = run
        self.folder = QLineEdit()
        self.folder.setPlaceholderText("folder for the run")
        self.folder.setToolTip("All files of the run are written into this folder; choose a new or empty one")
        self.choose = make_button("Folder…", "Choose the folder of the run")
        self.start, self.stop = make_button("Start training", START_TIP), make_button("Stop", STOP_TIP)
        self.resume, self.open = make_button("Resume", RESUME_TIP), make_button("Open a run…", OPEN_RUN_TIP)
        self.stages, self.state, self.notices = (
            make_label("stages"),
            make_label("run state", bold=True),
            make_label("run notices", small=True),
        )
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.fit_choice = QComboBox()
        self.fit_choice.addItem(NEWEST_FIT)
        self.fit_choice.setAccessibleName("Fit that the curves show")
        self.canvas = CurveCanvas(theme)
        for widget, signal in (
            (self.choose, self.folder_wanted),
            (self.start, self.start_wanted),
            (self.stop, self.stop_wanted),
            (self.resume, self.resume_wanted),
            (self.open, self.open_wanted),
        ):
            widget.clicked.connect(lambda _=False, signal=signal: signal.emit())
        self.fit_choice.activated.connect(lambda _: self.draw())
        self.add(self.folder, self.choose)
        self.add(self.start, self.open)
        self.add(self.stop, self.resume)
        for part in (self.state, self.progress, self.stages, self.notices, self.fit_choice, self.canvas):
            self.add(part)
        self.refresh("")

    def value(self) -> Path | None:
        """Return the folder for a new run; None if none is chosen."""
        text = self.folder.text().strip()
        return Path(text).expanduser() if text else None

    def refresh(self, blocked: str) -> None:
        """Update all widgets; `blocked` is the reason why no new run can be started, or empty."""
        run = self._run
        in_progress = "A run is in progress." if run.is_alive else ""
        no_folder = "" if self.value() else "Choose a folder for the run first."
        enable_unless(self.start, in_progress or blocked or no_folder or self._why_folder_taken(), START_TIP)
        stopping = "The run stops after the current batch." if run.phase is RunPhase.STOPPING else ""
        enable_unless(self.stop, stopping or ("" if run.is_alive else "No run is in progress."), STOP_TIP)
        finished = "The run is finished." if run.phase is RunPhase.FINISHED else ""
        enable_unless(self.resume, run.resume_blocked_by or finished, RESUME_TIP)
        self.state.setText(self._state_text())
        self.stages.setText(self._stages_text())
        self.notices.setText(self._notices_text())
        progress = run.log.progress()
        self.progress.setVisible(progress is not None and run.phase is not RunPhase.FINISHED)
        self.progress.setValue(round(1000 * progress.share) if progress else 0)
        for part in (self.fit_choice, self.canvas):
            part.setVisible(bool(run.log.curves))

    def _why_folder_taken(self) -> str:
        folder = self.value()
        return FOLDER_TAKEN if folder is not None and holds_run(folder) else ""

    def _state_text(self) -> str:
        run = self._run
        if run.phase is RunPhase.BROKEN:
            return run.reason
        if run.phase is RunPhase.RUNNING:
            owner = f" by {run.writer.text}" if run.writer is not None and not run.is_ours else ""
            return run.progress_text() or f"Running{owner}…"
        if run.phase is RunPhase.STOPPED:
            progress = run.log.progress()
            position = progress.reached if progress else "the start of a stage"
            return f"Stopped at {position}. {run.log.resume_text}."
        started = run.find_started() if run.phase is RunPhase.NONE else None
        return f"A run is in progress in {started}. 'Open a run…' shows it." if started else PHASE_TEXTS[run.phase]

    def _stages_text(self) -> str:
        return " · ".join(f"✓ {stage_label(stage)}: {format_duration(s)}" for stage, s in self._run.log.spent.items())

    def _notices_text(self) -> str:
        run = self._run
        failures = [f"{slide}: {why}" for slide, why in run.log.failures.items()]
        lines = [f"⚠ {text}" for text in (*failures, *run.log.notices)][:MAX_NOTICES_SHOWN]
        writer = run.writer.text if run.writer is not None and not run.is_ours else ""
        folder = f"{run.folder}" if run.folder else ""
        return "\n".join(filter(None, (folder, f"written by {writer}" if writer else "", run.foreign, *lines)))

    def draw(self) -> None:
        """Draw the chosen fit."""
        curves = self._run.log.curves
        titles = [NEWEST_FIT, *(stage_label(curve.title) for curve in curves)]
        if titles != [self.fit_choice.itemText(i) for i in range(self.fit_choice.count())]:
            chosen = self.fit_choice.currentText()
            self.fit_choice.clear()
            self.fit_choice.addItems(titles)
            self.fit_choice.setCurrentIndex(max(0, self.fit_choice.findText(chosen)))
        if curves:
            chosen = self.fit_choice.currentIndex()
            self.canvas.show_curve(curves[chosen - 1] if chosen > 0 else curves[-1])


KEEP_TRAINING, STOP_TRAINING, STAY_OPEN = "Keep training", "Stop training", "Do not close"


def confirm_close_during_training(may_stay: bool) -> str:
    """Ask what to do with a training in progress; return `KEEP_TRAINING`, `STOP_TRAINING` or `STAY_OPEN`.

    `STAY_OPEN` is offered only if `may_stay`.
    """
    box = QMessageBox()
    box.setWindowTitle("Training in progress")
    box.setText("A training run is in progress. Continue it without this window?")
    box.setInformativeText("'Open a run…' shows it again. A stopped run can be resumed.")
    box.addButton(KEEP_TRAINING, QMessageBox.ButtonRole.AcceptRole)
    box.addButton(STOP_TRAINING, QMessageBox.ButtonRole.DestructiveRole)
    if may_stay:
        box.addButton(STAY_OPEN, QMessageBox.ButtonRole.RejectRole)
    box.exec()
    clicked = box.clickedButton()
    answer = clicked.text() if clicked is not None else KEEP_TRAINING
    box.deleteLater()
    return answer if answer in (STOP_TRAINING, STAY_OPEN) else KEEP_TRAINING


def confirm_discard_table() -> bool:
    """Ask whether a table with unsaved changes may be discarded; return the answer."""
    box = QMessageBox()
    box.setWindowTitle("Unsaved changes")
    box.setText("The table has unsaved changes. Discard them?")
    discard = box.addButton("Discard", QMessageBox.ButtonRole.DestructiveRole)
    box.addButton("Keep the table", QMessageBox.ButtonRole.RejectRole)
    box.exec()
    is_discarded = box.clickedButton() is discard
    box.deleteLater()
    return is_discarded
