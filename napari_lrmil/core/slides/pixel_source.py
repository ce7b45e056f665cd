"""Handle of a slide whose levels are arrays: OpenSlide's interface over windows of whole pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.geometry import Level
from napari_lrmil.core.slides.openslide_handle import ColourProfile

if TYPE_CHECKING:
    from napari_lrmil.core.slides.missing_tiles import TileMap

Rgba = NDArray[np.uint8]  # (height, width, 4), not premultiplied; transparent outside the level

# TIFF's Orientation -> whether rows and columns are swapped, then whether x and y run backwards
ORIENTATIONS = {
    1: (False, False, False), 2: (False, True, False), 3: (False, True, True), 4: (False, False, True),
    5: (True, False, False), 6: (True, True, False), 7: (True, True, True), 8: (True, False, True),
}  # fmt: skip
UPRIGHT = 1


class PixelSource(Protocol):
    """Levels of a slide as they are stored."""

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Width and height of each level, finest first."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Rgba:
        """Return a window, which may reach beyond the level."""

    def missing_tiles(self, level: Level, orientation: int) -> TileMap | None:
        """Return the tiles of an upright level that are not stored; None if all are."""

    def close(self) -> None:
        """Close the file."""


class IccProfile:
    """ICC profile as bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def tobytes(self) -> bytes:
        """Return the profile."""
        return self._content


class PixelSourceHandle:
    """Handle over a `PixelSource`. It shows the picture upright, and interpolates between pixels as OpenSlide does.

    Parameters
    ----------
    source
        The levels.
    properties
        As OpenSlide names them.
    orientation
        TIFF's code of how the picture is stored.
    icc
        ICC profile, if the file has one.
    """

    def __init__(
        self, source: PixelSource, properties: Mapping[str, str], orientation: int = UPRIGHT, icc: bytes | None = None
    ) -> None:
        self._source, self._orientation = source, orientation
        self._swap, self._flip_x, self._flip_y = ORIENTATIONS[orientation]
        self.properties = dict(properties)
        self.level_dimensions = tuple((h, w) if self._swap else (w, h) for w, h in source.sizes)
        self.dimensions = self.level_dimensions[0]
        self.level_downsamples = tuple(
            (self.dimensions[0] / w + self.dimensions[1] / h) / 2 for w, h in self.level_dimensions
        )
        self.associated_images: dict[str, Any] = {}
        self.color_profile: ColourProfile | None = None if icc is None else IccProfile(icc)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Return RGBA pixels; `location` is in level-0 pixels, `size` in pixels of the level."""
        at = [value / self.level_downsamples[level] for value in location]
        x, y = (math.floor(value + 1e-6) for value in at)
        rest_x, rest_y = (max(0.0, value - math.floor(value + 1e-6)) for value in at)
        if max(rest_x, rest_y) < 1e-6:
            return Image.fromarray(self._upright(level, x, y, *size), "RGBA")
        pixels = self._upright(level, x, y, size[0] + 1, size[1] + 1)
        return Image.fromarray(_interpolate(pixels, rest_x, rest_y), "RGBA")

    def _upright(self, level: int, x: int, y: int, width: int, height: int) -> Rgba:
        """Return a window of the upright picture."""
        across, down = self.level_dimensions[level]
        x = across - x - width if self._flip_x else x
        y = down - y - height if self._flip_y else y
        if self._swap:
            pixels = self._source.read(level, y, x, height, width).transpose(1, 0, 2)
        else:
            pixels = self._source.read(level, x, y, width, height)
        steps = (slice(None, None, -1 if flip else 1) for flip in (self._flip_y, self._flip_x))
        return np.ascontiguousarray(pixels[tuple(steps)])

    def missing_tiles(self, level: Level) -> TileMap | None:
        """Return the tiles of a level that are not stored; None if all are."""
        return self._source.missing_tiles(level, self._orientation)

    def close(self) -> None:
        """Close the file."""
        self._source.close()


def _interpolate(pixels: Rgba, x: float, y: float) -> Rgba:
    """Return bilinear values between pixels, `x` and `y` of a pixel further; one row and column fewer."""
    alpha = pixels[..., 3:].astype(np.float64)
    mixed: NDArray[np.float64] = np.concatenate([pixels[..., :3] * (alpha / 255), alpha], axis=2)
    mixed = (1 - y) * mixed[:-1] + y * mixed[1:]
    mixed = (1 - x) * mixed[:, :-1] + x * mixed[:, 1:]
    alpha = mixed[..., 3:]
    colour = np.divide(mixed[..., :3] * 255, alpha, out=np.zeros_like(mixed[..., :3]), where=alpha > 0)
    rgba: Rgba = np.rint(np.concatenate([colour, alpha], axis=2)).clip(0, 255).astype(np.uint8)
    return rgba


def paste(target: Rgba, x: int, y: int, tile: Rgba, tile_x: int, tile_y: int) -> None:
    """Copy the part of a tile at (`tile_x`, `tile_y`) that lies in a window at (`x`, `y`) into the window's array."""
    left, top = max(x, tile_x), max(y, tile_y)
    right = min(x + target.shape[1], tile_x + tile.shape[1])
    bottom = min(y + target.shape[0], tile_y + tile.shape[0])
    if left < right and top < bottom:
        part = tile[top - tile_y : bottom - tile_y, left - tile_x : right - tile_x]
        target[top - y : bottom - y, left - x : right - x] = part
