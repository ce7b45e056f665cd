"""Breast carcinoma patches: folds by patient, figures of patches, and students trained on sparse slides of patches."""

from __future__ import annotations

import csv
import importlib
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.networks import untrained_bundle

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ANSWERS = Path(__file__).parent / "formats" / "breast_idc"  # of the shipped model to a synthetic slide
PATIENTS, OF_EACH = 15, 4  # OF_EACH patches of each label, but the first patient has no carcinoma
TINY = """\
name: tiny
lr_mpp: 8
lr_patch_px: 50
baselines: []
bootstrap: 100
stain: {normalise: density_gain}
stage3: {epochs: 1, min_epochs: 1, lr: [1.0e-3], patches_per_slide: 4}
"""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Return the modules of the benchmark by the end of their names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return {name: importlib.import_module(f"breast_idc_{name}") for name in ("patches", "colour", "figures", "folds")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in the layout of the public patches: carcinoma is darker, patients differ in stain."""
    folder, rng = tmp_path_factory.mktemp("idc"), np.random.default_rng(0)
    lines = ["path,patient_id,x,y,label,split_cruzroa,sha256"]
    for patient in range(PATIENTS):
        stain = rng.normal(0, 6, 3)
        for number in range(2 * OF_EACH):
            label = int(number >= OF_EACH and patient > 0)
            x, y = 50 * (number % 3) + 1, 50 * (number // 3) + 1
            pixels = np.array([225, 170, 205]) - 35 * label + stain + rng.normal(0, 10, (50, 50, 3))
            name = f"{patient}_{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            lines.append(f"{name},{patient},{x},{y},{label},,")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_patient_is_on_one_side_of_a_fold(modules: dict[str, ModuleType], data: Path) -> None:
    """Every patch is tested once; training, validation and test share no patient and have both labels."""
    patches = modules["patches"].read_patches(data)
    folds = modules["patches"].list_folds(patches)
    assert Counter(row for fold in folds for row in fold.test) == Counter(range(len(patches)))
    for fold in folds:
        sides = [{patches[row].patient for row in rows} for rows in (fold.train, fold.val, fold.test)]
        assert sum(map(len, sides)) == PATIENTS == len(set.union(*sides))
        assert sorted([*fold.train, *fold.val, *fold.test]) == list(range(len(patches)))
        assert all({patches[row].is_carcinoma for row in rows} == {True, False} for rows in (fold.val, fold.test))


def test_benign_parts_are_slides_without_the_carcinoma(
    modules: dict[str, ModuleType], data: Path, tmp_path: Path
) -> None:
    patches = modules["patches"].read_patches(data)
    table = modules["patches"].write_slides(patches, tmp_path, 8.0, benign_parts=True)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert Counter(row["label"] for row in rows) == {"carcinoma": PATIENTS - 1, "benign": PATIENTS}
    assert [row["slide"] for row in rows if row["patient"] == "0"] == ["0.tif"]  # it has no carcinoma to leave out
    outlines = json.loads((tmp_path / "1_lesions.geojson").read_text())["features"]
    assert len(outlines) == OF_EACH and not (tmp_path / "1-benign_lesions.geojson").exists()


def test_the_operating_point_is_halfway_between_the_scores_that_it_parts(modules: dict[str, ModuleType]) -> None:
    figures = modules["figures"]
    targets = np.array([False, False, True, True])
    assert figures.operating_point(targets, np.array([-2.0, -1.0, 3.0, 4.0])) == 1.0
    assert figures.operating_point(targets, np.array([-2.0, 3.5, 3.0, 4.0])) in (0.5, 3.75)  # both call 3 of 4 right
    assert figures.operating_point(np.array([True, True, False]), np.array([1.0, 2.0, 0.0])) == 0.5


def test_recalibration_keeps_the_order_and_brings_the_true_share(modules: dict[str, ModuleType]) -> None:
    figures, rng = modules["figures"], np.random.default_rng(0)
    targets = rng.random(2000) < 0.25
    logits = np.where(targets, 1.0, -1.0) + rng.normal(0, 2, 2000) + 5  # far too sure of carcinoma
    recalibrated = figures.recalibrate(targets, logits, logits)
    assert np.array_equal(np.argsort(recalibrated), np.argsort(logits))
    assert recalibrated.mean() == pytest.approx(0.25, abs=0.01)
    given, better = (figures.calibration_error(targets, p) for p in (figures.logistic(logits), recalibrated))
    assert better < 0.05 < given


def test_the_calibration_error_is_the_mean_distance_of_its_bins(modules: dict[str, ModuleType]) -> None:
    """Ten bins of ten patches: in each, 0.35 on average is said and 0.5 is true."""
    targets = np.tile([True, False], 50)
    assert modules["figures"].calibration_error(targets, np.full(100, 0.35)) == pytest.approx(0.15)


def test_differences_are_paired_on_whole_patients(modules: dict[str, ModuleType], data: Path) -> None:
    """A method equal to the baseline differs by exactly 0, and a resample holds all patches of a drawn patient."""
    figures, patches = modules["figures"], modules["patches"].read_patches(data)
    patients = modules["patches"].patients_of(patches).tolist()
    for rows in figures.draw_patients(patients, 5):
        assert set(Counter(patients[row] for row in rows).values()) <= {2 * OF_EACH * times for times in range(9)}
    right = np.where(modules["patches"].targets_of(patches), 2.0, -2.0)
    noise = np.random.default_rng(0).normal(0, 1, len(right))
    targets, called = right > 0, right > 0
    answers = {
        "same": figures.Judgement(targets, noise, called, figures.logistic(noise)),
        "baseline": figures.Judgement(targets, noise, called, figures.logistic(noise)),
        "better": figures.Judgement(targets, right, called, figures.logistic(right)),
    }
    compared = figures.compare(answers, "baseline", patients, figures.measure)
    assert set(compared["same"]["less_baseline"].values()) == {(0.0, 0.0, 0.0)}
    assert compared["better"]["figures"]["auroc"] == (1.0, 1.0, 1.0)
    value, low, high = compared["better"]["less_baseline"]["auroc"]
    assert 0.2 < low < value < high and compared["better"]["figures"]["balanced_accuracy"][0] == 1.0


def test_folds_have_to_score_every_patch_once(modules: dict[str, ModuleType], data: Path) -> None:
    figures, patches = modules["figures"], modules["patches"].read_patches(data)
    part = figures.FoldScores(np.arange(10), np.zeros(10), np.arange(10, 20), np.zeros(10))
    with pytest.raises(ValueError, match=f"1 folds score 10 patches; expected each of {len(patches)} once"):
        figures.judge(patches, [part])


def test_views_show_the_same_tissue_at_another_resolution(modules: dict[str, ModuleType]) -> None:
    """A dark square of half the side fills the enlarged patch, and has a quarter of the side in the shrunk one."""
    folds = modules["folds"]
    pixels = np.full((1, 48, 48, 3), 240, np.uint8)
    pixels[:, 12:36, 12:36] = 40
    assert (folds.enlarge(pixels) == 40).all() and folds.enlarge(pixels).shape == pixels.shape
    small = folds.shrink(pixels)
    assert small.shape == pixels.shape and (small[0, 18:30, 18:30] < 100).all()
    assert (small[0, 24] < 140).all(axis=-1).sum() == 24  # the mirror adds half the square on either side
    assert folds.shrink(np.zeros((2, 50, 50, 3), np.uint8)).shape == (2, 50, 50, 3)


def test_colours_alone_part_these_patches(modules: dict[str, ModuleType], data: Path) -> None:
    """Carcinoma is darker here, so the baseline finds it on new patients; a few patches suffice for logistic only."""
    colour, patches = modules["colour"], modules["patches"].read_patches(data)
    scores = colour.score_by_colour(patches)[colour.LOGISTIC]
    targets = modules["patches"].targets_of(patches)
    assert scores[targets].mean() > scores[~targets].mean() + 0.5
    assert colour.log_odds(np.array([0.0, 0.5, 1.0])).tolist() == pytest.approx([-13.8155, 0, 13.8155], abs=1e-3)


@pytest.mark.slow
def test_a_fold_is_trained_scored_and_compared(
    modules: dict[str, ModuleType], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way on a fold: its file has scores of all patches of other patients, and is not measured again."""
    recipe, results = tmp_path / "tiny.yaml", tmp_path / "results"
    recipe.write_text(TINY, encoding="utf-8")
    command = importlib.import_module("breast_idc")
    words = ["folds", "--data", str(data), "--work", str(tmp_path / "work"), "--recipe", str(recipe)]
    words += ["--results", str(results), "--weights", "demo", "--fold", "0"]
    command.main(words)
    (file,) = results.iterdir()
    result, patches = json.loads(file.read_text()), modules["patches"].read_patches(data)
    fold = modules["patches"].list_folds(patches)[0]
    scores = modules["folds"].fold_scores(result)
    assert np.array_equal(scores.rows, fold.test) and np.array_equal(scores.chosen_rows, fold.val)
    assert set(result["logits"]) == {"as trained", "enlarged", "shrunk"}
    usual, enlarged = (np.array(result["logits"][view]) for view in ("as trained", "enlarged"))
    is_viewed = np.array(result["is_viewed"], bool)
    assert 0 < is_viewed.sum() < len(scores.rows) and not is_viewed[~np.array(result["is_test"], bool)].any()
    assert (usual != enlarged)[is_viewed].any() and (usual == enlarged)[~is_viewed].all()
    tested = {patches[row].patient for row in fold.test}
    assert {slide["patient"] for slide in result["slides"]} == tested
    capsys.readouterr()
    command.main(words)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match=r"tiny-fold1.json, .* not measured yet"):
        modules["folds"].read_results(patches, results, "tiny")


