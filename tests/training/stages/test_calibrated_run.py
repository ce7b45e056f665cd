"""A run with a calibration split: its slides teach and select nothing, and the limits in the bundle are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrmil_training.config import build_config
from lrmil_training.cross_validation import list_parts
from lrmil_training.data.cohort import read_cohort
from lrmil_training.external_evaluation import ExternalEvaluation, evaluate_bundle
from lrmil_training.stages.run_context import RunContext
from lrmil_training.train import train
from napari_lrmil.cli.metric_lines import print_metrics
from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.events import Finished, Notice
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.slide_limits import prediction_set
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.limits import LIMITS
from napari_lrmil.core.slides.slide import Slide
from support.phantoms import copy_cohort
from support.trained import Trained

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "distil": False,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "teacher": {"epochs": 6, "min_epochs": 1},
    "stage3": {"epochs": 0},
    "baselines": [],
    "split": {"calibration": 0.5},
    "operating_point": {"sensitivity": 0.5},
}


@pytest.fixture(scope="module")
def cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), train=8, val=4, test=4)


@pytest.fixture(scope="module")
def run(cohort: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run; a notice says that four patients are too few for a set at 90 %."""
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    config = build_config(TINY | {"encoder": {"teacher": trained.encoder}})
    events = list(train(cohort, folder, config, CPU))
    assert events[-1] == Finished(folder)
    assert [e for e in events if isinstance(e, Notice) and "sets at 90 % coverage need 9" in e.message]
    return folder


def _slides(run: Path) -> list[dict[str, Any]]:
    slides: list[dict[str, Any]] = json.loads((run / "slides.json").read_text())["slides"]
    return slides


def test_limits_come_from_their_own_splits(run: Path) -> None:
    """The threshold from validation, the scores from the calibration split; both by calibrated probabilities."""
    slides, limits = _slides(run), Bundle(run / "bundle").limits
    assert limits is not None and limits.teacher is None
    lesion = {s["slide"]: (s["split"], s["label"], s["methods"]["student"]["probabilities"]["lesion"]) for s in slides}
    aside = [(label, p) for split, label, p in lesion.values() if split == "calibration"]
    assert sorted(label for label, _ in aside) == ["lesion", "lesion", "normal", "normal"]
    scores = sorted(
        max(0.0, (1 - p if label == "lesion" else p) * ((p < 0.5) == (label == "lesion"))) for label, p in aside
    )
    assert limits.student.conformal is not None
    assert limits.student.conformal.scores == pytest.approx(scores)
    point = limits.student.operating_point
    assert point is not None and (point.rule, point.positives, point.negatives) == ("sensitivity 0.5", 2, 2)
    positives = [p for split, label, p in lesion.values() if split == "val" and label == "lesion"]
    assert point.sensitivity == np.mean(np.array(positives) >= point.threshold) >= 0.5


def test_no_stage_reads_the_calibration_slides(cohort: Path, run: Path, trained: Trained, tmp_path: Path) -> None:
    """A table without their rows gives the same student, bit for bit."""
    aside = {s["slide"] for s in _slides(run) if s["split"] == "calibration"}
    table = cohort.with_name("without.csv")
    lines = cohort.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if line.split(".")[0] not in aside))
    config = build_config(TINY | {"encoder": {"teacher": trained.encoder}, "split": {"calibration": 0}})
    list(train(table, tmp_path / "run", config, CPU))
    others = {s["slide"]: s["methods"]["student"]["logits"] for s in _slides(tmp_path / "run")}
    same = {s["slide"]: s["methods"]["student"]["logits"] for s in _slides(run) if s["slide"] not in aside}
    assert len(same) == 12 and others == same
    assert Bundle(tmp_path / "run" / "bundle").card.temperature == Bundle(run / "bundle").card.temperature


