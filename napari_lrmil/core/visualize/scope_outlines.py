"""Outlines of a region of interest over a thumbnail, drawn by Pillow with smooth edges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import shapely
from PIL import Image, ImageDraw

from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import RegionOfInterest

SMOOTH = 4  # Pillow draws lines without smoothing, so they are drawn this much larger and then averaged
HALO_PX, INK_PX = 4.6, 1.8  # widths of the white line and of the black one on it: together readable on any tissue
DOT_PX, DOT_STEP_PX = 2.4, 5.0


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
    halo, ink = Image.new("L", large), Image.new("L", large)
    halo_draw, ink_draw = ImageDraw.Draw(halo), ImageDraw.Draw(ink)
    solid = list(_paths((*scope.regions, *scope.included), box, large))
    dotted = list(_paths(scope.excluded, box, large))
    for path in (*solid, *dotted):
        _draw_line(halo_draw, path, HALO_PX)
    for path in solid:
        _draw_line(ink_draw, path, INK_PX)
    for path in dotted:
        _draw_dots(ink_draw, path)
    return Outlines(halo.reduce(SMOOTH), ink.reduce(SMOOTH))


def _paths(regions: Iterable[Region], box: BoxLevel0, size: tuple[int, int]) -> Iterator[shapely.LineString]:
    """Yield the rings of regions in pixels of an image of `box`. What lies outside the image is cut off."""
    width, height = size
    reach = SMOOTH * HALO_PX
    for region in regions:
        # Rings, not polygons: holes of a region are outlined too.
        for ring in shapely.get_rings(region.geometry):
            points = (shapely.get_coordinates(ring) - (box.x, box.y)) * (width / box.width, height / box.height)
            cut = shapely.clip_by_rect(shapely.LineString(points), -reach, -reach, width + reach, height + reach)
            yield from (part for part in shapely.get_parts(cut) if part.length > 0)


def _draw_line(draw: ImageDraw.ImageDraw, path: shapely.LineString, width_px: float) -> None:
    points = [(float(x), float(y)) for x, y in shapely.get_coordinates(path)]
    draw.line(points, fill=255, width=round(SMOOTH * width_px), joint="curve")


def _draw_dots(draw: ImageDraw.ImageDraw, path: shapely.LineString) -> None:
    count, radius = max(1, round(path.length / (SMOOTH * DOT_STEP_PX))), SMOOTH * DOT_PX / 2
    distances = (np.arange(count) + 0.5) * path.length / count
    for x, y in shapely.get_coordinates(shapely.line_interpolate_point(path, distances)).tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
