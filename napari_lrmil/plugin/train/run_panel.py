"""A training run on the screen: start, stop, go on, open; how far it is; its curves."""

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

START_TIP = "Train in a process of its own; it goes on when napari is closed"
STOP_TIP = "Ends after the batch; nothing that was done is lost"
RESUME_TIP = "Goes on from the last whole epoch, or slide, with the same table and settings"
FOLDER_TAKEN = (
    "A run lies in this folder: Open a run… shows it, Resume goes on with it. For a new run choose another folder."
)
OPEN_RUN_TIP = "Look at a run that is there: finished, stopped, or being written, here or on another machine"
NEWEST_FIT = "the newest fit"
MAX_NOTICES_SHOWN = 3  # cautions and failures told in the dock

PHASE_TEXTS = {
    RunPhase.NONE: "",
    RunPhase.STARTING: "Starting: the program is being loaded…",
    RunPhase.STOPPING: "Stopping after the batch…",
    RunPhase.FINISHED: "Finished.",
}


class RunSection(Step):
    """Shows a `TrainingRun`."""

    start_wanted = Signal()
    stop_wanted = Signal()
    resume_wanted = Signal()
    open_wanted = Signal()
    folder_wanted = Signal()

    def __init__(self, run: TrainingRun, ink: PlotTheme, parent: QWidget | None = None) -> None:
        super().__init__("train run", "3 · Training (run)", parent)
        self._run = run
        self.folder = QLineEdit()
        self.folder.setPlaceholderText("folder for the run")
        self.folder.setToolTip("Everything of the run goes in here; an empty or new folder")
        self.choose = make_button("Folder…", "Where the run is written")
        self.start, self.stop = make_button("Start training", START_TIP), make_button("Stop", STOP_TIP)
        self.resume, self.open = make_button("Resume", RESUME_TIP), make_button("Open a run…", OPEN_RUN_TIP)
        self.stages, self.state, self.told = (
            make_label("stages"),
            make_label("run state", bold=True),
            make_label("run told", small=True),
        )
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.which = QComboBox()
        self.which.addItem(NEWEST_FIT)
        self.which.setAccessibleName("Which fit the curves show")
        self.canvas = CurveCanvas(ink)
        for widget, wish in (
            (self.choose, self.folder_wanted),
            (self.start, self.start_wanted),
            (self.stop, self.stop_wanted),
            (self.resume, self.resume_wanted),
            (self.open, self.open_wanted),
        ):
            widget.clicked.connect(lambda _=False, wish=wish: wish.emit())
        self.which.activated.connect(lambda _: self.draw())
        self.add(self.folder, self.choose)
        self.add(self.start, self.open)
        self.add(self.stop, self.resume)
        for part in (self.state, self.progress, self.stages, self.told, self.which, self.canvas):
            self.add(part)
        self.refresh("")

    def value(self) -> Path | None:
        """Return the folder that was chosen for a new run."""
        text = self.folder.text().strip()
        return Path(text).expanduser() if text else None

    def refresh(self, blocked: str) -> None:
        """Show how far the run is; `blocked` says why a new one cannot be started."""
        run = self._run
        under_way = "A run is under way." if run.alive else ""
        no_folder = "" if self.value() else "Choose a folder for the run first."
        enable_unless(self.start, under_way or blocked or no_folder or self._taken(), START_TIP)
        stopping = "It ends after the batch." if run.phase is RunPhase.STOPPING else ""
        enable_unless(self.stop, stopping or ("" if run.alive else "No run is under way."), STOP_TIP)
        finished = "The run is finished." if run.phase is RunPhase.FINISHED else ""
        enable_unless(self.resume, run.resume_blocked_by or finished, RESUME_TIP)
        self.state.setText(self._state_text())
        self.stages.setText(self._stages_text())
        self.told.setText(self._told_text())
        pace = run.story.pace()
        self.progress.setVisible(pace is not None and run.phase is not RunPhase.FINISHED)
        self.progress.setValue(round(1000 * pace.share) if pace else 0)
        for part in (self.which, self.canvas):
            part.setVisible(bool(run.story.curves))

    def _taken(self) -> str:
        folder = self.value()
        return FOLDER_TAKEN if folder is not None and holds_run(folder) else ""

    def _state_text(self) -> str:
        run = self._run
        if run.phase is RunPhase.BROKEN:
            return run.reason
        if run.phase is RunPhase.RUNNING:
            where = f" by {run.writer.text}" if run.writer is not None and not run.is_ours else ""
            return run.pace_text() or f"Running{where}…"
        if run.phase is RunPhase.STOPPED:
            pace = run.story.pace()
            return f"Stopped at {pace.reached if pace else 'a stage that had just begun'}. {run.story.resumes}."
        return PHASE_TEXTS[run.phase]

    def _stages_text(self) -> str:
        return " · ".join(f"✓ {stage_label(stage)} {format_duration(s)}" for stage, s in self._run.story.spent.items())

    def _told_text(self) -> str:
        run = self._run
        failures = [f"{slide}: {why}" for slide, why in run.story.failures.items()]
        lines = [f"⚠ {text}" for text in (*failures, *run.story.cautions)][:MAX_NOTICES_SHOWN]
        who = run.writer.text if run.writer is not None and not run.is_ours else ""
        where = f"{run.folder}" if run.folder else ""
        return "\n".join(filter(None, (where, f"written by {who}" if who else "", run.foreign, *lines)))

    def draw(self) -> None:
        """Draw the chosen fit anew."""
        curves = self._run.story.curves
        titles = [NEWEST_FIT, *(stage_label(curve.title) for curve in curves)]
        if titles != [self.which.itemText(i) for i in range(self.which.count())]:
            chosen = self.which.currentText()
            self.which.clear()
            self.which.addItems(titles)
            self.which.setCurrentIndex(max(0, self.which.findText(chosen)))
        if curves:
            chosen = self.which.currentIndex()
            self.canvas.show_curve(curves[chosen - 1] if chosen > 0 else curves[-1])


KEEP_TRAINING, STOP_TRAINING, STAY_OPEN = "Let it go on", "Stop it", "Do not close"


def confirm_close_during_training(may_stay: bool) -> str:
    """Return what the user wants of a training that is under way."""
    box = QMessageBox()
    box.setWindowTitle("A training is under way")
    box.setText("A training is under way. Shall it go on without this window?")
    box.setInformativeText("It can be followed again with 'Open a run…'. Stopped, it can be resumed.")
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
    """Return whether a table with unsaved changes may make room for another."""
    box = QMessageBox()
    box.setWindowTitle("The table has changes")
    box.setText("The table has changes that are not saved. Shall they be dropped?")
    drop = box.addButton("Drop them", QMessageBox.ButtonRole.DestructiveRole)
    box.addButton("Keep the table", QMessageBox.ButtonRole.RejectRole)
    box.exec()
    dropped = box.clickedButton() is drop
    box.deleteLater()
    return dropped
