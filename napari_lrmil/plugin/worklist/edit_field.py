"""Line edit that gives the keyboard back at its end, so that the next key is not typed into it."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QFocusEvent, QKeyEvent
from qtpy.QtWidgets import QAbstractSpinBox, QComboBox, QLineEdit, QPlainTextEdit, QTextEdit, QWidget

TEXT_WIDGETS = (QLineEdit, QTextEdit, QPlainTextEdit, QAbstractSpinBox)
ENTER_KEYS = (Qt.Key.Key_Return, Qt.Key.Key_Enter)


class EditField(QLineEdit):  # type: ignore[misc]  # qtpy has no types
    """Line edit that Enter stores and Esc restores; both end the editing.

    Attributes
    ----------
    ended
        Emitted after Enter or Esc, to give the focus to another widget.
    """

    ended = Signal()

    def __init__(self, placeholder: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setPlaceholderText(placeholder)
        self._stored = ""

    def show_text(self, text: str) -> None:
        """Show a stored text, to which Esc returns."""
        self._stored = text
        self.setText(text)

    def focusInEvent(self, event: QFocusEvent) -> None:  # noqa: N802  # Qt's name
        """Keep the text for Esc."""
        super().focusInEvent(event)
        self._stored = self.text()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802  # Qt's name
        """End the editing with Enter or Esc."""
        if event.key() == Qt.Key.Key_Escape:
            self.setText(self._stored)
        else:
            super().keyPressEvent(event)  # Enter emits `editingFinished`
        if event.key() in (Qt.Key.Key_Escape, *ENTER_KEYS):
            self.ended.emit()


def takes_text(widget: QWidget | None) -> bool:
    """Return whether keys that a widget gets become text."""
    if isinstance(widget, QComboBox):
        return bool(widget.isEditable())
    return isinstance(widget, TEXT_WIDGETS) and not widget.isReadOnly()
