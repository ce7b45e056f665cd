"""Rotation of the view: positions, the visible part, tiles, regions, links and layers that are added to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from napari.components import ViewerModel

from napari_lrmil.core.geometry import Mpp
from napari_lrmil.core.slides.place_link import PlaceLink, parse_link
from napari_lrmil.plugin.viewer.layers import add_layers, build_region_layer, build_slide_layers, get_tag, lrmil_layers
from napari_lrmil.plugin.viewer.navigation import camera
from napari_lrmil.plugin.viewer.navigation.places import current_link, go_to_link, go_to_text
from napari_lrmil.plugin.viewer.navigation.rotation import current_rotation, follow_slide, rotate_view
from napari_lrmil.plugin.viewer.region_shapes import regions_from_shapes
from support.fake_slides import FakeSlide, fake_slide, resolution, speckled

CANVAS = (300, 500)  # height, width
TURNED = {0: (500, 300), 90: (300, 500), 180: (500, 300), -90: (300, 500), 45: (400 * 2**0.5, 400 * 2**0.5)}


@pytest.fixture
def viewer() -> ViewerModel:
    model = ViewerModel()
    model.canvas.size = CANVAS
    return model


def _open(viewer: ViewerModel, folder: Path, name: str = "fake.svs") -> Any:
    slide = fake_slide(folder, FakeSlide(speckled(3000, 2000), (1.0, 4.0), resolution(0.5, 0.5)), name)
    return add_layers(viewer, build_slide_layers(slide, underlay=True))[-1]


@pytest.mark.parametrize("degrees", TURNED)
def test_the_middle_stays_and_the_visible_box_is_around_the_rotated_view(
    viewer: ViewerModel, tmp_path: Path, degrees: float
) -> None:
    _open(viewer, tmp_path)
    camera.fly_to(viewer, (810.0, 420.0), magnification=10)  # 1 µm per pixel of the screen
    rotate_view(viewer, degrees)
    assert current_rotation(viewer) == pytest.approx(degrees)
    assert camera.view_centre_um(viewer) == pytest.approx((810, 420))
    seen, (width, height) = camera.visible_um(viewer), TURNED[degrees]
    assert (seen.x, seen.y) == pytest.approx((810 - width / 2, 420 - height / 2))
    assert (seen.width, seen.height) == pytest.approx((width, height))
    assert shapely.Polygon(camera.visible_outline_um(viewer)).area == pytest.approx(300 * 500)
    assert camera.current_magnification(viewer) == pytest.approx(10), "the scale bar counts by it"


def test_a_quarter_to_the_right_brings_the_left_edge_to_the_top(viewer: ViewerModel, tmp_path: Path) -> None:
    _open(viewer, tmp_path)
    camera.fly_to(viewer, (800.0, 400.0), magnification=10)
    rotate_view(viewer, 90)
    top_left, top_right, *_ = camera.visible_outline_um(viewer)
    assert top_left == pytest.approx((800 - 150, 400 + 250)) and top_right == pytest.approx((800 - 150, 400 - 250))


def test_go_to_and_a_drag_of_the_world_are_right_in_a_rotated_view(viewer: ViewerModel, tmp_path: Path) -> None:
    _open(viewer, tmp_path)
    rotate_view(viewer, 90)
    go_to_text(viewer, "1200, 300", "µm")
    assert camera.view_centre_um(viewer) == pytest.approx((1200, 300))
    _, y, x = viewer.scene.camera.center
    viewer.scene.camera.center = (0, y, x + 50)  # what is right on the screen is above on the slide
    assert camera.view_centre_um(viewer) == pytest.approx((1200, 250))


def test_a_way_back_leaves_no_trace(viewer: ViewerModel, tmp_path: Path) -> None:
    layer = _open(viewer, tmp_path)
    for degrees in (37.5, 90, -12, 180, 0):
        rotate_view(viewer, degrees)
    assert np.array_equal(layer.affine.affine_matrix, np.eye(3)) and current_rotation(viewer) == 0


def test_rotating_about_the_corner_is_noticed_too(viewer: ViewerModel, tmp_path: Path) -> None:
    _open(viewer, tmp_path)
    camera.fly_to(viewer, (0.0, 0.0))
    moves: list[Any] = []
    viewer.scene.camera.events.center.connect(moves.append)
    rotate_view(viewer, 90)
    assert moves


def test_napari_s_own_rotation_counts(viewer: ViewerModel, tmp_path: Path) -> None:
    from napari.components._viewer_key_bindings import rotate_layers

    _open(viewer, tmp_path)
    rotate_layers(viewer)
    go_to_text(viewer, "1200, 300", "µm")
    y, x = viewer.scene.camera.center[-2:]
    # napari rotates by 90° to the left, about the middle of the slide
    assert (x, y) == pytest.approx((750 + (300 - 500), 500 - (1200 - 750)), abs=1)
    assert current_rotation(viewer) == pytest.approx(-90)
    rotate_view(viewer, 0)
    assert camera.view_centre_um(viewer) == pytest.approx((1200, 300))


def test_a_link_keeps_place_and_rotation(viewer: ViewerModel, tmp_path: Path) -> None:
    _open(viewer, tmp_path)
    camera.fly_to(viewer, (640.0, 333.0), magnification=20)
    rotate_view(viewer, 30)
    text = current_link(viewer).as_text()
    link = parse_link(text)
    assert (link.x_um, link.y_um, link.rotation) == pytest.approx((640, 333, 30))
    rotate_view(viewer, 0)
    camera.fly_to(viewer, (10.0, 10.0))
    go_to_link(viewer, link)
    assert current_rotation(viewer) == pytest.approx(30)
    assert camera.view_centre_um(viewer) == pytest.approx((640, 333))
    upright = PlaceLink(link.slide, 1, 2, 5).as_text()
    assert "rotation" not in upright and parse_link(upright).rotation == 0


def test_regions_drawn_in_a_rotated_view_lie_where_they_were_drawn(viewer: ViewerModel, tmp_path: Path) -> None:
    slide = _open(viewer, tmp_path)
    rotate_view(viewer, 90)
    tag = get_tag(slide)
    assert tag is not None
    [drawn] = add_layers(viewer, [build_region_layer(tag, 1500)])
    world = np.array([(100, -400), (100, -300), (200, -300), (200, -400)])  # row, column: y and x of the world
    drawn.add([[drawn.world_to_data(corner) for corner in world]], shape_type=["polygon"])
    [region] = regions_from_shapes(drawn, Mpp(0.5, 0.5), slide=slide)
    assert region.geometry.bounds == pytest.approx((200, 600, 400, 800))  # level-0 pixels
    rotate_view(viewer, 0)
    assert regions_from_shapes(drawn, Mpp(0.5, 0.5), slide=slide)[0].geometry.equals_exact(region.geometry, 1e-6)


def test_layers_follow_their_slide_and_other_slides_do_not(viewer: ViewerModel, tmp_path: Path) -> None:
    first, second = _open(viewer, tmp_path), _open(viewer, tmp_path, "other.svs")
    for layer in lrmil_layers(viewer, get_tag(second).path):  # type: ignore[union-attr]
        layer.visible = False
    viewer.layers.selection.active = first
    nd = viewer.add_image(np.zeros((2, 40, 70)), name="other plugin")
    rotate_view(viewer, 90)
    assert np.array_equal(second.affine.affine_matrix, np.eye(3))
    assert np.array_equal(nd.affine.affine_matrix[-3:, -3:], first.affine.affine_matrix)
    later = viewer.add_labels(np.zeros((40, 70), np.uint8))
    follow_slide(viewer, later)
    follow_slide(viewer, later)  # once is enough
    assert np.array_equal(later.affine.affine_matrix, first.affine.affine_matrix)


def test_tiles_of_the_rotated_view_are_loaded(viewer: ViewerModel, tmp_path: Path) -> None:
    layer = _open(viewer, tmp_path)
    rotate_view(viewer, 90)
    camera.fly_to(viewer, (1100.0, 500.0), magnification=20)  # 0.5 µm per pixel of the screen, level 0
    y, x = viewer.scene.camera.center[-2:]
    corners = np.array([(y - 75, x - 125), (y + 75, x + 125)])
    layer._update_draw(0.5, corners, np.array(CANVAS))
    (top, left), (bottom, right) = layer.corner_pixels
    pixel = 0.5 * float(layer.downsample_factors[layer.data_level][0])
    seen = np.array([1100 - 75, 500 - 125, 1100 + 75, 500 + 125])
    beyond = (np.array([left, top, right, bottom]) * pixel - seen) * (-1, -1, 1, 1)
    assert (beyond >= -2).all() and (beyond < 256).all(), "what is seen, up to the next edges of tiles"
