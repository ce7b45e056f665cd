"""Widgets of the Worklist dock and their arrangement, without what they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtGui import QDragEnterEvent
from qtpy.QtWidgets import QScrollArea, QVBoxLayout

from napari_lrmil.core.text_escapes import printable
from napari_lrmil.core.visualize.overlay import RESEARCH_USE
from napari_lrmil.core.worklist.entry import Status
from napari_lrmil.plugin.analyse.widget import DOCK_MIN_WIDTH_PX
from napari_lrmil.plugin.qt.docks import DockWidget
from napari_lrmil.plugin.qt.section import HeightForWidthColumn, enable_unless, make_button, make_label, make_row
from napari_lrmil.plugin.worklist.jobs import NO_LIST
from napari_lrmil.plugin.worklist.list_panel import SlideList
from napari_lrmil.plugin.worklist.review_panel import ReviewPanel
from napari_lrmil.plugin.worklist.run_all import RunAll
from napari_lrmil.plugin.worklist.slide_order import SlideOrder

OPEN_HINT = "Open a folder of slides or a cohort table, or drop it here."
END_OF_LIST = "This is the end of the list."


class WorklistLayout(DockWidget):
    """List, buttons and review panel of the Worklist dock."""

    TAB_TITLE = "Worklist"

    def __init__(self) -> None:
        super().__init__()
        self.setMinimumWidth(DOCK_MIN_WIDTH_PX)
        self.setAcceptDrops(True)
        self.folder_button = make_button("Open folder…", "Slides of a folder and its subfolders")
        self.table_button = make_button("Open table…", "Cohort table (CSV) with the column slide")
        self.results_button = make_button("Results…", "Folder in which answers and verdicts are stored")
        self.summary, self.status = make_label("worklist-summary", OPEN_HINT), make_label("worklist-status", small=True)
        self.list, self.review = SlideList(), ReviewPanel()
        self.previous = make_button("Previous", "Previous slide (Page Up)")
        self.next = make_button("Next", "Next slide (Page Down)")
        self.filling = RunAll(self)
        self.run_all, self.progress = self.filling.button, self.filling.progress
        self._arrange_widgets()

    def _arrange_widgets(self) -> None:
        parts = (
            make_row(self.folder_button, self.table_button, self.results_button),
            self.summary,
            self.list,
            make_row(self.previous, self.next, self.run_all),
            self.progress,
            self.status,
            self.review,
        )
        inner = HeightForWidthColumn()
        column = QVBoxLayout(inner)
        column.setSpacing(5)
        for part in parts:
            column.addWidget(part, 1 if part is self.list else 0)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(_scrolling(inner), 1)
        outer.addWidget(make_label("footer", RESEARCH_USE, small=True))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802  # Qt's name
        """Accept files and folders."""
        if event.mimeData().hasUrls():
            event.acceptProposedAction()

    def show_status(self, text: str) -> None:
        """Show a sentence below the list; an empty text hides it."""
        self.status.setText(text)
        self.status.setVisible(bool(text))

    def show_summary(self, order: SlideOrder, title: str, results: Path | None, notices: Sequence[str]) -> None:
        """Show place, counts and folder of a list, and enable the buttons that apply to it.

        Parameters
        ----------
        order
            The list.
        title
            Name of its folder or table.
        results
            Folder of the results.
        notices
            Sentences on what was left out.
        """
        has_list = bool(order.entries)
        self.summary.setText(_summary_text(order, title) if has_list else OPEN_HINT)
        self.summary.setToolTip("\n".join(map(printable, (str(results or ""), *notices))) if has_list else "")
        enable_unless(self.results_button, "" if has_list else NO_LIST, f"Results are in {results}")
        missing = END_OF_LIST if order.current in order.rows else NO_LIST
        for button, by, key in ((self.previous, -1, "Page Up"), (self.next, 1, "Page Down")):
            enable_unless(button, "" if order.step(by) is not None else missing, f"{button.text()} slide ({key})")


def _summary_text(order: SlideOrder, title: str) -> str:
    statuses = (Status.NEW, Status.DONE, Status.FAILED, Status.REVIEWED)
    counts = [f"{count} {status.value}" for status in statuses if (count := order.count([status]))]
    position = ""
    if order.current in order.rows:
        position = f"Slide {order.rows.index(order.current) + 1} of {len(order.rows)} · "
    return f"{position}{printable(title)}: {', '.join(counts)}"


def _scrolling(inner: HeightForWidthColumn) -> QScrollArea:
    scroll = QScrollArea()
    scroll.setWidgetResizable(True)
    scroll.setFrameShape(QScrollArea.Shape.NoFrame)
    scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    scroll.setWidget(inner)
    return scroll
