"""What layers look like: slides, attention, and where they lie in the viewer's world. Only this file adds layers.

The world is micrometres from the corner of the slide's level-0 pixel (0, 0). napari puts the *centre* of a layer's
first pixel at `translate`, so a layer of large pixels needs a larger shift than one of small pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_lrmil.core.geometry import Mpp
from napari_lrmil.core.slide import Slide
from napari_lrmil.plugin.tiles import ScreenSlide

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Layer

    from napari_lrmil.core.predict import Prediction, Reading

KEY = "napari_lrmil"  # our entry in a layer's metadata
UNITS = ("um", "um")
OPACITY = 0.5  # the tissue has to stay readable where attention is low, which is dark

LayerData = tuple[Any, dict[str, Any], str]
Role = Literal["underlay", "slide", "attention"]
Side = Literal["student", "teacher"]


@dataclass(frozen=True)
class Tag:
    """What a layer of ours is.

    Attributes
    ----------
    role
        Drawing order within a view: the coarse underlay, the slide, the attention.
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
            KEY: {
                "path": str(self.path),
                "mpp": self.mpp,
                "mpp_given": self.given_mpp,
                "role": self.role,
                "side": self.side,
            }
        }


def tag_of(layer: Layer) -> Tag | None:
    """Return what a layer of ours is; None for any other layer."""
    found = layer.metadata.get(KEY)
    if not isinstance(found, dict):
        return None
    return Tag(found["role"], Path(found["path"]), found["mpp"], found["mpp_given"], found["side"])


def placement(origin_level0: tuple[float, float], pixel_level0: tuple[float, float], mpp: Mpp) -> dict[str, Any]:
    """Return scale, translate and units of a layer whose first corner is a level-0 pixel; arguments are x, y."""
    (x, y), (width, height) = origin_level0, pixel_level0
    return {
        "scale": (height * mpp.y, width * mpp.x),
        "translate": ((y + height / 2) * mpp.y, (x + width / 2) * mpp.x),
        "units": UNITS,
    }


# ---------------------------------------------------------------- slides


def slide_layers(slide: Slide, *, underlay: bool) -> list[LayerData]:
    """Return the layer of a slide, and under it its coarsest level where asked.

    Parameters
    ----------
    slide
        An open slide; the layers own it from now on.
    underlay
        Asynchronous slicing leaves the canvas bare while tiles load, unless something coarse lies beneath.
    """
    screen = ScreenSlide(slide)
    given = slide.mpp.mean if slide.mpp.source == "override" else None
    tag = Tag("slide", slide.path, slide.mpp.mean, given)
    found = [_pyramid(screen, tag)]
    if underlay and len(screen.levels) > 1:
        found.insert(0, _underlay(screen, Tag("underlay", slide.path, slide.mpp.mean, given)))
    return found


def _pyramid(screen: ScreenSlide, tag: Tag) -> LayerData:
    options = {"multiscale": len(screen.levels) > 1, "cache": False, **_look(screen, 0, tag), "name": screen.slide.name}
    arrays = screen.arrays()
    return (arrays if len(arrays) > 1 else arrays[0]), options, "image"


def _underlay(screen: ScreenSlide, tag: Tag) -> LayerData:
    last = len(screen.levels) - 1
    return (
        screen.array(last),
        {**_look(screen, last, tag), "cache": False, "name": f"{screen.slide.name} (overview)"},
        "image",
    )


def _look(screen: ScreenSlide, level: int, tag: Tag) -> dict[str, Any]:
    bounds = screen.slide.bounds
    return {
        "rgb": True,
        "contrast_limits": (0, 255),
        "metadata": tag.as_metadata(),
        **placement((bounds.x, bounds.y), screen.pixel_level0(level), screen.slide.mpp),
    }


def twin(layer: Image) -> LayerData:
    """Return a second layer of the same slide for the teacher's view; it shares the arrays and their cache."""
    tag = _tagged(layer)
    data, options, kind = layer.as_layer_data_tuple()
    kept = {
        k: options[k]
        for k in ("rgb", "multiscale", "contrast_limits", "scale", "translate", "units", "opacity", "gamma")
    }
    other = Tag(tag.role, tag.path, tag.mpp, tag.given_mpp, "teacher")
    return (
        data,
        {**kept, "cache": False, "name": f"{layer.name} (teacher's view)", "metadata": other.as_metadata()},
        kind,
    )


def _tagged(layer: Layer) -> Tag:
    tag = tag_of(layer)
    if tag is None:
        raise ValueError(f"the layer {layer.name} is none of ours")
    return tag


# ---------------------------------------------------------------- attention


def attention_layers(prediction: Prediction, mpp: float, given_mpp: float | None) -> dict[Side, LayerData]:
    """Return the attention of the student, and of the teacher where it ran, with the same colour limits."""
    from napari_lrmil.core.overlay import limits

    readings: dict[Side, Reading] = {"student": prediction.student}
    if prediction.teacher is not None:
        readings["teacher"] = prediction.teacher
    colours = limits(list(readings.values()))
    made: dict[Side, LayerData] = {}
    for side, reading in readings.items():
        tag = Tag("attention", prediction.path, mpp, given_mpp, side)
        made[side] = _attention(reading, prediction.grid.lattice.mpp, tag, colours)
    return made


TITLES: dict[Side, str] = {"student": "Student (LR)", "teacher": "Teacher (HR)"}


def _attention(reading: Reading, mpp: Mpp, tag: Tag, colours: tuple[float, float]) -> LayerData:
    from napari_lrmil.core.overlay import COLORMAP, heatmap

    heat = heatmap(reading)
    options = {
        "name": f"{TITLES[tag.side]} attention",
        "colormap": COLORMAP,
        "contrast_limits": colours,
        "opacity": OPACITY,
        "blending": "translucent",
        "interpolation2d": "nearest",
        "metadata": tag.as_metadata(),
        **placement(heat.origin_level0, heat.pixel_level0, mpp),
    }
    return heat.image, options, "image"


# ---------------------------------------------------------------- adding


def add(viewer: ViewerModel, made: Iterable[LayerData]) -> list[Image]:
    """Add layers to the viewer, in drawing order, and return them."""
    return [viewer.add_image(data, **options) for data, options, _ in made]


def ours(viewer: ViewerModel, path: Path | None = None, **wanted: str) -> list[Image]:
    """Return our layers, bottom first, of one slide or of all, whose tag has the wanted fields."""
    tags = [(layer, tag_of(layer)) for layer in viewer.layers]
    return [
        layer
        for layer, tag in tags
        if tag is not None and path in (None, tag.path) and all(getattr(tag, k) == v for k, v in wanted.items())
    ]


def remove(viewer: ViewerModel, layers: Sequence[Layer]) -> None:
    """Remove layers that are still there."""
    for layer in layers:
        if layer in viewer.layers:
            viewer.layers.remove(layer)
