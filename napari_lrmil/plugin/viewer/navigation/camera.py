"""Magnification, position and visible part of the viewer, and functions that change them. No Qt.

Magnification has the pathologist's meaning: at 20x a screen pixel shows 0.5 µm. The camera's zoom counts logical
pixels, and one of them has several device pixels on a high-resolution screen. `pixel_ratio` is their number per side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_lrmil.core.geometry import MPP_TOLERANCE, BoxUm, Float
from napari_lrmil.core.slides.resolution import POWER_TIMES_MPP
from napari_lrmil.plugin.viewer.layers import get_screen_slide, get_tag, lrmil_layers, slide_affine

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Layer
    from pint import Unit

MAGNIFICATIONS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0)
MAX_SCREEN_PX = 2  # screen pixels along the side of a slide pixel; a larger zoom shows no further detail
EDGE_TOLERANCE = 0.01  # of half a view, by which a slide that is in it may reach beyond it


# ---------------------------------------------------------------- magnification


def um_per_pixel(magnification: float) -> float:
    """Return the µm that a screen pixel shows at a magnification."""
    return POWER_TIMES_MPP / magnification


def magnification_zoom(magnification: float, um_per_unit: float = 1.0, pixel_ratio: float = 1.0) -> float:
    """Return the camera's zoom for a magnification.

    Parameters
    ----------
    magnification
        Nominal, such as 20 for 0.5 µm per screen pixel.
    um_per_unit
        Length of a unit of the viewer's world.
    pixel_ratio
        Device pixels per logical pixel along one side.

    Returns
    -------
    float
        Logical pixels per unit of the world.
    """
    return um_per_unit / (um_per_pixel(magnification) * pixel_ratio)


def um_per_unit(viewer: ViewerModel) -> float:
    """Return the length of a unit of the viewer's world in µm; a second layer in nm makes it 0.001."""
    units = viewer.layers.extent.units
    # 1.0 without layers, or with layers in pixels only: slides bring µm.
    return (unit_length_um(units[-1]) if units else None) or 1.0


def unit_length_um(unit: Unit) -> float | None:
    """Return the length of a unit in µm; None if it is not a length, such as pixels."""
    if not unit.is_compatible_with("um"):
        return None
    return float((1.0 * unit).to("um").magnitude)


def current_magnification(viewer: ViewerModel, pixel_ratio: float = 1.0) -> float:
    """Return the magnification at which the viewer shows the world."""
    zoom = float(viewer.scene.camera.zoom)
    return POWER_TIMES_MPP * zoom * pixel_ratio / um_per_unit(viewer)


def set_magnification(viewer: ViewerModel, magnification: float, pixel_ratio: float = 1.0) -> None:
    """Show the world at a magnification; the centre does not change."""
    viewer.scene.camera.zoom = magnification_zoom(magnification, um_per_unit(viewer), pixel_ratio)


def why_magnification_unavailable(magnification: float, mpp: float | None) -> str:
    """Return why a magnification is not useful on a slide; empty if it is.

    Parameters
    ----------
    magnification
        The magnification.
    mpp
        Finest µm per pixel of the slide; None if no slide is open.
    """
    if mpp is None:
        return "Open a slide first."
    side = mpp / um_per_pixel(magnification)
    if side <= MAX_SCREEN_PX * (1 + MPP_TOLERANCE):
        return ""
    return (
        f"The slide has {mpp:.3g} µm per pixel at best: at {magnification:g}x each of its pixels "
        f"would cover {side:.0f} x {side:.0f} of the screen's, with nothing more to see."
    )


# ---------------------------------------------------------------- position


def fly_to(
    viewer: ViewerModel, centre_um: tuple[float, float], magnification: float | None = None, pixel_ratio: float = 1.0
) -> None:
    """Move a point of the slide to the centre of the view.

    Parameters
    ----------
    viewer
        The viewer.
    centre_um
        x and y in µm.
    magnification
        New magnification; None keeps the present one.
    pixel_ratio
        Device pixels per logical pixel along one side.
    """
    if magnification is not None:
        set_magnification(viewer, magnification, pixel_ratio)
    y, x = _slide_to_world(viewer, centre_um) / um_per_unit(viewer)
    viewer.scene.camera.center = (viewer.scene.camera.center[0], float(y), float(x))


def fit_slide(viewer: ViewerModel, path: Path) -> None:
    """Show all of a slide; napari's own function would make room for the hidden slides too."""
    layers = lrmil_layers(viewer, path, role="slide", side="student")
    if layers:
        viewer.reset_view(layers=layers)


