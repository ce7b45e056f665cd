"""Dock widgets of one napari window: their base class, and functions to find, open and tab them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from qtpy.QtCore import QEvent
from qtpy.QtGui import QCloseEvent, QShowEvent
from qtpy.QtWidgets import QDockWidget, QWidget

from napari_lrmil.plugin.qt.wheel import WheelGuard

if TYPE_CHECKING:
    from napari.viewer import Viewer

Dock = TypeVar("Dock", bound="QWidget")


class DockWidget(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Base class of docks that stop their work if they are closed or if napari takes them out of the window.

    The mouse wheel scrolls a dock; it changes a value only in a field that has the focus.

    Attributes
    ----------
    TAB_TITLE
        Text of the tab. napari's name of a dock ends with that of the plugin, and Qt cuts it if several docks are tabs.
    """

    TAB_TITLE: str

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._wheel_guard = WheelGuard(self)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802  # Qt's name
        """Guard the fields against the wheel and name the tab; by now the dock is built."""
        super().showEvent(event)
        if isinstance(self.parentWidget(), QDockWidget):
            self.parentWidget().setWindowTitle(self.TAB_TITLE)
        self._wheel_guard.guard(self)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802  # Qt's name
        """Stop the work of this dock."""
        self._on_removed()
        super().closeEvent(event)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802  # Qt's name
        """Stop the work of this dock if it has lost its parent.

        ``remove_dock_widget`` of napari sets the parent to None and sends no close event.
        """
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self._on_removed()

    def _on_removed(self) -> object:
        raise NotImplementedError(f"{type(self).__name__} does not define how its work stops")


def find_dock(viewer: Viewer, kind: type[Dock]) -> Dock | None:
    """Return the first dock of class `kind` in the viewer's window, or None."""
    return next((dock for dock in viewer.window.dock_widgets.values() if isinstance(dock, kind)), None)


def open_dock(viewer: Viewer, kind: type[Dock], name: str) -> Dock:
    """Return the dock of class `kind` and bring it to the front; add it as a tab if the window has none.

    Parameters
    ----------
    viewer
        Viewer whose window holds the dock.
    kind
        Class of the dock; a new one is created with the viewer as its only argument.
    name
        Text of the tab.
    """
    present = find_dock(viewer, kind)
    dock: Dock = present if present is not None else kind(viewer)
    if present is None:
        viewer.window.add_dock_widget(dock, name=name, area="right", tabify=True)
    dock.parentWidget().raise_()
    return dock


def is_in_front(widget: QWidget) -> bool:
    """Return whether a widget is seen: not in a tab behind another one, and not hidden."""
    dock = widget.parentWidget()
    if not isinstance(dock, QDockWidget) or dock.isFloating() or not widget.isVisible():
        return bool(widget.isVisible())
    # Qt does not hide a tab behind another one: it puts it outside the window.
    return bool(dock.geometry().intersects(dock.parentWidget().rect()))


def tabify_with(viewer: Viewer, dock: QWidget, kind: type[Dock]) -> None:
    """Put `dock` into one tab bar with the dock of class `kind`, if there is one.

    The Plugins menu of napari stacks docks vertically, which leaves too little height for either.
    """
    other = find_dock(viewer, kind)
    if other is None or other.parentWidget() is None or dock.parentWidget() is None:
        return
    dock.window().tabifyDockWidget(other.parentWidget(), dock.parentWidget())
    dock.parentWidget().raise_()


def tabify_beside(widget: QWidget, other: QWidget) -> None:
    """Make `widget` a tab beside `other`, unless one of them is no dock, floats, or is in another window."""
    own_dock, other_dock = widget.parentWidget(), other.parentWidget()
    if not (isinstance(own_dock, QDockWidget) and isinstance(other_dock, QDockWidget)) or own_dock.isFloating():
        return
    window = own_dock.parentWidget()
    if window is other_dock.parentWidget() and other_dock not in window.tabifiedDockWidgets(own_dock):
        window.tabifyDockWidget(other_dock, own_dock)
        own_dock.raise_()
