"""The docks of one window find each other: what is chosen in one holds in all."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from qtpy.QtCore import QEvent
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QWidget

if TYPE_CHECKING:
    from napari.viewer import Viewer

Dock = TypeVar("Dock", bound="QWidget")


class DockWidget(QWidget):  # type: ignore[misc]  # qtpy has no types
    """A dock that ends what it began when it goes: closed, or taken out of its window by napari."""

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802  # Qt's name
        """End what this dock began."""
        self._on_removed()
        super().closeEvent(event)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802  # Qt's name
        """Do so where napari has taken the dock out of its window, too."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self._on_removed()

    def _on_removed(self) -> object:
        raise NotImplementedError(f"{type(self).__name__} does not say how it ends")


def find_dock(viewer: Viewer, kind: type[Dock]) -> Dock | None:
    """Return the dock of a kind that lies in the window; None where there is none."""
    return next((dock for dock in viewer.window.dock_widgets.values() if isinstance(dock, kind)), None)


def open_dock(viewer: Viewer, kind: type[Dock], name: str) -> Dock:
    """Return the dock of a kind, put beside the others as a tab if it is not there yet, and bring it to the front.

    Parameters
    ----------
    viewer
        Whose window.
    kind
        The widget; it is made with the viewer.
    name
        What its tab is called.
    """
    there = find_dock(viewer, kind)
    dock: Dock = there if there is not None else kind(viewer)
    if there is None:
        viewer.window.add_dock_widget(dock, name=name, area="right", tabify=True)
    dock.parentWidget().raise_()
    return dock


def tabify_with(viewer: Viewer, dock: QWidget, kind: type[Dock]) -> None:
    """Put a dock as a tab beside that of a kind, if there is one: napari's menu opens docks one above the other."""
    other = find_dock(viewer, kind)
    if other is None or other.parentWidget() is None or dock.parentWidget() is None:
        return
    dock.window().tabifyDockWidget(other.parentWidget(), dock.parentWidget())
    dock.parentWidget().raise_()
