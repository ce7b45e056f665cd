"""Keep an answer: files, the view as a picture, a report, the command that does the same."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QWidget

from napari_lrmil.plugin.sections.parts import Section, bar, button, label


class KeepSection(Section):
    """Asks for what is to be kept."""

    all_wanted = Signal()
    view_wanted = Signal()
    report_wanted = Signal()
    command_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("keep", "Save", parent)
        self.all = button("All files…", "")
        self.view, self.report = button("View (PNG)…", ""), button("Report…", "")
        self.command = button("Copy command line", "")
        self.told = label("command line", small=True)
        for widget, wish in (
            (self.all, self.all_wanted),
            (self.view, self.view_wanted),
            (self.report, self.report_wanted),
            (self.command, self.command_wanted),
        ):
            widget.clicked.connect(wish)
        self.add(self.all, self.view)
        self.add(self.report, self.command)
        self.add(self.told)

    def show_state(self, has_slide: bool, has_answer: bool, command: str) -> None:
        """Enable what can be kept, and show the command line."""
        none = "" if has_answer else "Nothing was analysed yet."
        bar(self.all, none, "Attention (HDF5, OME-TIFF), GeoJSON for QuPath, overlay, probabilities, report")
        bar(self.report, none, "One HTML page: maps, probabilities, patches that counted, where it came from")
        bar(self.view, "" if has_slide else "No slide is open.", "What is on the screen, with legend and scale bar")
        bar(self.command, none, "The call of napari-lrmil that gives the same numbers")
        self.told.setText(command if has_answer else "")
