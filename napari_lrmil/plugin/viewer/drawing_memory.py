"""Drawn regions and measured lines of slides whose layers were removed. No Qt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.plugin.viewer.layers import add_layers, get_tag, lrmil_layers

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

    from napari_lrmil.plugin.viewer.layers import LayerData

DRAWN_ROLES = ("drawn", "distance")
OF_THE_VIEW = ("affine", "visible")  # the rotation may be another one when the slide is shown again


class DrawingMemory:
    """What the user drew on slides that are not open any more, until the window is closed.

    A worklist closes each slide that the user leaves. A layer that the user removes from an open slide is not kept.

    Parameters
    ----------
    viewer
        The viewer with the slides.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._layers: dict[Path, list[LayerData]] = {}

    def keep(self, layer: Layer) -> None:
        """Keep a layer that is about to be removed, if it is drawn; the next `settle` decides whether it comes back."""
        tag = get_tag(layer)
        if tag is not None and tag.role in DRAWN_ROLES and len(layer.data):
            data, options, kind = layer.as_layer_data_tuple()
            options = {name: value for name, value in options.items() if name not in OF_THE_VIEW}
            self._layers.setdefault(tag.path, []).append((data, options, kind))

    def settle(self, before: set[Path]) -> bool:
        """Add what was drawn on slides that are open again, and return whether there was any.

        Parameters
        ----------
        before
            Slides that were open at the last call: what was removed from them while they stayed open is forgotten.
        """
        tags = [get_tag(layer) for layer in lrmil_layers(self._viewer, role="slide")]
        is_restored = False
        for path in {tag.path for tag in tags if tag is not None} & set(self._layers):
            layers = self._layers.pop(path)
            if path not in before:
                active = self._viewer.layers.selection.active
                add_layers(self._viewer, layers)
                self._viewer.layers.selection.active = active
                is_restored = True
        return is_restored
