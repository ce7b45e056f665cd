"""Ordinary RGB images as slides of one level, so that they can be analysed like any slide."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.viewer.layers import (
    add_layers,
    build_slide_layers,
    get_screen_slide,
    get_tag,
    lrmil_layers,
    remove_layers,
)
from napari_lrmil.plugin.viewer.navigation.camera import unit_length_um
from napari_lrmil.plugin.viewer.opening.mpp_prompt import AskMpp, resolve_mpp
from napari_lrmil.plugin.viewer.opening.reader import slices_asynchronously

if TYPE_CHECKING:
    from napari import layers
    from napari.components import ViewerModel

PICTURE_VENDOR = "picture"  # stands where OpenSlide names the scanner's vendor
ROWS_PER_HASH = 512  # a lazy array is loaded piece by piece


class LayerArray(Protocol):
    """Data of an image layer: (height, width, 3 or 4) uint8, from NumPy, dask, zarr or others."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102
    def __getitem__(self, item: Any) -> Any: ...


class ArrayHandle:
    """Array with the interface of an OpenSlide handle; outside the array it is transparent.

    Parameters
    ----------
    array
        (height, width, 3 or 4) uint8.
    properties
        Properties with OpenSlide's names.
    """

    level_downsamples = (1.0,)

    def __init__(self, array: LayerArray, properties: Mapping[str, str]) -> None:
        self._array = array
        self.properties = properties
        self.dimensions = (array.shape[1], array.shape[0])
        self.level_dimensions = (self.dimensions,)
        self.associated_images: Mapping[str, Any] = {}
        self.color_profile = None

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Return a rectangle as RGBA; `location` is x, y and `size` is width, height, both in pixels."""
        (x, y), (width, height) = location, size
        out = np.zeros((height, width, 4), np.uint8)
        left, top = max(0, x), max(0, y)
        right, bottom = min(self.dimensions[0], x + width), min(self.dimensions[1], y + height)
        if right > left and bottom > top:
            part = np.asarray(self._array[top:bottom, left:right])
            target = out[top - y : bottom - y, left - x : right - x]
            target[..., 3] = 255  # opaque, unless the array has an alpha channel
            target[..., : part.shape[2]] = part
        return Image.fromarray(out, "RGBA")

    def close(self) -> None:
        """Do nothing: the handle holds no file."""


@dataclass(frozen=True, eq=False)  # == of arrays gives an array, not a truth value
class ArrayOpener:
    """Opener of a `Slide` that returns an array instead of a file.

    Attributes
    ----------
    array
        (height, width, 3 or 4) uint8.
    mpp
        µm per pixel along x and y; None if the layer does not state it.
    """

    array: LayerArray
    mpp: tuple[float, float] | None = None

    def __call__(self, path: Path) -> ArrayHandle:
        """Return a handle; `path` is only the name of the slide."""
        properties = {"openslide.vendor": PICTURE_VENDOR, "openslide.quickhash-1": self.fingerprint}
        if self.mpp is not None:
            properties |= {"openslide.mpp-x": repr(self.mpp[0]), "openslide.mpp-y": repr(self.mpp[1])}
        return ArrayHandle(self.array, properties)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the shape and of every byte."""
        digest = hashlib.sha256(repr(tuple(self.array.shape)).encode())
        for row in range(0, self.array.shape[0], ROWS_PER_HASH):
            digest.update(np.ascontiguousarray(self.array[row : row + ROWS_PER_HASH]).tobytes())
        return digest.hexdigest()


# ---------------------------------------------------------------- from layers


def why_not_a_slide(layer: layers.Layer) -> str:
    """Return in one sentence why a layer cannot be used as a slide; empty if it can."""
    if get_tag(layer) is not None:
        return f"{layer.name} is a slide's layer already."
    kind = type(layer).__name__
    if kind != "Image":
        return f"{layer.name} is a {kind} layer; expected an RGB image layer."
    if not layer.rgb:
        return (
            f"{layer.name} is a grey image of {_format_shape(_finest_array(layer).shape)}; expected RGB. Stains cannot "
            "be told apart without colour: open the colour image."
        )
    array = _finest_array(layer)
    if len(array.shape) != 3:
        shape = _format_shape(array.shape[:-1])
        return f"{layer.name} is a stack of {shape} pixels; expected one plane of RGB: split it."
    if array.dtype != np.uint8:
        return f"{layer.name} holds {array.dtype} values; expected 8 bits per colour, 0 to 255: convert it to uint8."
    return ""


def slide_from_layer(layer: layers.Image, mpp: float | None = None) -> Slide:
    """Return an ordinary image layer as a slide of one level.

    Parameters
    ----------
    layer
        The layer.
    mpp
        µm per pixel; None takes the scale of the layer, if its unit is a length.

    Raises
    ------
    SlideError
        If the layer is not an 8-bit RGB image.
    """
    reason, path = why_not_a_slide(layer), _layer_path(layer)
    if reason:
        raise SlideError(path, reason)
    return Slide(path, mpp=mpp, opener=ArrayOpener(_finest_array(layer), _layer_mpp(layer)))


def replace_with_slide(
    viewer: ViewerModel, layer: layers.Image, ask: AskMpp, memory: SettingsStore | None = None
) -> list[layers.Image]:
    """Replace an ordinary image layer by the layers of a slide, and return them.

    Parameters
    ----------
    viewer
        Viewer of the layer.
    layer
        The layer.
    ask
        Asks for the resolution if the layer does not state it.
    memory
        Store of earlier answers.

    Returns
    -------
    list
        Empty if the user cancels; the layer stays then.

    Raises
    ------
    SlideError
        If the layer is not an 8-bit RGB image.
    """
    slide = slide_from_layer(layer)
    mpp = resolve_mpp(slide, ask, memory)
    if mpp is None:
        return []
    if not slide.has_mpp:
        slide = slide_from_layer(layer, mpp)
    # Before the removal: napari resets the view when a layer is added to an empty viewer.
    added = add_layers(viewer, build_slide_layers(slide, underlay=slices_asynchronously()))
    remove_layers(viewer, [layer])
    return added


def make_slide_opener(viewer: ViewerModel) -> Callable[[Path, float | None], Slide]:
    """Return a function that opens a slide for analysis: its file, or the array of an image that became a slide."""

    def open_slide(path: Path, mpp: float | None) -> Slide:
        for layer in lrmil_layers(viewer, path, role="slide"):
            screen = get_screen_slide(layer)
            if screen is not None and screen.slide.vendor == PICTURE_VENDOR:
                return screen.slide.another(mpp)
        return Slide(path, mpp=mpp)

    return open_slide


def _finest_array(layer: layers.Image) -> LayerArray:
    array: LayerArray = layer.data[0] if layer.multiscale else layer.data
    return array


def _layer_path(layer: layers.Layer) -> Path:
    """Return the file of a layer, or a path made of its name; it names the slide in result files."""
    source = layer.source.path
    return Path(source) if source else Path(layer.name.replace("/", "_"))


def _layer_mpp(layer: layers.Image) -> tuple[float, float] | None:
    """Return µm per pixel, x then y; None if the units of the layer are not lengths, such as pixels."""
    y, x = (unit_length_um(unit) for unit in layer.units[-2:])
    if x is None or y is None:
        return None
    return x * float(layer.scale[-1]), y * float(layer.scale[-2])


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
