"""Outlines of a region of interest over a thumbnail, drawn by Pillow with smooth edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from napari_lrmil.core.geometry import BoxLevel0, Float
from napari_lrmil.core.patching.outlines import Mask
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import RegionOfInterest

SMOOTH = 4  # Pillow draws lines without smoothing, so they are drawn this much larger and then averaged
HALO_PX, INK_PX = 4.6, 1.8  # widths of the white line and of the black one on it: together readable on any tissue
DOT_PX, DOT_STEP_PX = 2.4, 5.0
# Pillow needs 20 microseconds per corner of a wide line. From here on all lines are drawn thin and widened together,
# which takes a second however many there are.
MANY_CORNERS = 20_000
ROUGHNESS_PX = 0.1  # outlines are simplified by less than can be seen

Paths = NDArray[np.object_]


class Outlines(NamedTuple):
    """Masks (8-bit grey, the size of the thumbnail) of the white halo and of the black line on it."""

    halo: Image.Image
    ink: Image.Image

    def draw_on(self, picture: Image.Image) -> None:
        """Draw the outlines onto a thumbnail."""
        picture.paste("white", mask=self.halo)
        picture.paste("black", mask=self.ink)


def outline_scope(scope: RegionOfInterest, box: BoxLevel0, size: tuple[int, int]) -> Outlines | None:
    """Return the outlines of the regions of a scope: solid, or dotted if they are left out; None without regions.

    Parameters
    ----------
    scope
        Regions in level-0 pixels. Holes are outlined too.
    box
        Part of the slide that the thumbnail shows, level 0.
    size
        Width and height of the thumbnail.
    """
    if not (scope.regions or scope.included or scope.excluded):
        return None
    large = size[0] * SMOOTH, size[1] * SMOOTH
    solid = _paths((*scope.regions, *scope.included), box, large)
    dotted = _paths(scope.excluded, box, large)
    both = np.concatenate([solid, dotted])
    is_many = int(shapely.get_num_coordinates(both).sum()) > MANY_CORNERS
    draw = _draw_widened if is_many else _draw_one_by_one
    return Outlines(*(picture.reduce(SMOOTH) for picture in draw(both, solid, _dots(dotted), large)))


def _paths(regions: Sequence[Region], box: BoxLevel0, size: tuple[int, int]) -> Paths:
    """Return the rings of regions in pixels of an image of `box`. What lies outside the image is cut off."""
    (width, height), reach = size, SMOOTH * HALO_PX
    # Rings, not polygons: holes of a region are outlined too.
    rings = shapely.get_rings(np.array([region.geometry for region in regions], dtype=object))
    corners, ring = shapely.get_coordinates(rings, return_index=True)
    corners = (corners - (box.x, box.y)) * (width / box.width, height / box.height)
    lines = np.asarray(shapely.linestrings(corners, indices=ring), dtype=object)
    cut = shapely.get_parts(shapely.clip_by_rect(lines, -reach, -reach, width + reach, height + reach))
    return np.asarray(cut[shapely.length(cut) > 0], dtype=object)


def _dots(paths: Paths) -> Float:
    """Return (D, 2) middles of the dots along paths, at even distances on each."""
    length = shapely.length(paths)
    counts = np.maximum(1, np.round(length / (SMOOTH * DOT_STEP_PX))).astype(np.int64)
    row = np.repeat(np.arange(len(paths)), counts)
    number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    distances = (number + 0.5) * length[row] / counts[row]
    return np.asarray(shapely.get_coordinates(shapely.line_interpolate_point(paths[row], distances)), dtype=np.float64)


def _draw_one_by_one(lines: Paths, solid: Paths, dots: Float, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Return the masks of halo and ink, from wide lines with round joints."""
    halo, ink = Image.new("L", size), Image.new("L", size)
    halo_draw, ink_draw = ImageDraw.Draw(halo), ImageDraw.Draw(ink)
    for draw, paths, width in ((halo_draw, lines, HALO_PX), (ink_draw, solid, INK_PX)):
        for path in paths:
            points = [(float(x), float(y)) for x, y in shapely.get_coordinates(path)]
            draw.line(points, fill=255, width=round(SMOOTH * width), joint="curve")
    radius = SMOOTH * DOT_PX / 2
    for x, y in dots.tolist():
        ink_draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return halo, ink


def _draw_widened(lines: Paths, solid: Paths, dots: Float, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Return the masks of halo and ink, from thin lines that are widened together."""
    halo = _widen(_thin_lines(lines, size), (SMOOTH * HALO_PX - 1) / 2)  # a thin line has a width of 1 itself
    ink = _widen(_thin_lines(solid, size), (SMOOTH * INK_PX - 1) / 2)
    points = np.zeros_like(ink)
    column, row = np.floor(dots).astype(np.int64).T
    is_within = (column >= 0) & (row >= 0) & (column < size[0]) & (row < size[1])
    points[row[is_within], column[is_within]] = True
    ink |= _widen(points, SMOOTH * DOT_PX / 2)
    return Image.fromarray(halo.astype(np.uint8) * 255), Image.fromarray(ink.astype(np.uint8) * 255)


def _thin_lines(paths: Paths, size: tuple[int, int]) -> Mask:
    """Return (height, width) the pixels under paths."""
    picture = Image.new("L", size)
    draw = ImageDraw.Draw(picture)
    for path in shapely.simplify(paths, SMOOTH * ROUGHNESS_PX, preserve_topology=False):
        # A path that is smaller than a pixel is one point twice, which draws that pixel.
        draw.line(shapely.get_coordinates(path).ravel().tolist(), fill=255)
    return np.asarray(picture) > 0


def _widen(thin: Mask, radius: float) -> Mask:
    """Return the pixels within a radius of marked ones."""
    height, width = thin.shape
    sums = np.zeros((height, width + 1), np.int32)
    np.cumsum(thin, axis=1, out=sums[:, 1:])
    column, wide = np.arange(width), np.zeros_like(thin)
    for down in range(min(int(radius), height - 1) + 1):
        across = int((radius**2 - down**2) ** 0.5)
        # Marked pixels between x - across and x + across, from running sums.
        near = sums[:, np.minimum(column + across + 1, width)] > sums[:, np.maximum(column - across, 0)]
        wide[down:] |= near[: height - down]
        wide[: height - down] |= near[down:]
    return wide
