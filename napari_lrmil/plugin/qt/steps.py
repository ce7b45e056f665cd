"""Collapsible steps of the Train dock, which follow the height of their content, and the scrolling list of steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from magicgui.widgets import Container
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QComboBox,
    QFrame,
    QLabel,
    QLineEdit,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil.plugin.qt.section import Section

QWIDGETSIZE_MAX = (1 << 24) - 1  # Qt's value for "no maximum height"; its Python bindings do not export it
FIELD_MIN_WIDTH_PX, FIELD_MIN_HEIGHT_PX = 32, 18
BOTTOM_MARGIN_PX = 14  # below the last widget: bold text that wraps is a few pixels higher than Qt computes


class Step(Section):
    """Section that follows its content if that changes its height while the step is open."""

    def __init__(self, name: str, title: str, parent: QWidget | None = None) -> None:
        super().__init__(name, title, parent)
        self.content().layout().setContentsMargins(6, 2, 0, BOTTOM_MARGIN_PX)
        self.content().setVisible(False)
        self.toggled.connect(self._show_content)
        policy = self.sizePolicy()
        policy.setVerticalPolicy(QSizePolicy.Policy.Preferred)  # Maximum would give wrapped text the height of one line
        self.setSizePolicy(policy)
        self.layout().setAlignment(Qt.AlignmentFlag(0))  # an alignment has the same effect

    def _show_content(self, is_open: bool) -> None:
        self.content().setVisible(is_open)
        # QCollapsible freezes the maximum at the height that the content had when the step was opened.
        self.content().setMaximumHeight(QWIDGETSIZE_MAX if is_open else 0)


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


class HeightForWidthColumn(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Content of a scroll area, as high as its text needs at the present width.

    QScrollArea ignores the height-for-width of its content and would cut off text that wraps.
    """

    def event(self, event: QEvent) -> bool:
        """Set the minimum height after every change of width or content."""
        handled = bool(super().event(event))
        if event.type() in (QEvent.Type.LayoutRequest, QEvent.Type.Resize, QEvent.Type.Show):
            layout = self.layout()
            needed = layout.heightForWidth(self.width()) if layout.hasHeightForWidth() else layout.sizeHint().height()
            if needed != self.minimumHeight():  # setting it again would send another LayoutRequest without end
                self.setMinimumHeight(needed)
        return handled


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
