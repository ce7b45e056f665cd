"""List of the slides of a worklist: thumbnail, name, answer and state, with search, filter and order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QImage, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QHeaderView,
    QLineEdit,
    QToolButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil.core.text_escapes import escape_qt, printable
from napari_lrmil.core.worklist.entry import Status, WorklistEntry
from napari_lrmil.core.worklist.order import SortKey
from napari_lrmil.core.worklist.review import Verdict
from napari_lrmil.plugin.qt.section import make_row
from napari_lrmil.plugin.worklist.jobs import THUMBNAIL_PX
from napari_lrmil.plugin.worklist.slide_order import Arrangement, SlideOrder

if TYPE_CHECKING:
    from pathlib import Path

    from napari_lrmil.core.slides.slide import Pixels

NAME, ANSWER, STATE = range(3)
LIST_MIN_HEIGHT_PX = 150
ROWS_MEASURED = 50  # for the width of a column; all of a long list would take seconds
ICON_PX = 32  # height of a row; the picture is reduced to it
SORT_LABELS = {
    SortKey.LISTED: "As listed",
    SortKey.NAME: "By name",
    SortKey.PATIENT: "By patient",
    SortKey.STATUS: "By state",
    SortKey.ANSWER: "By class",
    SortKey.PROBABILITY: "By probability",
}
FILTERS: Mapping[str, tuple[Status, ...]] = {
    "All": (),
    "New": (Status.NEW,),
    "Done": (Status.DONE,),
    "Failed": (Status.FAILED,),
    "Reviewed": (Status.REVIEWED,),
    "To review": (Status.NEW, Status.DONE, Status.FAILED),
}
FAILED_COLOUR = "#e08a3c"
# Colour-blind safe and readable in both themes. Each verdict has a mark of its own too.
VERDICT_COLOURS = {Verdict.AGREE: "#3aa66b", Verdict.DISAGREE: "#c86cb0", Verdict.UNSURE: "#4a90d0"}
VERDICT_MARKS = {Verdict.AGREE: "✓", Verdict.DISAGREE: "✗", Verdict.UNSURE: "?"}
HIDDEN = "hidden"
INDEX_ROLE = Qt.ItemDataRole.UserRole


class SlideList(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Table of slides.

    Attributes
    ----------
    slide_chosen
        Emitted with the index of an entry that the user clicked.
    arranged
        Emitted with the `Arrangement` that the user has chosen.
    """

    slide_chosen = Signal(int)
    arranged = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.search, self.filter_box, self.sort_box = QLineEdit(), QComboBox(), QComboBox()
        self.direction, self.by_patient = QToolButton(), QCheckBox("By patient")
        self.tree = _make_tree()
        self._items: dict[int, QTreeWidgetItem] = {}
        self._icons: dict[Path, QIcon] = {}
        self._order = SlideOrder()
        self._is_hidden: Callable[[WorklistEntry], bool] = lambda _: False
        self._fill_boxes()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        search_row = make_row(self.search, self.filter_box)
        search_row.layout().setStretch(0, 1)
        column.addWidget(search_row)
        column.addWidget(make_row(self.sort_box, self.direction, self.by_patient))
        column.addWidget(self.tree, 1)
        self._connect()

    def _fill_boxes(self) -> None:
        self.search.setPlaceholderText("Search")
        self.search.setClearButtonEnabled(True)
        for text, statuses in FILTERS.items():
            self.filter_box.addItem(text, statuses)
        for key, text in SORT_LABELS.items():
            self.sort_box.addItem(text, key)
        self.filter_box.setToolTip("State of the slides that are listed")
        self.sort_box.setToolTip("Order of the list")
        self.direction.setCheckable(True)
        self.direction.setText("▲")
        self.direction.setToolTip("Reverse the order")
        self.by_patient.setToolTip("List the slides of a patient together")

    def _connect(self) -> None:
        self.search.textChanged.connect(self._emit_arranged)
        self.filter_box.currentIndexChanged.connect(self._emit_arranged)
        self.sort_box.currentIndexChanged.connect(self._emit_arranged)
        self.direction.toggled.connect(self._emit_arranged)
        self.by_patient.toggled.connect(lambda _: self.show_order(self._order, self._is_hidden))
        self.tree.itemClicked.connect(self._emit_chosen)
        self.tree.itemActivated.connect(self._emit_chosen)

    def _emit_arranged(self, *_: Any) -> None:
        self.direction.setText("▼" if self.direction.isChecked() else "▲")
        statuses = self.filter_box.currentData()
        arrangement = Arrangement(self.sort_box.currentData(), self.direction.isChecked(), self.search.text())
        self.arranged.emit(replace(arrangement, statuses=tuple(statuses)))

    def _emit_chosen(self, item: QTreeWidgetItem, *_: Any) -> None:
        index = item.data(NAME, INDEX_ROLE)
        if index is not None:
            self.slide_chosen.emit(index)

    # ------------------------------------------------------------ rows

    def show_order(self, order: SlideOrder, is_hidden: Callable[[WorklistEntry], bool]) -> None:
        """Fill the list.

        Parameters
        ----------
        order
            Entries and their order.
        is_hidden
            Whether the answer of an entry is hidden until its verdict.
        """
        self._order, self._is_hidden = order, is_hidden
        has_patients = any(entry.patient for entry in order.entries)
        self.by_patient.setVisible(has_patients)
        self.tree.setRootIsDecorated(has_patients and self.by_patient.isChecked())
        self.tree.clear()
        self._items = {}
        groups: dict[str, QTreeWidgetItem] = {}
        top: list[QTreeWidgetItem] = []
        for index in order.rows:
            entry = order.entries[index]
            item = self._items[index] = QTreeWidgetItem()
            item.setData(NAME, INDEX_ROLE, index)
            self._fill(item, entry)
            if not (has_patients and self.by_patient.isChecked()):
                top.append(item)
            elif entry.patient in groups:
                groups[entry.patient].addChild(item)
            else:
                group = groups[entry.patient] = _patient_item(entry.patient)
                group.addChild(item)
                top.append(group)
        self.tree.addTopLevelItems(top)
        self.tree.expandAll()
        self.show_current(order.current)

    def update_entry(self, index: int) -> None:
        """Show an entry that has changed, in its row."""
        item = self._items.get(index)
        if item is not None:
            self._fill(item, self._order.entries[index])

    def show_current(self, index: int | None) -> None:
        """Select the row of an entry and scroll it into view; None selects none."""
        item = self._items.get(index) if index is not None else None
        if item is None:
            self.tree.setCurrentItem(None)
            return
        self.tree.setCurrentItem(item)
        self.tree.scrollToItem(item)

    def show_thumbnail(self, path: Path, pixels: Pixels) -> None:
        """Show the picture of a slide, (height, width, 3) uint8."""
        data = np.ascontiguousarray(pixels)
        height, width, _ = data.shape
        # A copy, because QImage does not own the array's memory.
        image = QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
        self._icons[path] = _plain_icon(QPixmap.fromImage(image))
        for index, item in self._items.items():
            if self._order.entries[index].path == path:
                item.setIcon(NAME, self._icons[path])

    def _fill(self, item: QTreeWidgetItem, entry: WorklistEntry) -> None:
        is_hidden = self._is_hidden(entry)
        texts = (printable(entry.name), answer_text(entry, is_hidden=is_hidden), _state_text(entry, is_hidden))
        tip = escape_qt(_tooltip(entry, is_hidden=is_hidden))
        for column, text in enumerate(texts):
            item.setText(column, text)
            item.setToolTip(column, tip)
        if entry.path in self._icons:
            item.setIcon(NAME, self._icons[entry.path])
        colour = _state_colour(entry)
        item.setForeground(STATE, QColor(colour) if colour else self.tree.palette().text())


