"""Section with the stored results of a cohort, sorted by disagreement of student and teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import QAbstractItemView, QComboBox, QProgressBar, QTableWidget, QTableWidgetItem, QWidget

from napari_lrmil.core.formatting import format_count, format_probability
from napari_lrmil.core.text_escapes import escape_qt
from napari_lrmil.plugin.compare.comparison_model import (
    DisagreementMeasure,
    attention_disagreement,
    sort_by_attention_disagreement,
)
from napari_lrmil.plugin.qt.section import Section, enable_unless, make_button, make_label

if TYPE_CHECKING:
    from napari_lrmil.core.results.reader import StoredResult
    from napari_lrmil.core.slides.slide import Pixels

COHORT_ICON_PX = 44
TABLE_HEIGHT_PX = 260
MEASURE_LABELS: dict[DisagreementMeasure, str] = {"rho": "1 − ρ", "js": "JS divergence"}
FOLDER_LABEL = "Folder of results…"
FOLDER_TIP = "The --out folder of `predict --teacher` or `compare`"
FEW_PATCHES_MARK = "*"
OPEN_HINT = "Double-click a slide to open it with both maps."


class CohortSection(Section):
    """Table of stored results.

    Attributes
    ----------
    results
        The results, in the order of the table.
    slide_opened
        Emitted with the `StoredResult` of a row on a double click.
    """

    folder_requested = Signal()
    cancel_requested = Signal()
    slide_opened = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("cohort", "Cohort", parent)
        self.folder_button, self.measure_box = make_button(FOLDER_LABEL, FOLDER_TIP), QComboBox()
        for measure, label in MEASURE_LABELS.items():
            self.measure_box.addItem(f"by {label}", measure)
        self.measure_box.setToolTip("Disagreement by which the slides are sorted, largest first")
        self.table, self.progress = _make_table(), QProgressBar()
        self.status = make_label("cohort", small=True)
        self.results: list[StoredResult] = []
        self._icons: dict[Path, QIcon] = {}
        self._is_reading = False
        self.folder_button.clicked.connect(self._emit_request)
        self.measure_box.currentIndexChanged.connect(lambda _: self.show_results())
        self.table.cellDoubleClicked.connect(self._emit_opened)
        self.add(self.folder_button, self.measure_box)
        self.add(self.table)
        self.add(self.progress)
        self.add(self.status)
        self.show_progress("", None)
        self.show_results()

    def show_progress(self, text: str, fraction: float | None) -> None:
        """Show the progress of reading.

        Parameters
        ----------
        text
            Text in the bar.
        fraction
            0 to 1; None if nothing is being read.
        """
        self._is_reading = fraction is not None
        self.folder_button.setText("Cancel" if self._is_reading else FOLDER_LABEL)
        enable_unless(
            self.folder_button, "", "Stop reading and keep the rows so far" if self._is_reading else FOLDER_TIP
        )
        self.progress.setVisible(self._is_reading)
        self.progress.setFormat(text)
        self.progress.setValue(round(100 * (fraction or 0)))

    def clear(self) -> None:
        """Remove all rows."""
        self.results, self._icons = [], {}
        self.show_results()

    def add_result(self, result: StoredResult) -> None:
        """Add a result; `show_results` shows it. Filling the table for each of many results would be slow."""
        self.results.append(result)

    def show_results(self) -> None:
        """Sort the results and fill the table."""
        measure: DisagreementMeasure = self.measure_box.currentData()
        self.results = sort_by_attention_disagreement(self.results, measure)
        self.table.setHorizontalHeaderLabels([" ", MEASURE_LABELS[measure], "Student | teacher"])
        self.table.setRowCount(len(self.results))
        for row, result in enumerate(self.results):
            value = attention_disagreement(result, measure)
            mark = FEW_PATCHES_MARK if result.caution and value is not None else ""
            texts = (
                "",
                "–" if value is None else f"{value:.2f}{mark}",
                f"{result.name}\n{_format_probabilities(result)}",
            )
            for column, text in enumerate(texts):
                self.table.setItem(row, column, self._make_item(text, result, column))
        self.table.resizeColumnsToContents()
        self.table.setColumnWidth(0, COHORT_ICON_PX * 3)
        self._show_status()

    def _show_status(self) -> None:
        n_problems = sum(bool(result.problem) for result in self.results)
        problems = f" {n_problems} cannot be compared; their tooltips say why." if n_problems else ""
        n_uncertain = sum(bool(result.caution) for result in self.results)
        few = f" {n_uncertain} with few patches ({FEW_PATCHES_MARK}): uncertain." if n_uncertain else ""
        text = f"{format_count(len(self.results), 'slide')}.{problems}{few} {OPEN_HINT}"
        self.status.setText(text if self.results else f"{FOLDER_TIP}.")

    def show_picture(self, folder: Path, pixels: Pixels) -> None:
        """Show the picture of a slide.

        Parameters
        ----------
        folder
            Folder of the slide's result.
        pixels
            The picture, (height, width, 3).
        """
        data = np.ascontiguousarray(pixels)
        height, width, _ = data.shape
        # A copy, because QImage does not own the array's memory.
        image = QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
        self._icons[folder] = QIcon(QPixmap.fromImage(image))
        for row, result in enumerate(self.results):
            if result.folder == folder and (item := self.table.item(row, 0)) is not None:
                item.setIcon(self._icons[folder])

    def _make_item(self, text: str, result: StoredResult, column: int) -> Any:
        item = QTableWidgetItem(text)
        caution = f" {result.caution[0].upper()}{result.caution[1:]}." if result.caution else ""
        item.setToolTip(escape_qt(result.problem or f"{result.name}: {OPEN_HINT}{caution}"))
        if result.problem:
            item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEnabled)
        if column == 0 and result.folder in self._icons:
            item.setIcon(self._icons[result.folder])
        return item

    def _emit_request(self) -> None:
        (self.cancel_requested if self._is_reading else self.folder_requested).emit()

    def _emit_opened(self, row: int, _: int) -> None:
        if not self.results[row].problem:
            self.slide_opened.emit(self.results[row])


def _make_table() -> QTableWidget:
    table = QTableWidget(0, 3)
    table.setFixedHeight(TABLE_HEIGHT_PX)
    table.setIconSize(QSize(4 * COHORT_ICON_PX, COHORT_ICON_PX))
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.verticalHeader().setVisible(False)
    table.verticalHeader().setDefaultSectionSize(COHORT_ICON_PX + 4)
    table.horizontalHeader().setStretchLastSection(True)
    return table


def _format_probabilities(result: StoredResult) -> str:
    """Return both networks' probability of the student's most probable class."""
    if not result.student:
        return "–"
    name, probability = max(result.student.items(), key=lambda pair: pair[1])
    teacher = format_probability(result.teacher.get(name, float("nan"))) if result.teacher else "–"
    return f"{name}\n{format_probability(probability)} | {teacher}"  # a narrow column would break the line anywhere
