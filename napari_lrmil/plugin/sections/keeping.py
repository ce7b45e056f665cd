"""Keep an answer: files, the view as a picture, a report, the command that does the same."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QProgressBar, QWidget

from napari_lrmil.plugin.sections.parts import Section, bar, button, label


class KeepSection(Section):
    """Asks for what is to be kept."""

    all_wanted = Signal()
    view_wanted = Signal()
    report_wanted = Signal()
    command_wanted = Signal()
    stop_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("keep", "Save", parent)
        self.all = button("All files…", "")
        self.view, self.report = button("View (PNG)…", ""), button("Report…", "")
        self.command = button("Copy command line", "")
        self.told = label("command line", small=True)
        self.progress, self.stop = QProgressBar(), button("Cancel", "Nothing of what is being saved stays")
        self._state, self._saving = (False, False, ""), False
        for widget, wish in (
            (self.all, self.all_wanted),
            (self.view, self.view_wanted),
            (self.report, self.report_wanted),
            (self.command, self.command_wanted),
            (self.stop, self.stop_wanted),
        ):
            widget.clicked.connect(wish)
        self.add(self.all, self.view)
        self.add(self.report, self.command)
        self.add(self.progress, self.stop)
        self.add(self.told)
        self.show_saving("", None)

    def show_saving(self, text: str, share: float | None) -> None:
        """Show how far the writing is; None where nothing is being written."""
        self._saving = share is not None
        self.progress.parentWidget().setVisible(self._saving)
        self.progress.setFormat(text)
        self.progress.setValue(round(100 * (share or 0)))
        self.show_state(*self._state)

    def show_state(self, has_slide: bool, has_answer: bool, command: str) -> None:
        """Enable what can be kept, and show the command line."""
        self._state = has_slide, has_answer, command
        busy = "Something is being saved." if self._saving else ""
        none = busy or ("" if has_answer else "Nothing was analysed yet.")
        bar(self.all, none, "Attention (HDF5, OME-TIFF), GeoJSON for QuPath, overlay, probabilities, report")
        bar(self.report, none, "One HTML page: maps, probabilities, patches that counted, where it came from")
        view = busy or ("" if has_slide else "No slide is open.")
        bar(self.view, view, "What is on the screen, with legend and scale bar")
        bar(self.command, "" if has_answer else "Nothing was analysed yet.", "The call that gives the same numbers")
        self.told.setText(command if has_answer else "")
