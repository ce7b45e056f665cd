"""What `predict` and `compare` leave on disk, and that results of 0.1.0 are read and recognised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from napari_lrmil.cli import app
from napari_lrmil.core.csv_files import read_csv
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.results.cohort_tables import read_failures, write_predictions_table
from napari_lrmil.core.results.reader import (
    find_result_folder,
    list_result_folders,
    read_result_summary,
    restore_prediction,
)
from napari_lrmil.core.slides.slide import Slide
from support.shapes import STORED, mismatches

Call = Callable[..., tuple[int, str, str]]

SLIDE = STORED / "slides" / "test-13-002.tif"
BUNDLE = STORED / "run" / "bundle"
PREDICTIONS = STORED / "predictions"
COMPARED, ALONE = PREDICTIONS / "test-13-002", PREDICTIONS / "test-13-000"

PER_CLASS = {"normal": float, "lesion": float}
SECONDS = {
    "open": float,
    "tissue": float,
    "prepare": float,
    "read": float,
    "encode": float,
    "mil": float,
    "total": float,
}
RUNTIME = {"runtime": str, "precision": str, "runtime_reason": str}
PREDICTION: dict[str, Any] = {
    "slide": str,
    "path": str,
    "slide_fingerprint": str,
    "bundle": str,
    "bundle_sha256": str,
    "classes": [str],
    "probabilities": PER_CLASS,
    "calibrated": bool,
    "logits": PER_CLASS,
    "predicted": str,
    "mpp": float,
    "lr_mpp": float,
    "patch_um": float,
    "n_patches": int,
    "n_hr_patches": int,
    "pixels_decoded": int,
    "reader": (str, None),
    "reader_reason": (str, None),
    "scope": str,
    "device": str,
    **RUNTIME,
    "seconds": SECONDS,
    "warnings": [str],
    "version": str,
}
ADDED = {"finest_mpp_read": float, "finest_mpp_reason": str}  # after 0.1.0, within schema version 1
TEACHER = {
    "probabilities": PER_CLASS,
    "calibrated": bool,
    "logits": PER_CLASS,
    "n_lr_patches": int,
    "n_patches": int,
    "pixels_decoded": int,
    **RUNTIME,
    "seconds": SECONDS,
}
AGREEMENT: dict[str, Any] = {
    "spearman": (float, None),
    "jaccard_top10": (float, None),
    "js_divergence": float,
    "n_patches": int,
    "probability_student": PER_CLASS,
    "probability_teacher": PER_CLASS,
    "seconds_student": float,
    "seconds_teacher": float,
    "pixels_student": int,
    "pixels_teacher": int,
}
LESIONS = {
    "lesion_auroc_student": (float, None),
    "lesion_auroc_teacher": (float, None),
    "pointing_student": (bool, None),
    "pointing_teacher": (bool, None),
    "n_lesion_patches": int,
}
COHORT = {
    "engine": str,
    "slides": int,
    "done": int,
    "already_there": int,
    "failed": int,
    "retried": int,
    "seconds": float,
    "slides_per_hour": (float, None),
    "workers": {str: {"tries": int, "peak_memory_mb": float}},
}
VERSION = {"schema_version": int}  # not in files of 0.1.0 before it was added
STUDENT_COORDS = {
    "patch_size": 32,
    "patch_size_level0": 128,
    "patch_level0_xy": [128, 128],
    "level0_magnification": 20,
    "target_magnification": 5.0,
    "overlap": 0,
    "level0_width": 768,
    "level0_height": 512,
    "name": "test-13-002",
    "savetodir": "None",
    "mpp0": 0.5,
    "target_mpp": 2.0,
    "patch_um": 64.0,
    "slide_fingerprint": "668ec70190478240e0e279970e4d7a45",
    "bundle_sha256": "7a080fd505f90b9d51964820ff808628a7ba655b909dd7a0cd521a77bcc5e977",
}
TEACHER_COORDS = STUDENT_COORDS | {
    "patch_size_level0": 32,
    "patch_level0_xy": [32, 32],
    "target_magnification": 20.0,
    "target_mpp": 0.5,
    "patch_um": 16.0,
}


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results of the stored slide and of a broken one, by the stored bundle: predicted, then compared."""
    folder = tmp_path_factory.mktemp("predictions")
    broken = folder / "broken.tif"
    broken.write_text("no slide")
    options = ("--bundle", BUNDLE, "--out", folder, "--device", "cpu", "--runtime", "torch")
    runner = CliRunner()
    done = runner.invoke(app, list(map(str, ("predict", SLIDE, broken, *options, "--teacher", "all"))))
    assert done.exit_code == 3, done.output
    shutil.copytree(folder / SLIDE.stem, folder / "predicted")
    done = runner.invoke(app, list(map(str, ("compare", SLIDE, *options))))
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def slide() -> Iterator[Slide]:
    with Slide(SLIDE) as opened:
        yield opened


