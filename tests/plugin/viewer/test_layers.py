"""Position of layers in µm from the slide's level-0 corner, for several resolutions, bounds and levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_lrmil.core.geometry import Mpp
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.plugin.viewer.layers import (
    EXCLUDED_EDGE,
    REGION_EDGE,
    add_layers,
    build_slide_layers,
    copy_for_teacher_view,
    get_screen_slide,
    placement,
    recolour_slide,
)
from napari_lrmil.plugin.viewer.maps.attention_layers import attention_colormap, build_attention_layers
from support.fake_slides import GLASS, DarknessBundle, FakeSlide, fake_slide, resolution, speckled
from support.planted import LR_UM, Planted, centroid, plant

CASES = {
    "20x": ((0.5, 0.5), (0, 0)),
    "40x": ((0.25, 0.25), (0, 0)),
    "0.2649": ((0.2649, 0.2649), (0, 0)),
    "bounds": ((0.5, 0.5), (301, 77)),
    "oblong pixels": ((0.5, 0.46), (0, 0)),
}


@pytest.fixture(scope="module", params=list(CASES))
def planted(request: pytest.FixtureRequest) -> Planted:
    return plant(*CASES[request.param])


def _layer(layer_data: Any) -> Any:
    from napari.layers import Image

    data, options, _ = layer_data
    return Image(data, **options)


def _prediction(folder: Path, planted: Planted, teacher: str = "all") -> Prediction:
    with fake_slide(folder, planted.fake) as slide:
        *_, last = predict(slide, DarknessBundle(), device=torch.device("cpu"), teacher=TeacherPatches.parse(teacher))  # type: ignore[arg-type]  # a stand-in
    result: Prediction = last.result  # type: ignore[union-attr]  # the last event carries it
    return result


def test_placement_puts_a_corner_not_a_centre_at_the_given_pixel() -> None:
    placed = placement((100, 40), (8, 4), Mpp(0.5, 0.25))
    assert placed["scale"] == (1.0, 4.0)
    assert placed["translate"] == (10.5, 52.0)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_attention_peaks_on_the_square_within_half_an_lr_patch(planted: Planted, side: Any, tmp_path: Path) -> None:
    layer = _layer(build_attention_layers(_prediction(tmp_path, planted), 0.5, None)[side])
    x, y = planted.centre_um
    peak = np.unravel_index(np.nanargmax(layer.data), layer.data.shape)
    world_y, world_x = layer.data_to_world(peak)
    assert abs(world_x - x) <= LR_UM / 2 and abs(world_y - y) <= LR_UM / 2
    if side == "student":
        assert tuple(np.round(layer.world_to_data((y, x))).astype(int)) == peak


def test_every_level_of_the_slide_shows_the_square_at_its_place(planted: Planted, tmp_path: Path) -> None:
    layer = _layer(build_slide_layers(fake_slide(tmp_path, planted.fake), underlay=False)[0])
    assert len(layer.data) > 2
    for level, factor in zip(layer.data, layer.downsample_factors, strict=True):
        # napari draws pixel i of a level over [i, i + 1] * factor - 0.5 of the finest level's pixels
        at = (centroid(np.asarray(level)) + 0.5) * factor[:2] - 0.5
        world = layer.data_to_world(at)
        assert world == pytest.approx(planted.centre_um[::-1], abs=min(planted.mpp))


def test_the_underlay_lies_where_the_slide_lies(planted: Planted, tmp_path: Path) -> None:
    under, over = (_layer(m) for m in build_slide_layers(fake_slide(tmp_path, planted.fake), underlay=True))
    assert under.data_to_world(centroid(np.asarray(under.data))) == pytest.approx(
        planted.centre_um[::-1], abs=min(planted.mpp)
    )
    half_under, half_over = (np.asarray(layer.scale) / 2 for layer in (under, over))
    first, last = under.extent.world, over.extent.world
    assert first[0] - half_under == pytest.approx(last[0] - half_over, abs=1e-6)
    assert first[1] + half_under == pytest.approx(last[1] + half_over, abs=1e-6)


def test_attention_is_that_of_the_prediction_and_both_maps_share_their_colours(tmp_path: Path) -> None:
    prediction = _prediction(tmp_path, plant((0.5, 0.5)))
    layers = build_attention_layers(prediction, 0.5, None)
    student, teacher = layers["student"], layers["teacher"]
    assert np.nansum(student[0]) / len(prediction.student.attention) == pytest.approx(1, abs=1e-5)
    assert student[1]["contrast_limits"] == teacher[1]["contrast_limits"]
    assert student[1]["colormap"] == teacher[1]["colormap"]
    assert student[1]["units"] == teacher[1]["units"] == ("um", "um")


def test_off_the_tissue_there_is_no_colour(tmp_path: Path) -> None:
    planted = plant((0.5, 0.5))
    planted.fake.levels[0][:, :300] = GLASS
    for level, downsample in zip(planted.fake.levels[1:], planted.fake.downsamples[1:], strict=True):
        level[:, : int(300 / downsample)] = GLASS
    prediction = _prediction(tmp_path, planted)
    layer = _layer(build_attention_layers(prediction, 0.5, None)["teacher"])
    assert np.isnan(layer.world_to_data((200.0, 20.0))).sum() == 0
    assert layer.extent.world[0][1] > 100
    assert layer.colormap.map(np.array([np.nan]))[0, 3] == 0


def test_all_layers_of_a_slide_share_one_cache_of_the_size_that_was_asked_for(tmp_path: Path) -> None:
    from napari.components import ViewerModel

    fake = FakeSlide(speckled(1500, 1100), (1.0, 4.0), resolution(0.5))
    viewer = ViewerModel()
    layers = add_layers(viewer, build_slide_layers(fake_slide(tmp_path, fake), underlay=True, cache_bytes=1 << 20))
    layers += add_layers(viewer, [copy_for_teacher_view(layers[-1])])
    screens = [get_screen_slide(layer) for layer in layers]
    assert screens[0] is not None and all(s is screens[0] for s in screens)
    for layer in layers[1:]:
        np.asarray(layer.data[0])
    assert 0 < screens[0].cache.bytes <= 1 << 20


def test_other_colours_reach_every_layer_of_the_slide_and_no_other(tmp_path: Path) -> None:
    from napari.components import ViewerModel

    viewer, fakes = ViewerModel(), [FakeSlide(speckled(700, 500, i), (1.0,), resolution(0.5)) for i in range(2)]
    paths = [tmp_path / f"{i}.svs" for i in range(2)]
    layers = [
        add_layers(viewer, build_slide_layers(fake_slide(tmp_path, fakes[i], f"{i}.svs"), underlay=False))[0]
        for i in (0, 1)
    ]
    layers += add_layers(viewer, [copy_for_teacher_view(layers[0])])
    recolour_slide(viewer, paths[0], lambda pixels: 255 - pixels)
    shown = [np.asarray(layer.data) for layer in layers]
    assert np.array_equal(shown[0], 255 - fakes[0].base) and np.array_equal(shown[2], shown[0])
    assert np.array_equal(shown[1], fakes[1].base)
    seen = np.asarray(layers[0]._slice.image.view)
    assert seen[3, 5].tolist() == (255 - fakes[0].base)[3, 5].tolist(), "the canvas shows the new colours"


def test_low_attention_leaves_the_slide_as_it_is() -> None:
    from napari_lrmil.plugin.viewer.maps.attention_layers import attention_colormap

    alpha = attention_colormap().colors[:, 3]
    assert alpha[0] == 0 and alpha[-1] == 1 and (np.diff(alpha) > 0).all()


@pytest.mark.parametrize(("limit", "rounded"), [(0.09, 0.1), (0.1, 0.1), (0.11, 0.2), (0.8, 1), (3, 5), (5.1, 10)])
def test_limits_of_legends_are_round(limit: float, rounded: float) -> None:
    from napari_lrmil.plugin.viewer.maps.attention_layers import round_up_limit

    assert round_up_limit(limit) == pytest.approx(rounded)


def test_the_outline_of_a_region_differs_from_glass_and_from_the_most_attended_patch() -> None:
    from napari.utils.colormaps.standardize_color import transform_color

    edge = transform_color(REGION_EDGE)[0, :3]
    for ground in (attention_colormap().colors[-1, :3], np.ones(3), transform_color(EXCLUDED_EDGE)[0, :3]):
        assert abs(float((ground - edge) @ (0.2126, 0.7152, 0.0722))) > 0.3
