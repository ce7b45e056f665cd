"""Train dock: cohort, settings, a run in a process of its own, and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import napari.viewer
from napari.utils.notifications import show_info
from napari.utils.theme import get_theme
from qtpy.QtCore import QEvent, QObject, QTimer, QUrl
from qtpy.QtGui import QDesktopServices, QShowEvent
from qtpy.QtWidgets import QDockWidget, QFileDialog, QVBoxLayout, QWidget

from lrmil_training.config import TrainConfig, load_config
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Failed, Finished
from napari_lrmil.core.features.devices import available_devices
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.analyse.widget import AnalyseWidget
from napari_lrmil.plugin.guards import guard_viewer
from napari_lrmil.plugin.qt.docks import DockWidget, open_dock, tabify_with
from napari_lrmil.plugin.qt.errors import show_error, show_errors
from napari_lrmil.plugin.qt.section import make_label
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.steps import Step, StepList
from napari_lrmil.plugin.qt.timers import single_shot
from napari_lrmil.plugin.qt.worker import LatestOnly
from napari_lrmil.plugin.train.cohort_editor import CohortEditor
from napari_lrmil.plugin.train.cohort_table import COHORT_FILE, CohortTable, propose_model_name
from napari_lrmil.plugin.train.config_form import TrainingForm
from napari_lrmil.plugin.train.curves import PlotTheme
from napari_lrmil.plugin.train.encoder_choices import EncoderChoice, describe_encoder, list_encoder_choices
from napari_lrmil.plugin.train.estimate import estimate_training, remember_throughput
from napari_lrmil.plugin.train.pair_preview import PatchPairPicture, draw_patch_pair
from napari_lrmil.plugin.train.result_panel import ResultSection
from napari_lrmil.plugin.train.result_table import RunResult, read_run_result
from napari_lrmil.plugin.train.run_panel import (
    STAY_OPEN,
    STOP_TRAINING,
    RunSection,
    confirm_close_during_training,
    confirm_discard_table,
)
from napari_lrmil.plugin.train.run_process import RunPhase, TrainingRun, require_no_run

DOCK_MIN_WIDTH_PX = 340
POLL_MS = 400  # between reads of the run folder
DRAW_MS = 700  # between redraws of the curves, each of which takes a few hundredths of a second
SETTINGS_SETTLE_MS = 400  # pause in typing after which settings are checked
ANALYSE_TITLE = "Analyse (LRMIL)"
NO_ESTIMATE = "The estimate of time and disk space needs checked slides."
TABLE_FILTER = "Cohort tables (*.csv)"


class TrainWidget(DockWidget):
    """The Train dock: a view of a `CohortTable`, a `TrainConfig` and a `TrainingRun`.

    Parameters
    ----------
    viewer
        The napari viewer of the dock.
    settings
        Store of measured speeds; that of the user by default.
    """

    TAB_TITLE = "Train"

    def __init__(self, viewer: napari.viewer.Viewer, settings: SettingsStore | None = None) -> None:
        super().__init__()
        self._viewer = viewer
        guard_viewer(viewer)
        self._settings = settings or SettingsStore()
        self._devices = available_devices()
        self.table, self.run = CohortTable(), TrainingRun()
        self._result: RunResult | None = None
        self._offer: EncoderChoice | None = None
        self._started: tuple[TrainConfig, str] | None = None
        self._is_closed = self._is_placed = self._has_expanded = False
        self._main_window: QWidget | None = None
        self._preview_key: Any = None
        self._build()
        self._create_jobs()
        self._connect()
        self._offers.submit(_list_encoders)
        self._settings_settled()
        self._refresh()

    # ------------------------------------------------------------ building

    def _build(self) -> None:
        self.setMinimumWidth(DOCK_MIN_WIDTH_PX)
        theme = _plot_theme(self._viewer)
        self.about = make_label("about", bold=True)
        self.cohort, self.form = CohortEditor(self.table), TrainingForm()
        self.running, self.outcome = RunSection(self.run, theme), ResultSection(theme)
        self.form.offer_devices(self._devices)
        self.cohort.expand(animate=False)
        self._steps = StepList(self.about, self.sections)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(self._steps, 1)
        outer.addWidget(make_label("footer", _research_use(), small=True))

    @property
    def sections(self) -> tuple[Step, ...]:
        """The steps, from top to bottom."""
        return self.cohort, self.form, self.running, self.outcome

    # ------------------------------------------------------------ signals

    def _create_jobs(self) -> None:
        self._checks = LatestOnly(self._checked, self)
        self._pictures = LatestOnly(self._pictured_event, self)
        self._offers = LatestOnly(self._offered, self)
        self._encoder_info = LatestOnly(self._show_encoder, self)
        self._results = LatestOnly(self._result_read, self)
        self._poll = QTimer(self, interval=POLL_MS)
        self._poll.timeout.connect(self.run.poll)
        self._draw = single_shot(self, DRAW_MS, self._draw_curves)
        self._settle = single_shot(self, SETTINGS_SETTLE_MS, self._settings_settled)
        self._place = single_shot(self, 0, self._tabify)

    def _connect(self) -> None:
        connections: tuple[tuple[Any, Callable[..., None]], ...] = (
            (self.cohort.open_wanted, self._ask_table),
            (self.cohort.build_wanted, self._ask_slides),
            (self.cohort.propose_wanted, self._propose),
            (self.cohort.remove_wanted, self.table.remove),
            (self.cohort.save_wanted, self._ask_save),
            (self.cohort.model.refused, self._refused),
            (self.form.changed, self._settle.start),
            (self.form.file_wanted, self._ask_settings),
            (self.running.folder.textChanged, lambda _: self._refresh()),
            (self.running.folder_wanted, self._ask_folder),
            (self.running.start_wanted, lambda: show_errors(self.start)),
            (self.running.stop_wanted, lambda: show_errors(self.run.stop)),
            (self.running.resume_wanted, lambda: show_errors(self._resume)),
            (self.running.open_wanted, self._ask_run),
            (self.running.fold_changed, lambda *_: self._draw.start()),
            (self.outcome.use_wanted, self._use_model),
            (self.outcome.report_wanted, self._open_report),
        )
        for signal, callback in connections:
            signal.connect(callback)
        connect_until_destroyed(
            self,
            [
                (self.table.changed, self._table_changed),
                (self.run.changed, self._run_changed),
                (self.run.failed, self._show_error),
                (self.run.finished, self._finished),
            ],
        )
        self.destroyed.connect(self.run.release)

    def _show_error(self, sentence: str) -> None:
        show_error(sentence)

    # ------------------------------------------------------------ slides

    def _ask_table(self) -> None:
        if not self._may_drop_table():
            return
        file, _ = QFileDialog.getOpenFileName(self, "Cohort table", "", TABLE_FILTER)
        if file:
            self.open_table(Path(file))

    def open_table(self, path: Path) -> None:
        """Open a cohort table."""
        show_errors(partial(self._read_cohort, self.table.open, path))

    def _read_cohort(self, read: Callable[[Path], None], path: Path) -> None:
        """Read a table or a folder of slides, and propose a name of the model that says which."""
        read(path)
        self.form.propose_name(propose_model_name(path.resolve()))

    def _may_drop_table(self) -> bool:
        """Return whether the table may be replaced; ask if it has unsaved changes."""
        return self.table.saved or not self.table.edited or confirm_discard_table()

    def _ask_slides(self) -> None:
        if not self._may_drop_table():
            return
        folder = QFileDialog.getExistingDirectory(self, "Folder of slides")
        if folder:
            show_errors(partial(self._read_cohort, self.table.build, Path(folder)))

    def _ask_save(self) -> None:
        start = self.table.path or (self.table.rows[0].path.parent / COHORT_FILE if self.table.rows else COHORT_FILE)
        file, _ = QFileDialog.getSaveFileName(self, "Save the cohort table", str(start), TABLE_FILTER)
        if file:
            show_errors(partial(self.table.save, Path(file).with_suffix(".csv")))

    def _propose(self) -> None:
        try:
            self.table.propose_splits()
        except LrmilError as error:
            self._refused(str(error))

    def _refused(self, sentence: str) -> None:
        """Show the sentence in the dock too, because napari's notification is truncated and disappears."""
        show_error(sentence)
        self.cohort.show_refusal(sentence)

    def _table_changed(self) -> None:
        if not self._checks.is_busy and self.table.unchecked:
            self._checks.submit(self.table.checking)
        if not (self._has_expanded or self.table.blocked_by):  # only once: afterwards the user decides what is folded
            self._has_expanded = True
            self.form.expand(animate=False)
            self.running.expand(animate=False)
        self._draw_picture()
        self._refresh()

    def _checked(self, event: Event) -> None:
        self.table.handle(event)
        if isinstance(event, Failed):
            show_error(event.message)
        if isinstance(event, Finished):
            if self.table.unchecked:  # rows added in the meantime
                self._checks.submit(self.table.checking)
            self.cohort.refresh(bool(self.table.unchecked))

    # ------------------------------------------------------------ settings

    def _ask_settings(self) -> None:
        file, _ = QFileDialog.getOpenFileName(self, "Settings of a run", "", "Settings (*.yaml *.yml)")
        if file:
            config = show_errors(partial(load_config, Path(file)))
            if config is not None:
                self.form.set_value(config)

    def _settings_settled(self) -> None:
        config = self.form.check()
        if config is not None:
            self.table.allow_unlabelled(config.teacher.mil is not None)
            if self.table.choose_plan(config.plan, config.tissue):
                self._checks.submit(self.table.checking)  # ends the checks for the old patch sizes
            self._encoder_info.submit(partial(_describe_encoder, config.encoder.teacher))
        self._draw_picture()
        self._refresh()

    def _offered(self, event: Event) -> None:
        if isinstance(event, Finished):
            self.form.offer_encoders([offer.name for offer in event.result])

    def _show_encoder(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._offer = event.result
            self.form.show_encoder_info(event.result)
            self._refresh()

    def _draw_picture(self) -> None:
        """Draw the patches of the first usable slide, if they are not drawn yet."""
        first = next(iter(self.table.usable), None)
        key = (first[0].key, self.table.plan, self.table.tissue) if first else None
        if key == self._preview_key:
            return
        self._preview_key = key
        if first is None:
            self.form.show_picture(None)
            return
        row, _ = first
        mpp = float(row.mpp) if row.mpp else None
        self._pictures.submit(partial(draw_patch_pair, row.path, mpp, self.table.plan, self.table.tissue))

    def _pictured_event(self, event: Event) -> None:
        if isinstance(event, Finished) and isinstance(event.result, PatchPairPicture):
            self.form.show_picture(event.result)

    @property
    def _device(self) -> str:
        """The chosen device; for ``auto`` the best of this machine."""
        chosen = str(self.form.device.value)
        best = next(name for name in ("cuda", "mps", "cpu") if name in self._devices)
        return best if chosen == "auto" else chosen

    # ------------------------------------------------------------ the run

    @property
    def start_blocked_by(self) -> str:
        """Sentence on why no run can be started; empty if one can."""
        encoder_blocked_by = self._offer.blocked_by if self._offer else ""
        return self.table.blocked_by or self.form.problem.text() or encoder_blocked_by

    def _ask_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for the run")
        if folder:
            self.running.folder.setText(folder)

    def start(self) -> None:
        """Start a run with the present table and settings; an unsaved table is written into the run folder.

        Raises
        ------
        LrmilError
            If starting is blocked, or the folder is missing, holds a run, or cannot be written to.
        """
        folder, blocked = self.running.value(), self.start_blocked_by
        if folder is None or blocked:
            raise LrmilError(blocked or "Choose a folder for the run first.")
        config = self.form.value()
        folder = folder.resolve()
        require_no_run(folder)  # before a table is written into the folder
        if not (self.table.saved and self.table.path):
            self.table.save(folder / COHORT_FILE)
        assert self.table.path is not None
        self.run.start(self.table.path, folder, config, str(self.form.device.value))
        self._started = config, self._device
        self._show_run()

    def _resume(self) -> None:
        self.run.resume(self.table.path if self.table.saved else None, str(self.form.device.value))
        self._show_run()

    def _show_run(self) -> None:
        self._result = None
        self.outcome.show_result(None)
        self._poll.start()
        self._steps.show_only(self.running)

    def _ask_run(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of a training run")
        if folder:
            self.open_run(Path(folder))

    def open_run(self, folder: Path) -> None:
        """Follow an existing run."""
        self._started = None
        show_errors(partial(self.run.open, folder))
        if self.run.folder == folder:
            if self.run.foreign:
                show_error(self.run.foreign)
            self.running.folder.setText(str(folder))
            self._poll.start()
            self._steps.show_only(self.running)

    def _run_changed(self) -> None:
        if not self._draw.isActive():
            self._draw.start()
        self._refresh()

    def _draw_curves(self) -> None:
        if self.running.isExpanded():
            self.running.draw()

    def _finished(self, folder: Path) -> None:
        if self._started is not None and self.run.log.attempt == 0:  # a resumed run has no complete times
            error = remember_throughput(folder, self.run.log, *self._started, self._settings)
            if error:
                show_error(error)
        self._results.submit(partial(_read_result, folder))

    def _result_read(self, event: Event) -> None:
        if isinstance(event, Failed):
            show_error(event.message)
        elif isinstance(event, Finished) and event.result is not None:
            self._result = event.result
            self.outcome.show_result(event.result)
            self._steps.show_only(self.outcome)

    # ------------------------------------------------------------ result

    def _use_model(self) -> None:
        if self._result is not None and self._result.bundle is not None:
            dock = self._analyse()
            dock.open_model(self._result.bundle)
            show_info(f"The model of {self._result.folder.name} is now in the Analyse dock.")

    def _analyse(self) -> AnalyseWidget:
        return open_dock(self._viewer, AnalyseWidget, ANALYSE_TITLE)

    def _open_report(self) -> None:
        if self._result is not None and self._result.report is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._result.report)))

    def _refresh(self) -> None:
        config = self.form.check()
        self.cohort.refresh(self._checks.is_busy)
        self.running.refresh(self.start_blocked_by)
        estimate = estimate_training(self.table, config, self._device, self._settings) if config else None
        self.form.show_estimate(estimate.text if estimate else NO_ESTIMATE)
        count = format_count(len(self.table.rows), "slide") if self.table.rows else "no slides"
        run = f"{self.run.folder.name}: {self.run.phase.value}" if self.run.folder else "no run"
        self.about.setText(f"{count} · {run} · {self._devices[self._device]}")

    # ------------------------------------------------------------ closing

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802  # Qt's name
        """Watch whether the window closes, and follow the run in progress that an earlier dock left."""
        super().showEvent(event)
        was_closed, self._is_closed = self._is_closed, False
        self._watch_window()
        if not self._is_placed:
            self._place.start()  # napari has not finished docking yet
        if was_closed and self.run.folder is not None:
            self.open_run(self.run.folder)
        elif not self._is_placed and self.run.folder is None:
            self._follow_released()
        self._is_placed = True
        self._refresh()

    def _watch_window(self) -> None:
        dock = self.parentWidget()
        # A floating dock is its own window(); the window that closes is the parent of the dock.
        self._main_window = dock.parentWidget() if isinstance(dock, QDockWidget) else self.window()
        self._main_window.installEventFilter(self)

    def _follow_released(self) -> None:
        folder = TrainingRun.find_released()
        if folder is not None:
            self.open_run(folder)

    def _tabify(self) -> None:
        tabify_with(self._viewer, self, AnalyseWidget)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802  # Qt's name
        """Before the window closes, ask what to do with a running training; detach once it is closed.

        After the close event napari may ask whether to close, and the window stays if the user cancels. Qt hides a
        window that really closes; a window manager that minimises one sends a spontaneous event.
        """
        if watched is self._main_window:
            if event.type() == QEvent.Type.Close and not self._confirm_close(may_stay=True):
                event.ignore()
                return True
            if event.type() == QEvent.Type.Hide and not event.spontaneous():
                self._detach()
        return bool(super().eventFilter(watched, event))

    def _on_removed(self) -> None:
        """Ask whether a run of this program continues, and detach from it."""
        if not self._is_closed:
            self._confirm_close(may_stay=False)
            self._detach()

    def _confirm_close(self, *, may_stay: bool) -> bool:
        """Ask whether a run of this program continues; return False if the user keeps the dock open."""
        if not self.run.is_ours or self.run.phase is RunPhase.STOPPING:
            return True
        answer = confirm_close_during_training(may_stay)
        if answer == STOP_TRAINING:
            show_errors(self.run.stop)
        return answer != STAY_OPEN

    def _detach(self) -> None:
        """Stop following the run and end the work of this dock."""
        self._is_closed = True
        for timer in (self._poll, self._draw, self._settle, self._place):
            timer.stop()
        for work in (self._checks, self._pictures, self._offers, self._encoder_info, self._results):
            work.stop()
        self.run.release()


def _plot_theme(viewer: napari.viewer.Viewer) -> PlotTheme:
    theme = get_theme(viewer.theme)
    return PlotTheme(theme.background.as_hex(), theme.text.as_hex(), theme.secondary.as_hex())


def _research_use() -> str:
    from napari_lrmil.core.visualize.overlay import RESEARCH_USE

    return RESEARCH_USE


def _list_encoders() -> Iterator[Event]:
    yield Finished(list_encoder_choices())


def _describe_encoder(name: str) -> Iterator[Event]:
    yield Finished(describe_encoder(name))


def _read_result(folder: Path) -> Iterator[Event]:
    yield Finished(read_run_result(folder))
