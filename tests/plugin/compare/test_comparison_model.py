"""Text, figures and costs of a comparison, without a screen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_lrmil.core.events import Finished, Partial
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.results.reader import StoredResult, restore_prediction
from napari_lrmil.core.results.writer import write_prediction
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.compare.comparison_model import (
    Comparison,
    ReadCohortJob,
    ScoreLesionsJob,
    TeacherBudget,
    make_comparison,
    sort_by_attention_disagreement,
)
from napari_lrmil.plugin.session.eta import PlannedPatches
from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, resolution, speckled

MODEL: Any = DarknessBundle()


@pytest.fixture
def slide(tmp_path: Path) -> Iterator[Slide]:
    with fake_slide(tmp_path, FakeSlide(speckled(1280, 1024), (1.0, 4.0), resolution(0.5, 0.4)), "s.svs") as opened:
        yield opened


def ask(slide: Slide, teacher: str = "all") -> Prediction:
    *_, last = predict(slide, MODEL, device=torch.device("cpu"), teacher=TeacherPatches.parse(teacher))
    return last.result  # type: ignore[no-any-return,union-attr]  # the last event carries it


def test_it_needs_neither_qt_nor_napari() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('qtpy', 'napari', 'magicgui')))"
    code = f"{blocked}; import napari_lrmil.plugin.compare.comparison_model"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


# ---------------------------------------------------------------- what it costs

CHILDREN = np.array([4, 16, 8, 2])
ATTENTION = np.array([0.1, 0.2, 0.6, 0.1], np.float32)


def pace(network: str, patches: int) -> float:
    return {"student": 1.0, "teacher": 0.5}[network] * patches


def test_the_teachers_cost_counts_the_children_of_what_the_student_chose() -> None:
    cached, uncached = PlannedPatches(CHILDREN, ATTENTION, pace), PlannedPatches(CHILDREN, None, pace)
    two = TeacherPatches(2)
    assert [cached.estimate(p).hr_patches for p in (two, TeacherPatches.ALL, TeacherPatches.NONE)] == [24, 30, 0]
    assert cached.estimate(two).seconds == 12.0, "the student's answer is there and costs nothing"
    assert uncached.estimate(two).hr_patches == 15, "twice the mean"
    assert uncached.estimate(TeacherPatches.ALL).seconds == 4.0 + 15.0


@pytest.mark.parametrize(("seconds", "expected"), [(4.0, 1), (11.9, 1), (12.0, 2), (14.0, 3), (99.0, 4), (0.1, 1)])
def test_a_time_becomes_a_number_of_patches(seconds: float, expected: int) -> None:
    assert PlannedPatches(CHILDREN, ATTENTION, pace).max_teacher_patches(seconds) == expected


def test_what_a_wish_comes_to_is_told_or_why_that_is_not_known() -> None:
    planned = PlannedPatches(CHILDREN, ATTENTION, pace)
    assert TeacherBudget("all").text(planned) == "30 HR patches in 4 of 4 · about 15 s"
    assert TeacherBudget("top", top=2).text(planned) == "24 HR patches in 2 of 4 · about 12 s"
    assert TeacherBudget("time", seconds=12).teacher_patches(planned) == TeacherPatches(2)
    slow = PlannedPatches(CHILDREN, None, lambda *_: None)
    assert "not known yet" in TeacherBudget("time").text(slow) and TeacherBudget("time").teacher_patches(slow) is None
    assert TeacherBudget("top", top=2).text(slow).startswith("about 15 HR patches in 2 of 4 · time not known")
    assert "tissue" in TeacherBudget("all").text(None)


# ---------------------------------------------------------------- what it says


def test_both_values_are_read_at_once(slide: Slide) -> None:
    prediction = ask(slide)
    comparison = Comparison(prediction)
    row = 3
    x, y = (prediction.grid.lr_corners[row] + (10, 10)) * (0.5, 0.4)
    assert comparison.point_at(x, y) == row
    text = comparison.text_at(x, y)
    hr = np.flatnonzero((prediction.teacher.coords == prediction.grid.lr_corners[row]).all(axis=1))[0]  # type: ignore[union-attr]  # it ran
    relative = prediction.teacher.attention[hr] * len(prediction.teacher.attention)  # type: ignore[union-attr]  # it ran
    expected = prediction.student.attention[row] * len(prediction.student.attention)
    assert f"student {expected:.2f}" in text and f"(HR patch {relative:.2f})" in text
    assert f"teacher {prediction.teacher_on_lr[row] * len(prediction.student.attention):.2f}" in text
    assert "no patch here" in comparison.text_at(-500, -500)


def test_where_the_teacher_did_not_look_is_said(slide: Slide) -> None:
    prediction = ask(slide, "top-2")
    row = int(np.argmin(prediction.student.attention))
    x, y = (prediction.grid.lr_corners[row] + (10, 10)) * (0.5, 0.4)
    assert "not read by the teacher" in Comparison(prediction).text_at(x, y)
    assert len(Comparison(prediction).shared.rows) == 2


def test_figures_are_those_of_the_prediction(slide: Slide) -> None:
    prediction = ask(slide)
    figures = {f.name: (f.student, f.teacher) for f in Comparison(prediction).table_rows}
    name = prediction.classes[0]
    assert prediction.teacher is not None
    assert float(figures[f"P({name})"][1]) == pytest.approx(prediction.teacher.probabilities[name], abs=6e-4)
    assert figures["Patches"] == (f"{len(prediction.grid.lr_index)}", f"{len(prediction.grid.hr_index)}")
    assert figures["Pixels read"][1] == f"{prediction.teacher.pixels_decoded / 1e6:.1f} M"
    assert make_comparison(ask(slide, "none")) is None and make_comparison(None) is None


def test_costs_that_the_cache_has_spared_are_not_stated_but_the_cache_is(slide: Slide, tmp_path: Path) -> None:
    """What was read after the cache is not the cost of the network."""
    prediction = ask(slide)
    whole = Comparison(prediction)
    assert not whole.cost_caution and not any("not measured" in (row.student, row.teacher) for row in whole.table_rows)
    n, teacher = len(prediction.student.attention), prediction.teacher
    assert teacher is not None
    student = replace(prediction.student, patches_encoded=n - 2, pixels_decoded=9_000)
    partly = Comparison(replace(prediction, student=student))
    rows = {row.name: (row.student, row.teacher) for row in partly.table_rows}
    assert rows["Seconds, alone"] == ("not measured", f"{teacher.seconds['total']:.1f}")
    assert rows["Pixels read"][0] == "not measured" and rows["Pixels read"][1].endswith(" M")
    assert partly.cost_caution.startswith(f"From the cache: 2 of {n} patches of the student. ")
    both = Comparison(replace(prediction, student=student, teacher=replace(teacher, patches_encoded=0)))
    assert f"{len(teacher.attention)} of {len(teacher.attention)} patches of the teacher" in both.cost_caution
    restored = restore_prediction(write_prediction(tmp_path / "out", slide, both.prediction), slide, MODEL)
    assert Comparison(restored).table_rows == both.table_rows and Comparison(restored).cost_caution == both.cost_caution
    restored = restore_prediction(write_prediction(tmp_path / "out2", slide, prediction), slide, MODEL)
    assert Comparison(restored).table_rows == whole.table_rows and not Comparison(restored).cost_caution


def test_few_pixels_are_not_none(slide: Slide) -> None:
    prediction = ask(slide)
    few = replace(prediction, student=replace(prediction.student, pixels_decoded=9_000))
    rows = {row.name: row for row in Comparison(few).table_rows}
    assert rows["Pixels read"].student == "under 0.1 M"


def test_points_and_patches_belong_together(slide: Slide) -> None:
    prediction = ask(slide, "top-5")
    comparison = Comparison(prediction)
    row = int(comparison.shared.rows[2])
    (x, y), (width, height) = prediction.grid.lr_corners[row], prediction.grid.lattice.lr_cell
    points = comparison.points_in([box_region(BoxLevel0(float(x), float(y), float(width), float(height)), "one")])
    assert np.flatnonzero(points).tolist() == [2] and comparison.rows_of(points).tolist() == [row]
    assert not comparison.points_in(()).any()


def test_lesions_are_those_drawn_or_those_beside_the_slide(slide: Slide) -> None:
    prediction, choice = ask(slide), SlideChoice("s", slide.path, slide.mpp.mean)
    shelf = OpenSlides(lambda *_: slide)
    *_, none = ScoreLesionsJob(prediction, choice, shelf).events()
    assert none == Finished(None)
    row = int(np.argmax(prediction.student.attention))
    (x, y), (width, height) = prediction.grid.lr_corners[row], prediction.grid.lattice.lr_cell
    drawn = (box_region(BoxLevel0(float(x), float(y), float(width), float(height)), "lesion"),)
    *_, last = ScoreLesionsJob(prediction, choice, shelf, drawn).events()
    table = {f.name: (f.student, f.teacher) for f in last.result.table_rows}  # type: ignore[union-attr]  # the last event carries it
    assert table["Lesion AUROC"][0] == "1.000" and table["Top patch in lesion"][0] == "yes"
    assert "drawn regions, 1 patch " in last.result.text  # type: ignore[union-attr]  # the last event carries it


# ---------------------------------------------------------------- a cohort


def test_the_most_disagreeing_come_first_and_those_without_a_figure_last() -> None:
    values = {"a": (0.9, 0.5), "z": (None, None), "b": (-0.2, 0.1), "k": (None, 0.9)}
    results = [StoredResult(name, Path(name), spearman=rho, js_divergence=js) for name, (rho, js) in values.items()]
    assert [result.name for result in sort_by_attention_disagreement(results, "rho")] == ["b", "a", "k", "z"]
    assert [result.name for result in sort_by_attention_disagreement(results, "js")] == ["k", "a", "b", "z"]


def test_a_cohort_is_read_with_its_pictures(slide: Slide, tmp_path: Path) -> None:
    prediction = ask(slide)
    for name in ("one", "two"):
        write_prediction(tmp_path / "out", slide, replace(prediction, slide=name))
    (tmp_path / "out" / "two" / "overlay.png").write_bytes(b"no picture")
    events = list(ReadCohortJob(tmp_path / "out", 40).events())
    shown = [event.result for event in events if isinstance(event, Partial)]
    assert [result.name for result in shown[:2]] == ["one", "two"]
    [(folder, pixels)] = shown[2:]
    assert folder.name == "one" and pixels.shape[0] <= 40 and pixels.shape[2] == 3
    assert events[-1].result == tuple(shown[:2])  # type: ignore[union-attr]  # the last event carries it
