"""Event filter that keeps the mouse wheel from changing values while the user scrolls a dock."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QAbstractSlider, QAbstractSpinBox, QComboBox, QScrollBar, QWidget

VALUE_WIDGETS = (QComboBox, QAbstractSpinBox, QAbstractSlider)
PLOT = "plot"  # object name of matplotlib's canvases, which would swallow the wheel without using it


class WheelGuard(QObject):  # type: ignore[misc]  # qtpy has no types
    """Passes the wheel on to the scroll area: always for combo boxes and plots, else for fields without focus.

    Parameters
    ----------
    parent
        The dock.
    """

    def guard(self, root: QWidget) -> None:
        """Guard all value widgets below `root`; widgets that are guarded already are guarded once."""
        fields = [field for kind in VALUE_WIDGETS for field in root.findChildren(kind)]
        for widget in (*fields, *root.findChildren(QWidget, PLOT)):
            if not isinstance(widget, QScrollBar):
                widget.installEventFilter(self)
                if widget.focusPolicy() == Qt.FocusPolicy.WheelFocus:  # the wheel would give the focus first
                    widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)

    def eventFilter(self, widget: QObject, event: QEvent) -> bool:  # noqa: N802  # Qt's name
        """Return True, which ends the event's way through `widget`, if the wheel is not meant for it."""
        if event.type() != QEvent.Type.Wheel:
            return False
        may_change = not isinstance(widget, QComboBox) and widget.objectName() != PLOT
        if may_change and widget.hasFocus():
            return False
        event.ignore()  # Qt then sends the event to the parent, and so to the scroll area
        return True
