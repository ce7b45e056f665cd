"""Show another slide in the layers of the last one. napari takes a tenth of a second to add or remove a layer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_lrmil.plugin.viewer.layers import get_screen_slide, get_tag, lrmil_layers, read_tag

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from napari_lrmil.plugin.viewer.layers import LayerData, LayerTag

SLIDE_ROLES = ("underlay", "slide")


def swap_slide(viewer: ViewerModel, shown: Path, new: Sequence[LayerData]) -> bool:
    """Replace pixels, position and tag of a slide's layers by those of another slide.

    The layers are transparent until the pixels of the new slide are loaded, so the old ones are never shown under the
    new name. Style and visibility return to those of a new layer. Maps and drawn layers of the old slide keep its tag.

    Parameters
    ----------
    viewer
        The viewer.
    shown
        File of the slide whose layers are used.
    new
        Layers of the other slide, as `build_slide_layers` returns them.

    Returns
    -------
    bool
        Whether it was possible. It is not if the layers differ in kind, or if the slide is shown side by side.
    """
    layers = [layer for role in SLIDE_ROLES for layer in lrmil_layers(viewer, shown, role=role)]
    if not layers or not _are_alike(layers, new):
        return False
    for layer, (_, options, _) in zip(layers, new, strict=True):
        layer.metadata = options["metadata"]
    _hide_until_loaded(layers)
    for layer, (data, options, _) in zip(layers, new, strict=True):
        layer.data = data
        for name in ("scale", "translate"):
            if tuple(getattr(layer, name)) != tuple(options[name]):  # an equal value would read the pixels again
                setattr(layer, name, options[name])
        layer.name, layer.visible, layer.gamma = options["name"], True, 1.0
    return True


def _are_alike(layers: Sequence[Image], new: Sequence[LayerData]) -> bool:
    kinds = [_kind(get_tag(layer), layer.multiscale) for layer in layers]
    return kinds == [_kind(read_tag(options["metadata"]), options.get("multiscale", False)) for _, options, _ in new]


def _kind(tag: LayerTag | None, is_multiscale: bool) -> tuple[str, str, bool] | None:
    return (tag.role, tag.side, is_multiscale) if tag is not None else None


def _hide_until_loaded(layers: Sequence[Image]) -> None:
    """Make layers transparent until each has loaded pixels of the slide that its metadata name.

    `Layer.loaded` alone does not tell: napari also sets it after a failure, when the old pixels are still there.
    """
    # Weak: `on_pixels` refers to itself, and the worklist exempts such cycles from garbage collection.
    screen = weakref.ref(get_screen_slide(layers[-1]))
    waiting = list(layers)

    def on_pixels(event: Any) -> None:
        is_current = get_screen_slide(layers[-1]) is screen()  # else another slide has come meanwhile
        if event.source.loaded and event.source in waiting:
            waiting.remove(event.source)
        if is_current and waiting:
            return
        for layer in layers:
            layer.events.set_data.disconnect(on_pixels)
            if is_current:
                layer.opacity = 1.0

    for layer in layers:
        layer.opacity = 0.0
        layer.events.set_data.connect(on_pixels)
