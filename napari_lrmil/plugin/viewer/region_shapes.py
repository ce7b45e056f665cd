"""Conversion between napari shapes and regions of a slide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from napari_lrmil.core.errors import RegionError
from napari_lrmil.core.geometry import Float, Mpp
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.plugin.viewer.layers import slide_affine

if TYPE_CHECKING:
    from napari.layers import Layer, Shapes

ELLIPSE_CORNERS = 64  # of the polygon that stands for an ellipse; its area is 0.16 % too small


def regions_from_shapes(
    layer: Shapes, mpp: Mpp, rows: Iterable[int] | None = None, slide: Layer | None = None
) -> tuple[Region, ...]:
    """Return the shapes of a layer as regions in level-0 pixels; lines and paths have no area and are left out.

    Parameters
    ----------
    layer
        Shapes in the viewer's world.
    mpp
        µm per level-0 pixel of the slide.
    rows
        Indices of the shapes; None takes all.
    slide
        Layer of the slide, which may be rotated; None if the viewer's world is that of the slide.
    """
    regions, from_world = [], np.asarray(np.linalg.inv(slide_affine(slide)), dtype=np.float64)
    for row in range(layer.nshapes) if rows is None else rows:
        kind = str(layer.shape_type[row])
        if kind in ("line", "path"):
            continue
        try:
            polygon = shapely.Polygon(_outline_um(layer, row, kind, from_world) / (mpp.x, mpp.y))
            regions.append(Region(f"region {row + 1}", polygon))
        except (RegionError, ValueError):  # a click without area; the user sees on the screen that it is none
            continue
    return tuple(regions)


def _outline_um(layer: Shapes, row: int, kind: str, from_world: Float) -> Float:
    """Return the outline of a shape in µm of the slide, (points, 2) x then y; (3, 3) `from_world` leads there."""
    corners = np.asarray(layer.data[row], dtype=np.float64)[:, -2:]
    # Through data_to_world: the user may have moved, scaled or rotated the layer.
    world = np.array([layer.data_to_world(corner)[-2:] for corner in corners])
    outline = (world @ from_world[:2, :2].T + from_world[:2, 2])[:, ::-1]
    if kind != "ellipse":
        return np.asarray(outline)
    # napari stores the four corners of the ellipse's bounding box.
    centre, across, down = outline.mean(axis=0), (outline[1] - outline[0]) / 2, (outline[3] - outline[0]) / 2
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)[:, None]
    return np.asarray(centre + np.cos(angle) * across + np.sin(angle) * down)


def shapes_from_regions(regions: Sequence[Region], mpp: Mpp) -> list[tuple[Any, str]]:
    """Return the parts of regions as (corners, shape type) for `Shapes.add`.

    Parameters
    ----------
    regions
        Regions in level-0 pixels; a region of several parts gives several polygons.
    mpp
        µm per level-0 pixel.

    Returns
    -------
    list
        Corners are (points, 2) in µm, row then column. Holes are joined to the outline by a path of no width, which
        `regions_from_shapes` turns into holes again: a shape of napari is one outline.
    """
    parts = [part for region in regions for part in getattr(region.geometry, "geoms", [region.geometry])]
    return [(_single_outline(part)[:-1, ::-1] * (mpp.y, mpp.x), "polygon") for part in parts]


def _single_outline(polygon: shapely.Polygon) -> Float:
    """Return a closed path (points, 2) through the outline and the holes of a polygon, each from the first corner."""
    # Holes run the other way round, so that the path encloses them no time in all.
    turned = shapely.orient_polygons(polygon, exterior_cw=False)
    outline = np.asarray(turned.exterior.coords, dtype=np.float64)
    loops = (loop for ring in turned.interiors for loop in (np.asarray(ring.coords), outline[:1]))
    return np.concatenate([outline, *loops])
