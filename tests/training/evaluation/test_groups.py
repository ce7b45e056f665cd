"""Figures by group of slides: those of the group alone, and a reason where an AUROC is undefined."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrmil_training.data.cohort import Cohort, read_cohort
from lrmil_training.evaluation.evaluate import Results, SlideResult, add_limits, build_slide_table, evaluate_methods
from lrmil_training.evaluation.groups import (
    BY,
    DISTANCE_QUARTILE,
    EMPTY,
    GROUPS_TABLE,
    Grouping,
    describe_auroc,
    group_by_distance,
    measure_groups,
    read_groupings,
    write_groups_table,
)
from lrmil_training.report.report import write_report
from napari_lrmil.core.csv_files import read_csv
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.models.cohort_distance import CohortDistance
from napari_lrmil.core.models.limits import ConformalScores, NetworkLimits, OperatingPoint
from support.run_folders import synthetic_cohort, synthetic_results, write_run

TEMPERATURES = {"teacher": 1.3, "student": None}


def grouped_cohort(folder: Path) -> Cohort:
    """Return a cohort of 24 slides of a table with the columns `site` and `Scanner`, some of them empty."""
    synthetic = synthetic_cohort(folder, {"test": 24})
    lines = ["slide,patient,label,split,Site,Scanner"]
    for i, row in enumerate(synthetic.slides):
        row.path.write_bytes(b"")
        scanner = "S1" if row.label == "normal" else "S2"
        lines.append(f"{row.path.name},{row.patient},{row.label},test,{('A', 'B', '')[i // 8]},{scanner}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(folder / "cohort.csv")


def measure(cohort: Cohort, results: Results) -> dict[str, Any]:
    return evaluate_methods(cohort, results, 200, splits=("test",), temperatures=TEMPERATURES)


def signal() -> dict[str, float]:
    return {"teacher": 2.0, "student": 0.7}


def test_figures_of_a_group_are_those_of_its_slides_alone(tmp_path: Path) -> None:
    cohort = grouped_cohort(tmp_path)
    results = synthetic_results(cohort, signal())
    groups = measure_groups(cohort, results, read_groupings(cohort, ["site"]), measure)["site"]
    assert [entry["value"] for entry in groups] == ["A", "B", EMPTY]
    for number, entry in enumerate(groups):
        slides = cohort.slides[8 * number : 8 * number + 8]
        subset = replace(cohort, slides=slides)
        alone = {m: [r for r in rows if r.row in slides] for m, rows in results.items()}
        expected = {m: splits["test"] for m, splits in measure(subset, alone).items()}
        for figures, whole in zip(each_level(entry["methods"]), each_level(expected), strict=True):
            if figures["auroc"]["low"] is None:  # no resample of so few slides differs: the one thing that is left out
                assert whole["auroc"]["low"] == whole["auroc"]["high"] and "no interval" in figures["auroc"]["reason"]
                whole["auroc"] |= {"low": None, "high": None, "reason": figures["auroc"]["reason"]}
        assert entry["methods"] == expected
        assert (entry["n_slides"], entry["class_counts"]) == (8, {"normal": 4, "lesion": 4})
        assert entry["n_patients"] == len({s.patient for s in slides})


def each_level(methods: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of each method by slide and by patient."""
    return [part for figures in methods.values() for part in (figures, figures["patients"])]


def test_a_group_of_one_class_has_no_auroc_and_says_why(tmp_path: Path) -> None:
    cohort = grouped_cohort(tmp_path)
    results = synthetic_results(cohort, signal())
    (groups,) = measure_groups(cohort, results, read_groupings(cohort, ["scanner"]), measure).values()
    for entry, label in zip(groups, ("normal", "lesion"), strict=True):
        for figures in entry["methods"].values():
            assert figures["auroc"]["value"] is figures["auroc"]["low"] is None
            assert describe_auroc(figures["auroc"]) == f"undefined (one class only: {label})"
            assert figures["per_class"][label]["n"] == 12 and figures["brier"] > 0


