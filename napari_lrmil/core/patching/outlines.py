"""Outlines of areas: the area that an outline encloses, and the repair of outlines that cross themselves."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from napari_lrmil.core.errors import RegionError
from napari_lrmil.core.geometry import Float, Int64

Area = shapely.Polygon | shapely.MultiPolygon
Mask = NDArray[np.bool_]

# A repair takes about 30 microseconds per crossing (measured for 300 to 20,000 corners): 3 seconds at most.
MAX_CROSSINGS = 100_000
SAMPLED_EDGES = 300  # of a long outline, to estimate its crossings: 20,000 random corners have 45 million
NOT_FINITE = "with a corner that is not a finite number"
FURTHEST_PX = 1e9  # coordinates beyond are of no slide, and areas computed from them lose their digits


class OutlineError(RegionError):
    """An outline encloses no area that could be used. `fault` completes "an outline …"."""

    def __init__(self, fault: str, remedy: str = "draw it again") -> None:
        super().__init__(f"an outline {fault}; {remedy}")
        self.fault = fault


def area_of(geometry: BaseGeometry, *, most_crossings: int = MAX_CROSSINGS) -> tuple[Area | None, int]:
    """Return the valid 2D area of a geometry, or None if it has none, and the crossings that were repaired.

    Raises
    ------
    OutlineError
        If a corner is not a finite number on a slide, or more crossings than `most_crossings` need repair.
    """
    require_numbers(shapely.get_coordinates(geometry))
    if geometry.has_z:
        geometry = shapely.force_2d(geometry)
    crossings = 0
    if isinstance(geometry, Area) and not geometry.is_valid:
        crossings = max(1, estimate_crossings(geometry))
        if crossings > most_crossings:
            raise OutlineError("that crosses itself too often to be repaired")
        # "structure" fills areas that an outline encloses twice; the default method would leave a hole
        geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    has_area = isinstance(geometry, Area) and geometry.area > 0
    return (geometry if has_area else None), crossings  # type: ignore[return-value]  # mypy does not follow has_area


def require_numbers(corners: Float) -> None:
    """Raise `OutlineError` if a corner (N, 2) is not a finite number, or beyond any slide."""
    if not np.isfinite(corners).all():
        raise OutlineError(NOT_FINITE)
    if len(corners) and np.abs(corners).max() > FURTHEST_PX:
        raise OutlineError(f"with a corner further than {FURTHEST_PX:,.0f} pixels away")


def estimate_crossings(area: Area) -> int:
    """Return about how often the edges of an area cross or touch edges that do not follow them.

    Exact up to `SAMPLED_EDGES` edges; beyond, it is extrapolated from evenly spread ones.
    """
    starts, ends, ring = _edges(area)
    if len(starts) == 0:  # all corners are one point
        return 0
    sample = np.unique(np.linspace(0, len(starts) - 1, SAMPLED_EDGES).astype(np.int64))
    edges = np.asarray(shapely.linestrings(np.stack([starts, ends], axis=1)), dtype=object)
    row, other = shapely.STRtree(edges).query(edges[sample])
    row = sample[row]
    is_other = (row != other) & ~_are_neighbours(ring, row, other)
    row, other = row[is_other], other[is_other]
    crossed = _separates(starts, ends, row, other) & _separates(starts, ends, other, row)
    return round(np.count_nonzero(crossed) * len(starts) / len(sample) / 2)  # each crossing is of two edges


def _edges(area: Area) -> tuple[Float, Float, Int64]:
    """Return (E, 2) starts and (E, 2) ends of all edges with a length, and (E,) the ring of each."""
    corners, ring = shapely.get_coordinates(shapely.get_rings(area), return_index=True)
    is_edge = (ring[1:] == ring[:-1]) & (corners[1:] != corners[:-1]).any(axis=1)
    return corners[:-1][is_edge], corners[1:][is_edge], ring[:-1][is_edge].astype(np.int64)


def _are_neighbours(ring: Int64, row: Int64, other: Int64) -> Mask:
    """Return (P,) whether two edges follow each other on one ring."""
    edges_of_ring = np.bincount(ring)[ring[row]]
    distance = np.abs(row - other)
    return np.asarray((ring[row] == ring[other]) & ((distance == 1) | (distance == edges_of_ring - 1)))


def _separates(starts: Float, ends: Float, row: Int64, other: Int64) -> Mask:
    """Return (P,) whether the line through edge `row` has the ends of edge `other` on both sides, or on itself."""
    along = ends[row] - starts[row]
    to_start, to_end = starts[other] - starts[row], ends[other] - starts[row]
    return np.asarray(_cross(along, to_start) * _cross(along, to_end) <= 0)


def _cross(a: Float, b: Float) -> Float:
    product: Float = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return product
