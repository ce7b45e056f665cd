"""Gallery patches: selection, order, figures; bounded pixels at the right position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_lrmil.core.events import Finished
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.metrics.agreement import pool_to_lr_grid
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.top_patches import PATCH_MAX_PX, read_patch, select_top_and_bottom
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, resolution, speckled


def uneven(folder: Path, mpp: tuple[float, float] = (0.5, 0.4)) -> Slide:
    """Return a slide of 6 x 3 LR patches whose scanned part begins at (37, 21)."""
    base = speckled(1500, 900)
    base[21 + 330 : 21 + 400, 37 + 520 : 37 + 600] = (70, 30, 90)
    names = {"bounds-x": "37", "bounds-y": "21", "bounds-width": "1400", "bounds-height": "800"}
    properties = resolution(*mpp) | {f"openslide.{k}": v for k, v in names.items()}
    return fake_slide(folder, FakeSlide(base, (1.0, 4.0), properties))


def predicted(slide: Slide, teacher: str = "none") -> Prediction:
    *_, last = predict(slide, DarknessBundle(), device=torch.device("cpu"), teacher=TeacherPatches.parse(teacher))  # type: ignore[arg-type]
    assert isinstance(last, Finished)
    return last.result  # type: ignore[no-any-return]  # Finished carries anything


def with_attention(prediction: Prediction, attention: list[float]) -> Prediction:
    values = np.array(attention, np.float32)
    n = len(values)
    student = replace(
        prediction.student,
        coords=prediction.student.coords[:n],
        attention=values,
        evidence=prediction.student.evidence[:n],
    )
    return replace(prediction, student=student)


def test_patches_come_by_rank_the_top_ones_first_with_their_own_figures(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        prediction = with_attention(predicted(slide), [0.1, 0.3, 0.05, 0.25, 0.2, 0.1])
    gallery = select_top_and_bottom(prediction, 2)
    assert [(p.side, p.rank, p.row) for p in gallery] == [
        ("top", 1, 1), ("top", 2, 3), ("bottom", 5, 5), ("bottom", 6, 2)
    ]  # fmt: skip
    assert gallery[0].attention == pytest.approx(0.3) and gallery[0].relative == pytest.approx(6 * 0.3)
    assert list(gallery[1].evidence) == ["normal", "lesion"]
    np.testing.assert_allclose(list(gallery[1].evidence.values()), prediction.student.evidence[3])
    assert gallery[0].teacher_relative is None


def test_equal_attention_is_ranked_in_reading_order(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        prediction = with_attention(predicted(slide), [0.2, 0.3, 0.0, 0.2, 0.3, 0.0])
    assert [p.row for p in select_top_and_bottom(prediction, 3)] == [1, 4, 0, 3, 2, 5]


@pytest.mark.parametrize(("k", "sides"), [(1, (1, 1)), (3, (3, 2)), (5, (5, 0)), (9, (5, 0))])
def test_no_patch_comes_twice_where_there_are_few(tmp_path: Path, k: int, sides: tuple[int, int]) -> None:
    with uneven(tmp_path) as slide:
        gallery = select_top_and_bottom(with_attention(predicted(slide), [0.1, 0.4, 0.2, 0.25, 0.05]), k)
    assert (sum(p.side == "top" for p in gallery), sum(p.side == "bottom" for p in gallery)) == sides
    assert len({p.row for p in gallery}) == len(gallery)
    assert [p.rank for p in gallery] == sorted(p.rank for p in gallery) and gallery[0].rank == 1
    assert sides[1] == 0 or gallery[-1].rank == 5


def test_an_empty_gallery_is_refused(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide, pytest.raises(ValueError, match="k is 0, expected 1 or more"):
        select_top_and_bottom(predicted(slide), 0)


def test_the_darkest_patch_is_first_and_its_centre_is_where_it_was_planted(tmp_path: Path) -> None:
    """µm from the level-0 corner, x and y with their own resolutions: cells are 256 x 320 px on this slide."""
    with uneven(tmp_path) as slide:
        first = select_top_and_bottom(predicted(slide), 3)[0]
        pixels = read_patch(slide, predicted(slide), first.row, mpp=2.0)
    assert first.box == BoxLevel0(37.0 + 2 * 256, 21.0 + 320, 256.0, 320.0)
    assert first.centre_um == pytest.approx(((37 + 2.5 * 256) * 0.5, (21 + 1.5 * 320) * 0.4))
    assert pixels.shape == (64, 64, 3)
    dark = (np.abs(pixels.astype(int) - (70, 30, 90)) < 6).all(axis=2)
    rows, columns = np.nonzero(dark)
    assert columns.min() * 4 == pytest.approx(520 - 2 * 256, abs=8) and rows.min() * 5 == pytest.approx(10, abs=8)


def test_the_teachers_attention_is_that_of_the_patchs_children(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        prediction = predicted(slide, "all")
    assert prediction.teacher is not None
    pooled = pool_to_lr_grid(prediction.grid, prediction.teacher.attention)
    for patch in select_top_and_bottom(prediction, 4):
        assert patch.teacher_relative == pytest.approx(pooled[patch.row] * len(pooled))


@pytest.mark.parametrize(("mpp", "side"), [(2.0, 64), (1.0, 128), (0.45, 284), (0.25, 286), (0.01, 286)])
def test_pixels_have_the_wanted_resolution_and_are_never_invented(tmp_path: Path, mpp: float, side: int) -> None:
    """The patch is 128 µm; the slide has 0.447 µm per pixel at best."""
    with uneven(tmp_path) as slide:
        assert read_patch(slide, predicted(slide), 1, mpp=mpp).shape == (side, side, 3)


def test_a_patch_of_many_hr_pixels_is_bounded(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        prediction = predicted(slide)
        huge = replace(prediction, student=replace(prediction.student, patch_level0=(1500, 700)))
        assert read_patch(slide, huge, 0, mpp=0.1).shape[:2] == pytest.approx((382, PATCH_MAX_PX), abs=2)