# ---------------------------------------------------------------- what is written


def test_files_of_a_slide(written: Path) -> None:
    files = {
        "prediction.json",
        "attention.h5",
        "teacher_attention.h5",
        "agreement.json",
        "attention.ome.tif",
        "attention.geojson",
        "overlay.png",
    }
    assert {path.name for path in (written / "predicted").iterdir()} == files
    assert {path.name for path in (written / SLIDE.stem).iterdir()} == files | {"compare.png"}


def test_keys_of_a_prediction(written: Path) -> None:
    found = read_json(written / SLIDE.stem / "prediction.json")
    assert mismatches(found, VERSION | PREDICTION | ADDED | {"teacher": TEACHER}) == []


def test_keys_of_an_agreement(written: Path) -> None:
    """With outlined lesions it also says who finds them; `predict` does not look for outlines."""
    assert mismatches(read_json(written / "predicted" / "agreement.json"), VERSION | AGREEMENT) == []
    assert mismatches(read_json(written / SLIDE.stem / "agreement.json"), VERSION | AGREEMENT | LESIONS) == []


def test_keys_of_a_cohort(written: Path) -> None:
    assert mismatches(read_json(written / "cohort.json"), VERSION | COHORT) == []


def test_columns_of_the_tables(written: Path) -> None:
    heads = {name: (written / f"{name}.csv").read_text().splitlines()[0] for name in ("predictions", "failures")}
    assert heads == {
        "predictions": "slide,predicted,probability_normal,probability_lesion,"
        "n_patches,n_hr_patches,seconds,scope,calibrated,bundle,bundle_sha256,warnings",
        "failures": "slide,step,reason",
    }


def attributes(item: Any) -> dict[str, Any]:
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in item.attrs.items()}


@pytest.mark.parametrize(("name", "coords"), [("attention", STUDENT_COORDS), ("teacher_attention", TEACHER_COORDS)])
def test_attention_files(written: Path, name: str, coords: dict[str, Any]) -> None:
    """Attributes, data sets and values of the stored slide are those of 0.1.0; class scores of patches came later."""
    paths = [folder / f"{name}.h5" for folder in (written / SLIDE.stem, COMPARED)]
    with h5py.File(paths[0]) as new, h5py.File(paths[1]) as old:
        assert set(new) == {*old, "patch_logits"} and new["patch_logits"].dtype == "f4"
        assert set(old) == {"coords", "attention", "evidence"}
        for file in (new, old):
            assert not file.attrs
            assert attributes(file["coords"]) == coords and not file["attention"].attrs
            assert attributes(file["evidence"]) == {"classes": ["normal", "lesion"]}
            assert (file["coords"].dtype, file["attention"].dtype, file["evidence"].dtype) == ("i8", "f4", "f4")
        np.testing.assert_array_equal(new["coords"][:], old["coords"][:])
        np.testing.assert_allclose(new["attention"][:], old["attention"][:], atol=1e-6)
        np.testing.assert_allclose(new["evidence"][:], old["evidence"][:], atol=1e-6)


def test_attention_for_other_programs(written: Path) -> None:
    with tifffile.TiffFile(written / SLIDE.stem / "attention.ome.tif") as file:
        assert file.ome_metadata is not None
        for channel in ("attention", "evidence normal", "evidence lesion"):
            assert f'Name="{channel}"' in file.ome_metadata
    features = read_json(written / SLIDE.stem / "attention.geojson")["features"]
    assert features[0]["properties"]["objectType"] == "tile"
    assert list(features[0]["properties"]["measurements"]) == [
        "attention",
        "attention relative",
        "rank",
        "evidence normal",
        "evidence lesion",
        "teacher attention",
        "teacher attention relative",
        "attention difference",
    ]
    stored = read_json(COMPARED / "attention.geojson")["features"]
    assert [one["id"] for one in features] == [one["id"] for one in stored]


# ---------------------------------------------------------------- what 0.1.0 wrote


def test_keys_of_what_is_stored() -> None:
    assert mismatches(read_json(COMPARED / "prediction.json"), PREDICTION | {"teacher": TEACHER}) == []
    assert mismatches(read_json(ALONE / "prediction.json"), PREDICTION) == []
    assert mismatches(read_json(COMPARED / "agreement.json"), AGREEMENT | LESIONS) == []
    assert mismatches(read_json(PREDICTIONS / "cohort.json"), COHORT) == []


