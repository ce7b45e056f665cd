"""napari layers of slides, tissue and regions: their data, position and tag. All layers are added through this module.

A slide is in micrometres from the corner of its level-0 pixel (0, 0). So is the viewer's world, unless the view is
rotated: the affine of the slide's layer then leads from the slide to the world. napari puts the *centre* of a layer's
first pixel at `translate`. A layer with large pixels therefore needs a larger shift than one with small pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from napari_lrmil.core.geometry import Float, Mpp
from napari_lrmil.core.patching.artefacts import BLUR, BUBBLE, FOLD, KINDS, PEN, STEP
from napari_lrmil.core.slides.phantom_mark import has_phantom_mark
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.viewer.screen_pyramid import DEFAULT_CACHE_BYTES, ColourTransform, ScreenSlide, TileCache

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Layer

    from napari_lrmil.core.patching.grid import TissueGrid

TAG_KEY = "napari_lrmil"  # entry of the tag in a layer's metadata
SCREEN_KEY = "napari_lrmil_screen"  # entry of the open slide behind a layer
UNITS = ("um", "um")

LayerData = tuple[Any, dict[str, Any], str]  # napari's: data, keyword arguments, layer type
Role = Literal[
    "underlay",
    "slide",
    "attention",
    "wipe",
    "difference",
    "evidence",
    "picked",
    "drawn",
    "annotation",
    "tissue",
    "artefacts",
    "distance",
]
MAP_ROLES: tuple[Role, ...] = ("attention", "wipe", "difference")  # maps of the attention of student and teacher
Side = Literal["student", "teacher"]
RoleAndSide = tuple[Role, Side]


@dataclass(frozen=True)
class LayerTag:
    """Identity of a layer of this plugin, stored in the layer's metadata.

    Attributes
    ----------
    role
        Content of the layer; underlay, slide and attention lie in this order within a view.
    path
        The slide's file.
    mpp
        Mean µm per level-0 pixel.
    given_mpp
        µm per level-0 pixel as the user gave it; None if the file states it.
    side
        View of the layer when student and teacher are shown side by side.
    is_phantom
        Whether the slide's file says that it is a phantom.
    """

    role: Role
    path: Path
    mpp: float
    given_mpp: float | None = None
    side: Side = "student"
    is_phantom: bool = False

    def as_metadata(self) -> dict[str, Any]:
        """Return the tag as an entry of a layer's metadata, made of plain types."""
        return {
            TAG_KEY: {
                "path": str(self.path),
                "mpp": self.mpp,
                "mpp_given": self.given_mpp,
                "role": self.role,
                "side": self.side,
                "is_phantom": self.is_phantom,
            }
        }


def get_tag(layer: Layer) -> LayerTag | None:
    """Return the tag of a layer; None for a layer that is not of this plugin."""
    return read_tag(layer.metadata)


def read_tag(metadata: Mapping[str, Any]) -> LayerTag | None:
    """Return the tag in the metadata of a layer, also before it is in the viewer; None if there is none."""
    entry = metadata.get(TAG_KEY)
    if not isinstance(entry, dict):
        return None
    is_phantom = entry.get("is_phantom", False)  # absent in a layer of an earlier version
    return LayerTag(entry["role"], Path(entry["path"]), entry["mpp"], entry["mpp_given"], entry["side"], is_phantom)


def get_screen_slide(layer: Layer) -> ScreenSlide | None:
    """Return the open slide that a layer shows; None for a layer that shows no slide."""
    screen = layer.metadata.get(SCREEN_KEY)
    return screen if isinstance(screen, ScreenSlide) else None


def placement(origin_level0: tuple[float, float], pixel_level0: tuple[float, float], mpp: Mpp) -> dict[str, Any]:
    """Return the keyword arguments scale, translate and units of a layer.

    Parameters
    ----------
    origin_level0
        x and y of the layer's first corner, in level-0 pixels.
    pixel_level0
        Width and height of a pixel of the layer, in level-0 pixels.
    mpp
        µm per level-0 pixel.
    """
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
    """Return the layer of a slide, preceded by an underlay if requested.

    Parameters
    ----------
    slide
        An open slide; from now on the layers own it.
    underlay
        Whether to add a layer of the coarsest level below. With asynchronous slicing the canvas would be empty while
        tiles load.
    cache_bytes
        Upper bound of the decoded tiles of this slide in memory, for all its layers together.
    colour
        Changes the colours of the file's pixels; None leaves them.
    """
    screen = ScreenSlide(slide, TileCache(cache_bytes), colour)
    given_mpp = slide.mpp.mean if slide.mpp.source == "override" else None
    is_phantom = has_phantom_mark(slide.properties)
    layers = [_pyramid(screen, LayerTag("slide", slide.path, slide.mpp.mean, given_mpp, is_phantom=is_phantom))]
    if underlay and len(screen.levels) > 1:
        layers.insert(0, _underlay(screen, LayerTag("underlay", slide.path, slide.mpp.mean, given_mpp)))
    return layers


