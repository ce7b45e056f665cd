"""Collapsible sections of a dock, and the small widgets and layouts that fill them."""

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

from napari_lrmil.core.text_escapes import escape_qt

SMALL_FONT = 0.9  # size of hints, relative to the font of the dock


class Section(QCollapsible):  # type: ignore[misc]  # superqt has no types
    """Collapsible part of a dock; `fold_changed` emits its name and whether it is open.

    Parameters
    ----------
    name
        Name under which the settings store whether the section is open.
    title
        Title on the screen: the pathologist's word first, the term of the method second.
    """

    fold_changed = Signal(str, bool)

    def __init__(self, name: str, title: str, parent: QWidget | None = None) -> None:
        super().__init__(title, parent, expandedIcon="▼", collapsedIcon="▶")
        self.name = name
        self.layout().setContentsMargins(0, 0, 0, 0)
        self.setDuration(0)  # no animation: it hides the content that the user wants to read
        self._inner = QWidget()
        self._column = QVBoxLayout(self._inner)
        self._column.setContentsMargins(6, 2, 0, 4)
        self._column.setSpacing(4)
        self.setContent(self._inner)
        self.toggled.connect(self._emit_fold)

    def _emit_fold(self, is_open: bool) -> None:
        self.fold_changed.emit(self.name, is_open)

    def fit_height(self) -> None:
        """Adapt the height to the present content; QCollapsible measures it only while it opens."""
        self._column.invalidate()
        self._column.activate()
        if self.isExpanded():
            self.expand(animate=False)

    def add(self, *widgets: QWidget) -> None:
        """Add a row of widgets below the present ones."""
        self._column.addWidget(widgets[0] if len(widgets) == 1 else make_row(*widgets))


def fill_dock(dock: QWidget, parts: Sequence[QWidget], below: Sequence[QWidget]) -> QScrollArea:
    """Lay out a dock and return its scroll area.

    Parameters
    ----------
    dock
        An empty widget.
    parts
        Widgets that scroll, from top to bottom.
    below
        Widgets under the scroll area, which are always visible.
    """
    inner = QWidget()
    column = QVBoxLayout(inner)
    column.setSpacing(5)
    for part in parts:
        column.addWidget(part)
    column.addStretch(1)
    scroll = QScrollArea()
    scroll.setWidgetResizable(True)
    scroll.setFrameShape(QFrame.Shape.NoFrame)
    # Content adapts to the width of the dock; a horizontal bar would cover its last line.
    scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    scroll.setWidget(inner)
    outer = QVBoxLayout(dock)
    outer.setContentsMargins(0, 0, 0, 0)
    outer.addWidget(scroll, 1)
    for part in below:
        outer.addWidget(part)
    return scroll


def make_row(*widgets: QWidget) -> QWidget:
    """Return the widgets side by side; buttons, combo boxes and sliders take the spare width."""
    box = QWidget()
    line = QHBoxLayout(box)
    line.setContentsMargins(0, 0, 0, 0)
    line.setSpacing(4)
    for widget in widgets:
        line.addWidget(widget, 1 if isinstance(widget, QPushButton | QComboBox | QSlider) else 0)
    return box


def make_button(text: str, tip: str) -> QPushButton:
    """Return a button with a text and a tooltip."""
    button = QPushButton(text)
    button.setToolTip(tip)
    return button


def make_label(name: str, text: str = "", *, bold: bool = False, small: bool = False) -> QLabel:
    """Return a label whose text wraps and can be selected with the mouse.

    Parameters
    ----------
    name
        Qt object name, by which tests and style sheets find the label.
    text
        Text at the start.
    bold, small
        Bold for results, small and italic for hints.
    """
    label = QLabel(text)
    # Qt would take names of slides and classes with tags for HTML.
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setObjectName(name)
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    font = label.font()
    font.setBold(bold)
    if small:
        font.setPointSizeF(font.pointSizeF() * SMALL_FONT)
        font.setItalic(True)
    label.setFont(font)
    return label


def make_divider() -> QFrame:
    """Return a thin horizontal line."""
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    return line


def enable_unless(widget: QWidget, reason: str, tip: str) -> None:
    """Disable a widget if there is a reason, and show that reason as its tooltip; else enable it and show `tip`."""
    widget.setEnabled(not reason)
    widget.setToolTip(escape_qt(reason or tip))
