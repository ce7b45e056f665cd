"""Class probabilities as bars with numbers."""

from __future__ import annotations

from collections.abc import Mapping

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QLabel, QProgressBar, QWidget

from napari_lrmil.core.formatting import format_probability

STEPS = 1000
STYLE = """
QProgressBar {{ border: none; border-radius: 3px; min-height: 12px; max-height: 12px;
    background: rgba(128, 128, 128, 70); }}
QProgressBar::chunk {{ border-radius: 3px; background: {colour}; }}
"""
TOP, OTHER = "#e8892c", "#8a8f98"  # readable on dark and on light, and without colour vision


class ProbabilityBars(QWidget):  # type: ignore[misc]  # qtpy has no types
    """One row per class: its name, a bar, its probability. The most probable one stands out."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setColumnStretch(1, 1)
        self._values: dict[str, float] = {}

    def value(self) -> dict[str, float]:
        """Return what is shown."""
        return dict(self._values)

    def set_value(self, values: Mapping[str, float]) -> None:
        """Show probabilities, most probable first; none empties the widget."""
        self._values = dict(values)
        while (item := self._grid.takeAt(0)) is not None:
            item.widget().hide()  # gone at once; what is deleted later is still drawn until then
            item.widget().deleteLater()
        ranked = sorted(values.items(), key=lambda pair: -pair[1])
        for row, (name, value) in enumerate(ranked):
            self._add_row(row, name, value, TOP if row == 0 else OTHER)

    def _add_row(self, row: int, name: str, value: float, colour: str) -> None:
        bar = QProgressBar()
        bar.setRange(0, STEPS)
        bar.setValue(round(value * STEPS))
        bar.setTextVisible(False)
        bar.setStyleSheet(STYLE.format(colour=colour))
        number = QLabel(format_probability(value))
        number.setToolTip(f"{name}: {value:.6f}")
        number.setAlignment(Qt.AlignmentFlag.AlignRight)
        for column, widget in enumerate((QLabel(name), bar, number)):
            widget.setAccessibleName(f"{name} {format_probability(value)}")
            self._grid.addWidget(widget, row, column)
