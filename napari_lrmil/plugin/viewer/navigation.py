"""Where the viewer looks: magnification, the visible part of the world, and how to get elsewhere. No Qt.

A magnification is what a pathologist calls it: at 20x a screen pixel shows 0.5 µm. The camera's zoom counts the
window's own pixels, of which a dense screen makes several real ones; `pixel_ratio` says how many along a side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_lrmil.core.geometry import MPP_TOLERANCE, BoxUm
from napari_lrmil.core.slides.resolution import POWER_TIMES_MPP
from napari_lrmil.plugin.viewer.layers import get_screen_slide, get_tag, lrmil_layers

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image
    from pint import Unit

MAGNIFICATIONS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0)
MAX_SCREEN_PX = 2  # screen pixels along a side of a slide pixel; a larger one shows nothing more


# ---------------------------------------------------------------- magnification


def um_per_pixel(magnification: float) -> float:
    """Return what a screen pixel shows, in µm."""
    return POWER_TIMES_MPP / magnification


def magnification_zoom(magnification: float, um_per_unit: float = 1.0, pixel_ratio: float = 1.0) -> float:
    """Return the camera's zoom, in window pixels per unit of the world, at which a screen pixel shows 10 / mag µm."""
    return um_per_unit / (um_per_pixel(magnification) * pixel_ratio)


def um_per_unit(viewer: ViewerModel) -> float:
    """Return the length of a unit of the viewer's world: a layer in nm beside the slide makes it 0.001 µm."""
    units = viewer.layers.extent.units
    return (unit_length_um(units[-1]) if units else None) or 1.0


def unit_length_um(unit: Unit) -> float | None:
    """Return a unit's length in µm; None where it is no length, such as pixels."""
    if not unit.is_compatible_with("um"):
        return None
    return float((1.0 * unit).to("um").magnitude)


def current_magnification(viewer: ViewerModel, pixel_ratio: float = 1.0) -> float:
    """Return the magnification at which the viewer shows the world."""
    zoom = float(viewer.scene.camera.zoom)
    return POWER_TIMES_MPP * zoom * pixel_ratio / um_per_unit(viewer)


def set_magnification(viewer: ViewerModel, magnification: float, pixel_ratio: float = 1.0) -> None:
    """Show the world at a magnification; the centre stays."""
    viewer.scene.camera.zoom = magnification_zoom(magnification, um_per_unit(viewer), pixel_ratio)


def why_magnification_unavailable(magnification: float, mpp: float | None) -> str:
    """Return why a magnification is of no use on a slide of `mpp` µm per pixel; empty where it is."""
    if mpp is None:
        return "Open a slide first."
    side = mpp / um_per_pixel(magnification)
    if side <= MAX_SCREEN_PX * (1 + MPP_TOLERANCE):
        return ""
    return (
        f"The slide has {mpp:.3g} µm per pixel at best: at {magnification:g}x each of its pixels "
        f"would cover {side:.0f} x {side:.0f} of the screen's, with nothing more to see."
    )


# ---------------------------------------------------------------- place


def fly_to(
    viewer: ViewerModel, centre_um: tuple[float, float], magnification: float | None = None, pixel_ratio: float = 1.0
) -> None:
    """Bring a point of the slide, x then y in µm, to the middle of the view; the magnification stays unless given."""
    unit = um_per_unit(viewer)
    x, y = (v / unit for v in centre_um)
    if magnification is not None:
        set_magnification(viewer, magnification, pixel_ratio)
    viewer.scene.camera.center = (viewer.scene.camera.center[0], y, x)


def visible_um(viewer: ViewerModel) -> BoxUm:
    """Return the part of the world that the canvas shows; in grid mode what each of the linked views shows.

    It may reach past the slide. Meant for two dimensions.
    """
    unit = um_per_unit(viewer)
    height, width = viewer.canvas.viewbox_size(viewer.layers)
    y, x = viewer.scene.camera.center[-2:]
    across, down = (float(v) / viewer.scene.camera.zoom * unit for v in (width, height))
    return BoxUm(x * unit - across / 2, y * unit - down / 2, across, down)


# ---------------------------------------------------------------- what is shown


def current_slide(viewer: ViewerModel) -> Image | None:
    """Return the slide layer that the user deals with: that of the active layer, else the topmost visible one."""
    active = viewer.layers.selection.active
    tag = get_tag(active) if active is not None else None
    own = lrmil_layers(viewer, tag.path, role="slide", side="student") if tag is not None else []
    shown = [layer for layer in lrmil_layers(viewer, role="slide", side="student") if layer.visible]
    return next(iter([*own, *reversed(shown)]), None)


def current_mpp(viewer: ViewerModel) -> float | None:
    """Return the finest resolution of the current slide in µm per pixel; None where there is no slide."""
    layer = current_slide(viewer)
    screen = get_screen_slide(layer) if layer is not None else None
    return screen.slide.mpp.mean if screen is not None else None


def show_scale_bar_with_slides(viewer: ViewerModel) -> None:
    """Switch the scale bar on whenever a first slide comes; its unit is that of the layers, µm."""

    def layer_came(event: Any) -> None:
        slides = lrmil_layers(viewer, role="slide", side="student")
        if slides == [event.value]:  # only with the first: a user who switched it off had a reason
            viewer.canvas.overlays.scale_bar.visible = True

    if lrmil_layers(viewer, role="slide"):
        viewer.canvas.overlays.scale_bar.visible = True
    viewer.layers.events.inserted.connect(layer_came)