def test_metrics_report_and_card_state_the_limits(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())["student"]
    assert metrics["val"]["operating_point"]["chosen_here"] and not metrics["test"]["operating_point"]["chosen_here"]
    assert set(metrics["test"]["operating_point"]["sensitivity"]) == {"value", "low", "high", "n_slides", "n_clusters"}
    reason = "4 calibration patients are too few for 90 %; 9 are needed"
    assert metrics["test"]["prediction_sets"] == {"reason": reason}
    card = (run / "bundle" / "README.md").read_text()
    assert "## Limits" in card and "by sensitivity 0.5" in card and reason in card
    page = (run / "report.html").read_text()
    assert "Operating point" in page and reason in page


def test_a_prediction_states_side_and_set(run: Path, cohort: Path) -> None:
    """A set at 75 % exists with four patients, one at 90 % does not."""
    bundle = Bundle(run / "bundle")
    with Slide(next(iter(sorted(cohort.parent.glob("*.tif"))))) as slide:
        *_, last = predict(slide, bundle, device=CPU)
    assert isinstance(last, Finished)
    limits, probabilities = last.result.limits, last.result.student.probabilities
    assert limits.side.reached == (probabilities["lesion"] >= limits.side.threshold) and limits.classes is None
    assert bundle.limits is not None
    at_75 = prediction_set(bundle.limits.student, bundle.card.classes, probabilities, 0.75)
    assert at_75 is not None and last.result.student.predicted in at_75.classes
    assert prediction_set(bundle.limits.student, bundle.card.classes, probabilities, 0.9) is None


def test_the_command_line_prints_the_figures(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    share = {"value": 0.5, "low": 0.25, "high": 0.75, "n_slides": 4, "n_clusters": 4}
    auroc = share | {"n_patients": 4, "interval": "patients"}
    point = {"threshold": 0.4, "chosen_here": True, "sensitivity": share, "specificity": share | {"value": None}}
    sets = {"coverage": 0.9, "empirical": share, "mean_size": 1.25, "singletons": 0.75}
    figures = {"auroc": auroc, "operating_point": point, "prediction_sets": sets}
    (tmp_path / "metrics.json").write_text(json.dumps({"student": {"val": figures}}))
    print_metrics(tmp_path)
    printed = capfd.readouterr().out
    assert (
        "operating point, which these slides chose: sensitivity 0.500 (0.250 to 0.750), specificity undefined"
        in printed
    )
    assert "sets at 90 %: coverage 0.500 (0.250 to 0.750), mean size 1.25, one class in 75%" in printed


def test_evaluation_on_other_slides_uses_the_limits(run: Path, cohort: Path, tmp_path: Path) -> None:
    list(evaluate_bundle(cohort, tmp_path, ExternalEvaluation(Bundle(run / "bundle"), "test", False, CPU)))
    expected = json.loads((run / "metrics.json").read_text())["student"]["test"]["operating_point"]
    assert json.loads((tmp_path / "metrics.json").read_text())["student"]["test"]["operating_point"] == expected


def test_limits_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for file in (run / "bundle").iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
    content = json.loads((bundle / LIMITS).read_text())
    (bundle / LIMITS).write_text(json.dumps(content | {"bundle_sha256": "0" * 64}))
    with pytest.raises(BundleError, match=r"limits\.json is of another model"):
        _ = Bundle(bundle).limits
    (bundle / LIMITS).write_text("{")
    with pytest.raises(BundleError, match=r"limits\.json cannot be read"):
        _ = Bundle(bundle).limits


def test_every_fold_sets_patients_of_its_own_training_aside(cohort: Path, trained: Trained, tmp_path: Path) -> None:
    """The same ones for every seed, so that seeds are compared on the same slides."""
    config = build_config(TINY | {"folds": 3, "seeds": 2, "split": {"calibration": 0.3}})
    context = RunContext(config, read_cohort(cohort), tmp_path, CPU, encoder=None)  # type: ignore[arg-type]
    parts = list_parts(context)
    for part in parts:
        sides = [{s.patient for s in part.cohort.of(side)} for side in ("train", "val", "test", "calibration")]
        assert all(sides) and sum(map(len, sides)) == len(set.union(*sides))
    first, second = ([part.cohort.of("calibration") for part in parts if part.seed == seed] for seed in (0, 1))
    assert first == second and first[0] != first[1]
