"""Ordinary images as slides: accepted and refused layers, and the same prediction as for a slide of these pixels."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import torch
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.viewer.layers import get_tag, lrmil_layers
from napari_lrmil.plugin.viewer.opening.image_as_slide import (
    make_slide_opener,
    replace_with_slide,
    slide_from_layer,
    why_not_a_slide,
)
from napari_lrmil.plugin.viewer.opening.mpp_prompt import MppAnswer
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, l_shape, one_sentence, resolution, speckled

PHOTO = speckled(700, 430)


def _photo(name: str = "photo") -> Image:
    return Image(PHOTO, rgb=True, name=name)


def test_a_picture_reads_as_a_slide_of_one_level_white_past_its_edge() -> None:
    with slide_from_layer(_photo(), mpp=0.5) as slide:
        assert (slide.width, slide.height, len(slide.levels)) == (700, 430, 1)
        assert slide.name == "photo" and slide.mpp.source == "override"
        pixels = slide.read(BoxLevel0(600, 400, 200, 60), (200, 60))
    assert np.array_equal(pixels[:30, :100], PHOTO[400:, 600:])
    assert (pixels[30:] == 255).all() and (pixels[:, 100:] == 255).all()


def test_without_a_resolution_it_has_none_and_with_lengths_it_has_the_layers_own() -> None:
    assert not slide_from_layer(_photo()).has_mpp
    layer = Image(PHOTO, rgb=True, scale=(250, 500), units=("nm", "nm"))
    mpp = slide_from_layer(layer).mpp
    assert (mpp.x, mpp.y) == pytest.approx((0.5, 0.25))


def test_the_fingerprint_is_that_of_the_pixels() -> None:
    other = PHOTO.copy()
    other[429, 699, 2] ^= 1
    prints = [
        slide_from_layer(Image(p, rgb=True, name=f"layer {i}")).fingerprint
        for i, p in enumerate(
            (PHOTO, other, PHOTO, da.from_array(PHOTO, chunks=(100, 300, 3)), PHOTO.reshape(860, -1, 3))
        )
    ]
    assert prints[0] == prints[2] == prints[3]
    assert len(set(prints)) == 3


def test_it_survives_pickling() -> None:
    slide = pickle.loads(pickle.dumps(slide_from_layer(_photo(), mpp=0.5)))
    assert np.array_equal(slide.read_level(0, 0, 0, 700, 430), PHOTO)


def test_transparent_pixels_are_white() -> None:
    pixels = np.dstack([PHOTO, np.zeros(PHOTO.shape[:2], np.uint8)])
    assert (slide_from_layer(Image(pixels, rgb=True)).read_level(0, 0, 0, 9, 5) == 255).all()


@pytest.mark.parametrize(
    ("layer", "seen"),
    [
        (Image(np.zeros((40, 70), np.uint8), name="grey"), "grey image of 40 x 70"),
        (Image(np.zeros((4, 40, 70, 3), np.uint8), rgb=True, name="stack"), "4 x 40 x 70"),
        (Image(np.zeros((40, 70, 3), np.float32), rgb=True, name="floats"), "float32"),
        (Labels(np.zeros((40, 70), int), name="mask"), "Labels layer"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence_that_says_what_was_seen(layer: Image, seen: str) -> None:
    with pytest.raises(SlideError, match=seen) as refused:
        slide_from_layer(layer)
    assert one_sentence(refused.value) and layer.name in why_not_a_slide(layer)


def test_the_engine_says_the_same_of_the_picture_as_of_a_slide_with_its_pixels(tmp_path: Path) -> None:
    base = l_shape(900, 700, (300, 260))
    bundle = DarknessBundle()
    with slide_from_layer(Image(base, rgb=True), mpp=0.5) as picture:
        *_, picture_finished = predict(picture, bundle, device=torch.device("cpu"))  # type: ignore[arg-type]
    with fake_slide(tmp_path, FakeSlide(base, (1.0,), resolution(0.5))) as slide:
        *_, slide_finished = predict(slide, bundle, device=torch.device("cpu"))  # type: ignore[arg-type]
    of_picture, of_slide = picture_finished.result, slide_finished.result  # type: ignore[union-attr]
    assert len(of_picture.grid.lr_index) > 5
    assert np.array_equal(of_picture.student.attention, of_slide.student.attention)
    assert of_picture.student.probabilities == of_slide.student.probabilities


def test_a_picture_becomes_a_slide_in_the_viewer_and_the_analysis_can_open_it(tmp_path: Path) -> None:
    viewer = ViewerModel()
    layer = viewer.add_image(PHOTO, rgb=True, name="photo/1")
    assert replace_with_slide(viewer, layer, lambda _: None) == [] and list(viewer.layers) == [layer]
    replace_with_slide(viewer, layer, lambda _: MppAnswer(0.25, remember=False))
    [slide_layer] = lrmil_layers(viewer, role="slide")
    tag = get_tag(slide_layer)
    assert tag is not None and layer not in viewer.layers
    assert tag.mpp == tag.given_mpp == 0.25 and tuple(slide_layer.scale) == (0.25, 0.25)
    with make_slide_opener(viewer)(tag.path, tag.given_mpp) as opened:
        assert np.array_equal(opened.read_level(0, 0, 0, 700, 430), PHOTO)
    assert "already" in why_not_a_slide(slide_layer)


def test_files_are_opened_as_before(slide_path: Path) -> None:
    with make_slide_opener(ViewerModel())(slide_path, None) as slide:
        assert isinstance(slide, Slide) and slide.width == 1280
