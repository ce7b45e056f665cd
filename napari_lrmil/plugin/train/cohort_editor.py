"""Editable table of the cohort."""

from __future__ import annotations

from html import escape
from typing import Any

from qtpy.QtCore import QAbstractItemModel, QAbstractTableModel, QModelIndex, QObject, Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QAbstractItemView, QComboBox, QHeaderView, QStyledItemDelegate, QTableView, QWidget

from lrmil_training.data.cohort import SPLITS
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.text_escapes import escape_qt
from napari_lrmil.plugin.qt.section import enable_unless, make_button, make_label
from napari_lrmil.plugin.qt.steps import Step
from napari_lrmil.plugin.train.cohort_table import COLUMNS, ClassCount, CohortRow, CohortTable

COLUMN_TITLES = ("", "Slide", "Label", "Patient", "Split", "µm/px")
SLIDE_COLUMN, COLUMN_WIDTHS_PX = 1, (22, 90, 58, 74, 44, 44)
COLUMN_TIPS = (
    "✓: the slide is usable; ✗: it is not",
    "The slide's file",
    "Class of the slide, such as tumour or normal",
    "Patient of the slide; a pseudo-patient such as 2+5 counts as both",
    "train, val or test; all slides of a patient have the same split",
    "µm per level-0 pixel; needed only if the file does not state it",
)
USABLE_MARK, FAULT_MARK, UNCHECKED_MARK = "✓", "✗", "…"
ROW_PX, MIN_VISIBLE_ROWS, MAX_VISIBLE_ROWS = 22, 4, 12
OPEN_TIP = "CSV with a row per slide: slide, patient, label, optional split and mpp"
BUILD_TIP = "Add every slide of a folder; subfolders are classes"
PROPOSE_TIP = "Assign patients 60/20/20 to train, val and test, in each class; replaces the present splits"
REMOVE_TIP = "Remove the selected slides from the table; no file is deleted"
READY_TEXT = "The table is complete. Continue with the settings below."
SAVE_TIP = "Write the table as CSV, from which training reads it"


