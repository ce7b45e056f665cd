"""Stored results are restored unchanged; results that do not fit are refused in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_comparison import shared_patches
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.core.results.reader import (
    find_result_folder,
    list_result_folders,
    locate_slide,
    read_result_summary,
    restore_answer,
    restore_prediction,
)
from napari_lrmil.core.results.writer import build_agreement_file, build_prediction_file, write_prediction
from napari_lrmil.core.runtimes.select import REFERENCE, RuntimeChoice
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, one_sentence, resolution, speckled

MODEL: Any = DarknessBundle()


@pytest.fixture
def slide(tmp_path: Path) -> Iterator[Slide]:
    with fake_slide(tmp_path, FakeSlide(speckled(1280, 1024), (1.0, 4.0), resolution(0.5, 0.4)), "s.svs") as opened:
        yield opened


def run_predict(slide: Slide, teacher: str, scope: RegionOfInterest = WHOLE_SLIDE) -> Prediction:
    *_, last = predict(slide, MODEL, device=torch.device("cpu"), teacher=TeacherPatches.parse(teacher), scope=scope)
    return last.result  # type: ignore[no-any-return,union-attr]  # the last event carries it


@pytest.mark.parametrize("teacher", ["all", "top-3"])
def test_what_was_stored_comes_back(slide: Slide, tmp_path: Path, teacher: str) -> None:
    prediction = run_predict(slide, teacher)
    write_prediction(tmp_path / "out", slide, prediction)
    back = restore_prediction(find_result_folder(tmp_path / "out", slide), slide, MODEL)
    assert back.agreement == prediction.agreement and back.teacher_patches == prediction.teacher_patches
    assert str(back.teacher_patches) == teacher
    np.testing.assert_array_equal(back.grid.lr_index, prediction.grid.lr_index)
    np.testing.assert_allclose(back.teacher_on_lr, prediction.teacher_on_lr)
    np.testing.assert_allclose(shared_patches(back).difference, shared_patches(prediction).difference)
    assert build_agreement_file(back).as_json() == build_agreement_file(prediction).as_json()
    assert (back.scope, back.calibrated, back.warnings) == (
        prediction.scope,
        prediction.calibrated,
        prediction.warnings,
    )
    assert back.reader == prediction.reader is not None


def test_results_of_a_version_that_did_not_tell_the_reader_come_back(slide: Slide, tmp_path: Path) -> None:
    write_prediction(tmp_path / "out", slide, run_predict(slide, "all"))
    folder = find_result_folder(tmp_path / "out", slide)
    content = json.loads((folder / "prediction.json").read_text(encoding="utf-8"))
    del content["reader"], content["reader_reason"]
    (folder / "prediction.json").write_text(json.dumps(content), encoding="utf-8")
    back = restore_prediction(folder, slide, MODEL)
    assert (
        back.reader is None and build_prediction_file(back).as_json()["reader"] is None and back.reader_option == "auto"
    )


def test_what_ran_the_encoder_comes_back(slide: Slide, tmp_path: Path) -> None:
    """Saved again, results must not claim another runtime; early builds had torch alone and do not say."""
    folder = write_prediction(tmp_path / "out", slide, run_predict(slide, "all"))
    stored = json.loads((folder / "prediction.json").read_text(encoding="utf-8"))
    ran = {"runtime": "openvino", "precision": "bfloat16", "runtime_reason": "the fastest that agrees"}
    (folder / "prediction.json").write_text(json.dumps(stored | ran), encoding="utf-8")
    back = restore_prediction(folder, slide, MODEL)
    assert back.student.runtime == RuntimeChoice(*ran.values())
    assert back.teacher is not None and back.teacher.runtime == REFERENCE
    early = {key: value for key, value in stored.items() if key not in ran}
    (folder / "prediction.json").write_text(json.dumps(early), encoding="utf-8")
    assert restore_prediction(folder, slide, MODEL).student.runtime == REFERENCE


def test_of_a_part_the_patches_are_known(slide: Slide, tmp_path: Path) -> None:
    prediction = run_predict(slide, "all", RegionOfInterest("region", (box_region(BoxLevel0(0, 0, 600, 700), "part"),)))
    write_prediction(tmp_path / "out", slide, prediction)
    back = restore_prediction(tmp_path / "out" / "s", slide, MODEL)
    assert not back.scope.is_whole_slide and back.scope.kind == "region"
    assert len(back.grid.lr_index) == len(prediction.grid.lr_index)
    whole = find_tissue_grid(slide, MODEL.card.plan, MODEL.card.tissue)
    assert len(prediction.grid.lr_index) == back.scope.select(whole).is_selected.sum() < len(whole.grid.lr_index)


def change_json(**new: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "prediction.json").read_text()) | new
        (folder / "prediction.json").write_text(json.dumps(content))

    return change


def change_attention(values: Callable[[Any], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with h5py.File(folder / "teacher_attention.h5", "r+") as file:
            file["attention"][:] = values(file["attention"][:])

    return change


def shift(folder: Path) -> None:
    with h5py.File(folder / "attention.h5", "r+") as file:
        file["coords"][:] += 7


def other_mpp(folder: Path) -> None:
    with h5py.File(folder / "attention.h5", "r+") as file:
        file["coords"].attrs["mpp0"] = 0.25


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (change_json(slide_fingerprint="other"), "another slide"),
        (change_json(bundle_sha256="other"), "another model"),
        (change_json(classes=["a", "b"]), "classes"),
        (change_json(seconds=None), r"cannot be read as stored results \(seconds: "),
        (change_json(schema_version=2, logits="moved"), "schema version 2.*up to 1; update napari-lrmil"),
        (lambda folder: (folder / "teacher_attention.h5").unlink(), "no teacher"),
        (lambda folder: (folder / "attention.h5").write_bytes(b"no HDF5"), "cannot be read"),
        (lambda folder: (folder / "prediction.json").write_text('{"slide":'), "cannot be read"),
        (lambda folder: (folder / "prediction.json").write_text("[]"), "cannot be read"),
        (change_attention(lambda values: values * 2), "sums to 2"),
        (change_attention(lambda values: values * np.nan), "not a number"),
        (shift, "grid"),
        (other_mpp, "0.25 µm per pixel"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    slide: Slide, tmp_path: Path, harm: Callable[[Path], Any], expected: str
) -> None:
    folder = write_prediction(tmp_path / "out", slide, run_predict(slide, "all"))
    harm(folder)
    with pytest.raises(StoredError, match=expected) as error:
        restore_prediction(folder, slide, MODEL)
    assert one_sentence(error.value)


def test_an_answer_of_the_student_alone_comes_back_and_is_stored_again_as_it_was(slide: Slide, tmp_path: Path) -> None:
    prediction = run_predict(slide, "none")
    folder = write_prediction(tmp_path / "out", slide, prediction)
    back = restore_answer(folder, slide, MODEL)
    assert back.teacher is None and back.agreement is None and back.scope.is_whole_slide
    np.testing.assert_array_equal(back.student.attention, prediction.student.attention)
    np.testing.assert_array_equal(back.grid.lr_corners, prediction.grid.lr_corners)
    assert back.n_hr_patches == len(prediction.grid.hr_index) > 0
    again, first = build_prediction_file(back).as_json(), build_prediction_file(prediction).as_json()
    assert again == first
    change_json(bundle_sha256="other")(folder)
    with pytest.raises(StoredError, match="another model"):
        restore_answer(folder, slide, MODEL)


def test_an_answer_with_a_teacher_comes_back_with_it(slide: Slide, tmp_path: Path) -> None:
    folder = write_prediction(tmp_path / "out", slide, run_predict(slide, "all"))
    assert restore_answer(folder, slide, MODEL).teacher is not None
    (folder / "teacher_attention.h5").unlink()
    with pytest.raises(StoredError, match="no teacher"):
        restore_answer(folder, slide, MODEL)


def test_without_a_teacher_and_where_nothing_lies(slide: Slide, tmp_path: Path) -> None:
    folder = write_prediction(tmp_path / "out", slide, run_predict(slide, "none"))
    with pytest.raises(StoredError, match="no teacher") as error:
        restore_prediction(folder, slide, MODEL)
    assert one_sentence(error.value)
    with pytest.raises(StoredError, match="no results"):
        find_result_folder(tmp_path, slide)
    with pytest.raises(StoredError, match="no slide's results"):
        list_result_folders(tmp_path / "nowhere")


def test_a_cohort_is_read_line_by_line_with_what_is_wrong(slide: Slide, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prediction = run_predict(slide, "all")
    good = write_prediction(out, slide, prediction)
    shutil.copytree(good, out / "half")
    (out / "half" / "agreement.json").unlink()
    shutil.copytree(good, out / "broken")
    (out / "broken" / "prediction.json").write_text("{}")
    lines = {folder.name: read_result_summary(folder) for folder in list_result_folders(out)}
    assert prediction.agreement is not None and prediction.teacher is not None
    line = lines["s"]
    assert (line.name, line.path, line.problem) == ("s", slide.path, "")
    assert line.teacher == prediction.teacher.probabilities and line.spearman == prediction.agreement.spearman
    assert line.picture == good / "overlay.png"
    assert "agreement.json" in lines["half"].problem and lines["half"].student == prediction.student.probabilities
    assert "prediction.json" in lines["broken"].problem and one_sentence(Exception(lines["broken"].problem))


@pytest.mark.parametrize(("file", "student"), [("prediction.json", False), ("agreement.json", True)])
def test_a_slide_of_a_newer_version_is_a_line_of_a_cohort_that_says_so(
    slide: Slide, tmp_path: Path, file: str, student: bool
) -> None:
    folder = write_prediction(tmp_path / "out", slide, run_predict(slide, "all"))
    (folder / file).write_text(json.dumps({"schema_version": 2}))
    line = read_result_summary(folder)
    assert re.search(rf"{file}.*schema version 2.*up to 1", line.problem) and one_sentence(Exception(line.problem))
    assert (line.student is not None, line.teacher, line.spearman) == (student, None, None)


def test_slides_are_located_after_they_moved_with_their_results(tmp_path: Path) -> None:
    """Results state the path from the cohort on; it is looked up from the folders above them."""
    slide, results = tmp_path / "project" / "slides" / "a" / "x.svs", tmp_path / "project" / "out" / "x"
    for folder in (slide.parent, results):
        folder.mkdir(parents=True)
    slide.touch()
    assert locate_slide(Path("slides/a/x.svs"), [results]) == slide
    assert locate_slide(Path("renamed/slides/a/x.svs"), [results]) == slide
    assert locate_slide(Path("/data/anna/slides/a/x.svs"), [results]) == slide  # stored in full, then moved
    assert locate_slide(slide, [tmp_path]) == slide
    assert locate_slide(Path("slides/a/y.svs"), [results]) is None
    assert locate_slide(Path("other/y.svs"), [slide.parent]) is None


def test_a_folder_of_results_is_no_slide(tmp_path: Path) -> None:
    """The results of the DICOM folder ``case`` lie in a folder of that name."""
    (tmp_path / "out" / "case").mkdir(parents=True)
    (tmp_path / "out" / "case" / "prediction.json").touch()
    assert locate_slide(Path("slides/case"), [tmp_path / "out" / "case"]) is None
