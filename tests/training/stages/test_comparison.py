"""Comparison of aggregators in one call: further teachers beside the student, one table, and nothing fitted twice."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lrmil_training.config import TrainConfig, build_config, load_config
from lrmil_training.evaluation.comparison_table import CHOSEN, HEADER, comparison_rows, series_rows
from lrmil_training.stages.comparison import STAGE
from lrmil_training.train import train
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import Event, Progress, StageDone
from support.trained import SHORT, TINY, Trained

CPU = torch.device("cpu")
NAMES = ("mean", "dsmil")


def config_of(trained: Trained, features: Path, **changes: Any) -> TrainConfig:
    values = TINY | SHORT | {"encoder": {"teacher": trained.encoder}, "features": str(features), "compare": list(NAMES)}
    return build_config(values | changes)


def seconds(events: list[Event], stage: str) -> float:
    (value,) = [e.seconds for e in events if isinstance(e, StageDone) and e.stage == stage]
    return value


def test_one_call_gives_one_table(tmp_path: Path, trained: Trained) -> None:
    """Stopped after the first further teacher, it goes on with the second; the student is that without them."""
    config = config_of(trained, trained.copy_features(tmp_path / "hr"))
    run = tmp_path / "run"
    events = train(trained.cohort, run, config, CPU)
    for event in events:
        if isinstance(event, Progress) and (event.stage, event.done) == (STAGE, 1):
            break
    events.close()  # type: ignore[attr-defined]
    rest = list(train(trained.cohort, run, config, CPU))
    assert seconds(rest, "teacher") == seconds(rest, "teacher_mean") == 0 < seconds(rest, "teacher_dsmil")

    metrics = json.loads((run / "metrics.json").read_text())
    with (run / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HEADER
    test = {row["method"]: row for row in rows if row["split"] == "test"}
    assert list(test) == ["teacher", "teacher_mean", "teacher_dsmil", "student", "labels_only"]
    for method, row in test.items():
        figures = metrics[method]["test"]
        assert float(row["auroc"]) == pytest.approx(figures["auroc"]["value"], abs=1e-6)
        assert row["network"] == ("HR" if method.startswith("teacher") else "LR")
        for other in {"teacher", "student"} - {method}:
            assert float(row[f"minus_{other}"]) == pytest.approx(figures["paired"][other]["value"], abs=1e-6)
            assert row[f"minus_{other}_low"] != ""
    assert test["teacher_dsmil"]["aggregator"] == "dsmil" and test["student"]["aggregator"] == "gated_attention"
    report = (run / "report.html").read_text()
    assert "Comparison of aggregators" in report and "HR teacher, DSMIL" in report

    alone = json.loads((trained.run / "metrics.json").read_text())
    assert metrics["student"]["test"]["auroc"] == alone["student"]["test"]["auroc"]
    assert "Comparison of aggregators" not in (trained.run / "report.html").read_text()


def figures(value: float, *others: str) -> dict[str, Any]:
    auroc = {"value": value, "low": None, "high": None, "n_slides": 9, "n_patients": 8, "interval": "patients"}
    paired = {other: {"value": value - 0.5, "low": -0.1, "high": 0.2} for other in others}
    return {"test": {"auroc": auroc, "paired": paired}}


def test_undefined_differences_are_empty() -> None:
    """A method has no difference from itself, and without a teacher none from it."""
    rows = comparison_rows({"student": figures(0.75)}, "transmil")
    assert rows[0]["aggregator"] == "gated_attention" and rows[0]["minus_teacher"] is None
    both = {"teacher": figures(0.5, "student"), "student": figures(0.75, "teacher")}
    teacher, student = comparison_rows(both, "linear_topk")
    assert (teacher["minus_teacher"], teacher["minus_student"]) == (None, 0.0)
    assert (student["minus_teacher"], student["minus_student"]) == (0.25, None)
    assert student["aggregator"] == "linear_topk"


def test_a_series_has_means_over_runs() -> None:
    auroc = {"mean": 0.8, "sd": 0.1, "n_runs": 3, "runs": []}
    paired = {"student": {"mean": 0.05, "sd": 0.02, "n_runs": 3, "positive": 2}}
    (row,) = series_rows({"teacher_abmil": {"test": {"auroc": auroc, "paired": paired}}}, CHOSEN)
    assert (row["auroc_mean"], row["n_runs"], row["aggregator"]) == (0.8, 3, "abmil")
    assert (row["minus_student_mean"], row["minus_student_runs_positive"], row["minus_teacher_mean"]) == (0.05, 2, None)


def test_all_stands_for_the_published_ones() -> None:
    six = ("mean", "max", "abmil", "clam_sb", "dsmil", "transmil")
    assert load_config(None, ["compare=all"]).compare == six
    assert build_config({"compare": ["max", "mean", "max"]}).compare == ("max", "mean")
    assert load_config(None, ["compare=mean, transmil"]).compare == ("mean", "transmil")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"compare": ["attention"]}, "transmil"),
        ({"compare": ["mean"], "distil": False, "baselines": []}, "reads no HR patches"),
        ({"compare": ["mean"], "bag": "patient"}, "mean in compare does not pool"),
        ({"compare": ["clam_sb"], "lambda_patch": 1.0}, "clam_sb has no linear class scores"),
    ],
)
def test_what_cannot_be_compared_is_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build_config(values)
