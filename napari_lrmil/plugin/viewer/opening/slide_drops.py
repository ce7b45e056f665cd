"""Event filter for slides that are dropped on the canvas: they open without napari's question for a reader.

napari asks whenever several readers accept a file, as for every TIFF. The filter answers for slides alone. Alt and
Shift keep napari's meaning. A reader that the user has chosen in napari's preferences is used; they are only read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from inspect import unwrap
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from napari.plugins.utils import get_preferred_reader
from napari.utils.notifications import show_info
from qtpy.QtCore import QEvent, QObject, Qt, QTimer
from qtpy.QtGui import QDragLeaveEvent, QDropEvent
from qtpy.QtWidgets import QWidget

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.slides.slide_files import has_slide_ending
from napari_lrmil.plugin.qt.errors import show_errors
from napari_lrmil.plugin.viewer.layers import add_layers
from napari_lrmil.plugin.viewer.opening.reader import NO_LAYERS, find_open_slide, is_slide, read_dropped_slides

if TYPE_CHECKING:
    from napari.viewer import Viewer

PLUGIN = "napari-lrmil"  # name under which napari stores a preference for this reader
MOST_FOLDERS = 1000  # folders that are searched for a first slide while the user waits
OpenMany = Callable[[Sequence[Path]], object]

_filters: WeakKeyDictionary[Viewer, SlideDropFilter] = WeakKeyDictionary()


def open_dropped_slides(viewer: Viewer, open_many: OpenMany | None = None) -> None:
    """Open slides that are dropped on the viewer's canvas with the reader of this plugin.

    Parameters
    ----------
    viewer
        A viewer with a window. A second call changes only `open_many`.
    open_many
        Called with several slides or with folders of slides. None opens several slides as layers and leaves folders to
        napari.
    """
    viewer = unwrap(viewer)  # a widget of a plugin gets a proxy, which warns of private names
    drops = _filters.get(viewer)
    if drops is None:
        drops = _filters[viewer] = SlideDropFilter(viewer)
    if open_many is not None:
        drops.open_many = open_many
        hide_welcome_page(viewer)


def open_slides(viewer: Viewer, paths: Sequence[Path]) -> None:
    """Open slide files that the user chose: several in the list of slides, if there is one, else as layers.

    An error is shown as a notification.

    Parameters
    ----------
    viewer
        A viewer with a window.
    paths
        Slide files.
    """
    viewer = unwrap(viewer)
    drops = _filters.get(viewer)
    if len(paths) > 1 and drops is not None and drops.open_many is not None:
        drops.open_many(paths)
    else:
        show_errors(partial(_add_slides, viewer, paths))


def _add_slides(viewer: Viewer, paths: Sequence[Path]) -> None:
    hide_welcome_page(viewer)
    open_layers = {path: find_open_slide(viewer, path) for path in paths if path.exists()}
    new = [path for path in paths if open_layers.get(path) is None]
    try:
        layers = read_dropped_slides(new) if new else NO_LAYERS
    except LrmilError as error:
        raise LrmilError(_name_files(str(error), new)) from error
    if layers is not NO_LAYERS:
        add_layers(viewer, layers)
    for layer in open_layers.values():
        if layer is not None:
            layer.visible = True  # the dock follows, and hides the other slides
            viewer.layers.selection.active = layer
            show_info(f"{layer.name} is open already, and shown now.")


def _name_files(sentence: str, paths: Sequence[Path]) -> str:
    """Return a sentence with the names of files in place of their paths, which would fill what is seen of it."""
    for path in sorted(paths, key=lambda path: len(str(path)), reverse=True):
        sentence = sentence.replace(str(path), path.name or str(path))
    return sentence


def hide_welcome_page(viewer: Viewer) -> None:
    """Leave an empty canvas empty from now on.

    napari's welcome page would stand where the slide is expected, if it cannot be opened, and says how to open images.
    """
    unwrap(viewer).window._qt_viewer.show_welcome_screen = False


class SlideDropFilter(QObject):  # type: ignore[misc]  # qtpy has no types
    """Takes drops of slides from napari's canvas and from the welcome text above it.

    Parameters
    ----------
    viewer
        A viewer with a window.

    Attributes
    ----------
    open_many
        See `open_dropped_slides`.
    """

    def __init__(self, viewer: Viewer) -> None:
        canvas = viewer.window._qt_viewer
        super().__init__(canvas)
        self._viewer = viewer
        self.open_many: OpenMany | None = None
        for widget in (canvas, *canvas.findChildren(QWidget)):
            if widget.acceptDrops():
                widget.installEventFilter(self)

    def eventFilter(self, widget: QObject, event: QEvent) -> bool:  # noqa: N802  # Qt's name
        """Return True, which keeps a drop from napari, if all that was dropped are slides."""
        if event.type() != QEvent.Type.Drop or not isinstance(event, QDropEvent):
            return False
        action = self._action(event)
        if action is None:
            return False
        event.acceptProposedAction()
        widget.event(QDragLeaveEvent())  # napari's welcome text stops showing that it takes a drop
        # Afterwards: the program from which the slides were dragged waits until the drop has been handled.
        QTimer.singleShot(0, self, action)
        return True

    def _action(self, event: QDropEvent) -> Callable[[], object] | None:
        """Return what opens the dropped slides; None leaves the drop to napari."""
        if event.modifiers() & (Qt.KeyboardModifier.AltModifier | Qt.KeyboardModifier.ShiftModifier):
            return None  # napari's list of readers, and its stack of files
        urls = event.mimeData().urls()
        paths = [Path(url.toLocalFile()) for url in urls if url.isLocalFile()]
        if not paths or len(paths) < len(urls) or not all(map(_is_ours, paths)):
            return None
        if self.open_many is not None and (len(paths) > 1 or not is_slide(paths[0])):
            return partial(self.open_many, paths)
        return partial(show_errors, partial(_add_slides, self._viewer, paths)) if all(map(is_slide, paths)) else None


def _is_ours(path: Path) -> bool:
    """Return whether a path is a slide, or a folder of slides, that the user has not given to another reader."""
    if get_preferred_reader(str(path)) not in (None, PLUGIN):
        return False
    return is_slide(path) or (path.is_dir() and _holds_slides(path))


def _holds_slides(folder: Path) -> bool:
    places = islice(os.walk(folder), MOST_FOLDERS)
    return any(has_slide_ending(Path(name)) for _, _, files in places for name in files)
