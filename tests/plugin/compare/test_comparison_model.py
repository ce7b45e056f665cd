"""What a comparison says and costs, without a screen."""

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
from napari_lrmil.core.results.reader import StoredResult
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
    known, unknown = PlannedPatches(CHILDREN, ATTENTION, pace), PlannedPatches(CHILDREN, None, pace)
    two = TeacherPatches(2)
    assert [known.estimate(p).hr_patches for p in (two, TeacherPatches.ALL, TeacherPatches.NONE)] == [24, 30, 0]
    assert known.estimate(two).seconds == 12.0, "the student's answer is there and costs nothing"
    assert unknown.estimate(two).hr_patches == 15, "twice the mean"
    assert unknown.estimate(TeacherPatches.ALL).seconds == 4.0 + 15.0


@pytest.mark.parametrize(("seconds", "wanted"), [(4.0, 1), (11.9, 1), (12.0, 2), (14.0, 3), (99.0, 4), (0.1, 1)])
def test_a_time_becomes_a_number_of_patches(seconds: float, wanted: int) -> None:
    assert PlannedPatches(CHILDREN, ATTENTION, pace).max_teacher_patches(seconds) == wanted


def test_what_a_wish_comes_to_is_told_or_why_that_is_not_known() -> None:
    asked = PlannedPatches(CHILDREN, ATTENTION, pace)
    assert TeacherBudget("all").text(asked) == "30 HR patches in 4 of 4 · about 15 s"
    assert TeacherBudget("top", top=2).text(asked) == "24 HR patches in 2 of 4 · about 12 s"
    assert TeacherBudget("time", seconds=12).choice(asked) == TeacherPatches(2)
    slow = PlannedPatches(CHILDREN, None, lambda *_: None)
    assert "not known yet" in TeacherBudget("time").text(slow) and TeacherBudget("time").choice(slow) is None
    assert TeacherBudget("top", top=2).text(slow).startswith("about 15 HR patches in 2 of 4 · time not known")
    assert "tissue" in TeacherBudget("all").text(None)


# ---------------------------------------------------------------- what it says


def test_both_values_are_read_at_once(slide: Slide) -> None:
    found = ask(slide)
    there = Comparison(found)
    row = 3
    x, y = (found.grid.lr_corners[row] + (10, 10)) * (0.5, 0.4)
    assert there.point_at(x, y) == row
    said = there.text_at(x, y)
    hr = np.flatnonzero((found.teacher.coords == found.grid.lr_corners[row]).all(axis=1))[0]  # type: ignore[union-attr]  # it ran
    relative = found.teacher.attention[hr] * len(found.teacher.attention)  # type: ignore[union-attr]  # it ran
    wanted = found.student.attention[row] * len(found.student.attention)
    assert f"student {wanted:.2f}" in said and f"(HR patch {relative:.2f})" in said
    assert f"teacher {found.teacher_on_lr[row] * len(found.student.attention):.2f}" in said
    assert "no patch here" in there.text_at(-500, -500)


def test_where_the_teacher_did_not_look_is_said(slide: Slide) -> None:
    found = ask(slide, "top-2")
    row = int(np.argmin(found.student.attention))
    x, y = (found.grid.lr_corners[row] + (10, 10)) * (0.5, 0.4)
    assert "did not look here" in Comparison(found).text_at(x, y)
    assert len(Comparison(found).both.rows) == 2


def test_figures_are_those_of_the_prediction(slide: Slide) -> None:
    found = ask(slide)
    figures = {f.name: (f.student, f.teacher) for f in Comparison(found).figures}
    name = found.classes[0]
    assert found.teacher is not None
    assert float(figures[f"P({name})"][1]) == pytest.approx(found.teacher.probabilities[name], abs=6e-4)
    assert figures["Patches"] == (f"{len(found.grid.lr_index)}", f"{len(found.grid.hr_index)}")
    assert figures["Pixels read"][1] == f"{found.teacher.pixels_decoded / 1e6:.1f} M"
    assert make_comparison(ask(slide, "none")) is None and make_comparison(None) is None


def test_points_and_patches_belong_together(slide: Slide) -> None:
    found = ask(slide, "top-5")
    there = Comparison(found)
    row = int(there.both.rows[2])
    (x, y), (width, height) = found.grid.lr_corners[row], found.grid.lattice.lr_cell
    points = there.points_in([box_region(BoxLevel0(float(x), float(y), float(width), float(height)), "one")])
    assert np.flatnonzero(points).tolist() == [2] and there.rows(points).tolist() == [row]
    assert not there.points_in(()).any()


def test_lesions_are_those_drawn_or_those_beside_the_slide(slide: Slide) -> None:
    found, choice = ask(slide), SlideChoice("s", slide.path, slide.mpp.mean)
    shelf = OpenSlides(lambda *_: slide)
    *_, none = ScoreLesionsJob(found, choice, shelf).events()
    assert none == Finished(None)
    row = int(np.argmax(found.student.attention))
    (x, y), (width, height) = found.grid.lr_corners[row], found.grid.lattice.lr_cell
    drawn = (box_region(BoxLevel0(float(x), float(y), float(width), float(height)), "lesion"),)
    *_, last = ScoreLesionsJob(found, choice, shelf, drawn).events()
    lines = {f.name: (f.student, f.teacher) for f in last.result.lines}  # type: ignore[union-attr]  # the last event carries it
    assert lines["Lesion AUROC"][0] == "1.000" and lines["Top patch in lesion"][0] == "yes"
    assert "drawn regions, 1 patches" in last.result.text  # type: ignore[union-attr]  # the last event carries it


# ---------------------------------------------------------------- a cohort


def test_the_most_disagreeing_come_first_and_those_without_a_figure_last() -> None:
    def line(name: str, rho: float | None, js: float | None) -> StoredResult:
        return StoredResult(name, Path(name), spearman=rho, js_divergence=js)

    lines = [line("a", 0.9, 0.5), line("z", None, None), line("b", -0.2, 0.1), line("k", None, 0.9)]
    assert [one.name for one in sort_by_attention_disagreement(lines, "rho")] == ["b", "a", "k", "z"]
    assert [one.name for one in sort_by_attention_disagreement(lines, "js")] == ["k", "a", "b", "z"]


def test_a_cohort_is_read_with_its_pictures(slide: Slide, tmp_path: Path) -> None:
    found = ask(slide)
    for name in ("one", "two"):
        write_prediction(tmp_path / "out", slide, replace(found, slide=name))
    (tmp_path / "out" / "two" / "overlay.png").write_bytes(b"no picture")
    events = list(ReadCohortJob(tmp_path / "out", 40).events())
    shown = [event.result for event in events if isinstance(event, Partial)]
    assert [one.name for one in shown[:2]] == ["one", "two"]
    [(folder, pixels)] = shown[2:]
    assert folder.name == "one" and pixels.shape[0] <= 40 and pixels.shape[2] == 3
    assert events[-1].result == tuple(shown[:2])  # type: ignore[union-attr]  # the last event carries it
