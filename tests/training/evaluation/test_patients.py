"""Figures by patient, against values computed by hand for a table of five patients with nine slides."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.evaluation.evaluate import SlideResult, evaluate_methods
from lrmil_training.evaluation.patients import FEW_PATIENTS, PATIENTS, describe_mixed, group_slides
from lrmil_training.evaluation.patients_table import write_patients_table
from lrmil_training.evaluation.summary import summarise_runs
from lrmil_training.stages.export import summary
from napari_lrmil.core.csv_files import read_csv
from napari_lrmil.core.results.patient_answers import MEAN_OF_LOGITS, PATIENTS_TABLE
from support.run_folders import synthetic_cohort, synthetic_grid, synthetic_results, write_run

# Patient, label, and the logits (normal, lesion) of its slides. The margin is lesion less normal.
TABLE: dict[str, tuple[str, list[tuple[float, float]]]] = {
    "A": ("lesion", [(0.0, 3.0), (1.0, 2.0)]),  # mean logits 0.5, 2.5: margin 2
    "B": ("lesion", [(1.0, 0.0), (0.0, 4.0), (2.0, 2.0)]),  # 1, 2: margin 1
    "C": ("lesion", [(0.5, 0.0)]),  # margin -0.5
    "D": ("normal", [(2.0, 0.0), (0.0, 2.0)]),  # 1, 1: margin 0
    "E": ("normal", [(1.0, 0.0)]),  # margin -1
}
MARGINS = {"A": 2.0, "B": 1.0, "C": -0.5, "D": 0.0, "E": -1.0}
TEMPERATURE = 2.0


def five_patients(folder: Path, table: dict[str, tuple[str, list[tuple[float, float]]]] = TABLE) -> Cohort:
    slides = [
        CohortSlide(folder / f"{patient}{i}.tif", patient, label, "test")
        for patient, (label, logits) in table.items()
        for i in range(len(logits))
    ]
    return Cohort(folder / "cohort.csv", tuple(slides), ("normal", "lesion"))


def results_of(cohort: Cohort) -> dict[str, list[SlideResult]]:
    grid = synthetic_grid()
    attention = np.full(len(grid.lr_index), 1 / len(grid.lr_index), np.float32)
    logits = {f"{p}{i}": values for p, (_, rows) in TABLE.items() for i, values in enumerate(rows)}
    return {
        "student": [
            SlideResult(row, grid, np.array(logits[row.name], np.float32), attention, high=False)
            for row in cohort.slides
        ]
    }


def figures_of(cohort: Cohort, times: int = 400) -> dict[str, Any]:
    metrics = evaluate_methods(
        cohort, results_of(cohort), times, splits=("test",), temperatures={"student": TEMPERATURE}
    )
    figures: dict[str, Any] = metrics["student"]["test"][PATIENTS]
    return figures


def test_figures_of_five_patients_are_those_computed_by_hand(tmp_path: Path) -> None:
    """Lesions at 2, 1, -0.5 against normals at 0, -1: five of six pairs are in order."""
    figures = figures_of(five_patients(tmp_path))
    assert figures["pooling"] == MEAN_OF_LOGITS and figures["calibrated"] is True
    assert (figures["n_bags"], figures["auroc"]["n_patients"], figures["auroc"]["n_slides"]) == (5, 5, 9)
    assert figures["auroc"]["value"] == pytest.approx(5 / 6, abs=1e-12)
    # Probability of lesion at temperature 2: 1 / (1 + exp(-margin / 2)).
    # A 0.731059, B 0.622459, C 0.437823, D 0.5, E 0.377541
    p = {name: 1 / (1 + math.exp(-margin / 2)) for name, margin in MARGINS.items()}
    assert [round(p[name], 6) for name in "ABCDE"] == [0.731059, 0.622459, 0.437823, 0.5, 0.377541]
    # Brier, summed over both classes: 2 * mean of (p - truth)^2
    # = 2 * (0.072329 + 0.142537 + 0.316043 + 0.25 + 0.142537) / 5 = 0.369379
    assert figures["brier"] == pytest.approx(0.369379, abs=1e-6)
    # Predicted: A, B lesion; C normal (wrong); D normal (a tie goes to the first class); E normal.
    assert figures["confusion"] == [[2, 0], [1, 2]]
    assert figures["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    # A patient is a bin of its own: D 0.5 right, C 0.562177 wrong, B and E 0.622459 tie and share one, A 0.731059.
    # ECE = (0.5 + 0.562177 + 2 * 0.377541 + 0.268941) / 5 = 0.417240
    assert figures["ece"] == pytest.approx(0.417240, abs=1e-6)
    assert sum(b["n"] for b in figures["reliability"]) == 5


def test_the_interval_is_that_of_a_bootstrap_over_patients_written_anew(tmp_path: Path) -> None:
    """Three lesions and two normals are drawn with the generator's own order: lesions first, as in the table."""
    figures = figures_of(five_patients(tmp_path), times=300)["auroc"]
    rng, values = np.random.default_rng(0), []
    lesions, normals = [2.0, 1.0, -0.5], [0.0, -1.0]
    for _ in range(300):
        drawn = [lesions[i] for i in rng.integers(3, size=3)], [normals[i] for i in rng.integers(2, size=2)]
        values.append(np.mean([float(a > b) for a, b in itertools.product(*drawn)]))
    low, high = np.quantile(values, [0.025, 0.975])
    assert (figures["low"], figures["high"]) == pytest.approx((low, high), abs=1e-12)
    assert figures["interval"] == FEW_PATIENTS  # five patients are a rough guide, and the figure says so


