"""What layers look like: slides, attention, and where they lie in the viewer's world. Only this file adds layers.

The world is micrometres from the corner of the slide's level-0 pixel (0, 0). napari puts the *centre* of a layer's
first pixel at `translate`, so a layer of large pixels needs a larger shift than one of small pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from napari_lrmil.core.geometry import Mpp
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.viewer.screen_pyramid import DEFAULT_CACHE_BYTES, ColourTransform, ScreenSlide, TileCache

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Layer

    from napari_lrmil.core.patching.grid import TissueGrid

TAG_KEY = "napari_lrmil"  # our entry in a layer's metadata
SCREEN_KEY = "napari_lrmil_screen"  # the open slide behind a layer
UNITS = ("um", "um")

LayerData = tuple[Any, dict[str, Any], str]
Role = Literal["underlay", "slide", "attention", "wipe", "difference", "evidence", "picked", "drawn", "tissue"]
MAP_ROLES: tuple[Role, ...] = ("attention", "wipe", "difference")  # what student and teacher gave to the patches
Side = Literal["student", "teacher"]
RoleAndSide = tuple[Role, Side]


@dataclass(frozen=True)
class LayerTag:
    """What a layer of ours is.

    Attributes
    ----------
    role
        What it shows; underlay, slide and attention lie in this order within a view.
    path
        The slide's file.
    mpp
        Mean µm per level-0 pixel.
    given_mpp
        The resolution that the user gave in place of the file's, if any.
    side
        The view to which it belongs when student and teacher lie side by side.
    """

    role: Role
    path: Path
    mpp: float
    given_mpp: float | None = None
    side: Side = "student"

    def as_metadata(self) -> dict[str, Any]:
        """Return the tag as an entry of a layer's metadata."""
        return {
            TAG_KEY: {
                "path": str(self.path),
                "mpp": self.mpp,
                "mpp_given": self.given_mpp,
                "role": self.role,
                "side": self.side,
            }
        }


def get_tag(layer: Layer) -> LayerTag | None:
    """Return what a layer of ours is; None for any other layer."""
    found = layer.metadata.get(TAG_KEY)
    if not isinstance(found, dict):
        return None
    return LayerTag(found["role"], Path(found["path"]), found["mpp"], found["mpp_given"], found["side"])


def get_screen_slide(layer: Layer) -> ScreenSlide | None:
    """Return the open slide that a layer shows; None for layers that show none."""
    found = layer.metadata.get(SCREEN_KEY)
    return found if isinstance(found, ScreenSlide) else None


def placement(origin_level0: tuple[float, float], pixel_level0: tuple[float, float], mpp: Mpp) -> dict[str, Any]:
    """Return scale, translate and units of a layer whose first corner is a level-0 pixel; arguments are x, y."""
    (x, y), (width, height) = origin_level0, pixel_level0
    return {
        "scale": (height * mpp.y, width * mpp.x),
        "translate": ((y + height / 2) * mpp.y, (x + width / 2) * mpp.x),
        "units": UNITS,
    }


# ---------------------------------------------------------------- slides


def build_slide_layers(
    slide: Slide, *, underlay: bool, cache_bytes: int = DEFAULT_CACHE_BYTES, colour: ColourTransform | None = None
) -> list[LayerData]:
    """Return the layer of a slide, and under it its coarsest level where asked.

    Parameters
    ----------
    slide
        An open slide; the layers own it from now on.
    underlay
        Asynchronous slicing leaves the canvas bare while tiles load, unless something coarse lies beneath.
    cache_bytes
        The most that decoded tiles of this slide may take, all its layers together.
    colour
        Changes the colours of what the file holds.
    """
    screen = ScreenSlide(slide, TileCache(cache_bytes), colour)
    given = slide.mpp.mean if slide.mpp.source == "override" else None
    tag = LayerTag("slide", slide.path, slide.mpp.mean, given)
    found = [_pyramid(screen, tag)]
    if underlay and len(screen.levels) > 1:
        found.insert(0, _underlay(screen, LayerTag("underlay", slide.path, slide.mpp.mean, given)))
    return found


def _pyramid(screen: ScreenSlide, tag: LayerTag) -> LayerData:
    options = {"multiscale": len(screen.levels) > 1, "cache": False, **_look(screen, 0, tag), "name": screen.slide.name}
    arrays = screen.arrays()
    return (arrays if len(arrays) > 1 else arrays[0]), options, "image"


def _underlay(screen: ScreenSlide, tag: LayerTag) -> LayerData:
    last = len(screen.levels) - 1
    return (
        screen.array(last),
        {**_look(screen, last, tag), "cache": False, "name": f"{screen.slide.name} (overview)"},
        "image",
    )