@pytest.mark.parametrize(
    ("per_class", "reason"),
    [
        ((1, 1), "no interval: 1 slide of each of normal, lesion"),
        ((4, 1), "no interval: 1 slide of lesion"),
        ((2, 2), "no interval: every resample of 4 slides gives the same"),
    ],
)
def test_a_group_of_too_few_slides_has_no_interval_and_says_why(
    tmp_path: Path, per_class: tuple[int, int], reason: str
) -> None:
    """Every resample is the same, or nearly so: 1.000 to 1.000 would read as certainty."""
    cohort = grouped_cohort(tmp_path)
    slides = [
        [s for s in cohort.slides if s.label == label][:n] for label, n in zip(cohort.classes, per_class, strict=True)
    ]
    part = replace(cohort, slides=tuple(s for rows in slides for s in rows))
    results = {m: [certain(r, cohort) for r in rows] for m, rows in synthetic_results(part, signal()).items()}
    every_slide = Grouping("all", {s.name: "all" for s in part.slides})
    groups = measure_groups(part, results, [every_slide], measure)
    figures = groups["all"][0]["methods"]["student"]
    auroc, before = figures["auroc"], measure(part, results)["student"]["test"]
    assert before["auroc"]["low"] == before["auroc"]["high"] == 1.0, "without this the interval reads as certain"
    assert (auroc["value"], auroc["low"], auroc["high"], auroc["reason"]) == (1.0, None, None, reason)
    assert describe_auroc(auroc) == f"1.000 ({reason})"
    assert describe_auroc(before["auroc"]).startswith("1.000 (no spread in the resamples: "), "of all slides alike"
    assert {k: v for k, v in figures.items() if k not in ("auroc", "patients")} == {
        k: v for k, v in before.items() if k not in ("auroc", "patients")
    }
    write_groups_table(tmp_path, groups)
    header, _, row = read_csv(tmp_path / GROUPS_TABLE)
    cells = dict(zip(header, row, strict=True))
    assert (cells["auroc"], cells["low"], cells["high"]) == ("1.000000", "", "")
    assert cells["reason"].startswith(reason)
    folder = write_run(tmp_path / "run", {"test": 24})
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {BY: groups}))
    assert reason in write_report(folder).read_text()


def test_a_group_with_enough_patients_keeps_its_interval(tmp_path: Path) -> None:
    cohort = synthetic_cohort(tmp_path, {"test": 40})
    results = {m: [certain(r, cohort) for r in rows] for m, rows in synthetic_results(cohort, signal()).items()}
    every_slide = Grouping("all", {s.name: "all" for s in cohort.slides})
    groups = measure_groups(cohort, results, [every_slide], measure)
    auroc = groups["all"][0]["methods"]["student"]["auroc"]
    assert auroc["interval"] == "patients" and (auroc["low"], auroc["high"]) == (1.0, 1.0) and "reason" not in auroc


def certain(result: SlideResult, cohort: Cohort) -> SlideResult:
    """Return a result with the right class."""
    return replace(result, logits=9 * np.eye(len(cohort.classes), dtype=np.float32)[cohort.target(result.row)])


def test_columns_are_those_of_the_table(tmp_path: Path) -> None:
    cohort = grouped_cohort(tmp_path)
    assert [g.name for g in read_groupings(cohort, ["SITE", "site", "Scanner"])] == ["site", "Scanner"]
    (by_patient,) = read_groupings(cohort, ["patient"])
    assert by_patient.values == {s.name: s.patient for s in cohort.slides}
    assert read_groupings(cohort, []) == []
    for column in ("hospital", "mpp"):
        expected = (
            f"no column named '{column}' to group by; the columns are slide, patient, label, split, site, Scanner"
        )
        with pytest.raises(CohortError, match=expected):
            read_groupings(cohort, [column])


def test_a_group_without_a_slide_that_can_be_read_is_listed(tmp_path: Path) -> None:
    cohort = grouped_cohort(tmp_path)
    groupings = read_groupings(cohort, ["site"])
    rest = cohort.without({s.name for s in cohort.slides if s.site == "A"})
    groups = measure_groups(rest, synthetic_results(rest, signal()), groupings, measure)
    assert [(entry["value"], entry["n_slides"]) for entry in groups["site"]] == [("A", 0), ("B", 8), (EMPTY, 8)]
    assert groups["site"][0]["methods"] == {}
    write_groups_table(tmp_path, groups)
    assert read_csv(tmp_path / GROUPS_TABLE)[1][-1] == "no slide could be read"


def test_the_table_and_the_report_show_the_groups(tmp_path: Path) -> None:
    """Every figure to its digits; without groups, no table is left of an earlier call."""
    folder = write_run(tmp_path / "run", {"test": 24})
    cohort = grouped_cohort(tmp_path)
    groupings = read_groupings(cohort, ["site", "Scanner"])
    groups = measure_groups(cohort, synthetic_results(cohort, signal()), groupings, measure)
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {BY: groups}))
    page = write_report(folder).read_text()
    assert page.index("By site") < page.index("By Scanner") and "one class only: lesion" in page
    write_groups_table(folder, groups)
    header, *rows = read_csv(folder / GROUPS_TABLE)
    assert len(rows) == 2 * (3 + 2)
    for row, (column, entry, method) in zip(rows, flat(groups), strict=True):
        cells, auroc = dict(zip(header, row, strict=True)), entry["methods"][method]["auroc"]
        assert (cells["column"], cells["value"], cells["method"]) == (column, entry["value"], method)
        assert cells["auroc"] == ("" if auroc["value"] is None else f"{auroc['value']:.6f}")
        if auroc["low"] is not None:
            assert f"{auroc['value']:.3f} <small>{auroc['low']:.3f}" in page
        else:
            assert auroc["reason"] in page and auroc["reason"] in cells["reason"]
    write_groups_table(folder, {})
    assert not (folder / GROUPS_TABLE).exists()


