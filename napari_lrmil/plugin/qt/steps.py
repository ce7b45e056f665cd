"""Collapsible steps of the Train dock, and the scrolling list of steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from magicgui.widgets import Container
from qtpy.QtCore import QEvent, QObject, Qt, QTimer
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
# Buttons without a size: with `QAbstractSpinBox.NoButtons` the style sheet of napari leaves one pixel for the number.
SPIN_BOX_STYLE = """
QAbstractSpinBox {{min-width: {width}px; min-height: {height}px; padding: 1px 4px}}
QAbstractSpinBox::up-button, QAbstractSpinBox::down-button {{width: 0px; height: 0px}}
QAbstractSpinBox::up-arrow, QAbstractSpinBox::down-arrow {{image: none; width: 0px; height: 0px}}
"""
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
            # A lambda: PySide6 passes no argument to a partial of a method.
            step.toggleButton().clicked.connect(lambda is_open, step=step: self._on_toggled(step, is_open))

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
            if isinstance(field, QAbstractSpinBox):  # arrow keys and wheel do what the buttons did
                field.setStyleSheet(SPIN_BOX_STYLE.format(width=FIELD_MIN_WIDTH_PX, height=FIELD_MIN_HEIGHT_PX))


class LabelColumn(QObject):  # type: ignore[misc]  # qtpy has no types
    """Gives all labels of a form the same width, which aligns the fields, and wraps what is longer than its share.

    It follows the font, which comes from napari's theme and settings, and the width of the form.

    Parameters
    ----------
    form
        A form with a label beside each field.
    share
        Largest share of the form's width for the labels; the rest is for the fields.
    """

    def __init__(self, form: QWidget, share: float = 0.45) -> None:
        super().__init__(form)
        self._form, self._share = form, share
        form.installEventFilter(self)

    def eventFilter(self, form: QObject, event: QEvent) -> bool:  # noqa: N802  # Qt's name
        """Align after a change of font or width."""
        kinds = QEvent.Type.Show, QEvent.Type.Resize, QEvent.Type.FontChange, QEvent.Type.StyleChange
        if event.type() in kinds and self._form.isVisible():
            self._align()
        return False

    def _align(self) -> None:
        labels = [label for label in self._form.findChildren(QLabel) if label.text()]
        widths = [_text_width(label) for label in labels]
        width = min(max(widths, default=0), int(self._share * self._form.width()))
        for label, own_width in zip(labels, widths, strict=True):
            label.setWordWrap(own_width > width)
            if label.minimumWidth() != width or label.maximumWidth() != width:
                label.setFixedWidth(width)


def _text_width(label: QLabel) -> int:
    """Return the width of a label's text in one line, with the margins of its style."""
    label.ensurePolished()
    if label.wordWrap():
        label.setWordWrap(False)
    return int(label.sizeHint().width())
