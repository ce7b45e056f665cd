"""What all parts of the dock are made of."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QSlider,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible


class Section(QCollapsible):  # type: ignore[misc]  # superqt has no types
    """A part of the dock that can be folded; `toggled_open` tells its name and whether it is open.

    Parameters
    ----------
    name
        What it is remembered by.
    title
        What it is called on the screen: the words of a pathologist first, the term of the method second.
    """

    fold_changed = Signal(str, bool)

    def __init__(self, name: str, title: str, parent: QWidget | None = None) -> None:
        super().__init__(title, parent, expandedIcon="▼", collapsedIcon="▶")
        self.name = name
        self.layout().setContentsMargins(0, 0, 0, 0)
        self.setDuration(0)  # a fold that moves slowly hides what one is about to read
        self._inner = QWidget()
        self._column = QVBoxLayout(self._inner)
        self._column.setContentsMargins(6, 2, 0, 4)
        self._column.setSpacing(4)
        self.setContent(self._inner)
        self.toggled.connect(self._tell)

    def _tell(self, open_: bool) -> None:
        self.fold_changed.emit(self.name, open_)

    def fit_height(self) -> None:
        """Take the height that the content needs now; by itself a section takes it when it unfolds."""
        self._column.invalidate()
        self._column.activate()
        if self.isExpanded():
            self.expand(animate=False)

    def add(self, *widgets: QWidget) -> None:
        """Add a row of widgets."""
        self._column.addWidget(widgets[0] if len(widgets) == 1 else make_row(*widgets))


def fill_dock(dock: QWidget, parts: Sequence[QWidget], below: Sequence[QWidget]) -> QScrollArea:
    """Fill a dock with parts that scroll, one under the other, and some below that always show; return the former."""
    inner = QWidget()
    column = QVBoxLayout(inner)
    column.setSpacing(5)
    for part in parts:
        column.addWidget(part)
    column.addStretch(1)
    scroll = QScrollArea()
    scroll.setWidgetResizable(True)
    scroll.setFrameShape(QFrame.Shape.NoFrame)
    scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    scroll.setWidget(inner)
    outer = QVBoxLayout(dock)
    outer.setContentsMargins(0, 0, 0, 0)
    outer.addWidget(scroll, 1)
    for part in below:
        outer.addWidget(part)
    return scroll


def make_row(*widgets: QWidget) -> QWidget:
    """Return widgets side by side."""
    box = QWidget()
    line = QHBoxLayout(box)
    line.setContentsMargins(0, 0, 0, 0)
    line.setSpacing(4)
    for widget in widgets:
        line.addWidget(widget, 1 if isinstance(widget, QPushButton | QComboBox | QSlider) else 0)
    return box


def make_button(text: str, tip: str) -> QPushButton:
    """Return a button that says what it does."""
    made = QPushButton(text)
    made.setToolTip(tip)
    return made


def make_label(name: str, text: str = "", *, bold: bool = False, small: bool = False) -> QLabel:
    """Return text that wraps and can be copied."""
    made = QLabel(text)
    made.setObjectName(name)
    made.setWordWrap(True)
    made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    font = made.font()
    font.setBold(bold)
    if small:
        font.setPointSizeF(font.pointSizeF() * 0.9)
        font.setItalic(True)
    made.setFont(font)
    return made


def make_divider() -> QFrame:
    """Return a thin line across."""
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    return line


def enable_unless(widget: QWidget, reason: str, tip: str) -> None:
    """Enable a widget, or disable it and say why."""
    widget.setEnabled(not reason)
    widget.setToolTip(reason or tip)
