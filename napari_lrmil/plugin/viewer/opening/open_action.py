"""Menu action ``File > Open slide… (LRMIL)``: a file dialog whose slides open without napari's question for a reader.

napari's own *Open File(s)…* asks whenever several readers accept a file, as for every TIFF. It has no public way to
name a reader but the user's stored preference, which this plugin never changes.
"""

from __future__ import annotations

from inspect import unwrap
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import ref

from qtpy.QtGui import QAction
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_lrmil.core.slides.slide_files import SLIDE_ENDINGS
from napari_lrmil.plugin.viewer.opening.slide_drops import open_slides

if TYPE_CHECKING:
    from napari.viewer import Viewer

TITLE = "Open slide… (LRMIL)"
OPEN_TIP = "Choose slide files; they open without a question for a reader. Drop a folder of OME-Zarr on the window"
FILTER = f"Slides ({' '.join(f'*{ending}' for ending in SLIDE_ENDINGS)});;All files (*)"


def add_open_action(viewer: Viewer) -> None:
    """Add the action at the top of the file menu of a window, once."""
    menu = viewer.window.file_menu
    actions = menu.actions()
    if any(action.text() == TITLE for action in actions):
        return
    window = ref(unwrap(viewer))  # the menu must not keep its viewer

    def ask() -> None:
        present = window()
        if present is not None:
            ask_slides(present, menu.window())

    action = QAction(TITLE, menu)
    action.setToolTip(OPEN_TIP)
    action.triggered.connect(ask)
    menu.insertAction(actions[0] if actions else None, action)


def ask_slides(viewer: Viewer, parent: QWidget, folder: Path | None = None) -> None:
    """Ask for slide files and open them.

    Parameters
    ----------
    viewer
        A viewer with a window.
    parent
        Parent of the dialog.
    folder
        Where the dialog starts; None takes the present folder.
    """
    names, _ = QFileDialog.getOpenFileNames(parent, "Open slides", str(folder or ""), FILTER)
    if names:
        open_slides(viewer, [Path(name) for name in names])
