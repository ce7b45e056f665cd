"""Collapsible sections of a dock, and the small widgets and layouts that fill them."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSlider,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_lrmil.core.text_escapes import escape_qt

MOST_OF_WINDOW = 0.45  # of its width, for a dock that needs more than it was built with
SMALL_FONT = 0.9  # size of hints, relative to the font of the dock
QWIDGETSIZE_MAX = (1 << 24) - 1  # Qt's value for "no maximum height"; its Python bindings do not export it


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
        self._replace_content()
        policy = self.sizePolicy()
        policy.setVerticalPolicy(QSizePolicy.Policy.Preferred)  # Maximum would give wrapped text the height of one line
        self.setSizePolicy(policy)
        self.layout().setAlignment(Qt.AlignmentFlag(0))  # an alignment has the same effect
        self.toggled.connect(self._on_toggled)
        self.collapse(animate=False)  # QCollapsible folds only the content that it makes itself

    def _replace_content(self) -> None:
        empty = self.content()
        self.layout().removeWidget(empty)
        self.setContent(self._inner)
        empty.deleteLater()

    def _on_toggled(self, is_open: bool) -> None:
        # Hidden, not only without height: the Tab key must not reach widgets that nobody sees.
        self._inner.setVisible(is_open)
        # QCollapsible freezes the maximum at the height that the content had when the section was opened.
        self._inner.setMaximumHeight(QWIDGETSIZE_MAX if is_open else 0)
        self.fold_changed.emit(self.name, is_open)

    def add(self, *widgets: QWidget) -> None:
        """Add a row of widgets below the present ones."""
        self._column.addWidget(widgets[0] if len(widgets) == 1 else make_row(*widgets))


class HeightForWidthColumn(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Content of a dock's scroll area, as high as its text needs at the present width.

    QScrollArea ignores the height-for-width of its content and would cut off text that wraps. It also cuts off what
    is wider than itself, so the dock gets at least the width that its widgets need, which grows with the font.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._least_width: int | None = None  # of the dock, as it was built

    def event(self, event: QEvent) -> bool:
        """Set the minimum sizes after every change of width or content."""
        handled = bool(super().event(event))
        if event.type() in (QEvent.Type.LayoutRequest, QEvent.Type.Resize, QEvent.Type.Show):
            layout = self.layout()
            needed = layout.heightForWidth(self.width()) if layout.hasHeightForWidth() else layout.sizeHint().height()
            if needed != self.minimumHeight():  # setting it again would send another LayoutRequest without end
                self.setMinimumHeight(needed)
            self._widen_dock(layout.minimumSize().width())
        return handled

    def _widen_dock(self, needed: int) -> None:
        scroll = self.parentWidget().parentWidget() if self.parentWidget() is not None else None
        if not isinstance(scroll, QScrollArea) or scroll.parentWidget() is None:
            return
        dock = scroll.parentWidget()
        if self._least_width is None:
            self._least_width = dock.minimumWidth()
        # A long name without a blank must not take the canvas's place.
        most = int(MOST_OF_WINDOW * dock.window().width())
        bar = max(scroll.verticalScrollBar().sizeHint().width(), dock.width() - scroll.viewport().width())
        width = max(self._least_width, min(needed + bar, most))
        if width != dock.minimumWidth():
            dock.setMinimumWidth(width)


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
    inner = HeightForWidthColumn()
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