def _look(screen: ScreenSlide, level: int, tag: LayerTag) -> dict[str, Any]:
    bounds = screen.slide.bounds
    return {
        "rgb": True,
        "contrast_limits": (0, 255),
        "metadata": {**tag.as_metadata(), SCREEN_KEY: screen},
        **placement((bounds.x, bounds.y), screen.pixel_level0(level), screen.slide.mpp),
    }


def copy_for_teacher_view(layer: Image) -> LayerData:
    """Return a second layer of the same slide for the teacher's view; it shares the arrays and their cache."""
    tag = _tagged(layer)
    data, options, kind = layer.as_layer_data_tuple()
    kept = {
        k: options[k]
        for k in ("rgb", "multiscale", "contrast_limits", "scale", "translate", "units", "opacity", "gamma")
    }
    other = LayerTag(tag.role, tag.path, tag.mpp, tag.given_mpp, "teacher")
    metadata = {**other.as_metadata(), SCREEN_KEY: get_screen_slide(layer)}
    return (
        data,
        {**kept, "cache": False, "name": f"{layer.name} (teacher's view)", "metadata": metadata},
        kind,
    )


def _tagged(layer: Layer) -> LayerTag:
    tag = get_tag(layer)
    if tag is None:
        raise ValueError(f"the layer {layer.name} is none of ours")
    return tag


# ---------------------------------------------------------------- drawn by hand


REGION_EDGE, EXCLUDED_EDGE = "#ffcc33", "#d55e00"  # edges of what is asked about, and of what is left out


def build_region_layer(slide: LayerTag, width_um: float) -> LayerData:
    """Return an empty layer of shapes, in µm, to draw regions of a slide of that width on."""
    tag = LayerTag("drawn", slide.path, slide.mpp, slide.given_mpp)
    options = {
        "name": "Regions",
        "ndim": 2,
        "edge_color": REGION_EDGE,
        "face_color": [1.0, 0.8, 0.2, 0.12],
        "edge_width": max(2.0, width_um / 600),  # two pixels of a screen on which the slide is seen as a whole
        "units": UNITS,
        "metadata": tag.as_metadata(),
    }
    return [], options, "shapes"


def build_tissue_layer(ground: TissueGrid, slide: LayerTag) -> LayerData:
    """Return a slide's tissue mask as labels that can be painted: 1 is tissue."""
    lattice, mask = ground.tissue.lattice, ground.tissue.mask
    pixel = lattice.box.width / mask.shape[1], lattice.box.height / mask.shape[0]
    tag = LayerTag("tissue", slide.path, slide.mpp, slide.given_mpp)
    options = {
        "name": "Tissue (paint 1, erase 0)",
        "opacity": 0.35,
        "metadata": tag.as_metadata(),
        **placement((float(lattice.origin[0]), float(lattice.origin[1])), pixel, lattice.mpp),
    }
    return mask.astype(np.uint8), options, "labels"


# ---------------------------------------------------------------- adding


def add_layers(viewer: ViewerModel, made: Iterable[LayerData]) -> list[Image]:
    """Add layers to the viewer, in drawing order, and return them."""
    return [getattr(viewer, f"add_{kind}")(data, **options) for data, options, kind in made]


def update_layer(layer: Image, made: LayerData) -> None:
    """Let a layer show what `made` says; its place in the list, and whether it is shown, stay."""
    data, options, _ = made
    if data.shape != layer.data.shape or not np.array_equal(data, layer.data, equal_nan=True):
        layer.data = data
    for name in ("scale", "translate", "contrast_limits", "opacity", "interpolation2d", "metadata"):
        setattr(layer, name, options[name])


def lrmil_layers(viewer: ViewerModel, path: Path | None = None, **wanted: str) -> list[Image]:
    """Return our layers, bottom first, of one slide or of all, whose tag has the wanted fields."""
    tags = [(layer, get_tag(layer)) for layer in viewer.layers]
    return [
        layer
        for layer, tag in tags
        if tag is not None and path in (None, tag.path) and all(getattr(tag, k) == v for k, v in wanted.items())
    ]


def recolour_slide(viewer: ViewerModel, path: Path, colour: ColourTransform | None) -> None:
    """Show a slide in other colours, or as the file has them, in all its layers."""
    shown = [(layer, screen) for layer in lrmil_layers(viewer, path) if (screen := get_screen_slide(layer)) is not None]
    for screen in {id(screen): screen for _, screen in shown}.values():
        screen.set_colour(colour)
    for layer, _ in shown:
        layer.refresh()


def remove_layers(viewer: ViewerModel, layers: Sequence[Layer]) -> None:
    """Remove layers that are still there."""
    for layer in layers:
        if layer in viewer.layers:
            viewer.layers.remove(layer)