def test_the_table_has_the_limits_of_each_group(tmp_path: Path) -> None:
    """Shares with their intervals for the method that has limits; empty cells for the other."""
    cohort = grouped_cohort(tmp_path)
    point = OperatingPoint(
        positive="lesion", threshold=0.5, rule="", sensitivity=1, specificity=1, positives=1, negatives=1
    )
    scores = ConformalScores(scores=tuple(np.linspace(0, 0.9, 20).tolist()), patients=tuple(range(20)))
    limits = {"student": NetworkLimits(operating_point=point, conformal=scores)}

    def measure_with_limits(part: Cohort, results: Results) -> dict[str, Any]:
        metrics = measure(part, results)
        add_limits(metrics, part, results, TEMPERATURES, limits)
        return metrics

    results = synthetic_results(cohort, signal())
    groups = measure_groups(cohort, results, read_groupings(cohort, ["site"]), measure_with_limits)
    write_groups_table(tmp_path, groups)
    header, *rows = read_csv(tmp_path / GROUPS_TABLE)
    for row, (_, entry, method) in zip(rows, flat(groups), strict=True):
        cells, figures = dict(zip(header, row, strict=True)), entry["methods"][method]
        if method == "teacher":
            assert cells["sensitivity"] == cells["coverage_low"] == cells["singletons"] == ""
            assert cells["patient_auroc"] == f"{figures['patients']['auroc']['value']:.6f}"
            continue
        sensitivity, sets = figures["operating_point"]["sensitivity"], figures["prediction_sets"]
        assert cells["sensitivity_high"] == f"{sensitivity['high']:.6f}"
        assert cells["coverage_low"] == f"{sets['empirical']['low']:.6f}"
        assert cells["mean_set_size"] == f"{sets['mean_size']:.6f}"
        assert cells["singletons"] == f"{sets['singletons']:.6f}"


def flat(groups: dict[str, list[dict[str, Any]]]) -> list[tuple[str, dict[str, Any], str]]:
    return [(column, entry, m) for column, entries in groups.items() for entry in entries for m in entry["methods"]]


def test_quartiles_of_distance(tmp_path: Path) -> None:
    """Six slides each, from near to far; figures of a quartile are those of its slides alone."""
    cohort = grouped_cohort(tmp_path)
    results = synthetic_results(cohort, signal())
    assert group_by_distance(results) == []
    far = {s.name: 0.1 * ((7 * i) % 24 + 1) for i, s in enumerate(cohort.slides)}
    results["student"] = [
        replace(r, cohort_distance=CohortDistance(far[r.row.name], 0.5, 30)) for r in results["student"]
    ]
    (grouping,) = group_by_distance(results)
    assert list(grouping.slides_by_group()) == [
        "1 (nearest): 0.10 to 0.60",
        "2: 0.70 to 1.20",
        "3: 1.30 to 1.80",
        "4 (farthest): 1.90 to 2.40",
    ]
    nearest = grouping.slides_by_group()["1 (nearest): 0.10 to 0.60"]
    assert nearest == {name for name, distance in far.items() if distance < 0.65}
    first = measure_groups(cohort, results, [grouping], measure)[DISTANCE_QUARTILE][0]
    subset = replace(cohort, slides=tuple(s for s in cohort.slides if s.name in nearest))
    alone = {m: [r for r in rows if r.row.name in nearest] for m, rows in results.items()}
    assert first["methods"]["student"] == measure(subset, alone)["student"]["test"]
    rows = build_slide_table(cohort, results, TEMPERATURES)
    assert rows[0]["cohort_distance"] == {"distance": far[rows[0]["slide"]], "quantile": 0.5, "slides": 30}
    few = {m: rows[:7] for m, rows in results.items()}
    assert group_by_distance(few) == []


def test_groups_are_divided_before_the_slides_of_a_split_are_chosen(tmp_path: Path) -> None:
    (grouping,) = read_groupings(grouped_cohort(tmp_path), ["site"])
    part = grouping.restrict({"test_00", "test_23"})
    assert part.slides_by_group() == {"A": {"test_00"}, EMPTY: {"test_23"}}
