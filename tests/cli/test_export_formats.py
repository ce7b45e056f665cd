"""Commands `export` and `export-model`: files for QuPath and WSInfer from results, one sentence for every bad input."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.wsinfer_model import SCRIPT
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from napari_lrmil.core.results.qupath import HEATMAP_SCRIPT
from napari_lrmil.core.results.reader import read_prediction_folder, restore_prediction
from napari_lrmil.core.slides.slide import Slide

Call = Callable[..., tuple[int, str, str]]
EARLIER = Path(__file__).parents[1] / "formats" / "v0_1" / "predictions"  # of a version without scores of patches


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide"), PhantomSlide("phantom", LESION, 5, (1536, 1024)))


@pytest.fixture
def results(slide: Path, tmp_path: Path, call: Call, build_once: Callable[..., Path]) -> Path:
    """Return results of a slide with student and teacher, in a folder of the test."""

    def fill(folder: Path) -> None:
        options = ("--teacher", "top-3", "--device", "cpu", "--runtime", "torch")
        code, _, err = call("predict", slide, "--bundle", "demo", "--out", folder / "predictions", *options)
        assert code == 0, err

    copy = tmp_path / "predictions"
    shutil.copytree(build_once("results to export", fill) / "predictions", copy)
    return copy


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def one_sentence(err: str) -> bool:
    return "Traceback" not in err and len([line for line in err.splitlines() if line.strip()]) == 1


def test_tiles_and_the_script_for_qupath(call: Call, results: Path, tmp_path: Path) -> None:
    code, out, err = call("export", results, "--format", "qupath", "--out", tmp_path / "qupath")
    assert (code, err) == (0, "") and HEATMAP_SCRIPT in out
    assert sorted(path.name for path in (tmp_path / "qupath").iterdir()) == ["phantom.geojson", HEATMAP_SCRIPT]
    copied = (tmp_path / "qupath" / "phantom.geojson").read_bytes()
    assert copied == (results / "phantom" / "attention.geojson").read_bytes()


def test_patch_probabilities_are_laid_out_as_those_of_wsinfer(
    call: Call, results: Path, slide: Path, tmp_path: Path
) -> None:
    """Columns, level-0 boxes and values: those of the exported model on the same pixels, and of the teacher's MIL."""
    code, _, err = call("export", results / "phantom", "--format", "wsinfer", "--out", tmp_path / "wsinfer")
    assert (code, err) == (0, "")
    student, teacher = (
        rows_of(tmp_path / "wsinfer" / network / "model-outputs-csv" / "phantom.csv")
        for network in ("student", "teacher")
    )
    stored = read_prediction_folder(results / "phantom")
    assert stored.teacher is not None and len(student) == len(stored.student.coords)
    assert len(teacher) == len(stored.teacher.coords) < 3 * 17, "three LR patches were read at HR"
    columns = ["minx", "miny", "width", "height", "prob_normal", "prob_lesion"]
    assert list(student[0]) == list(teacher[0]) == columns
    assert [[int(row["minx"]), int(row["miny"])] for row in student] == stored.student.coords.tolist()
    assert {(row["width"], row["height"]) for row in student} == {("512", "512")}
    assert {(row["width"], row["height"]) for row in teacher} == {("128", "128")}
    bundle = Bundle("demo")
    code, _, _ = call("export-model", "--bundle", "demo", "--out", tmp_path / "demo")
    script: Any = torch.jit.load(tmp_path / "demo" / SCRIPT)  # type: ignore[no-untyped-call]
    with Slide(slide) as opened:
        prediction = restore_prediction(results / "phantom", opened, bundle)
        pixels = opened.read_patches(prediction.student.coords, (512, 512), bundle.card.lr_patch_px)
        hr = opened.read_patches(stored.teacher.coords, (128, 128), bundle.card.hr_patch_px)
    batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = script(batch).softmax(1).numpy()
        embedding = bundle.teacher.encoder(torch.from_numpy(hr).permute(0, 3, 1, 2)).embedding
        of_teacher = bundle.teacher.mil.patch_logits(embedding).softmax(1).numpy()
    for rows, values in ((student, expected), (teacher, of_teacher)):
        probabilities = np.array([[float(row[name]) for name in columns[4:]] for row in rows])
        np.testing.assert_allclose(probabilities, values, atol=1e-5)
    assert prediction.student.patch_logits is not None and stored.student.patch_logits is not None
    np.testing.assert_array_equal(prediction.student.patch_logits, stored.student.patch_logits)


def test_earlier_results_go_to_qupath_and_are_refused_for_wsinfer(call: Call, results: Path, tmp_path: Path) -> None:
    """The other slides are written all the same, and failures.csv names the one that was not."""
    earlier = tmp_path / "earlier"
    shutil.copytree(EARLIER / "test-13-002", earlier)
    code, _, err = call("export", results, earlier, "--format", "wsinfer", "--out", tmp_path / "out")
    assert code == 3 and one_sentence(err) and "earlier version wrote them" in err and "--no-resume" in err
    assert (tmp_path / "out" / "student" / "model-outputs-csv" / "phantom.csv").is_file()
    (failure,) = rows_of(tmp_path / "out" / "failures.csv")
    assert (failure["slide"], failure["step"]) == ("earlier", "export") and "earlier version" in failure["reason"]
    assert call("export", earlier, "--format", "qupath", "--out", tmp_path / "qupath")[0] == 0
    (earlier / "attention.geojson").unlink()
    code, _, err = call("export", earlier, "--format", "qupath", "--out", tmp_path / "qupath")
    assert code == 3 and "attention.geojson is missing" in err


def test_wrong_calls_are_refused_in_a_sentence(call: Call, results: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = call("export", tmp_path / "empty", "--format", "qupath", "--out", tmp_path / "out")
    assert code == 2 and one_sentence(err) and "no results" in err
    for out in (results, results / "phantom"):
        code, _, err = call("export", results, "--format", "qupath", "--out", out)
        assert code == 2 and one_sentence(err) and "folder of results" in err
    shutil.copytree(results, tmp_path / "second")
    code, _, err = call("export", results, tmp_path / "second", "--format", "qupath", "--out", tmp_path / "out")
    assert code == 2 and one_sentence(err) and "two results are named phantom" in err
    code, _, err = call("export-model", "--bundle", tmp_path / "nothing", "--out", tmp_path / "out")
    assert code == 2 and one_sentence(err) and "no bundle" in err
    assert not (tmp_path / "out").exists()


def test_scores_of_the_wrong_shape_are_refused(results: Path) -> None:
    import h5py

    from napari_lrmil.core.errors import StoredError

    with h5py.File(results / "phantom" / "attention.h5", "a") as file:
        del file["patch_logits"]
        file["patch_logits"] = np.zeros((2, 2), np.float32)
    with pytest.raises(StoredError, match="patch_logits has the shape"):
        read_prediction_folder(results / "phantom")
    assert json.loads((results / "phantom" / "prediction.json").read_text())["slide"] == "phantom"