class CohortTableModel(QAbstractTableModel):  # type: ignore[misc]  # qtpy has no types
    """Qt model of a `CohortTable`; emits `refused` with the reason if an edit is rejected, and keeps the old value."""

    refused = Signal(str)

    def __init__(self, table: CohortTable, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._table = table
        self._rows: tuple[CohortRow, ...] = table.rows

    def refresh(self) -> None:
        """Update the view after a change of the table."""
        if len(self._rows) != len(self._table.rows):
            self.beginResetModel()
            self._rows = self._table.rows
            self.endResetModel()
        elif self._rows:
            self._rows = self._table.rows
            self.dataChanged.emit(self.index(0, 0), self.index(len(self._rows) - 1, len(COLUMNS)))

    def rowCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802, D102  # Qt's name
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def columnCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802, D102  # Qt's name
        return 0 if parent is not None and parent.isValid() else len(COLUMNS) + 1

    def headerData(  # noqa: N802, D102  # Qt's name
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        if orientation == Qt.Orientation.Vertical:
            return None
        return {
            Qt.ItemDataRole.DisplayRole: COLUMN_TITLES[section],
            Qt.ItemDataRole.ToolTipRole: COLUMN_TIPS[section],
        }.get(role)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:  # noqa: D102
        row = self._rows[index.row()]
        if index.column() == 0:
            return self._state(row, role)
        column = COLUMNS[index.column() - 1]
        text = row.path.name if column == "slide" else getattr(row, column)
        if role == Qt.ItemDataRole.ToolTipRole:
            return escape_qt(str(row.path) if column == "slide" else f"{text}\n{COLUMN_TIPS[index.column()]}".strip())
        return text if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole) else None

    def _state(self, row: CohortRow, role: int) -> Any:
        check = self._table.check_of(row)
        if role == Qt.ItemDataRole.DisplayRole:
            return UNCHECKED_MARK if check is None else FAULT_MARK if check.fault else USABLE_MARK
        if role == Qt.ItemDataRole.ToolTipRole:
            return (
                "not checked yet"
                if check is None
                else escape_qt(check.fault)
                or f"{check.mpp:.4g} µm per pixel, LR patches with tissue: {check.lr_patches}"
            )
        if role == Qt.ItemDataRole.ForegroundRole and check is not None:
            return QColor("#e06c4f" if check.fault else "#4fae7b")
        return None

    def flags(self, index: QModelIndex) -> Qt.ItemFlag:  # noqa: D102
        fixed = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        return fixed if index.column() < 2 else fixed | Qt.ItemFlag.ItemIsEditable

    def setData(self, index: QModelIndex, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:  # noqa: N802, D102
        if role != Qt.ItemDataRole.EditRole or index.column() < 2:
            return False
        try:
            self._table.edit(index.row(), COLUMNS[index.column() - 1], str(value))
        except LrmilError as error:
            self.refused.emit(str(error))
            return False
        return True


class SplitDelegate(QStyledItemDelegate):  # type: ignore[misc]  # qtpy has no types
    """Combo box as the editor of a split."""

    def createEditor(self, parent: QWidget, _: Any, __: QModelIndex) -> QWidget:  # noqa: N802, D102  # Qt's name
        box = QComboBox(parent)
        box.addItems(SPLITS)
        box.activated.connect(lambda _: self.commitData.emit(box))
        return box

    def setEditorData(self, editor: QComboBox, index: QModelIndex) -> None:  # noqa: N802, D102  # Qt's name
        editor.setCurrentText(str(index.data(Qt.ItemDataRole.EditRole)))

    def setModelData(  # noqa: N802, D102  # Qt's name
        self, editor: QComboBox, model: QAbstractItemModel, index: QModelIndex
    ) -> None:
        model.setData(index, editor.currentText())


class CohortEditor(Step):
    """Step 1 of the dock: table of slides, its buttons, counts by split and class, and what is still missing."""

    open_wanted = Signal()
    build_wanted = Signal()
    propose_wanted = Signal()
    remove_wanted = Signal(object)
    save_wanted = Signal()

    def __init__(self, table: CohortTable, parent: QWidget | None = None) -> None:
        super().__init__("train slides", "1 · Slides to learn from (cohort)", parent)
        self._table = table
        self.open, self.build = make_button("Open table…", OPEN_TIP), make_button("From a folder…", BUILD_TIP)
        self.propose, self.remove = make_button("Propose splits", PROPOSE_TIP), make_button("Remove", REMOVE_TIP)
        self.save = make_button("Save table…", SAVE_TIP)
        self.model = CohortTableModel(table, self)
        self.view = self._make_view()
        self.file_label, self.counts, self.state = (
            make_label("cohort file", small=True),
            make_label("counts"),
            make_label("cohort state"),
        )
        self._refusal, self._refused_rows = "", table.rows
        self.counts.setTextFormat(Qt.TextFormat.RichText)
        for widget, signal in (
            (self.open, self.open_wanted),
            (self.build, self.build_wanted),
            (self.propose, self.propose_wanted),
            (self.save, self.save_wanted),
        ):
            widget.clicked.connect(lambda _=False, signal=signal: signal.emit())
        self.remove.clicked.connect(lambda: self.remove_wanted.emit(self.selected()))
        self.add(self.open, self.build)
        self.add(self.file_label)
        self.add(self.view)
        self.add(self.propose, self.remove, self.save)
        self.add(self.counts)
        self.add(self.state)
        self.refresh()

    def _make_view(self) -> QTableView:
        view = QTableView()
        view.setModel(self.model)
        view.setItemDelegateForColumn(COLUMNS.index("split") + 1, SplitDelegate(view))
        view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        trigger = QAbstractItemView.EditTrigger
        view.setEditTriggers(
            trigger.DoubleClicked | trigger.SelectedClicked | trigger.EditKeyPressed | trigger.AnyKeyPressed
        )
        view.verticalHeader().hide()
        view.verticalHeader().setDefaultSectionSize(ROW_PX)
        view.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        view.horizontalHeader().setMinimumSectionSize(20)
        for column, width in enumerate(COLUMN_WIDTHS_PX):
            view.setColumnWidth(column, width)
        view.horizontalHeader().setSectionResizeMode(SLIDE_COLUMN, QHeaderView.ResizeMode.Stretch)
        view.setWordWrap(False)
        view.setTextElideMode(Qt.TextElideMode.ElideMiddle)  # names of slides often differ only at the end
        view.setAccessibleName("Slides of the cohort")
        return view

    def selected(self) -> set[int]:
        """Return the indices of the selected rows."""
        return {index.row() for index in self.view.selectionModel().selectedIndexes()}

    def show_refusal(self, sentence: str) -> None:
        """Show why a change was rejected, until the table changes."""
        self._refusal, self._refused_rows = sentence, self._table.rows
        self.refresh()

    def refresh(self, checking: bool = False) -> None:
        """Update table, counts and state; `checking` tells that slides are being checked."""
        table = self._table
        if table.rows is not self._refused_rows:
            self._refusal = ""
        self.model.refresh()
        self.view.setColumnHidden(len(COLUMNS), not table.asks_mpp)  # most files state it, and a dock is narrow
        rows = min(max(len(table.rows), MIN_VISIBLE_ROWS), MAX_VISIBLE_ROWS)
        self.view.setFixedHeight(self.view.horizontalHeader().sizeHint().height() + rows * ROW_PX + 4)
        empty = "" if table.rows else "The table has no slides yet."
        for widget, tip in ((self.propose, PROPOSE_TIP), (self.remove, REMOVE_TIP), (self.save, SAVE_TIP)):
            enable_unless(widget, empty, tip)
        name = table.path.name if table.path else "a new table"
        self.file_label.setText(f"{name}{'' if table.saved else ', not saved'}" if table.rows else "")
        self.file_label.setToolTip(escape_qt(str(table.path or "")))
        self.counts.setText(_counts_html(table.classes, table.counts()) if table.rows else "")
        notices, state = (
            [*(f"{notice[0].upper()}{notice[1:]}." for notice in table.notices), table.few_patients],
            table.blocked_by or READY_TEXT,
        )
        self.state.setText("\n".join(filter(None, (self._refusal, *notices, self._check_summary(checking), state))))

    def _check_summary(self, checking: bool) -> str:
        table = self._table
        if not table.rows:
            return ""
        checked, number = len(table.rows) - len(table.unchecked), format_count(len(table.rows), "slide")
        all_checked = f"All {number} checked" if checked > 1 else f"{number} checked"
        summary = f"{checked} of {number} checked" if table.unchecked else all_checked
        if table.broken:
            checks = ((row, table.check_of(row)) for row in table.rows)
            name, fault = next((row.path.name, check.fault) for row, check in checks if check and check.fault)
            summary += f"; {table.broken} cannot be used and will be left out, first {name}: {fault}"
        return summary + ("…" if checking else ".")


def _counts_html(classes: list[str], counts: dict[str, dict[str, ClassCount]]) -> str:
    """Return an HTML table with slides and, in brackets, patients of each class and split."""
    head = "".join(f"<th align='right'>&nbsp;&nbsp;{escape(name)}</th>" for name in classes)
    rows = "".join(
        f"<tr><td>{escape(split) or 'no split'}</td>"
        + "".join(f"<td align='right'>&nbsp;&nbsp;{by_class[c].slides} ({by_class[c].patients})</td>" for c in classes)
        + "</tr>"
        for split, by_class in counts.items()
    )
    return f"<table><tr><td>slides (patients)</td>{head}</tr>{rows}</table>"
