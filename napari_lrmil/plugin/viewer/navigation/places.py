"""Places on the current slide: positions that a user enters, links, and distances between two points. No Qt."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.slides.place_link import PlaceLink, is_link, parse_link
from napari_lrmil.plugin.viewer.layers import LayerTag, get_screen_slide, get_tag, lrmil_layers
from napari_lrmil.plugin.viewer.navigation.camera import (
    current_magnification,
    current_slide,
    fit_slide,
    fly_to,
    um_per_unit,
    view_centre_um,
    world_to_slide,
)
from napari_lrmil.plugin.viewer.navigation.rotation import current_rotation, layer_rotation, rotate_view

if TYPE_CHECKING:
    from pathlib import Path

    from napari.components import ViewerModel
    from napari.layers import Layer

    from napari_lrmil.core.slides.slide import Slide

NO_SLIDE = "open a slide first"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Place:
    """View of a slide.

    Attributes
    ----------
    centre_um
        x and y in µm of the point in the middle of the view.
    um_per_pixel
        µm per logical pixel of the screen.
    rotation
        Degrees, clockwise.
    """

    centre_um: tuple[float, float]
    um_per_pixel: float
    rotation: float


class PlaceMemory:
    """Places where the user left slides, until the window is closed.

    Parameters
    ----------
    viewer
        The viewer, which shows one slide at a time.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._places: dict[Path, Place] = {}
        self._rotation = 0.0  # of the slide that was left last

    def leave(self, path: Path) -> None:
        """Keep the place of a slide that is shown; without its layer the last place stays."""
        for layer in lrmil_layers(self._viewer, path, role="slide", side="student"):
            place = place_on(self._viewer, layer)
            self._places[path], self._rotation = place, place.rotation

    def enter(self, path: Path) -> None:
        """Return to the place where a slide was left.

        A slide that was not shown before is shown as a whole, in the rotation of the slide before: slides of one
        laboratory lie alike on the glass. It must be the current slide.
        """
        if not self.return_to(path):
            rotate_view(self._viewer, self._rotation)
            fit_slide(self._viewer, path)

    def return_to(self, path: Path) -> bool:
        """Return to the place where the current slide was left, and return whether it was shown before."""
        place = self._places.get(path)
        if place is None:
            return False
        rotate_view(self._viewer, place.rotation)
        self._viewer.scene.camera.zoom = um_per_unit(self._viewer) / place.um_per_pixel
        fly_to(self._viewer, place.centre_um)
        return True


def place_on(viewer: ViewerModel, slide: Layer) -> Place:
    """Return the place on the layer of a slide that the viewer shows."""
    zoom = float(viewer.scene.camera.zoom)
    centre = world_to_slide(viewer, viewer.scene.camera.center, slide)
    return Place(centre, um_per_unit(viewer) / zoom, layer_rotation(slide))


def go_to_text(viewer: ViewerModel, text: str, unit: str, pixel_ratio: float = 1.0) -> None:
    """Move the view to a position on the current slide, or to that of a link.

    Parameters
    ----------
    viewer
        The viewer.
    text
        ``x, y``, or a link to a place on the current slide.
    unit
        ``µm`` or ``px`` (level-0 pixels), both from the corner of level 0.
    pixel_ratio
        Device pixels per logical pixel along one side.

    Raises
    ------
    LrmilError
        If no slide is open, the text is no position, or the position is outside the slide.
    """
    slide = _shown_slide(viewer)
    if is_link(text):
        go_to_link(viewer, parse_link(text), pixel_ratio)
        return
    numbers = [float(number) for number in NUMBER.findall(text)]
    if len(numbers) != 2 or NUMBER.sub("", text).strip(" ,;\t"):
        raise LrmilError(f"'{text}' is no position; expected two numbers with decimal points, such as 12000, 8000.5")
    x, y = numbers if unit != "px" else (numbers[0] * slide.mpp.x, numbers[1] * slide.mpp.y)
    _require_inside(slide, x, y)
    fly_to(viewer, (x, y))


def go_to_link(viewer: ViewerModel, link: PlaceLink, pixel_ratio: float = 1.0) -> None:
    """Move the view to the place of a link, and rotate it as the link says; a link without rotation keeps it.

    Raises
    ------
    LrmilError
        If the current slide is another one, or the place is outside it.
    """
    slide = _shown_slide(viewer)
    if link.slide.resolve() != slide.path.resolve():
        raise LrmilError(f"the link leads to {link.slide.name}, and {slide.path.name} is shown; open that slide first")
    _require_inside(slide, link.x_um, link.y_um)
    if link.rotation:
        rotate_view(viewer, link.rotation)
    fly_to(viewer, (link.x_um, link.y_um), link.magnification, pixel_ratio)


def current_link(viewer: ViewerModel, pixel_ratio: float = 1.0) -> PlaceLink:
    """Return a link to the centre of the view at its magnification and rotation.

    Raises
    ------
    LrmilError
        If no slide is open.
    """
    slide, (x, y) = _shown_slide(viewer), view_centre_um(viewer)
    return PlaceLink(slide.path, x, y, current_magnification(viewer, pixel_ratio), current_rotation(viewer))


def current_slide_tag(viewer: ViewerModel) -> LayerTag | None:
    """Return the tag of the current slide's layer; None without a slide."""
    layer = current_slide(viewer)
    return get_tag(layer) if layer is not None else None


def format_distance(start_um: tuple[float, float], end_um: tuple[float, float]) -> str:
    """Return the distance between two points of the slide as text.

    Parameters
    ----------
    start_um, end_um
        x and y in µm.
    """
    distance = math.dist(start_um, end_um)
    return f"{distance:,.1f} µm" if distance < 1000 else f"{distance / 1000:,.3f} mm"


def _shown_slide(viewer: ViewerModel) -> Slide:
    layer = current_slide(viewer)
    screen = get_screen_slide(layer) if layer is not None else None
    if screen is None:
        raise LrmilError(NO_SLIDE)
    return screen.slide


def _require_inside(slide: Slide, x: float, y: float) -> None:
    width, height = slide.width * slide.mpp.x, slide.height * slide.mpp.y
    if not (0 <= x <= width and 0 <= y <= height):
        raise LrmilError(
            f"x {x:,.0f} µm, y {y:,.0f} µm is outside {slide.path.name}; "
            f"expected 0 to {width:,.0f} and 0 to {height:,.0f}"
        )
