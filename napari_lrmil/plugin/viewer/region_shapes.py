"""Regions drawn in napari as regions of a slide, and back. The viewer's world is µm from the slide's corner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from napari_lrmil.core.errors import RegionError
from napari_lrmil.core.geometry import Float, Mpp
from napari_lrmil.core.patching.regions import Region

if TYPE_CHECKING:
    from napari.layers import Shapes

ELLIPSE_CORNERS = 64  # corners of an ellipse


def regions_from_shapes(layer: Shapes, mpp: Mpp, rows: Iterable[int] | None = None) -> tuple[Region, ...]:
    """Return the areas among the shapes of a layer in level-0 pixels; lines and paths are none.

    Parameters
    ----------
    layer
        Shapes in the viewer's world.
    mpp
        µm per level-0 pixel of the slide that they lie on.
    rows
        Which of the shapes; None takes all.
    """
    found = []
    for row in range(layer.nshapes) if rows is None else rows:
        kind = str(layer.shape_type[row])
        if kind in ("line", "path"):
            continue
        try:
            found.append(Region(f"region {row + 1}", shapely.Polygon(_outline(layer, row, kind) / (mpp.x, mpp.y))))
        except (RegionError, ValueError):  # a click that made no area; the user sees it on the screen
            continue
    return tuple(found)


def _outline(layer: Shapes, row: int, kind: str) -> Float:
    """Return (points, 2) the outline of a shape in the world, x then y."""
    corners = np.asarray(layer.data[row], dtype=np.float64)[:, -2:]
    world = np.array([layer.data_to_world(corner)[-2:] for corner in corners])[:, ::-1]
    if kind != "ellipse":
        return np.asarray(world)
    centre, across, down = world.mean(axis=0), (world[1] - world[0]) / 2, (world[3] - world[0]) / 2
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)[:, None]
    return np.asarray(centre + np.cos(angle) * across + np.sin(angle) * down)


def shapes_from_regions(regions: Sequence[Region], mpp: Mpp) -> list[tuple[Any, str]]:
    """Return regions as polygons of the viewer's world, rows then columns, as napari's Shapes take them."""
    parts = [part for region in regions for part in getattr(region.geometry, "geoms", [region.geometry])]
    return [(np.asarray(part.exterior.coords)[:-1, ::-1] * (mpp.y, mpp.x), "polygon") for part in parts]