def test_figures_of_patches_slides_and_resolutions(
    modules: dict[str, ModuleType], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that are the labels in one view and reversed in another: AUROC 1 and 0, and every call changes."""
    monkeypatch.setattr(modules["figures"].draw_patients, "__defaults__", (50, 0))
    patches = modules["patches"].read_patches(data)
    for number, fold in enumerate(modules["patches"].list_folds(patches)):
        rows = np.sort(np.concatenate([fold.val, fold.test]))
        right = [3.0 if patches[row].is_carcinoma else -3.0 for row in rows]
        slides = [
            {"slide": f"{p}{part}", "patient": p, "label": label, "logit": float(label == "carcinoma")}
            for p in sorted({patches[row].patient for row in fold.test} - {"0"})
            for part, label in (("", "carcinoma"), ("-benign", "benign"))
        ]
        result = {
            "rows": rows.tolist(),
            "is_test": np.isin(rows, fold.test).astype(int).tolist(),
            "is_viewed": np.isin(rows, fold.test).astype(int).tolist(),
            "logits": {"as trained": right, "enlarged": [-v for v in right], "shrunk": right},
            "slides": slides,
            "cpu_seconds": 2.0,
        }
        (tmp_path / f"tiny-fold{number}.json").write_text(json.dumps(result))
    command, out = importlib.import_module("breast_idc"), tmp_path / "figures.json"
    words = ["figures", "--data", str(data), "--results", str(tmp_path), "--recipe", "tiny.yaml", "--json", str(out)]
    command.main(words)
    figures = json.loads(out.read_text())
    student = figures["patches"]["student"]
    assert student["figures"]["auroc"] == [1, 1, 1] and student["figures"]["balanced_accuracy"] == [1, 1, 1]
    assert figures["patches_in_tissue"]["count"] == len(patches)  # all of them are stained
    assert figures["patches_in_tissue"]["student"] == student
    assert figures["auroc_of_fold"]["student"] == [1] * 5 and figures["cpu_seconds"] == 10
    assert figures["resolution"]["enlarged"]["auroc"] == 0
    assert figures["resolution"]["enlarged"]["patches"] == len(patches)
    assert figures["resolution"]["enlarged"]["share_of_changed_calls"] == 1
    assert figures["resolution"]["shrunk"]["mean_change"] == 0
    assert figures["slides"]["methods"]["student"]["figures"]["auroc"][0] == 1
    assert (figures["slides"]["slides"], figures["slides"]["carcinoma"]) == (2 * (PATIENTS - 1), PATIENTS - 1)
    assert student["figures"]["brier"][0] == pytest.approx((1 / (1 + np.exp(3))) ** 2)


# ---------------------------------------------------------------- pictures and the shipped model


def test_pictured_patients_are_best_middle_and_worst(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    maps, patches = importlib.import_module("breast_idc_maps"), modules["patches"].read_patches(data)
    monkeypatch.setattr(maps, "FEWEST", OF_EACH)
    rows = np.array([row for row, patch in enumerate(patches) if patch.patient in ("1", "2", "3", "4")])
    targets = modules["patches"].targets_of(patches)[rows]
    logits = np.where(targets, 1.0, -1.0)
    of_patient = [patches[row].patient for row in rows]
    logits[[p == "3" for p in of_patient]] *= -1
    logits[[p == "2" for p in of_patient]] = 0
    chosen = maps.choose_patients(patches, rows, logits)
    assert (chosen[0][1], chosen[1], chosen[2]) == (1.0, ("2", 0.5), ("3", 0.0))
    result = {"rows": rows.tolist(), "is_test": [1] * len(rows), "logits": {"as trained": logits.tolist()}}
    maps.draw_maps(patches, result, tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 5000
    with pytest.raises(SystemExit, match="0 patients of the fold have 4 patches of each label"):
        maps.choose_patients(patches, np.arange(2 * OF_EACH), np.zeros(2 * OF_EACH))


def figures_with(difference: tuple[float, float, float]) -> dict[str, Any]:
    """Return figures of folds as the command `figures` writes them."""
    own = dict.fromkeys(("auroc", "balanced_accuracy", "sensitivity", "specificity", "ece"), (0.9, 0.85, 0.95))
    method = {"student": {"figures": own, "less_baseline": {"auroc": difference}}}
    return {"patches": method, "slides": {"methods": method}}


def test_nothing_ships_unless_the_interval_lies_above_colour_alone(modules: dict[str, ModuleType]) -> None:
    shipping = importlib.import_module("breast_idc_ship")
    shipping.refuse_unless_better(figures_with((0.02, 0.001, 0.04)))
    with pytest.raises(SystemExit, match=r"\+0.020 \(-0.001 to \+0.040\): not above 0, so nothing ships"):
        shipping.refuse_unless_better(figures_with((0.02, -0.001, 0.04)))


def test_the_card_of_the_shipped_model_has_the_figures_of_the_folds(
    modules: dict[str, ModuleType], data: Path, tmp_path: Path
) -> None:
    """Same networks, another card: limits of its use, data, licences; a second writing gives the same files."""
    shipping, patches = importlib.import_module("breast_idc_ship"), modules["patches"].read_patches(data)
    trained = untrained_bundle(tmp_path / "trained", teacher=False, distilled=False)
    folders = [tmp_path / name for name in ("first", "second")]
    first, second = (
        shipping.ship(trained.path, patches, figures_with((0.02, 0.001, 0.04)), folder) for folder in folders
    )
    assert {file.name: file.read_bytes() for file in first.path.iterdir()} == {
        file.name: file.read_bytes() for file in second.path.iterdir()
    }
    card = first.card
    assert (card.name, card.licence, card.student.encoder.licence) == ("breast-idc", "Apache-2.0", "Apache-2.0")
    assert "not for DCIS, lymph nodes or other organs" in card.about and card.teacher is None
    assert card.metrics["patches: less colour alone"] == "+0.020 (+0.001 to +0.040)"
    assert card.cohort["patches"] == f"{len(patches)} of {PATIENTS} patients, {OF_EACH * (PATIENTS - 1)} carcinoma"
    weights = [bundle.student.state_dict() for bundle in (trained, first)]
    assert all((weights[0][name].half() == tensor.half()).all() for name, tensor in weights[1].items())


def test_the_shipped_model_answers_as_it_did_when_it_was_written(tmp_path: Path) -> None:
    """Probabilities and attention of a synthetic slide, in float32 on the CPU."""
    from napari_lrmil.core.inference.predict import predict
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.slides.slide import Slide

    stored, bundle = json.loads((ANSWERS / "answers.json").read_text(encoding="utf-8")), Bundle("breast-idc")
    with Slide(ANSWERS / "probe.tif") as slide:
        *_, finished = predict(slide, bundle, device="cpu")
    student = finished.result.student  # type: ignore[attr-defined]  # the last event is `Finished`
    assert student.probabilities == pytest.approx(stored["probabilities"], abs=1e-4)
    assert student.attention.tolist() == pytest.approx(stored["attention"], abs=1e-4)
    assert len(stored["attention"]) == 12  # all patches of the synthetic slide


def test_the_shipped_model_is_small_and_says_what_it_is_for() -> None:
    from napari_lrmil.core.models.bundle import SHIPPED, Bundle

    bundle = Bundle("breast-idc")
    assert sum(file.stat().st_size for file in (SHIPPED / "breast-idc").iterdir()) < 6_000_000
    assert bundle.card.classes == ("benign", "carcinoma") and not bundle.card.distilled and not bundle.has_teacher
    text = (SHIPPED / "breast-idc" / "README.md").read_text(encoding="utf-8")
    for words in ("Breast H&E and invasive ductal carcinoma only", "not for DCIS, lymph nodes or other organs"):
        assert words in text
    for words in ("not distilled", "Research use only", "CC0-1.0", "Apache-2.0", "patches: less colour alone: +0."):
        assert words in text
    assert bundle.limits is not None and bundle.embedding_statistics is not None
