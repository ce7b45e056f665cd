"""File dialogs of the Analyse dock, and the export in a background thread that follows them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari.utils.notifications import show_info, show_warning
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_lrmil.core.events import Event, EventSource, Failed, Finished, Progress
from napari_lrmil.plugin.qt.errors import show_error, show_errors
from napari_lrmil.plugin.qt.worker import BackgroundWorker
from napari_lrmil.plugin.session.analyse_state import AnalyseState

if TYPE_CHECKING:
    from napari_lrmil.plugin.analyse.actions import ViewerActions
    from napari_lrmil.plugin.analyse.sections import SaveSection
    from napari_lrmil.plugin.session.session import Session

SAVE_FIRST = "It names files that are not saved yet: save all files first."


class FileDialogs:
    """Asks for a path, then imports or exports.

    Parameters
    ----------
    actions
        Read and write regions and results.
    session
        The choices; imported regions become the region of interest.
    section
        The Save section: its buttons open the dialogs, its bar shows the progress.
    parent
        Parent of the dialogs and of the background thread.
    """

    def __init__(self, actions: ViewerActions, session: Session, section: SaveSection, parent: QWidget) -> None:
        self._actions, self._session, self._section, self._parent = actions, session, section, parent
        self._worker: BackgroundWorker | None = None
        self._on_saved: Callable[[], None] = lambda: None
        self._state = AnalyseState()
        for signal, callback in (
            (section.all_requested, self.save_all),
            (section.view_requested, self.save_view),
            (section.report_requested, self.save_report),
            (section.command_requested, self.copy_command),
            (section.cancel_requested, self.cancel),
        ):
            signal.connect(callback)

    # ------------------------------------------------------------ regions

    def import_regions(self) -> None:
        """Ask for an annotation file, add its regions to the drawn ones, and choose them as region of interest."""
        name, _ = QFileDialog.getOpenFileName(
            self._parent, "Import regions", "", "QuPath, ASAP, ImageScope (*.geojson *.json *.xml *.gz *.zip)"
        )
        if not name:
            return
        warning = show_errors(partial(self._actions.import_regions, Path(name)))
        if warning:
            show_warning(warning)
        if self._session.regions:
            self._session.use_drawn_regions()

    def export_regions(self) -> None:
        """Ask for a path and write the drawn regions there."""
        name, _ = QFileDialog.getSaveFileName(self._parent, "Export regions", "regions.geojson", "GeoJSON (*.geojson)")
        if name:
            show_errors(partial(self._actions.export_regions, Path(name)))

    # ------------------------------------------------------------ results

    def save_all(self) -> None:
        """Ask for a folder and write all files of the last result there."""
        folder = QFileDialog.getExistingDirectory(self._parent, "Folder for the results")
        job = show_errors(partial(self._actions.export_job, Path(folder))) if folder else None
        if job is not None:
            self._start(
                partial(job.write_all, Path(folder)), partial(self._actions.note_saved, Path(folder), job.prediction)
            )

    def save_report(self) -> None:
        """Ask for a path and write the report of the last result there."""
        name, _ = QFileDialog.getSaveFileName(self._parent, "Save report", "report.html", "HTML (*.html)")
        job = show_errors(partial(self._actions.export_job, Path(name).parent)) if name else None
        if job is not None:
            self._start(partial(job.write_report, Path(name)))

    def save_view(self) -> None:
        """Ask for a path and write the canvas with legend and scale bar there."""
        name, _ = QFileDialog.getSaveFileName(self._parent, "Save view", "view.png", "PNG (*.png)")
        if name:
            self._start(partial(self._actions.view_export_job().write_picture, Path(name)))

    def copy_command(self) -> None:
        """Copy the command line that gives the same numbers to the clipboard."""
        command = show_errors(partial(self._actions.equivalent_command, state=self._state))
        if command:
            QGuiApplication.clipboard().setText(command)
            needed = f" {SAVE_FIRST}" if self._actions.names_unsaved_files(self._state.prediction) else ""
            show_info(f"The command line is on the clipboard.{needed}")

    def show_state(self, state: AnalyseState) -> None:
        """Show the command line of a state's result, if any, and whether it names files that are not saved yet."""
        self._state = state
        has_result = state.prediction is not None
        command = show_errors(partial(self._actions.equivalent_command, state=state)) if has_result else None
        note = SAVE_FIRST if self._actions.names_unsaved_files(state.prediction) else ""
        self._section.show_command(command or "", note)

    # ------------------------------------------------------------ background writing

    def cancel(self) -> None:
        """Cancel the export after the current file; an earlier result stays complete."""
        if self._worker is not None:
            self._section.show_progress("cancelling", 1.0)
            self._worker.cancel()

    def _start(self, work: EventSource, on_saved: Callable[[], None] = lambda: None) -> None:
        if self._worker is None:  # one export at a time; the buttons are disabled meanwhile
            self._on_saved = on_saved
            self._section.show_progress("starting", 0.0)
            self._worker = BackgroundWorker(work, self._on_event, self._on_finished, self._parent)
            self._worker.start()

    def _on_event(self, event: Event) -> None:
        match event:
            case Progress(stage, done, total, unit):
                self._section.show_progress(f"{stage} · {done} of {total} {unit}", done / total)
            case Finished(path):
                self._on_saved()
                self.show_state(self._state)
                show_info(f"Saved: {path}")
            case Failed(message):
                show_error(message)

    def _on_finished(self) -> None:
        self._worker = None
        self._section.show_progress("", None)
