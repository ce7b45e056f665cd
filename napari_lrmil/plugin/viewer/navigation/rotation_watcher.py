"""Signal of rotations of slides, whoever rotated them: this plugin, a link, or a command of napari itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QWidget

from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.viewer.layers import get_tag

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer


class RotationWatcher(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Invisible widget that emits `rotated` whenever the layer of a slide was rotated.

    Other layers of the slide, and the camera, may follow afterwards.

    Parameters
    ----------
    viewer
        Viewer with the slides.
    parent
        The dock.
    """

    rotated = Signal()

    def __init__(self, viewer: ViewerModel, parent: QWidget) -> None:
        super().__init__(parent)
        self.setVisible(False)
        self._watched: WeakSet[Layer] = WeakSet()
        for layer in viewer.layers:
            self._watch(layer)
        connect_until_destroyed(self, [(viewer.layers.events.inserted, self._on_inserted)])

    def _on_inserted(self, event: Any) -> None:
        self._watch(event.value)

    def _watch(self, layer: Layer) -> None:
        tag = get_tag(layer)
        if tag is not None and tag.role == "slide" and layer not in self._watched:
            self._watched.add(layer)
            connect_until_destroyed(self, [(layer.events.affine, self._on_rotated)])

    def _on_rotated(self, _: Any = None) -> None:
        self.rotated.emit()
