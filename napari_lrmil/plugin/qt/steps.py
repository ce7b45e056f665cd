"""A part of the Train dock: folded it takes no room, open as much as its content needs, also when that grows."""

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

QWIDGETSIZE_MAX = (1 << 24) - 1  # Qt's own, QWIDGETSIZE_MAX
FIELD_MIN_WIDTH_PX, FIELD_MIN_HEIGHT_PX = 32, 18
BOTTOM_MARGIN_PX = 14  # below the last part: text that wraps in bold is a few pixels higher than Qt foresees


class Step(Section):
    """A section whose content may change its height while it is open."""

    def __init__(self, name: str, title: str, parent: QWidget | None = None) -> None:
        super().__init__(name, title, parent)
        self.content().layout().setContentsMargins(6, 2, 0, BOTTOM_MARGIN_PX)
        self.content().setVisible(False)
        self.toggled.connect(self._show)
        policy = self.sizePolicy()
        policy.setVerticalPolicy(QSizePolicy.Policy.Preferred)  # or text that wraps gets no more than unwrapped
        self.setSizePolicy(policy)
        self.layout().setAlignment(Qt.AlignmentFlag(0))  # for the same reason

    def _show(self, open_: bool) -> None:
        self.content().setVisible(open_)
        self.content().setMaximumHeight(QWIDGETSIZE_MAX if open_ else 0)


class FormStep(Step):
    """A step that holds a form.

    Parameters
    ----------
    name, title
        As of a `Section`.
    form
        What it holds.
    """

    def __init__(self, name: str, title: str, form: Container[Any], parent: QWidget | None = None) -> None:
        super().__init__(name, title, parent)
        self.form = form
        self.add(form.native)


class HeightForWidthColumn(QWidget):  # type: ignore[misc]  # qtpy has no types
    """What a scroll area holds: as high as its text needs at the width that it has, which Qt does not ask for."""

    def event(self, event: QEvent) -> bool:
        """Take the height that is needed now, whenever the width or the content has changed."""
        handled = bool(super().event(event))
        if event.type() in (QEvent.Type.LayoutRequest, QEvent.Type.Resize, QEvent.Type.Show):
            layout = self.layout()
            needed = layout.heightForWidth(self.width()) if layout.hasHeightForWidth() else layout.sizeHint().height()
            if needed != self.minimumHeight():
                self.setMinimumHeight(needed)
        return handled


class StepList(QScrollArea):  # type: ignore[misc]  # qtpy has no types
    """Steps under one another, scrolled so that what was just opened is in view.

    Parameters
    ----------
    above
        What stands over the first step.
    steps
        From top to bottom.
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
            step.toggleButton().clicked.connect(partial(self._toggled, step))

    def show_only(self, *open_: Step) -> None:
        """Open some steps, fold the others, and bring the first into view."""
        for step in self._steps:
            (step.expand if step in open_ else step.collapse)(animate=False)
        QTimer.singleShot(0, self, self._scroll_up)

    def _scroll_up(self) -> None:
        self.verticalScrollBar().setValue(0)  # folded steps above are short: what is open is in view

    def _toggled(self, step: Step, open_: bool) -> None:
        if open_:
            QTimer.singleShot(0, self, partial(self._bring, step))

    def _bring(self, step: Step) -> None:
        """Bring a step into view that was opened by hand: as much of it as there is room for, its title first."""
        self.ensureWidgetVisible(step, 0, 0)
        if step.height() > self.viewport().height():
            self.verticalScrollBar().setValue(step.y())


def shrink_fields(form: QWidget) -> None:
    """Let the fields of a form be as narrow as the dock: by themselves they ask for the widest they could show."""
    for kind in (QLineEdit, QComboBox, QAbstractSpinBox):
        for field in form.findChildren(kind):
            field.setMinimumWidth(FIELD_MIN_WIDTH_PX)
            field.setStyleSheet(
                f"min-width: {FIELD_MIN_WIDTH_PX}px; min-height: {FIELD_MIN_HEIGHT_PX}px"
            )  # napari's asks for more
            if isinstance(field, QComboBox):
                field.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            if isinstance(field, QAbstractSpinBox):
                field.setButtonSymbols(QAbstractSpinBox.ButtonSymbols.NoButtons)  # arrow keys and the wheel do the same


def align_labels(form: QWidget) -> None:
    """Give the labels of a form one width, so that its fields line up."""
    labels = form.findChildren(QLabel)
    widest = max((one.sizeHint().width() for one in labels), default=0)
    for one in labels:
        one.setFixedWidth(widest)
