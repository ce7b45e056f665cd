"""Magnification, position and visible part of the world, on a viewer without a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_lrmil.core.geometry import BoxUm
from napari_lrmil.plugin.viewer.layers import add_layers, build_slide_layers, lrmil_layers
from napari_lrmil.plugin.viewer.navigation import camera
from support.fake_slides import FakeSlide, fake_slide, resolution, speckled

CANVAS = (300, 500)  # height, width


@pytest.fixture
def viewer() -> ViewerModel:
    model = ViewerModel()
    model.canvas.size = CANVAS
    return model


def _open(viewer: ViewerModel, folder: Path, mpp: float = 0.5, name: str = "fake.svs") -> Any:
    slide = fake_slide(folder, FakeSlide(speckled(1500, 900), (1.0, 4.0), resolution(mpp, mpp)), name)
    return add_layers(viewer, build_slide_layers(slide, underlay=True))[-1]


@pytest.mark.parametrize(("magnification", "um"), [(1.25, 8.0), (20, 0.5), (40, 0.25)])
def test_a_screen_pixel_shows_ten_um_over_the_magnification(
    viewer: ViewerModel, tmp_path: Path, magnification: float, um: float
) -> None:
    _open(viewer, tmp_path)
    centre = viewer.scene.camera.center
    camera.set_magnification(viewer, magnification)
    seen = camera.visible_um(viewer)
    assert (seen.width / CANVAS[1], seen.height / CANVAS[0]) == pytest.approx((um, um))
    assert camera.current_magnification(viewer) == pytest.approx(magnification)
    assert viewer.scene.camera.center == centre


def test_on_a_dense_screen_it_is_the_real_pixel_that_counts(viewer: ViewerModel, tmp_path: Path) -> None:
    _open(viewer, tmp_path)
    camera.set_magnification(viewer, 20, pixel_ratio=2.0)
    assert camera.visible_um(viewer).width == pytest.approx(CANVAS[1] * 2 * 0.5)
    assert camera.current_magnification(viewer, pixel_ratio=2.0) == pytest.approx(20)
    assert camera.current_magnification(viewer) == pytest.approx(10)


def test_fly_to_brings_a_point_to_the_middle(viewer: ViewerModel, tmp_path: Path) -> None:
    _open(viewer, tmp_path)
    camera.fly_to(viewer, (310.0, 120.0), magnification=10)
    assert camera.visible_um(viewer) == BoxUm(310 - 250, 120 - 150, 500, 300)
    camera.fly_to(viewer, (20.0, 410.0))
    assert camera.visible_um(viewer) == BoxUm(20 - 250, 410 - 150, 500, 300)


def test_a_layer_in_nm_does_not_change_what_a_um_is(viewer: ViewerModel, tmp_path: Path) -> None:
    _open(viewer, tmp_path)
    viewer.add_image(np.zeros((40, 70)), scale=(1000, 1000), units=("nm", "nm"))
    camera.fly_to(viewer, (310.0, 120.0), magnification=10)
    assert viewer.scene.camera.center[-2:] == pytest.approx((120_000, 310_000))
    seen = camera.visible_um(viewer)
    assert (seen.x, seen.y, seen.width, seen.height) == pytest.approx((60, -30, 500, 300))


def test_with_pixels_beside_it_the_world_counts_the_slides_own_units(viewer: ViewerModel, tmp_path: Path) -> None:
    _open(viewer, tmp_path)
    viewer.add_image(np.zeros((40, 70)))
    camera.set_magnification(viewer, 10)
    assert camera.visible_um(viewer).width == pytest.approx(500)


def test_in_grid_mode_it_is_what_one_of_the_views_shows(viewer: ViewerModel, tmp_path: Path) -> None:
    _open(viewer, tmp_path)
    _open(viewer, tmp_path, name="other.svs")
    viewer.canvas.grid.stride = 2
    viewer.canvas.grid.shape = (1, -1)
    viewer.canvas.grid.spacing = 10
    viewer.canvas.grid.enabled = True
    camera.fly_to(viewer, (310.0, 120.0), magnification=10)
    seen = camera.visible_um(viewer)
    assert (seen.width, seen.height) == pytest.approx(((500 - 10) / 2, 300))
    assert seen.x + seen.width / 2 == pytest.approx(310)


@pytest.mark.parametrize(
    ("mpp", "finest"), [(0.25, 40), (0.499, 40), (0.51, 40), (0.65, 20), (1.0, 20), (1.1, 10), (8.0, 2.5)]
)
def test_twice_the_slides_own_resolution_is_the_end(mpp: float, finest: float) -> None:
    blocked = {m: camera.why_magnification_unavailable(m, mpp) for m in camera.MAGNIFICATIONS}
    assert max(m for m, why in blocked.items() if not why) == finest
    assert all(f"{mpp:.3g} µm" in why for why in blocked.values() if why)


def test_without_a_slide_no_magnification_is_offered() -> None:
    assert all(camera.why_magnification_unavailable(m, None) for m in camera.MAGNIFICATIONS)


def test_the_current_slide_is_visible_and_if_several_are_that_of_the_active_layer(
    viewer: ViewerModel, tmp_path: Path
) -> None:
    assert camera.current_slide(viewer) is None and camera.current_mpp(viewer) is None
    first, second = _open(viewer, tmp_path), _open(viewer, tmp_path, 0.25, "second.svs")
    viewer.layers.selection.active = None
    assert camera.current_slide(viewer) is second
    second.visible = False
    assert camera.current_slide(viewer) is first
    [underlay] = lrmil_layers(viewer, tmp_path / "second.svs", role="underlay")
    viewer.layers.selection.active = underlay
    assert camera.current_slide(viewer) is first, "a hidden slide is not the current one while another is visible"
    first.visible = False
    assert camera.current_slide(viewer) is second and camera.current_mpp(viewer) == pytest.approx(0.25)
    first.visible = True
    viewer.layers.selection.active = viewer.add_image(np.zeros((5, 9)))
    assert camera.current_slide(viewer) is first


def test_the_scale_bar_comes_with_the_first_slide_only(viewer: ViewerModel, tmp_path: Path) -> None:
    bar = viewer.canvas.overlays.scale_bar
    camera.show_scale_bar_with_slides(viewer)
    viewer.add_image(np.zeros((40, 70)))
    assert not bar.visible
    viewer.layers.clear()
    _open(viewer, tmp_path)
    assert bar.visible and str(viewer.layers.extent.units[-1]) == "micrometer"
    bar.visible = False
    _open(viewer, tmp_path, name="second.svs")
    assert not bar.visible, "the user has hidden it"


def test_the_scale_bar_comes_for_a_slide_that_is_there(viewer: ViewerModel, tmp_path: Path) -> None:
    _open(viewer, tmp_path)
    camera.show_scale_bar_with_slides(viewer)
    assert viewer.canvas.overlays.scale_bar.visible
