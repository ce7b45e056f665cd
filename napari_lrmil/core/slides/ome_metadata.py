"""OME metadata: images of an OME-XML text, and attributes of Zarr folders (NGFF 0.4 and 0.5), read without `zarr`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

NOT_THE_SLIDE = re.compile(r"label|macro|overview|thumb|barcode", re.IGNORECASE)  # names of images beside the slide
METADATA = ("zarr.json", ".zattrs")  # of NGFF 0.5, and of 0.4
_RGB_NAMES = (("red", "green", "blue"), ("r", "g", "b"), ("", "", ""))


@dataclass(frozen=True)
class OmeImage:
    """One image of an OME file.

    Attributes
    ----------
    name
        Name of the image; it can be empty.
    width, height
        Size of its finest level in pixels.
    um
        Pixel size in µm across and down; None if it is not stated or its unit is no length.
    channels
        Names of the channels.
    """

    name: str
    width: int
    height: int
    um: tuple[float, float] | None
    channels: tuple[str, ...]

    @property
    def is_rgb_by_name(self) -> bool:
        """Whether the channels are red, green and blue, or have no names."""
        return tuple(name.lower() for name in self.channels) in _RGB_NAMES


def parse_ome_xml(text: str) -> tuple[OmeImage, ...]:
    """Return the images of an OME-XML text in its order; none if it is not well-formed."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(text.strip("\0 \r\n\t"))
    except (ElementTree.ParseError, ValueError):
        return ()
    return tuple(_images(root))


def _images(root: Element) -> Iterator[OmeImage]:
    from napari_lrmil.core.slides.resolution import number  # needs NumPy, which a search for slides does without

    for image in root.iterfind("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is not None:
            sizes = (number(pixels.get(name)) or 0.0 for name in ("SizeX", "SizeY"))
            width, height = map(int, sizes)
            channels = tuple(channel.get("Name", "") for channel in pixels.iterfind("{*}Channel"))
            yield OmeImage(image.get("Name", ""), width, height, _pixel_size(pixels), channels)


def _pixel_size(pixels: Element) -> tuple[float, float] | None:
    """Return the size in µm, the unit that OME assumes if none is given."""
    from napari_lrmil.core.slides.resolution import number, unit_in_um

    sizes = []
    for axis in "XY":
        size, unit = number(pixels.get(f"PhysicalSize{axis}")), unit_in_um(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if not size or not unit:
            return None
        sizes.append(size * unit)
    return sizes[0], sizes[1]


# ---------------------------------------------------------------- Zarr


def is_ome_zarr(folder: Path) -> bool:
    """Return whether a folder holds an OME-Zarr image, or a series of such images."""
    return folder.is_dir() and any(holds_image(part) for part in (folder, folder / "0"))


def holds_image(folder: Path) -> bool:
    """Return whether a Zarr group is an image with levels."""
    return bool(read_ome_attributes(folder).get("multiscales"))


def read_ome_attributes(folder: Path) -> dict[str, Any]:
    """Return the OME attributes of a Zarr group; empty if it has none that can be read."""
    for name in METADATA:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if name == "zarr.json":
            content = content.get("attributes", {}) if isinstance(content, dict) else {}
        if isinstance(content, dict):
            ome = content.get("ome", content)
            return ome if isinstance(ome, dict) else {}
    return {}
