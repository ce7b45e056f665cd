"""Overlaps of many boxes with many areas, fast for long outlines and for tens of thousands of small ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from napari_lrmil.core.geometry import Float, Int64

Geometries = NDArray[np.object_]

# From here on an area is cut into strips before it meets its boxes, so that a long outline is not searched per box.
MANY_BOXES = 32


class Overlaps(NamedTuple):
    """Pairs of an area and a box that overlap.

    Attributes
    ----------
    area
        (P,) row of the area, ascending.
    box
        (P,) row of the box.
    size
        (P,) overlap, above 0.
    """

    area: Int64
    box: Int64
    size: Float

    def largest(self, n_areas: int) -> Float:
        """Return (n_areas,) the largest overlap of each area with one box; 0 without any."""
        largest = np.zeros(n_areas)
        np.maximum.at(largest, self.area, self.size)
        return largest


def find_overlaps(boxes: Float, areas: Sequence[BaseGeometry] | Geometries) -> Overlaps:
    """Return the overlaps of (N, 4) boxes (left, top, right, bottom) with valid areas."""
    geometries = np.asarray(areas, dtype=object)
    rectangles = box_geometries(boxes)
    # "intersects" prepares each area once, which makes the test of many boxes against one long outline fast.
    area, box = shapely.STRtree(rectangles).query(geometries, predicate="intersects")
    sizes = np.empty(len(area))
    counts = np.bincount(area, minlength=len(geometries))
    is_single = counts[area] < MANY_BOXES
    few = np.flatnonzero(is_single)
    sizes[few] = shapely.area(shapely.intersection(geometries[area[few]], rectangles[box[few]]))
    for row in np.flatnonzero(counts >= MANY_BOXES):
        pairs = np.flatnonzero(area == row)
        sizes[pairs] = _overlaps_of_one(boxes[box[pairs]], rectangles[box[pairs]], geometries[row])
    order = np.flatnonzero(sizes > 0)
    return Overlaps(area[order], box[order], sizes[order])


def overlap_areas(boxes: Float, area: BaseGeometry) -> Float:
    """Return (N,) overlaps of (N, 4) boxes (left, top, right, bottom) with a valid `area`."""
    # Part by part: parts of a valid area do not overlap, and most of thousands of parts are far from any box.
    overlaps = find_overlaps(boxes, shapely.get_parts(area))
    return np.bincount(overlaps.box, overlaps.size, minlength=len(boxes)).astype(np.float64)


def box_geometries(boxes: Float) -> Geometries:
    """Return (N,) rectangles of (N, 4) boxes (left, top, right, bottom)."""
    return np.asarray(shapely.box(*boxes.T), dtype=object)


def _overlaps_of_one(boxes: Float, rectangles: Geometries, area: BaseGeometry) -> Float:
    """Return (N,) overlaps with one area that meets all boxes."""
    shapely.prepare(area)
    within = shapely.covers(area, rectangles)
    shared: Float = np.where(within, shapely.area(rectangles), 0.0)
    crossed = np.flatnonzero(~within)
    if len(crossed):
        shared[crossed] = _cut(boxes[crossed], area)
    return shared


def _cut(boxes: Float, area: BaseGeometry) -> Float:
    """Return (N,) overlaps, from an area that is cut into strips first."""
    shared = np.empty(len(boxes))
    order = np.argsort(boxes[:, 0], kind="stable")
    for strip in np.array_split(order, math.isqrt(len(boxes))):
        low, high = boxes[strip, :2].min(axis=0), boxes[strip, 2:].max(axis=0)
        near = _polygons(shapely.intersection(area, shapely.box(*low, *high)))
        shared[strip] = shapely.area(shapely.intersection(box_geometries(boxes[strip]), near))
    return shared


def _polygons(geometry: BaseGeometry) -> shapely.MultiPolygon:
    """Return the polygons among the parts. A cut along an outline leaves lines too."""
    return shapely.MultiPolygon([part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"])
