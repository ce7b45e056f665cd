"""Evaluation of synthetic results: comparisons, grids, and undefined metrics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lrmil_training.evaluation.evaluate import (
    build_slide_table,
    evaluate_methods,
    fit_method_temperature,
    note_lesion_files,
)
from napari_lrmil.core.errors import RegionError
from napari_lrmil.core.metrics.agreement import pool_to_lr_grid
from support.run_folders import synthetic_cohort, synthetic_results

COUNTS = {"train": 4, "val": 6, "test": 12}


def test_methods_are_compared_on_the_same_slides(tmp_path: Path) -> None:
    """Differences are those of the AUROCs, antisymmetric, and the teacher has neither verdict nor agreement."""
    cohort = synthetic_cohort(tmp_path, COUNTS)
    metrics = evaluate_methods(cohort, synthetic_results(cohort), 100)
    assert {m: set(splits) for m, splits in metrics.items()} == {m: {"val", "test"} for m in synthetic_results(cohort)}
    student, teacher = metrics["student"]["test"], metrics["teacher"]["test"]
    difference = student["auroc"]["value"] - teacher["auroc"]["value"]
    assert student["paired"]["teacher"]["value"] == pytest.approx(difference)
    assert teacher["paired"]["student"]["value"] == pytest.approx(-difference)
    assert student["non_inferiority"]["margin"] == 0.03
    assert teacher["non_inferiority"] is None and teacher["agreement"] is None
    assert "teacher" not in teacher["paired"]
    assert student["auroc"]["n_slides"] == 12 and student["auroc"]["n_patients"] == 9


def test_delong_needs_one_slide_a_patient(tmp_path: Path) -> None:
    for alone, reason in ((False, "some patients have several slides"), (True, None)):
        cohort = synthetic_cohort(tmp_path, COUNTS | {"test": 40}, alone=alone)
        metrics = evaluate_methods(cohort, synthetic_results(cohort), 100, splits=("test",))
        delong = metrics["student"]["test"]["delong"]["labels_only"]
        assert (delong["p"] is None) == (reason is not None)
        assert reason is None or delong["reason"].startswith(reason)


def test_agreement_is_with_the_teachers_attention_carried_to_the_lr_grid(tmp_path: Path) -> None:
    """A student that looks where the teacher's children do agrees wholly; the opposite order is -1."""
    cohort = synthetic_cohort(tmp_path, {"test": 4})
    results = synthetic_results(cohort, {"teacher": 2.0, "student": 1.0})
    teacher = results["teacher"]
    same = [
        replace(r, attention=pool_to_lr_grid(t.grid, t.attention).astype(np.float32))
        for r, t in zip(results["student"], teacher, strict=True)
    ]
    turned = [replace(r, attention=(1 - r.attention) / (1 - r.attention).sum()) for r in same]
    by_method = {"teacher": teacher, "student": same, "turned": turned}
    metrics = evaluate_methods(cohort, by_method, 100, splits=("test",), temperatures=dict.fromkeys(by_method))
    assert metrics["student"]["test"]["agreement"]["spearman"] == pytest.approx(1, abs=1e-6)
    assert metrics["student"]["test"]["agreement"]["js_divergence"] == pytest.approx(0, abs=1e-6)
    assert metrics["turned"]["test"]["agreement"]["spearman"] == pytest.approx(-1, abs=1e-6)
    rows = build_slide_table(cohort, by_method, dict.fromkeys(by_method))
    assert rows[0]["methods"]["student"]["agreement"]["spearman"] == pytest.approx(1, abs=1e-6)


def test_lesions_are_measured_where_outlines_lie_beside_the_slide(tmp_path: Path) -> None:
    """All attention on the outlined patch is 1, on another 0 where only that one is outlined; without outlines None."""
    cohort = synthetic_cohort(tmp_path, {"test": 4})
    results = synthetic_results(cohort, {"student": 1.0})["student"]
    first = results[0]
    x, y = first.grid.lr_corners[2].tolist()
    side = first.grid.lattice.lr_cell[0]
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    first.row.lesions.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    for hot, expected in ((2, 1.0), (0, (len(first.grid.lr_index) - 2) / 2 / (len(first.grid.lr_index) - 1))):
        attention = np.zeros(len(first.grid.lr_index), np.float32)
        attention[hot] = 1
        by_method = {"student": [replace(first, attention=attention), *results[1:]]}
        metrics = evaluate_methods(cohort, by_method, 100, splits=("test",), temperatures={"student": None})
        assert metrics["student"]["test"]["lesion_auroc"] == pytest.approx(expected)
    rows = build_slide_table(cohort, by_method, {"student": None})
    assert [row["methods"]["student"]["lesion_auroc"] is None for row in rows] == [False, True, True, True]


def test_what_a_lesion_file_leaves_out_is_a_notice_of_the_cohort_and_a_broken_one_ends_the_run_at_its_start(
    tmp_path: Path,
) -> None:
    cohort = synthetic_cohort(tmp_path, {"test": 2})
    assert note_lesion_files(cohort).notices == cohort.notices, "no files, nothing to tell"
    ring = [[0, 0], [9, 0], [9, 9], [0, 0]]
    shapes = [{"type": "Polygon", "coordinates": [ring]}, {"type": "Point", "coordinates": [1, 2]}]
    features = [{"type": "Feature", "properties": None, "geometry": shape} for shape in shapes]
    first, second = (row.lesions for row in cohort.slides)
    first.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    (notice,) = note_lesion_files(cohort).notices
    assert notice == f"{first.name}: left out: 1 annotation without an area (points, lines); 1 read"
    second.write_text("no json")
    with pytest.raises(RegionError, match="not an annotation file"):
        note_lesion_files(cohort)


def test_calibration_is_fitted_on_validation_slides_and_leaves_the_ranking(tmp_path: Path) -> None:
    cohort = synthetic_cohort(tmp_path, {"val": 40, "test": 12})
    results = synthetic_results(cohort, {"student": 1.0})
    loud = {"student": [replace(r, logits=5 * r.logits) for r in results["student"]]}
    plain_fit, loud_fit = (
        fit_method_temperature(cohort, results["student"]),
        fit_method_temperature(cohort, loud["student"]),
    )
    assert plain_fit is not None and loud_fit == pytest.approx(5 * plain_fit, rel=1e-2)
    plain, calibrated = (
        evaluate_methods(cohort, loud, 100, splits=("test",), temperatures={"student": temperature})["student"]["test"]
        for temperature in (None, loud_fit)
    )
    assert (plain["calibrated"], calibrated["calibrated"]) == (False, True)
    assert plain["auroc"]["value"] == calibrated["auroc"]["value"]
    assert plain["brier"] > calibrated["brier"]


def test_cost_is_a_mean_over_all_slides_or_none(tmp_path: Path) -> None:
    cohort = synthetic_cohort(tmp_path, {"test": 4})
    results = synthetic_results(cohort, {"teacher": 1.0, "student": 1.0})
    cost = {m: splits["test"]["cost"] for m, splits in evaluate_methods(cohort, results, 100, splits=("test",)).items()}
    assert cost["teacher"]["patches_per_slide"] == np.mean([len(r.grid.hr_index) for r in results["teacher"]])
    assert cost["student"]["patches_per_slide"] == np.mean([len(r.grid.lr_index) for r in results["student"]])
    results["student"][3] = replace(results["student"][3], pixels=None)
    cost = evaluate_methods(cohort, results, 100, splits=("test",))["student"]["test"]["cost"]
    assert cost["pixels_per_slide"] is None and cost["cpu_seconds_per_slide"] is not None
