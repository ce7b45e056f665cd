"""Files that go in and out of the window: asked for in a dialog, or given by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_lrmil.core.events import Event, EventSource, Failed, Finished, Progress
from napari_lrmil.plugin.qt.errors import show_errors
from napari_lrmil.plugin.qt.worker import BackgroundWorker

if TYPE_CHECKING:
    from napari_lrmil.plugin.analyse.actions import ViewerActions
    from napari_lrmil.plugin.analyse.sections import SaveSection
    from napari_lrmil.plugin.session.session import Session


class FileDialogs:
    """Asks where, and has it done.

    Parameters
    ----------
    wishes
        What is to be written, and what is read.
    session
        What it is done with.
    keep
        Whose buttons ask, and where it is shown how far the writing is.
    parent
        Over which dialogs open; writing ends with it.
    """

    def __init__(self, wishes: ViewerActions, session: Session, keep: SaveSection, parent: QWidget) -> None:
        self._wishes, self._session, self._keep, self._parent = wishes, session, keep, parent
        self._run: BackgroundWorker | None = None
        for signal, callback in (
            (keep.all_wanted, self.ask_all),
            (keep.view_wanted, self.ask_view),
            (keep.report_wanted, self.ask_report),
            (keep.command_wanted, self.copy_command),
            (keep.stop_wanted, self.stop),
        ):
            signal.connect(callback)

    # ------------------------------------------------------------ regions

    def ask_import(self) -> None:
        """Ask for a file of regions, add them to those drawn, and let the next run be about them."""
        name, _ = QFileDialog.getOpenFileName(self._parent, "Regions", "", "QuPath, ASAP (*.geojson *.json *.xml)")
        if not name:
            return
        caution = show_errors(partial(self._wishes.import_regions, Path(name)))
        if caution:
            show_warning(caution)
        if self._session.regions:
            self._session.choose_roi_kind("region")

    def ask_export(self) -> None:
        """Ask where to write the drawn regions."""
        name, _ = QFileDialog.getSaveFileName(self._parent, "Regions", "regions.geojson", "GeoJSON (*.geojson)")
        if name:
            show_errors(partial(self._wishes.export_regions, Path(name)))

    # ------------------------------------------------------------ answers

    def ask_all(self) -> None:
        """Ask for a folder, and save everything about the last answer there."""
        folder = QFileDialog.getExistingDirectory(self._parent, "Folder for the results")
        answer = show_errors(partial(self._wishes.answer_to_keep, Path(folder))) if folder else None
        if answer is not None:
            self._wishes.saved_in = Path(folder)
            self._save(partial(answer.all_files, Path(folder)))

    def ask_report(self) -> None:
        """Ask where to write the report of the last answer."""
        name, _ = QFileDialog.getSaveFileName(self._parent, "Report", "report.html", "HTML (*.html)")
        answer = show_errors(partial(self._wishes.answer_to_keep, Path(name).parent)) if name else None
        if answer is not None:
            self._save(partial(answer.report, Path(name)))

    def ask_view(self) -> None:
        """Ask where to write what the canvas shows, with legend and scale bar."""
        name, _ = QFileDialog.getSaveFileName(self._parent, "View", "view.png", "PNG (*.png)")
        if name:
            self._save(partial(self._wishes.view_to_keep().picture, Path(name)))

    def copy_command(self) -> None:
        """Put the command line that does the same on the clipboard."""
        told = show_errors(self._wishes.command)
        if told:
            QGuiApplication.clipboard().setText(told)
            show_info("The command line is on the clipboard; where it names files, save all files first.")

    # ------------------------------------------------------------ writing

    def stop(self) -> None:
        """End the writing under way after the file that it is at; nothing of it stays."""
        if self._run is not None:
            self._keep.show_saving("stopping", 1.0)
            self._run.cancel()

    def _save(self, work: EventSource) -> None:
        if self._run is None:
            self._keep.show_saving("starting", 0.0)
            self._run = BackgroundWorker(work, self._written, self._ended, self._parent)
            self._run.start()

    def _written(self, event: Event) -> None:
        match event:
            case Progress(stage, done, total, unit):
                self._keep.show_saving(f"{stage} · {done} of {total} {unit}", done / total)
            case Finished(where):
                show_info(f"Saved: {where}")
            case Failed(message):
                show_error(message)

    def _ended(self) -> None:
        self._run = None
        self._keep.show_saving("", None)
