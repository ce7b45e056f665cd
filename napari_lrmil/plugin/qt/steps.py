"""Collapsible steps of the Train dock, and the scrolling list of steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from magicgui.widgets import Container
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QComboBox,
    QFrame,
    QLabel,
    QLineEdit,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil.plugin.qt.section import HeightForWidthColumn, Section

FIELD_MIN_WIDTH_PX, FIELD_MIN_HEIGHT_PX = 32, 18
BOTTOM_MARGIN_PX = 14  # below the last widget: bold text that wraps is a few pixels higher than Qt computes


class Step(Section):
    """Section of the Train dock, with room for bold text below its last widget."""

    def __init__(self, name: str, title: str, parent: QWidget | None = None) -> None:
        super().__init__(name, title, parent)
        self.content().layout().setContentsMargins(6, 2, 0, BOTTOM_MARGIN_PX)


class FormStep(Step):
    """Step with a magicgui form.

    Parameters
    ----------
    name, title
        As for `Section`.
    form
        The form.
    """

    def __init__(self, name: str, title: str, form: Container[Any], parent: QWidget | None = None) -> None:
        super().__init__(name, title, parent)
        self.form = form
        self.add(form.native)


class StepList(QScrollArea):  # type: ignore[misc]  # qtpy has no types
    """Scrolling column of steps; a step that the user opens is scrolled into view.

    Parameters
    ----------
    above
        Widget over the first step.
    steps
        Steps from top to bottom.
    """

    def __init__(self, above: QWidget, steps: Sequence[Step], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._steps = steps
        inner = HeightForWidthColumn()
        column = QVBoxLayout(inner)
        column.setSpacing(5)
        for part in (above, *steps):
            column.addWidget(part)
        column.addStretch(1)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidget(inner)
        for step in steps:
            step.toggleButton().clicked.connect(partial(self._on_toggled, step))

    def show_only(self, *open_steps: Step) -> None:
        """Open these steps, fold all others, and scroll to the top."""
        for step in self._steps:
            (step.expand if step in open_steps else step.collapse)(animate=False)
        # One turn of the event loop later, when Qt has laid the column out anew.
        QTimer.singleShot(0, self, self._scroll_to_top)

    def _scroll_to_top(self) -> None:
        self.verticalScrollBar().setValue(0)  # folded steps are one line high, so the first open step is visible

    def _on_toggled(self, step: Step, is_open: bool) -> None:
        if is_open:
            QTimer.singleShot(0, self, partial(self._scroll_to, step))

    def _scroll_to(self, step: Step) -> None:
        """Scroll a step into view; if it is higher than the view, its title comes to the top."""
        self.ensureWidgetVisible(step, 0, 0)
        if step.height() > self.viewport().height():
            self.verticalScrollBar().setValue(step.y())


def shrink_fields(form: QWidget) -> None:
    """Let the fields of a form shrink to the width of the dock; by default Qt reserves room for the longest value."""
    for kind in (QLineEdit, QComboBox, QAbstractSpinBox):
        for field in form.findChildren(kind):
            field.setMinimumWidth(FIELD_MIN_WIDTH_PX)
            # The style sheet of napari sets larger minima, which win over setMinimumWidth.
            field.setStyleSheet(f"min-width: {FIELD_MIN_WIDTH_PX}px; min-height: {FIELD_MIN_HEIGHT_PX}px")
            if isinstance(field, QComboBox):
                field.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            if isinstance(field, QAbstractSpinBox):
                field.setButtonSymbols(QAbstractSpinBox.ButtonSymbols.NoButtons)  # arrow keys and wheel do the same


def align_labels(form: QWidget) -> None:
    """Give all labels of a form the same width, which aligns the fields."""
    labels = form.findChildren(QLabel)
    width = max((label.sizeHint().width() for label in labels), default=0)
    for label in labels:
        label.setFixedWidth(width)
