"""Comparison of student and teacher: compared patches, difference of attention, lesion localisation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from napari_lrmil.core.errors import ConfigError, LrmilError
from napari_lrmil.core.events import Finished
from napari_lrmil.core.geometry import Bounds, BoxLevel0
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_comparison import (
    read_lesions,
    score_lesion_localisation,
    shared_patches,
)
from napari_lrmil.core.inference.teacher_patches import TeacherPatches, select_teacher_patches
from napari_lrmil.core.metrics.agreement import measure_agreement
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.results.writer import build_agreement_file, build_prediction_file
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.comparison_figure import draw_comparison
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, one_sentence, resolution, speckled


@pytest.fixture
def slide(tmp_path: Path) -> Iterator[Slide]:
    """Return tissue with one dark spot, in the LR patch whose corner is (256, 256)."""
    base = speckled(1280, 1024)
    base[300:400, 300:400] = (70, 30, 90)
    with fake_slide(tmp_path, FakeSlide(base, (1.0, 4.0), resolution(0.5))) as opened:
        yield opened


def run_predict(slide: Slide, teacher: str, **card: object) -> Prediction:
    *_, last = predict(slide, DarknessBundle(**card), device=torch.device("cpu"), teacher=TeacherPatches.parse(teacher))  # type: ignore[arg-type]
    assert isinstance(last, Finished)
    return last.result  # type: ignore[no-any-return]  # Finished carries anything


def with_attention(prediction: Prediction, student: list[float], teacher: list[float]) -> Prediction:
    """Return a prediction whose networks give these attentions; the teacher's, to whole LR patches."""
    assert prediction.teacher is not None
    children = np.bincount(prediction.grid.parent, minlength=len(student))
    hr = (np.array(teacher) / children)[prediction.grid.parent]
    return replace(
        prediction,
        student=replace(prediction.student, attention=np.array(student, np.float32)),
        teacher=replace(prediction.teacher, attention=hr.astype(np.float32)),
    )


@pytest.mark.parametrize(("choice", "expected"), [("all", [0, 1, 2, 3]), ("top-2", [1, 3]), ("top-9", [0, 1, 2, 3])])
def test_the_teacher_looks_where_the_student_looked_most(choice: str, expected: list[int]) -> None:
    rows = select_teacher_patches(TeacherPatches.parse(choice), np.array([0.1, 0.4, 0.1, 0.4], np.float32))
    assert np.flatnonzero(rows).tolist() == expected
    tied = select_teacher_patches(TeacherPatches(1), np.full(4, 0.25, np.float32))
    assert np.flatnonzero(tied).tolist() == [0], "ties in their order"


def test_what_the_teacher_reads_keeps_its_text_and_is_checked() -> None:
    for text, count in (("none", 0), ("all", 7), ("top-3", 3), ("top-9", 7)):
        assert str(TeacherPatches.parse(text)) == text and TeacherPatches.parse(text).count(7) == count
    assert (TeacherPatches.parse("none"), TeacherPatches.parse("all")) == (TeacherPatches.NONE, TeacherPatches.ALL)
    assert not select_teacher_patches(TeacherPatches.NONE, np.full(4, 0.25, np.float32)).any()
    with pytest.raises(ValueError, match="-1 patches"):
        TeacherPatches(-1)


@pytest.mark.parametrize("choice", ["", "ALL", "top-0", "top-", "top", "most", "top-1.5", "TOP-3"])
def test_any_other_choice_is_refused_in_one_sentence(choice: str) -> None:
    with pytest.raises(ConfigError, match="top-20") as refused:
        TeacherPatches.parse(choice)
    assert one_sentence(refused.value)


def test_the_top_patches_are_read_finely_and_nothing_else(slide: Slide) -> None:
    before = slide.pixels_decoded
    partial = run_predict(slide, "top-2")
    read = slide.pixels_decoded - before
    full = run_predict(slide, "all")
    assert partial.teacher is not None and full.teacher is not None and partial.compared is not None
    assert partial.compared.sum() == 2 and partial.compared[partial.student.attention.argmax()]
    part = partial.grid.select(partial.compared)
    np.testing.assert_array_equal(partial.teacher.coords, part.hr_corners)
    assert read < slide.pixels_decoded - before - read, "less than the whole slide"
    assert len(partial.student.attention) == len(full.student.attention), "the student looks everywhere"
    assert partial.agreement == measure_agreement(
        part, partial.student.attention[partial.compared], partial.teacher.attention
    )
    stored = build_prediction_file(partial).as_json()["teacher"]
    assert stored["n_lr_patches"] == 2 and stored["n_patches"] == len(part.hr_index)
    assert partial.agreement is not None and partial.agreement.n_patches == 2 and full.agreement is not None
    assert full.agreement.n_patches == len(full.grid.lr_index) == len(partial.grid.lr_index)


def test_calibration_holds_for_a_teacher_that_saw_the_whole_slide(slide: Slide) -> None:
    card = {"temperature": 2.0, "teacher_temperature": 2.0}
    full, part = run_predict(slide, "all", **card), run_predict(slide, "top-3", **card)
    of_full, of_part = build_prediction_file(full).teacher, build_prediction_file(part).teacher
    assert of_full is not None and of_full.calibrated and of_part is not None and not of_part.calibrated
    assert part.teacher is not None
    logits = np.array(list(part.teacher.logits.values()))
    plain = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert list(part.teacher.probabilities.values()) == pytest.approx(plain.tolist(), abs=1e-6)