def shows_whole_slide(viewer: ViewerModel) -> bool:
    """Return whether all of the current slide is in the view, which may be rotated; False without a slide."""
    layer = current_slide(viewer)
    screen = get_screen_slide(layer) if layer is not None else None
    if screen is None:
        return False
    bounds, mpp = screen.slide.bounds, screen.slide.mpp
    x, y = np.array([bounds.x, bounds.x + bounds.width]) * mpp.x, np.array([bounds.y, bounds.y + bounds.height]) * mpp.y
    corners = np.array([_slide_to_world(viewer, (float(a), float(b))) for a in x for b in y])
    distance = np.abs(corners / um_per_unit(viewer) - viewer.scene.camera.center[-2:])
    half = np.asarray(viewer.canvas.viewbox_size(viewer.layers)) / float(viewer.scene.camera.zoom) / 2
    return bool((distance <= half * (1 + EDGE_TOLERANCE)).all())


def view_centre_um(viewer: ViewerModel) -> tuple[float, float]:
    """Return x and y in µm of the point of the current slide that is in the middle of the view."""
    return world_to_slide(viewer, viewer.scene.camera.center)


def world_to_slide(viewer: ViewerModel, position: Sequence[float], slide: Layer | None = None) -> tuple[float, float]:
    """Return x and y in µm on a slide of a position in the viewer's world.

    Parameters
    ----------
    viewer
        The viewer.
    position
        Row and column in units of the world, after other axes, as napari's events state it.
    slide
        Layer of the slide; None takes the current one.
    """
    matrix = np.linalg.inv(slide_affine(current_slide(viewer) if slide is None else slide))
    y, x = matrix[:2, :2] @ (np.asarray(position[-2:]) * um_per_unit(viewer)) + matrix[:2, 2]
    return float(x), float(y)


def _slide_to_world(viewer: ViewerModel, point_um: tuple[float, float]) -> Float:
    """Return row and column in µm of the world of a point of the current slide, x and y."""
    matrix = slide_affine(current_slide(viewer))
    world: Float = matrix[:2, :2] @ np.asarray(point_um[::-1], dtype=np.float64) + matrix[:2, 2]
    return world


def visible_outline_um(viewer: ViewerModel) -> Float:
    """Return (4, 2) x and y in µm of the corners of the visible part, around it from the top left of the screen.

    In grid mode it is the part that each of the linked views shows. It may extend beyond the slide. It holds for a
    two-dimensional view only.
    """
    height, width = viewer.canvas.viewbox_size(viewer.layers)  # of one cell in grid mode
    down, across = (float(side) / viewer.scene.camera.zoom * um_per_unit(viewer) / 2 for side in (height, width))
    x, y = view_centre_um(viewer)
    corners = np.array([(-down, -across), (-down, across), (down, across), (down, -across)])
    turned = corners @ np.linalg.inv(slide_affine(current_slide(viewer))[:2, :2]).T
    outline: Float = turned[:, ::-1] + (x, y)
    return outline


def visible_um(viewer: ViewerModel) -> BoxUm:
    """Return the part of the slide that is visible; in a rotated view, the smallest box around it."""
    outline = visible_outline_um(viewer)
    (x, y), (width, height) = outline.min(axis=0), np.ptp(outline, axis=0)
    return BoxUm(float(x), float(y), float(width), float(height))


# ---------------------------------------------------------------- current slide


def current_slide(viewer: ViewerModel) -> Image | None:
    """Return the layer of the current slide; None without slides.

    It is that of the active layer if it is visible, else the topmost visible one, else that of the active layer.
    """
    active = viewer.layers.selection.active
    tag = get_tag(active) if active is not None else None
    of_active = lrmil_layers(viewer, tag.path, role="slide", side="student") if tag is not None else []
    visible = [layer for layer in lrmil_layers(viewer, role="slide", side="student") if layer.visible]
    seen = [layer for layer in of_active if layer in visible]
    return next(iter([*seen, *reversed(visible), *of_active]), None)


def current_mpp(viewer: ViewerModel) -> float | None:
    """Return the finest µm per pixel of the current slide; None if there is no slide."""
    layer = current_slide(viewer)
    screen = get_screen_slide(layer) if layer is not None else None
    return screen.slide.mpp.mean if screen is not None else None


def show_scale_bar_with_slides(viewer: ViewerModel) -> None:
    """Show the scale bar whenever a first slide is added; its unit is that of the layers, µm."""

    def on_inserted(event: Any) -> None:
        slides = lrmil_layers(viewer, role="slide", side="student")
        if slides == [event.value]:  # not with a second slide: the user may have hidden the scale bar in between
            viewer.canvas.overlays.scale_bar.visible = True

    if lrmil_layers(viewer, role="slide"):
        viewer.canvas.overlays.scale_bar.visible = True
    viewer.layers.events.inserted.connect(on_inserted)