def _pyramid(screen: ScreenSlide, tag: LayerTag) -> LayerData:
    arrays = screen.arrays()
    options = {
        **_slide_options(screen, 0, tag),
        "multiscale": len(arrays) > 1,
        "cache": False,  # dask's cache would hold the tiles of `TileCache` a second time
        "name": screen.slide.name,
    }
    return (arrays if len(arrays) > 1 else arrays[0]), options, "image"


def _underlay(screen: ScreenSlide, tag: LayerTag) -> LayerData:
    last = len(screen.levels) - 1
    options = {**_slide_options(screen, last, tag), "cache": False, "name": f"{screen.slide.name} (overview)"}
    return screen.array(last), options, "image"


def _slide_options(screen: ScreenSlide, level: int, tag: LayerTag) -> dict[str, Any]:
    bounds = screen.slide.bounds
    return {
        "rgb": True,
        "contrast_limits": (0, 255),
        "metadata": {**tag.as_metadata(), SCREEN_KEY: screen},
        **placement((bounds.x, bounds.y), screen.pixel_level0(level), screen.slide.mpp),
    }


def copy_for_teacher_view(layer: Image) -> LayerData:
    """Return a second layer of the same slide for the teacher's view; it shares the arrays and their cache.

    Raises
    ------
    ValueError
        If the layer is not of this plugin.
    """
    tag = get_tag(layer)
    if tag is None:
        raise ValueError(f"the layer {layer.name} is not of this plugin")
    data, options, kind = layer.as_layer_data_tuple()
    names = ("rgb", "multiscale", "contrast_limits", "scale", "translate", "units", "opacity", "gamma")
    copied = {name: options[name] for name in names}
    teacher_tag = LayerTag(tag.role, tag.path, tag.mpp, tag.given_mpp, "teacher")
    metadata = {**teacher_tag.as_metadata(), SCREEN_KEY: get_screen_slide(layer)}
    return data, {**copied, "cache": False, "name": f"{layer.name} (teacher's view)", "metadata": metadata}, kind


# ---------------------------------------------------------------- layers that the user edits


# Of regions of interest, and of excluded regions. The colours of attention end in yellow, and glass is white.
REGION_EDGE, EXCLUDED_EDGE = "#000000", "#d55e00"
REGION_FACE = [0.0, 0.0, 0.0, 0.08]  # RGBA: the tissue inside a region has to stay readable


def build_region_layer(slide: LayerTag, side_um: float) -> LayerData:
    """Return an empty layer of shapes in µm, to draw regions on.

    Parameters
    ----------
    slide
        Tag of the slide's layer.
    side_um
        Longer side of the slide.
    """
    tag = LayerTag("drawn", slide.path, slide.mpp, slide.given_mpp)
    options = {
        "name": "Regions",
        "ndim": 2,
        "edge_color": REGION_EDGE,
        "face_color": REGION_FACE,
        "edge_width": max(2.0, side_um / 300),  # µm: two screen pixels if 600 of them show the slide's longer side
        "units": UNITS,
        "metadata": tag.as_metadata(),
    }
    return [], options, "shapes"


def build_tissue_layer(tissue_grid: TissueGrid, slide: LayerTag) -> LayerData:
    """Return the tissue mask of a slide as labels that the user can paint; 1 is tissue."""
    lattice, mask = tissue_grid.tissue.lattice, tissue_grid.tissue.mask
    pixel = lattice.box.width / mask.shape[1], lattice.box.height / mask.shape[0]
    tag = LayerTag("tissue", slide.path, slide.mpp, slide.given_mpp)
    options = {
        "name": "Tissue mask",
        "opacity": 0.35,
        "metadata": tag.as_metadata(),
        **placement((float(lattice.origin[0]), float(lattice.origin[1])), pixel, lattice.mpp),
    }
    return mask.astype(np.uint8), options, "labels"


ARTEFACT_COLOURS = {PEN: "#0072b2", FOLD: "#d55e00", BUBBLE: "#009e73", BLUR: "#cc79a7"}
OUTLINE_PX = 2  # pixels of the artefact masks, which are 16 µm wide


