"""One answer for each patient on the command line and from Python: means of logits, slides left out, bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import napari_lrmil
from napari_lrmil.core.csv_files import read_csv
from napari_lrmil.core.phantom import LESION, NORMAL, PhantomSlide, write_slide
from napari_lrmil.core.results.patient_answers import (
    NOT_PREDICTED,
    PatientModel,
    PatientSlide,
    answer_patients,
)
from support.fake_slides import lively_bundle

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_bundle(tmp_path_factory.mktemp("bundle")).path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of p1 with two slides, p2 with one that is broken beside one that is not, and p3 with none."""
    folder = tmp_path_factory.mktemp("patients")
    for number, (name, label) in enumerate([("a", LESION), ("b", NORMAL), ("c", LESION)]):
        write_slide(folder, PhantomSlide(name, label, number, (1280, 1024)))
    suffix = next(folder.glob("a.*")).suffix
    for name in ("broken1", "broken2"):
        (folder / f"{name}.svs").write_text("no slide")
    rows = [f"a{suffix},p1", f"b{suffix},p1", f"c{suffix},p2", "broken1.svs,p2", "broken2.svs,p3"]
    (folder / "cohort.csv").write_text("\n".join(["slide,patient", *rows]))
    return folder / "cohort.csv"


def logits(out: Path, slide: str) -> dict[str, float]:
    content: dict[str, float] = json.loads((out / slide / "prediction.json").read_text())["logits"]
    return content


def expected_probability(out: Path, slides: list[str], classes: list[str]) -> float:
    """Return the probability of the last class from the mean logits, without a temperature."""
    means = [sum(logits(out, s)[c] for s in slides) / len(slides) for c in classes]
    return math.exp(means[-1]) / sum(math.exp(mean) for mean in means)


def test_answers_are_means_of_logits_and_say_what_was_left_out(
    call: Call, table: Path, bundle: Path, tmp_path: Path
) -> None:
    """Also on a second call, which computes nothing, and from Python, which finds the same results."""
    out = tmp_path / "out"
    options = ("--bundle", bundle, "--out", out, "--device", "cpu", "--runtime", "torch")
    code, printed, err = call("predict", table, "--by", "patient", *options)
    assert code == 3 and "2 of 3 patients have an answer" in printed
    assert "patient p2: from 1 of 2 slides" in " ".join(err.split())
    content = json.loads((out / "patients.json").read_text())
    p1, p2, p3 = content["patients"]
    for entry, slides in ((p1, ["a", "b"]), (p2, ["c"])):
        assert entry["slides"] == slides
        probability = entry["probabilities"][content["classes"][-1]]
        assert probability == pytest.approx(expected_probability(out, slides, content["classes"]), abs=1e-9)
    assert list(p2["left_out"]) == ["broken1"] and p2["n_left_out"] == 1
    assert (p3["slides"], p3["predicted"], p3["reason"]) == ([], None, "its slide has no result")
    header, *lines = read_csv(out / "patients.csv")
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    assert [(r["patient"], r["n_slides"], r["n_left_out"]) for r in rows] == [
        ("p1", "2", "0"),
        ("p2", "1", "1"),
        ("p3", "0", "1"),
    ]
    assert rows[0]["slides"] == "a; b" and "broken1: " in rows[1]["left_out"] and rows[2]["predicted"] == ""
    first = (out / "patients.csv").read_bytes()
    _, printed, _ = call("predict", table, "--by", "patient", *options)
    assert "already there" in printed and (out / "patients.csv").read_bytes() == first
    answers = napari_lrmil.predict_patients(table, out, bundle, device="cpu", runtime="torch")
    assert [a.patient for a in answers] == ["p1", "p2", "p3"]
    assert answers[0].probabilities == pytest.approx(p1["probabilities"], abs=0)
    assert (out / "patients.csv").read_bytes() == first


def test_results_of_another_model_are_no_part_of_an_answer(table: Path, bundle: Path, tmp_path: Path) -> None:
    """After an interruption, results of an earlier call with another model may lie in the folder."""
    model = napari_lrmil.load_bundle(bundle)
    napari_lrmil.predict_patients(table, tmp_path, bundle, device="cpu", runtime="torch")
    other = PatientModel(model.name, "0" * 64, model.card.classes, None)
    (answer,) = answer_patients(tmp_path, {"p1": [PatientSlide("a", "a.tif")]}, other)
    assert answer.left_out == {"a": NOT_PREDICTED} and not answer.probabilities


def test_the_temperature_of_the_model_divides_the_mean(tmp_path: Path, table: Path, bundle: Path) -> None:
    model = napari_lrmil.load_bundle(bundle)
    napari_lrmil.predict_patients(table, tmp_path, bundle, device="cpu", runtime="torch")
    patients = {"p1": [PatientSlide("a", "a.tif"), PatientSlide("b", "b.tif")]}
    classes = model.card.classes
    (answer,) = answer_patients(tmp_path, patients, PatientModel(model.name, model.sha256, classes, 2.5))
    margin = sum(logits(tmp_path, s)[classes[1]] - logits(tmp_path, s)[classes[0]] for s in "ab") / 2
    assert answer.calibrated and answer.probabilities[classes[1]] == pytest.approx(1 / (1 + math.exp(-margin / 2.5)))


def wrong(table: Path) -> dict[str, tuple[list[Any], str]]:
    folder = table.parent
    (folder / "empty.csv").write_text(f"slide,patient\n{next(folder.glob('a.*')).name},\n")
    (folder / "none.csv").write_text(f"slide\n{next(folder.glob('a.*')).name}\n")
    (folder / "other").mkdir(exist_ok=True)
    (folder / "twice.csv").write_text("slide,patient\nx.svs,p1\nother/x.svs,p2\n")
    return {
        "another column": ([table, "--by", "site"], "answers by patient only"),
        "a folder": ([folder, "--by", "patient"], "give one table"),
        "two tables": ([table, table, "--by", "patient"], "give one table"),
        "a region": ([table, "--by", "patient", "--roi", folder / "r.geojson"], "--roi is about one slide"),
        "no patient": ([folder / "empty.csv", "--by", "patient"], "the column patient is missing or empty for 1 of 1"),
        "no column": ([folder / "none.csv", "--by", "patient"], "the column patient is missing or empty for 1 of 1"),
        "two of a name": ([folder / "twice.csv", "--by", "patient"], "two slides are named x"),
    }


@pytest.mark.parametrize(
    "case", ["another column", "a folder", "two tables", "a region", "no patient", "no column", "two of a name"]
)
def test_what_has_no_patients_is_refused_before_any_slide(
    call: Call, table: Path, bundle: Path, tmp_path: Path, case: str
) -> None:
    arguments, reason = wrong(table)[case]
    code, _, err = call("predict", *arguments, "--bundle", bundle, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2 and reason in " ".join(err.split())
    assert not (tmp_path / "out" / "patients.csv").exists() and not list((tmp_path / "out").glob("*/prediction.json"))