def test_the_stored_bundle_says_the_same_of_the_stored_slide(written: Path) -> None:
    new, old = (read_json(folder / "prediction.json") for folder in (written / SLIDE.stem, COMPARED))
    for one in (new, old):
        one["probabilities_teacher"], one["logits_teacher"] = one["teacher"]["probabilities"], one["teacher"]["logits"]
    for key in ("probabilities", "logits", "probabilities_teacher", "logits_teacher"):
        assert new[key] == pytest.approx(old[key], abs=1e-6), key
    same = ("slide", "slide_fingerprint", "bundle", "bundle_sha256", "classes", "calibrated", "predicted", "mpp")
    same += ("lr_mpp", "patch_um", "n_patches", "n_hr_patches", "pixels_decoded", "scope", "reader")
    assert {key: new[key] for key in same} == {key: old[key] for key in same}


def test_student_and_teacher_agree_as_they_did(written: Path) -> None:
    new, old = (read_json(folder / "agreement.json") for folder in (written / SLIDE.stem, COMPARED))
    for key in old.keys() - {"seconds_student", "seconds_teacher"}:
        assert new[key] == pytest.approx(old[key], abs=1e-6), key


def test_a_stored_prediction_is_opened(slide: Slide) -> None:
    told, agreement = read_json(COMPARED / "prediction.json"), read_json(COMPARED / "agreement.json")
    folder = find_result_folder(PREDICTIONS, slide)
    assert folder == COMPARED
    found = restore_prediction(folder, slide, Bundle(BUNDLE))
    assert found.student.probabilities == told["probabilities"] and found.student.logits == told["logits"]
    assert found.teacher is not None and found.teacher.probabilities == told["teacher"]["probabilities"]
    assert (len(found.grid.lr_index), len(found.grid.hr_index), found.scope.is_whole_slide) == (22, 260, True)
    assert found.agreement is not None and found.agreement.spearman == pytest.approx(agreement["spearman"], abs=1e-6)
    assert (found.reader_option, str(found.teacher_patches), found.calibrated) == ("auto", "all", True)


def test_the_table_of_a_stored_cohort() -> None:
    assert list_result_folders(PREDICTIONS) == [ALONE, COMPARED]
    alone, compared = map(read_result_summary, (ALONE, COMPARED))
    assert (alone.name, alone.teacher) == ("test-13-000", None) and "no teacher" in alone.problem
    assert compared.problem == "" and compared.path == Path("cohort/test-13-002.tif")
    assert compared.student == {"normal": 0.5341779348790495, "lesion": 0.46582206512095037}
    assert compared.teacher == {"normal": 0.4891997083324571, "lesion": 0.5108002916675429}
    assert (compared.spearman, compared.js_divergence) == (-0.13833992094861663, 0.03987382034193024)


def test_a_stored_result_is_not_computed_again(call: Call, tmp_path: Path) -> None:
    shutil.copytree(PREDICTIONS, tmp_path / "out")
    (tmp_path / "out" / SLIDE.stem / "overlay.png").touch()  # that version always drew it; the picture is not kept here
    before = (tmp_path / "out" / SLIDE.stem / "prediction.json").read_bytes()
    code, out, _ = call("predict", SLIDE, "--bundle", BUNDLE, "--out", tmp_path / "out", "--teacher", "all")
    assert code == 0 and "already there" in out
    assert (tmp_path / "out" / SLIDE.stem / "prediction.json").read_bytes() == before
    assert read_failures(tmp_path / "out") == read_failures(PREDICTIONS)


def test_tables_come_out_of_stored_results_as_they_did(tmp_path: Path) -> None:
    shutil.copytree(PREDICTIONS, tmp_path / "out")
    (tmp_path / "out" / "predictions.csv").unlink()
    write_predictions_table(tmp_path / "out")
    before, now = (read_csv(folder / "predictions.csv") for folder in (PREDICTIONS, tmp_path / "out"))
    assert [row[:-3] for row in now] == before  # a later version adds columns at the end
    assert now[0][-3:] == ["bundle", "bundle_sha256", "warnings"] and {row[-3] for row in now[1:]} == {"phantoms-v0-1"}
    assert all(row[-1].startswith("about the model phantoms-v0-1: ") for row in now[1:])
    [(name, step, reason)] = read_failures(PREDICTIONS)
    assert (name, step) == ("broken.tif", "open") and "not a slide that OpenSlide can open" in reason