def test_figures_by_slide_are_as_they_were_and_one_slide_each_adds_nothing(tmp_path: Path) -> None:
    cohort = five_patients(tmp_path)
    alone = replace(cohort, slides=tuple(replace(s, patient=s.name) for s in cohort.slides))
    entries = [
        evaluate_methods(c, results_of(c), 50, splits=("test",), temperatures={"student": None})["student"]["test"]
        for c in (cohort, alone)
    ]
    assert PATIENTS in entries[0] and PATIENTS not in entries[1]
    assert entries[0]["auroc"]["value"] == entries[1]["auroc"]["value"]
    assert entries[0]["brier"] == entries[1]["brier"]


def test_a_patient_with_two_labels_is_left_out_by_name(tmp_path: Path) -> None:
    cohort = five_patients(tmp_path)
    mixed = replace(cohort, slides=tuple(replace(s, label="normal") if s.name == "B0" else s for s in cohort.slides))
    figures = figures_of(mixed)
    assert (figures["n_bags"], figures["left_out"], figures["auroc"]["n_slides"]) == (4, ["B"], 6)
    # Lesions at 2 and -0.5 against 0 and -1: three of four pairs.
    assert figures["auroc"]["value"] == pytest.approx(3 / 4)
    assert describe_mixed([f"p{i}" for i in range(7)]).endswith("7 (p0, p1, p2, p3, p4 and 2 more)")


def test_a_pseudo_patient_is_a_bag_of_its_own() -> None:
    """Its slides do not say which tissue is whose; the order of its parts says nothing."""
    bags = group_slides(["9", "9+11", "11 + 9", "11"], [0, 1, 1, 0]).all
    assert [(bag.patient, bag.rows) for bag in bags] == [("9", (0,)), ("9+11", (1, 2)), ("11", (3,))]


def test_the_table_names_slides_that_could_not_be_read(tmp_path: Path) -> None:
    """B answers from two of three slides; C has none left; without such patients there is no table."""
    cohort = five_patients(tmp_path)
    failed = [s for s in cohort.slides if s.name in ("B1", "C0")]
    rest = cohort.without({s.name for s in failed})
    write_patients_table(tmp_path, rest, results_of(rest), {"student": TEMPERATURE}, failed)
    header, *lines = read_csv(tmp_path / PATIENTS_TABLE)
    rows = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    # B without its second slide: mean logits 1.5, 1.0, margin -0.5.
    assert float(rows["B"]["probability_lesion"]) == pytest.approx(1 / (1 + math.exp(0.25)), abs=1e-6)
    assert (rows["B"]["n_slides"], rows["B"]["n_left_out"], rows["B"]["left_out"]) == ("2", "1", "B1")
    assert rows["A"]["slides"] == "A0; A1" and rows["A"]["label"] == "lesion"
    assert (rows["C"]["predicted"], rows["C"]["reason"]) == ("", "none of its slides could be read")
    alone = rest.without({"A1", "B2", "D1"})
    write_patients_table(tmp_path, alone, results_of(alone), {"student": None})
    assert not (tmp_path / PATIENTS_TABLE).exists()


def test_card_report_and_summary_of_folds_have_the_figures_by_patient(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"test": 24})
    from lrmil_training.report.report import write_report

    page = write_report(folder).read_text()
    assert "By patient" in page and MEAN_OF_LOGITS in page
    cohort = synthetic_cohort(tmp_path, {"test": 24})
    metrics = evaluate_methods(cohort, synthetic_results(cohort), 100)
    assert summary(metrics)["student, test: AUROC by patient"].split(", ")[1].endswith(" patients")
    (entry,) = {
        run["value"]
        for run in summarise_runs([{"fold": None, "seed": 0, "metrics": metrics}])["student"]["test"][PATIENTS][
            "auroc"
        ]["runs"]
    }
    assert entry == metrics["student"]["test"][PATIENTS]["auroc"]["value"]
