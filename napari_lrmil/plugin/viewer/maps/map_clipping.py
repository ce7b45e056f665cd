"""Clipping of maps to their slide: the last patches of a slide may reach beyond its pixels.

Patches lie on a lattice from the slide's first corner, so those at the right and lower edge can read white from beyond
it. A map has one pixel per patch. Only its picture is cut: the values, and the size of a patch, stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_lrmil.core.geometry import Float
from napari_lrmil.plugin.viewer.layers import MAP_ROLES, get_screen_slide, lrmil_layers
from napari_lrmil.plugin.viewer.maps.image_shader import add_part, find_visual

if TYPE_CHECKING:
    from napari.components import ViewerModel

CLIP = """
void clip_to_slide() {
    vec2 place = $to_pixels($position).xy;
    if (place.x > $end.x || place.y > $end.y)
        discard;
}
"""


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
            visual = find_visual(viewer, layer)
            if visual is not None:
                # A layer's coordinates begin at the centre of its first pixel, those of a shader at its corner.
                rows, columns = (end_um - layer.translate) / layer.scale + 0.5
                add_part(visual, CLIP, fhook="pre")["end"] = float(columns), float(rows)
                visual.update()


def _lower_right_um(viewer: ViewerModel, path: Path) -> Float | None:
    """Return y and x of the end of a slide in µm; None without a layer of it."""
    for layer in lrmil_layers(viewer, path, role="slide"):
        screen = get_screen_slide(layer)
        if screen is not None:
            bounds, mpp = screen.slide.bounds, screen.slide.mpp
            return np.array([(bounds.y + bounds.height) * mpp.y, (bounds.x + bounds.width) * mpp.x])
    return None
