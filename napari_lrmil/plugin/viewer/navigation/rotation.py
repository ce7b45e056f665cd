"""Rotation of the view. napari's two-dimensional camera has no angle, so that the layers are rotated by their affine.

napari's own command *Rotate layers* does the same. Positions on a slide are therefore computed with the affine of its
layer, and not with a stored angle: they are right whoever rotated it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from napari_lrmil.core.geometry import Float
from napari_lrmil.plugin.viewer.layers import get_tag, slide_affine
from napari_lrmil.plugin.viewer.navigation.camera import current_slide, fly_to, unit_length_um, view_centre_um

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

ROUNDING = 1e-12  # of the numbers of a rotation; those closer to a whole number are that number


def current_rotation(viewer: ViewerModel) -> float:
    """Return the rotation of the current slide on the screen in degrees, clockwise, above -180 and up to 180."""
    return layer_rotation(current_slide(viewer))


def layer_rotation(layer: Layer | None) -> float:
    """Return the rotation of a layer of a slide as `current_rotation` does; 0 for None."""
    matrix = slide_affine(layer)
    degrees = round(math.degrees(math.atan2(matrix[0, 1], matrix[0, 0])), 6)
    return 180.0 if degrees == -180 else degrees + 0.0  # without a negative zero


def rotate_view(viewer: ViewerModel, degrees: float) -> None:
    """Rotate the current slide with all that is visible; the point in the middle of the view stays there.

    Other slides, which are hidden, keep their rotation.

    Parameters
    ----------
    viewer
        The viewer, with a slide.
    degrees
        Rotation from the slide's own orientation, clockwise.
    """
    slide = current_slide(viewer)
    tag = get_tag(slide) if slide is not None else None
    if tag is None or degrees == current_rotation(viewer):
        return
    centre, turn = view_centre_um(viewer), _rotation_matrix(degrees - current_rotation(viewer))
    for layer in viewer.layers:
        own = get_tag(layer)
        if layer.ndim >= 2 and (own is None or own.path == tag.path or layer.visible):
            _rotate_layer(layer, turn)
    camera = viewer.scene.camera
    before = camera.center
    fly_to(viewer, centre)
    if camera.center == before:  # at the slide's corner; minimap and live view have to notice the rotation
        camera.events.center(value=camera.center)


def follow_slide(viewer: ViewerModel, layer: Layer) -> None:
    """Rotate a layer that another plugin or the user has added like the current slide.

    A layer of this plugin has been rotated by `add_layers`. One with an affine of its own may be the copy of a rotated
    layer, and is left alone.
    """
    has_affine = not np.array_equal(layer.affine.affine_matrix, np.eye(layer.ndim + 1))
    matrix = slide_affine(current_slide(viewer))
    if get_tag(layer) is None and layer.ndim >= 2 and not has_affine and not np.array_equal(matrix, np.eye(3)):
        _rotate_layer(layer, matrix)


def _rotate_layer(layer: Layer, matrix: Float) -> None:
    """Apply an affine in µm, (3, 3) row then column, after that of a layer, along its last two axes."""
    part = matrix.copy()
    part[:2, 2] /= unit_length_um(layer.units[-1]) or 1.0
    full = np.eye(layer.ndim + 1)
    full[-3:, -3:] = part
    product = full @ layer.affine.affine_matrix
    nearest = np.round(product)
    layer.affine = np.where(np.abs(product - nearest) < ROUNDING, nearest, product)


def _rotation_matrix(degrees: float) -> Float:
    """Return (3, 3) the rotation about the origin, clockwise on the screen, row then column."""
    angle = math.radians(degrees)
    matrix = np.eye(3)
    matrix[:2, :2] = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    return matrix
