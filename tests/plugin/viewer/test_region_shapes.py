"""Conversion between napari shapes and regions of a slide whose pixels are not square."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from napari.layers import Shapes

from napari_lrmil.core.geometry import Mpp
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.plugin.viewer.region_shapes import regions_from_shapes, shapes_from_regions

MPP = Mpp(0.5, 0.25)


def test_world_becomes_level0() -> None:
    layer = Shapes([np.array([[10, 20], [10, 60], [40, 60], [40, 20]])], shape_type="polygon")  # y, x in µm
    [region] = regions_from_shapes(layer, MPP)
    assert region.geometry.bounds == pytest.approx((40, 40, 120, 160))


def test_an_ellipse_has_its_area_and_lines_have_none() -> None:
    layer = Shapes(ndim=2)
    layer.add(np.array([[0, 0], [0, 40], [20, 40], [20, 0]]), shape_type="ellipse")
    layer.add(np.array([[0, 0], [5, 5]]), shape_type="line")
    layer.add(np.array([[0, 0], [5, 5], [9, 1]]), shape_type="path")
    [region] = regions_from_shapes(layer, Mpp(1, 1))
    assert region.geometry.area == pytest.approx(np.pi * 20 * 10, rel=0.01)


def test_a_layer_that_was_moved_counts_where_it_is_seen() -> None:
    layer = Shapes([np.array([[0, 0], [0, 4], [2, 4], [2, 0]])], shape_type="rectangle", translate=(100, 30))
    [region] = regions_from_shapes(layer, Mpp(1, 1))
    assert region.geometry.bounds == pytest.approx((30, 100, 34, 102))


def test_there_and_back() -> None:
    outline = shapely.Polygon([(3, 5), (60, 8), (44, 90)])
    both = shapely.MultiPolygon([outline, shapely.box(100, 100, 130, 170)])
    layer = Shapes(ndim=2)
    for corners, kind in shapes_from_regions([Region("two", both)], MPP):
        layer.add(corners, shape_type=kind)
    back = shapely.union_all([region.geometry for region in regions_from_shapes(layer, MPP)])
    assert back.symmetric_difference(both).area == pytest.approx(0, abs=1e-6)


def test_holes_come_back_too() -> None:
    """A shape of napari is one outline: a path of no width joins each hole to it."""
    holes = [shapely.box(10, 10, 20, 30), shapely.Polygon([(50, 40), (90, 40), (90, 70), (70, 50), (50, 70)])]
    region = shapely.box(0, 0, 100, 80).difference(shapely.union_all(holes))
    corners, kinds = zip(*shapes_from_regions([Region("rings", region)], MPP), strict=True)
    layer = Shapes(ndim=2)
    layer.add(list(corners), shape_type=list(kinds))
    [back] = regions_from_shapes(layer, MPP)
    assert back.geometry.symmetric_difference(region).area == pytest.approx(0, abs=1e-6)
    assert len(back.geometry.interiors) == 2
