"""Sentences on a series of folds or seeds: meaning of the spread, slides, calibration, cost, and whose model it is."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrmil_training.evaluation.summary import find_best_run
from lrmil_training.report.report import write_report
from lrmil_training.report.series import describe_series, mean_cost, name_spread
from napari_lrmil.plugin.train.result_table import read_run_result
from support.run_folders import write_series

COUNTS = {"train": 4, "val": 6, "test": 8}


def read_runs(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "metrics.json").read_text())["runs"])


@pytest.mark.parametrize(
    ("folds", "seeds", "spread", "over", "slides"),
    [
        (0, 3, "SD over 3 seeds", "3 runs, one for each seed, on the same 8 test slides.", "Only 8 test slides:"),
        (
            3,
            1,
            "SD over 3 folds",
            "3 runs, one for each fold, on 24 test slides in all, 8 in a fold.",
            "Only 8 test slides in a fold:",
        ),
        (
            2,
            2,
            "SD over 4 runs",
            "4 runs, 2 folds with each of 2 seeds, on 16 test slides in all, 8 in a fold.",
            "Only 8 test slides in a fold:",
        ),
    ],
)
def test_dock_and_report_say_what_the_spread_is_over(
    folds: int, seeds: int, spread: str, over: str, slides: str, tmp_path: Path
) -> None:
    folder = write_series(tmp_path / "run", COUNTS, folds, seeds)
    result = read_run_result(folder)
    assert result is not None and result.spread == spread
    first, deviation, few, *_, model = result.notes
    assert first == f"Mean and standard deviation (SD) over {over}" and "not a confidence interval" in deviation
    assert few.startswith(slides) and model.startswith("The model is that of ")
    page = html.unescape(re.sub(r"<[^>]+>", "", write_report(folder).read_text()))
    assert f"AUROC ± {spread}" in page and all(note in page for note in result.notes)


def test_the_run_whose_model_is_kept_is_the_best_on_validation_slides(tmp_path: Path) -> None:
    runs = read_runs(write_series(tmp_path / "run", COUNTS, 0, 3))
    for seed, value in enumerate((0.5, 0.9, 0.7)):
        runs[seed]["student"]["val"]["auroc"]["value"] = value
    assert find_best_run(runs) is runs[1]
    expected = "The model is that of seed 1: its student has the highest AUROC on validation slides"
    assert describe_series(runs, "test")[-1] == f"{expected}."
    runs[2]["student"]["val"]["auroc"]["value"] = 0.9
    assert describe_series(runs, "test")[-1] == f"{expected}, the first of equal runs."
    for run in runs:
        run["student"]["val"]["auroc"]["value"] = None
    assert find_best_run(runs) is runs[0]
    assert describe_series(runs, "test")[-1].startswith("The model is that of seed 0, the first run: no run has")
    del runs[0]["student"]["val"]
    assert find_best_run(runs) is None and "model" not in describe_series(runs, "test")[-1]


def test_calibration_is_told_for_all_or_some_runs(tmp_path: Path) -> None:
    runs = read_runs(write_series(tmp_path / "run", COUNTS, 0, 3))
    for seed, calibrated in enumerate((True, False, True)):
        runs[seed]["student"]["test"]["calibrated"] = calibrated
    assert (
        "The student's probabilities are not calibrated in 1 of 3 runs: there were" in describe_series(runs, "test")[3]
    )
    for run in runs:
        run["student"]["test"]["calibrated"] = True
    assert not any("calibrated" in note for note in describe_series(runs, "test"))


def test_cost_is_the_mean_over_the_runs(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "run", COUNTS, 0, 2)
    metrics = json.loads((folder / "metrics.json").read_text())
    for run, seconds in zip(metrics["runs"], (0.2, 0.4), strict=True):
        run["student"]["test"]["cost"]["cpu_seconds_per_slide"] = seconds
    assert mean_cost(metrics["runs"], "student", "test")["cpu_seconds_per_slide"] == pytest.approx(0.3)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    result = read_run_result(folder)
    assert result is not None
    student = next(row for row in result.rows if row.method == "student")
    patches = np.mean([run["student"]["test"]["cost"]["patches_per_slide"] for run in metrics["runs"]])
    assert (student.seconds, student.patches) == ("0.3", f"{patches:,.0f}") and student.pixels != "–"
    page = write_report(folder).read_text()
    assert "Cost per slide" in page and "test split and over runs" in page
    del metrics["runs"][0]["student"]["test"]["cost"]
    assert mean_cost(metrics["runs"], "student", "test")["patches_per_slide"] is None


def test_spread_of_runs_with_one_seed_and_one_fold_is_named() -> None:
    assert name_spread([{"fold": None, "seed": 3}]) == "SD over 1 seed"
