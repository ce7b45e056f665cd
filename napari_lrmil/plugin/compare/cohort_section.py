"""Over a cohort: the slides of a folder of results, those on which student and teacher disagree most first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import QAbstractItemView, QComboBox, QProgressBar, QTableWidget, QTableWidgetItem, QWidget

from napari_lrmil.core.formatting import format_probability
from napari_lrmil.plugin.compare.comparison_model import (
    DisagreementMeasure,
    attention_disagreement,
    sort_by_attention_disagreement,
)
from napari_lrmil.plugin.qt.section import Section, enable_unless, make_button, make_label

if TYPE_CHECKING:
    from napari_lrmil.core.results.reader import StoredResult
    from napari_lrmil.core.slides.slide import Pixels

ICON_PX = 44
TABLE_HEIGHT_PX = 260
MEASURE_LABELS: dict[DisagreementMeasure, str] = {"rho": "1 − ρ", "js": "JS divergence"}
FOLDER_TIP = "The folder that was given to `predict --teacher` or `compare` as --out"
OPEN_HINT = "Double-click a slide to open it with both maps."


class CohortSection(Section):
    """Shows lines, and tells which is to be opened."""

    folder_wanted = Signal()
    stop_wanted = Signal()
    opened = Signal(object)  # a StoredSlide

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("cohort", "Over many slides (cohort)", parent)
        self.folder, self.measure = make_button("Folder of results…", FOLDER_TIP), QComboBox()
        for measure, words in MEASURE_LABELS.items():
            self.measure.addItem(f"by {words}", measure)
        self.measure.setToolTip("What the slides are sorted by: the larger, the less student and teacher agree")
        self.table, self.progress = QTableWidget(0, 3), QProgressBar()
        self.table.setFixedHeight(TABLE_HEIGHT_PX)
        self.table.setIconSize(QSize(4 * ICON_PX, ICON_PX))
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.verticalHeader().setVisible(False)
        self.table.verticalHeader().setDefaultSectionSize(ICON_PX + 4)
        self.table.horizontalHeader().setStretchLastSection(True)
        self.told = make_label("cohort", FOLDER_TIP + ".", small=True)
        self.lines: list[StoredResult] = []
        self._icons: dict[Path, QIcon] = {}
        self._reading = False
        self.folder.clicked.connect(lambda: (self.stop_wanted if self._reading else self.folder_wanted).emit())
        self.measure.currentIndexChanged.connect(lambda _: self._fill())
        self.table.cellDoubleClicked.connect(self._open)
        self.add(self.folder, self.measure)
        self.add(self.table)
        self.add(self.progress)
        self.add(self.told)
        self.show_reading("", None)

    def show_reading(self, text: str, share: float | None) -> None:
        """Show how far the reading is; None where nothing is being read."""
        self._reading = share is not None
        self.folder.setText("Cancel" if self._reading else "Folder of results…")
        enable_unless(self.folder, "", "What was read so far stays" if self._reading else FOLDER_TIP)
        self.progress.setVisible(self._reading)
        self.progress.setFormat(text)
        self.progress.setValue(round(100 * (share or 0)))
        self.fit_height()

    def clear(self) -> None:
        """Show no slides."""
        self.lines, self._icons = [], {}
        self._fill()

    def add_line(self, line: StoredResult) -> None:
        """Take one more slide; `show_lines` shows it."""
        self.lines.append(line)

    def show_lines(self) -> None:
        """Show all slides in their order."""
        self._fill()

    def show_picture(self, folder: Path, pixels: Pixels) -> None:
        """Show a picture of the slide whose results lie in `folder`."""
        data = np.ascontiguousarray(pixels)
        height, width, _ = data.shape
        image = QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
        self._icons[folder] = QIcon(QPixmap.fromImage(image))
        for at, line in enumerate(self.lines):
            if line.folder == folder and (item := self.table.item(at, 0)) is not None:
                item.setIcon(self._icons[folder])

    def _fill(self) -> None:
        measure: DisagreementMeasure = self.measure.currentData()
        self.lines = sort_by_attention_disagreement(self.lines, measure)
        self.table.setHorizontalHeaderLabels([" ", MEASURE_LABELS[measure], "Student | teacher"])
        self.table.setRowCount(len(self.lines))
        for at, line in enumerate(self.lines):
            figure = attention_disagreement(line, measure)
            texts = ("", "–" if figure is None else f"{figure:.2f}", f"{line.name}\n{_probabilities(line)}")
            for column, text in enumerate(texts):
                self.table.setItem(at, column, self._item(text, line, column))
        self.table.resizeColumnsToContents()
        self.table.setColumnWidth(0, ICON_PX * 3)
        bad = sum(bool(line.problem) for line in self.lines)
        some = f" {bad} cannot be compared: their tooltip says why." if bad else ""
        self.told.setText(f"{len(self.lines)} slides.{some} {OPEN_HINT}" if self.lines else FOLDER_TIP + ".")

    def _item(self, text: str, line: StoredResult, column: int) -> Any:
        item = QTableWidgetItem(text)
        item.setToolTip(line.problem or f"{line.name}: {OPEN_HINT}")
        if line.problem:
            item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEnabled)
        if column == 0 and line.folder in self._icons:
            item.setIcon(self._icons[line.folder])
        return item

    def _open(self, at: int, _: int) -> None:
        if not self.lines[at].problem:
            self.opened.emit(self.lines[at])


def _probabilities(line: StoredResult) -> str:
    """Return both networks' probability of the class that the student holds for the most probable."""
    if not line.student:
        return "–"
    name = max(line.student, key=lambda c: line.student[c] if line.student else 0.0)
    teacher = format_probability(line.teacher.get(name, float("nan"))) if line.teacher else "–"
    return f"{name} {format_probability(line.student[name])} | {teacher}"