def test_differences_by_hand(slide: Slide) -> None:
    """Each in multiples of its own average over what both looked into."""
    prediction = run_predict(slide, "all")
    n = len(prediction.grid.lr_index)
    student, teacher = np.full(n, 0.5 / (n - 1)), np.full(n, 1 / n)
    student[0] = 0.5
    both = shared_patches(with_attention(prediction, student.tolist(), teacher.tolist()))
    assert both.student[0] == pytest.approx(0.5 * n) and both.teacher == pytest.approx(np.ones(n))
    assert both.difference[0] == pytest.approx(0.5 * n - 1, rel=1e-5) and both.difference.sum() == pytest.approx(
        0, abs=1e-4
    )


def test_lesions_by_hand(slide: Slide) -> None:
    """The student's most attention lies in the lesion, the teacher's beside it; ranks give the areas."""
    prediction = run_predict(slide, "all")
    n = len(prediction.grid.lr_index)
    (left, top), (width, height) = prediction.grid.lr_corners[0], prediction.grid.lattice.lr_cell
    lesion = box_region(BoxLevel0(float(left), float(top), float(width), float(height)), "lesion")
    rising = (np.arange(1, n + 1) / (n * (n + 1) / 2)).tolist()
    metrics = score_lesion_localisation(with_attention(prediction, rising[::-1], rising), [lesion])
    assert (metrics.lesion_auroc_student, metrics.lesion_auroc_teacher) == (1.0, 0.0)
    assert (metrics.pointing_student, metrics.pointing_teacher, metrics.n_lesion_patches) == (True, False, 1)
    nowhere = score_lesion_localisation(prediction, [box_region(BoxLevel0(9e5, 9e5, 10, 10), "far")])
    assert nowhere.lesion_auroc_student is None and nowhere.pointing_teacher is None


def test_both_networks_find_the_dark_spot_and_the_picture_shows_it(slide: Slide, tmp_path: Path) -> None:
    prediction = run_predict(slide, "all")
    lesion = box_region(BoxLevel0(300, 300, 200, 200), "spot")
    stored = build_agreement_file(prediction, [lesion]).as_json()
    assert stored["pointing_student"] and stored["pointing_teacher"] and stored["lesion_auroc_teacher"] == 1.0
    assert stored["n_patches"] == len(prediction.grid.lr_index) and stored["pixels_teacher"] > stored["pixels_student"]
    assert "lesion_auroc_student" not in build_agreement_file(prediction).as_json()
    for drawn in (prediction, run_predict(slide, "top-2")):
        draw_comparison(tmp_path / "compare.png", slide, drawn, [lesion])
        with Image.open(tmp_path / "compare.png") as picture:
            assert picture.format == "PNG" and picture.width > 1500


def test_costs_of_fewer_patches_say_so(slide: Slide) -> None:
    """Patches of an earlier run are not encoded again, so seconds and pixels are those of the others."""
    prediction = run_predict(slide, "all")
    assert "patches_from_cache" not in build_agreement_file(prediction).as_json()
    student = replace(prediction.student, patches_encoded=prediction.student.patches_encoded - 3)
    stored = build_agreement_file(replace(prediction, student=student)).as_json()
    assert stored["patches_from_cache"] == {"student": 3, "teacher": 0}


def test_without_a_teacher_there_is_nothing_to_compare(slide: Slide) -> None:
    prediction = run_predict(slide, "none")
    with pytest.raises(LrmilError, match="nothing to compare") as refused:
        build_agreement_file(prediction).as_json()
    assert one_sentence(refused.value)
    with pytest.raises(ValueError, match="no teacher ran"):
        _ = prediction.teacher_on_lr


def test_the_file_beside_a_slide_is_in_level_0_pixels_and_others_in_those_of_qupath(tmp_path: Path) -> None:
    square = [[500, 600], [700, 600], [700, 900], [500, 900], [500, 600]]
    text = json.dumps({"type": "Polygon", "coordinates": [square]})
    for name in ("s_lesions.geojson", "other.geojson"):
        (tmp_path / name).write_text(text)
    bounds = Bounds(120, 340, 5000, 4000)
    beside = read_lesions(tmp_path / "s.scn", bounds)
    assert beside.regions[0].geometry.bounds == (500, 600, 700, 900)
    assert "taken in level-0 pixels, not in QuPath's coordinates" in beside.warnings[0]
    assert read_lesions(tmp_path / "s.scn", Bounds(0, 0, 5000, 4000)).warnings == ()
    given = read_lesions(tmp_path / "s.scn", bounds, tmp_path / "other.geojson")
    assert given.regions[0].geometry.bounds == (620, 940, 820, 1240) and given.warnings == ()


def test_a_lesion_file_may_say_that_there_are_none(slide: Slide) -> None:
    assert read_lesions(slide.path, slide.bounds).regions == ()
    file = slide.path.with_name(f"{slide.path.stem}_lesions.geojson")
    file.write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    assert read_lesions(slide.path, slide.bounds).regions == ()