def answer_text(entry: WorklistEntry, *, is_hidden: bool) -> str:
    """Return the answer of an entry for one cell: class, probability, and "or" if the set has further classes."""
    if entry.answer is None:
        return ""
    if is_hidden:
        return HIDDEN
    more = len(entry.answer.prediction_set) - 1
    return f"{entry.answer.text}{f' +{more}' if more > 0 else ''}"


def _state_text(entry: WorklistEntry, is_hidden: bool) -> str:
    has_caution = entry.notes or _shown_warnings(entry, is_hidden)
    mark = " ⚠" if has_caution and entry.status is not Status.FAILED else ""
    if entry.review is not None:
        verdict = entry.review.verdict
        return f"{VERDICT_MARKS[verdict]} {verdict.value}{mark}"
    return f"{entry.status.value}{mark}"


def _shown_warnings(entry: WorklistEntry, is_hidden: bool) -> tuple[str, ...]:
    """Return the warnings about this slide that stand beside its answer in the review panel."""
    return entry.answer.slide_warnings if entry.answer is not None and not is_hidden else ()


def _state_colour(entry: WorklistEntry) -> str:
    """Return the colour of an entry's state; empty for that of other text."""
    if entry.review is not None:
        return VERDICT_COLOURS[entry.review.verdict]
    return FAILED_COLOUR if entry.status is Status.FAILED else ""


def _plain_icon(pixmap: QPixmap) -> QIcon:
    """Return an icon that Qt does not tint in a selected row: the stain would look different."""
    icon = QIcon()
    for mode in (QIcon.Mode.Normal, QIcon.Mode.Selected, QIcon.Mode.Active):
        icon.addPixmap(pixmap, mode)
    return icon


def _tooltip(entry: WorklistEntry, *, is_hidden: bool) -> str:
    answer = entry.answer
    lines = [printable(entry.slide.path_in_cohort or entry.path.name)]
    if answer is not None and not is_hidden:
        lines += [f"{answer.text}, model {answer.model_text}", answer.set_text and f"Set: {answer.set_text}"]
    lines += [entry.problem, *_shown_warnings(entry, is_hidden), *entry.notes]
    if entry.review is not None:
        verdict = f"Verdict of {entry.review.reviewer}: {entry.review.verdict.value}"
        lines.append(f"{verdict}. {entry.review.comment}" if entry.review.comment else verdict)
    return "\n".join(filter(None, lines))


def _patient_item(patient: str) -> QTreeWidgetItem:
    item = QTreeWidgetItem([printable(patient) or "no patient"])
    item.setFlags(Qt.ItemFlag.ItemIsEnabled)
    item.setFirstColumnSpanned(True)
    return item


def _make_tree() -> QTreeWidget:
    tree = QTreeWidget()
    tree.setHeaderLabels(["Slide", "Answer", "State"])
    tree.setMinimumHeight(LIST_MIN_HEIGHT_PX)
    tree.setIconSize(QSize(THUMBNAIL_PX, ICON_PX))
    tree.setUniformRowHeights(True)  # else each new row measures all rows
    tree.setRootIsDecorated(False)
    tree.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    tree.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    tree.setTextElideMode(Qt.TextElideMode.ElideMiddle)
    header = tree.header()
    header.setStretchLastSection(False)
    header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
    header.setResizeContentsPrecision(ROWS_MEASURED)
    for column in (ANSWER, STATE):
        header.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
    return tree
