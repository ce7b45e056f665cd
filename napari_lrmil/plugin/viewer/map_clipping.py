"""Clipping of maps to their slide: the last patches of a slide may reach beyond its pixels.

Patches lie on a lattice from the slide's first corner, so those at the right and lower edge can read white from beyond
it. A map has one pixel per patch. Only its picture is cut: the values, and the size of a patch, stay as they are.
"""

from __future__ import annotations

from inspect import unwrap
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from napari_lrmil.core.geometry import Float
from napari_lrmil.plugin.viewer.layers import MAP_ROLES, get_screen_slide, lrmil_layers

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image
    from vispy.scene import Node  # type: ignore[import-untyped]
    from vispy.visuals.filters.clipping_planes import PlanesClipper  # type: ignore[import-untyped]

_clippers: WeakKeyDictionary[Node, PlanesClipper] = WeakKeyDictionary()  # of the visuals that were cut before


def clip_maps(viewer: ViewerModel, path: Path) -> None:
    """Cut what is drawn of a slide's maps at the edge of the slide.

    Parameters
    ----------
    viewer
        The viewer; without a window nothing is drawn, and nothing happens.
    path
        File of the slide; its maps are left whole if it has no layer.
    """
    end_um = _lower_right_um(viewer, path)
    if end_um is None:
        return
    for role in (*MAP_ROLES, "evidence"):
        for layer in lrmil_layers(viewer, path, role=role):
            node = find_node(viewer, layer)
            if node is not None:
                _clip(node, layer, end_um)


def find_node(viewer: ViewerModel, layer: Image) -> Node | None:
    """Return the visual of an image; None without a window, and if napari draws it in several textures."""
    window = getattr(unwrap(viewer), "window", None)
    visual = window._qt_viewer.canvas.layer_to_visual.get(layer) if window is not None else None
    return visual.node if visual is not None and hasattr(visual.node, "attach") else None


def _lower_right_um(viewer: ViewerModel, path: Path) -> Float | None:
    """Return y and x of the end of a slide in µm; None without a layer of it."""
    for layer in lrmil_layers(viewer, path, role="slide"):
        screen = get_screen_slide(layer)
        if screen is not None:
            bounds, mpp = screen.slide.bounds, screen.slide.mpp
            return np.array([(bounds.y + bounds.height) * mpp.y, (bounds.x + bounds.width) * mpp.x])
    return None


def _clip(node: Node, layer: Image, end_um: Float) -> None:
    """Draw a map up to `end_um` only. napari's own clipping planes are those of 3D views: images ignore them in 2D."""
    from vispy.visuals.filters.clipping_planes import PlanesClipper

    if node not in _clippers:
        _clippers[node] = PlanesClipper(coord_system="visual")
        node.attach(_clippers[node])
    # The visual's coordinates are pixels from the corner of the first; the layer's begin at the centre of that pixel.
    rows, columns = (end_um - layer.translate) / layer.scale + 0.5
    planes = np.array([[(columns, 0, 0), (-1, 0, 0)], [(0, rows, 0), (0, -1, 0)]], np.float32)
    if not np.array_equal(_clippers[node].clipping_planes, planes):
        _clippers[node].clipping_planes = planes
        node.update()
