"""Files that go in and out of the window: asked for in a dialog, or given by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_lrmil.core.errors import LrmilError

if TYPE_CHECKING:
    from napari_lrmil.plugin.session import Session
    from napari_lrmil.plugin.wishes import Wishes

Result = TypeVar("Result")


def attempt(wish: Callable[[], Result]) -> Result | None:
    """Carry out a wish; what goes wrong is a sentence in napari's notifications."""
    try:
        return wish()
    except LrmilError as error:
        show_error(str(error))
        return None


class Files:
    """Asks where, and has it done.

    Parameters
    ----------
    wishes
        What does it.
    session
        What it is done with.
    parent
        Over which dialogs open.
    """

    def __init__(self, wishes: Wishes, session: Session, parent: QWidget) -> None:
        self._wishes, self._session, self._parent = wishes, session, parent

    # ------------------------------------------------------------ regions

    def ask_import(self) -> None:
        """Ask for a file of regions, and add them."""
        name, _ = QFileDialog.getOpenFileName(self._parent, "Regions", "", "QuPath, ASAP (*.geojson *.json *.xml)")
        if name:
            self.import_regions(Path(name))

    def import_regions(self, path: Path) -> None:
        """Add the regions of a file to those drawn, and let the next run be about them."""
        caution = attempt(partial(self._wishes.import_regions, path))
        if caution:
            show_warning(caution)
        if self._session.regions:
            self._session.choose_kind("region")

    def ask_export(self) -> None:
        """Ask where to write the drawn regions."""
        name, _ = QFileDialog.getSaveFileName(self._parent, "Regions", "regions.geojson", "GeoJSON (*.geojson)")
        if name:
            attempt(partial(self._wishes.export_regions, Path(name)))

    # ------------------------------------------------------------ answers

    def ask_all(self) -> None:
        """Ask for a folder, and save everything there."""
        folder = QFileDialog.getExistingDirectory(self._parent, "Folder for the results")
        if folder:
            self.save_all(Path(folder))

    def save_all(self, folder: Path) -> None:
        """Write everything about the last answer below `folder`."""
        where = attempt(partial(self._wishes.save_all, folder))
        if where is not None:
            show_info(f"Saved in {where}")

    def ask_view(self) -> None:
        """Ask where to write what the canvas shows."""
        name, _ = QFileDialog.getSaveFileName(self._parent, "View", "view.png", "PNG (*.png)")
        if name:
            self.save_view(Path(name))

    def save_view(self, path: Path) -> None:
        """Write what the canvas shows, with legend and scale bar."""
        attempt(partial(self._wishes.save_view, path))

    def ask_report(self) -> None:
        """Ask where to write the report."""
        name, _ = QFileDialog.getSaveFileName(self._parent, "Report", "report.html", "HTML (*.html)")
        if name:
            self.save_report(Path(name))

    def save_report(self, path: Path) -> None:
        """Write the report of the last answer."""
        attempt(partial(self._wishes.save_report, path))

    def copy_command(self) -> None:
        """Put the command line that does the same on the clipboard."""
        told = attempt(self._wishes.command)
        if told:
            QGuiApplication.clipboard().setText(told)
            show_info("The command line is on the clipboard; save all files first where it names any.")