def build_artefact_layer(tissue_grid: TissueGrid, slide: LayerTag) -> LayerData:
    """Return the artefacts of a slide as outlined labels, one for each kind in the order of `KINDS`."""
    from napari.utils import DirectLabelColormap

    tissue, artefacts = tissue_grid.tissue, tissue_grid.tissue.artefacts
    masks = artefacts.masks if artefacts is not None else {}
    labels = np.zeros(tissue.mask[::STEP, ::STEP].shape, np.uint8)
    for number, kind in enumerate(KINDS, start=1):
        if kind in masks:
            rows, columns = masks[kind].shape  # the mask of the slide, of which the lattice may reach beyond it
            labels[:rows, :columns][masks[kind]] = number
    lattice = tissue.lattice
    pixel = STEP * lattice.box.width / tissue.mask.shape[1], STEP * lattice.box.height / tissue.mask.shape[0]
    tag = LayerTag("artefacts", slide.path, slide.mpp, slide.given_mpp)
    colours: dict[int | None, str] = {None: "transparent"}
    colours |= {number: ARTEFACT_COLOURS[kind] for number, kind in enumerate(KINDS, start=1)}
    options = {
        "name": "Artefacts",
        "opacity": 0.9,
        "colormap": DirectLabelColormap(color_dict=colours),
        "metadata": tag.as_metadata(),
        **placement((float(lattice.origin[0]), float(lattice.origin[1])), pixel, lattice.mpp),
    }
    return labels, options, "labels"


# ---------------------------------------------------------------- changes in the viewer


def add_layers(viewer: ViewerModel, layers: Iterable[LayerData]) -> list[Image]:
    """Add layers to the viewer, the lowest first, and return them. They are rotated like the slide that they show."""
    return [
        getattr(viewer, f"add_{kind}")(data, **options, **_rotation_options(viewer, options))
        for data, options, kind in layers
    ]


def _rotation_options(viewer: ViewerModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the affine of the slide that a layer shows as a keyword argument; none without a slide or a rotation."""
    tag = read_tag(options["metadata"])
    slides = lrmil_layers(viewer, tag.path, role="slide") if tag is not None else []
    affine = slide_affine(slides[0] if slides else None)
    return {} if np.array_equal(affine, np.eye(3)) else {"affine": affine}


def follow_rotation(viewer: ViewerModel, layer: Layer) -> None:
    """Rotate a layer of a slide like the slide itself."""
    tag = get_tag(layer)
    slides = lrmil_layers(viewer, tag.path, role="slide") if tag is not None else []
    affine = slide_affine(slides[0] if slides else None)
    if not np.array_equal(slide_affine(layer), affine):
        layer.affine = affine


def slide_affine(layer: Layer | None) -> Float:
    """Return (3, 3) the affine that leads from µm of a slide to µm of the viewer's world, row then column.

    Parameters
    ----------
    layer
        Layer of the slide; None gives the identity.
    """
    return np.eye(3) if layer is None else np.asarray(layer.affine.affine_matrix, dtype=np.float64)[-3:, -3:]


def update_layer(layer: Image, new: LayerData) -> None:
    """Change data and style of a layer to those of `new`; its position in the list and its visibility stay."""
    data, options, _ = new
    # An assignment of equal data would still make napari slice and upload it again.
    if data.shape != layer.data.shape or not np.array_equal(data, layer.data, equal_nan=True):
        layer.data = data
    for name in ("scale", "translate", "contrast_limits", "opacity", "interpolation2d", "metadata"):
        if not np.array_equal(getattr(layer, name), options[name]):  # so would that of an equal scale
            setattr(layer, name, options[name])


def lrmil_layers(viewer: ViewerModel, path: Path | None = None, **fields: str) -> list[Image]:
    """Return the layers of this plugin, the lowest first.

    Parameters
    ----------
    viewer
        The viewer.
    path
        File of the slide; None takes all slides.
    fields
        Values that fields of the tag must have, such as ``role="slide"``.
    """
    tags = [(layer, get_tag(layer)) for layer in viewer.layers]
    return [
        layer
        for layer, tag in tags
        if tag is not None
        and path in (None, tag.path)
        and all(getattr(tag, name) == value for name, value in fields.items())
    ]


def map_layers(viewer: ViewerModel, path: Path | None = None) -> list[Image]:
    """Return the maps of one slide or of all, the lowest first."""
    maps = [layer for role in MAP_ROLES for layer in lrmil_layers(viewer, path, role=role)]
    return [layer for layer in viewer.layers if layer in maps]


def slide_path(layer: Layer) -> Path | None:
    """Return the file of the slide to which a layer belongs; None for a layer of the user."""
    tag = get_tag(layer)
    return tag.path if tag else None


def recolour_slide(viewer: ViewerModel, path: Path, colour: ColourTransform | None) -> None:
    """Show a slide with other colours in all its layers; None shows the colours of the file."""
    shown = [(layer, screen) for layer in lrmil_layers(viewer, path) if (screen := get_screen_slide(layer)) is not None]
    for screen in {id(screen): screen for _, screen in shown}.values():  # several layers share one
        screen.set_colour(colour)
    for layer, _ in shown:
        layer.refresh()


def remove_layers(viewer: ViewerModel, layers: Sequence[Layer]) -> None:
    """Remove layers from the viewer; those that the user has removed already are skipped."""
    present = [layer for layer in layers if layer in viewer.layers]
    if present:
        with viewer.layers.batched_update():  # napari collects garbage once, and not with every layer
            for layer in present:
                viewer.layers.remove(layer)
