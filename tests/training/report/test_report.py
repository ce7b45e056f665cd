"""Report of synthetic run folders: it shows the measured values and is self-contained."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from lrmil_training.report.plots import Plot, plot_agreement, plot_forest, plot_reliability, plot_runs
from lrmil_training.report.report import format_metric, shorten_paths, write_report
from lrmil_training.report.run_record import method_label, read_run, read_training_curves, sort_by_probability_distance
from lrmil_training.report.sections import describe_class_weights, describe_non_inferiority
from support.run_folders import CLASSES, write_events, write_run, write_series

COUNTS = {"train": 9, "val": 12, "test": 26}
METHODS = ["teacher", "student", "labels_only", "stage2_only"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with its report; some patients have two slides."""
    folder = write_run(tmp_path_factory.mktemp("made") / "run", COUNTS)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def slides(folder: Path) -> list[dict[str, Any]]:
    """Return the test slides of ``slides.json``."""
    rows: list[dict[str, Any]] = json.loads((folder / "slides.json").read_text())["slides"]
    return [row for row in rows if row["split"] == "test"]


def probability(row: dict[str, Any], method: str) -> float:
    return float(row["methods"][method]["probabilities"]["lesion"])


# ---------------------------------------------------------------- the page


def self_contained(page: str) -> bool:
    """Return whether nothing is loaded or linked but data, places in the page, and reports below it."""
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]+)""", page)
    local = [a for a in addresses if a.startswith(("data:image/", "#", "runs/"))]
    return addresses == local and not re.search(r"<script|<link|<iframe|@import|url\((?!data:)|https?://", page)


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert self_contained(page) and page.count("data:image/svg") >= 8
    for alien in ('<img src="https://x.org/a.png">', "<link rel=stylesheet>", "<a href='//x.org'>", "url(a.woff)"):
        assert not self_contained(page + alien)


def test_every_figure_of_a_method_is_shown(folder: Path, page: str) -> None:
    """AUROC with interval, balanced accuracy, F1, ECE, Brier, confusion, and figures by class, to three digits."""
    metrics = json.loads((folder / "metrics.json").read_text())
    text = re.sub(r"<[^>]+>", " ", page)
    for method in METHODS:
        values = metrics[method]["test"]
        row = next(
            line for line in text.split("Results on the test split")[1].splitlines() if method_label(method) in line
        )
        shown = [values["auroc"][k] for k in ("value", "low", "high")]
        shown += [values[k] for k in ("balanced_accuracy", "f1", "ece", "brier")]
        assert re.findall(r"\d\.\d{3}", row) == [format_metric(value) for value in shown], method
        rows = [line for line in text.split("By class")[1].splitlines() if method_label(method) in line]
        by_class = [values["per_class"][c][k] for c in CLASSES for k in ("recall", "precision", "f1")]
        assert re.findall(r"\d\.\d{3}", rows[0]) == [format_metric(value) for value in by_class]
    matrices = page.split("Confusion matrices")[1].split("By class")[0]
    counts = [int(n) for n in re.findall(r"<td style=[^>]*>(\d+)</td>", matrices)]
    assert counts == [n for m in METHODS for row in metrics[m]["test"]["confusion"] for n in row]
    assert "twice that of class lesion alone" in page


def test_imbalance_and_its_remedy_are_stated(page: str, folder: Path, tmp_path: Path) -> None:
    """Nine training slides, five of them normal: 9 / (2 · 5) and 9 / (2 · 4)."""
    sentence = "weighted by inverse frequency (class_weights: balanced): normal 0.90, lesion 1.12"
    assert sentence in page and "does not restore the class frequencies" in page
    series = read_run(write_series(tmp_path / "series", {"train": 4, "val": 6, "test": 8}, folds=2))
    assert describe_class_weights(series) == "In training all slides had the same weight (class_weights: none)."
    (tmp_path / "none").mkdir()
    assert describe_class_weights(read_run(tmp_path / "none")) is None


def test_a_perfect_figure_of_few_slides_has_no_interval(tmp_path: Path) -> None:
    """Neither on the tile nor in the tables by slide and by patient; the metrics stay as they are."""
    folder = write_run(tmp_path / "run", {"train": 4, "val": 6, "test": 8})
    metrics = json.loads((folder / "metrics.json").read_text())
    for method in METHODS:
        low = 1.0 if method == "student" else 0.8
        for figures in (metrics[method]["test"], metrics[method]["test"]["patients"]):
            figures["auroc"] |= {"value": 1.0, "low": low, "high": 1.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = write_report(folder).read_text()
    n_patients = metrics["student"]["test"]["patients"]["auroc"]["n_patients"]
    page = page.split('<h2 id="val">')[0]
    assert page.count("no spread in the resamples: 8 slides are too few for an interval") == 2
    assert page.count(f"no spread in the resamples: {n_patients} patients are too few for an interval") == 1
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_delong_is_shown_only_with_one_slide_a_patient(page: str, tmp_path: Path) -> None:
    assert "undefined: some patients have several slides" in page and "&lt; 0.001" not in page
    metrics = json.loads((write_run(tmp_path / "run", COUNTS, alone=True) / "metrics.json").read_text())
    delong = metrics["student"]["test"]["delong"]["labels_only"]
    other = write_report(tmp_path / "run").read_text()
    assert delong["p"] is not None and "several slides" not in other
    row = next(line for line in other.splitlines() if "LR student − LR, labels only</td>" in line)
    assert f"{delong['value']:+.3f}".replace("-", "−") in row


def test_cross_validated_and_test_figures_are_named_apart(page: str, tmp_path: Path) -> None:
    """A fixed split, folds, seeds on a fixed split, and one run of a series: four names, and no page bears two."""
    counts = {"train": 4, "val": 6, "test": 10}
    folds = write_report(write_series(tmp_path / "folds", counts, folds=3)).read_text()
    seeds = write_report(write_series(tmp_path / "seeds", counts, folds=0, seeds=2)).read_text()
    part = write_report(write_run(tmp_path / "folds" / "runs" / "fold1-seed0", counts)).read_text()
    assert "· fixed split" in page and "Results on the test split" in page and "ross-validat" not in page
    assert "· 3-fold cross-validation" in folds and "Cross-validated test metrics, over 3 runs" in folds
    assert "fixed split" not in folds and "Results on the" not in folds
    assert "fixed split, 2 seeds" in seeds and "Test metrics on the fixed split, over 2 runs" in seeds
    assert "ross-validat" not in seeds and self_contained(folds) and self_contained(seeds)
    metrics = tmp_path / "folds" / "runs" / "fold1-seed0" / "metrics.json"
    alone = {k: v for k, v in json.loads(metrics.read_text()).items() if k != "protocol"}
    metrics.write_text(json.dumps(alone))  # as the runs of a series have it
    part = write_report(metrics.parent).read_text()
    assert "· one run of a series, fold1-seed0" in part and "fixed split" not in part


def test_a_series_shows_means_over_runs_and_the_runs_themselves(tmp_path: Path) -> None:
    """Nothing is pooled: mean and deviation of the folds' own AUROCs, and each difference in its run's order."""
    folder = write_series(tmp_path / "folds", {"train": 4, "val": 6, "test": 12}, folds=3)
    page = write_report(folder).read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    values = [run["student"]["test"]["auroc"]["value"] for run in metrics["runs"]]
    assert len(set(values)) > 1
    text = re.sub(r"<[^>]+>", " ", page)
    row = next(line for line in text.split("Cross-validated test metrics")[1].splitlines() if "LR student" in line)
    assert re.findall(r"\d\.\d{3}", row)[:2] == [f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}"]
    less = [v - run["teacher"]["test"]["auroc"]["value"] for v, run in zip(values, metrics["runs"], strict=True)]
    assert ", ".join(f"{d:+.3f}".replace("-", "−") for d in less) in text


@pytest.mark.parametrize(
    ("result", "phrase"),
    [
        ({"holds": True, "low": -0.01, "margin": 0.03, "reason": "over slides"}, "not worse than the teacher: "),
        ({"holds": False, "low": -0.2, "margin": 0.03, "reason": None}, "not shown to be as good as the teacher: "),
        ({"holds": None, "low": None, "margin": 0.03, "reason": "no interval"}, "undecided (no interval)"),
    ],
)
def test_verdicts_are_phrases_with_their_bound(result: dict[str, Any], phrase: str) -> None:
    verdict = describe_non_inferiority(result)
    assert verdict.startswith(phrase)
    assert result["low"] is None or f"{result['low']:+.3f}, margin −0.030".replace("-", "−") in verdict


# ---------------------------------------------------------------- slides


def test_slides_come_by_distance_of_probabilities(folder: Path, page: str, slides: list[dict[str, Any]]) -> None:
    """The largest difference between student and teacher first; for two classes that of one probability."""
    distances = {row["slide"]: abs(probability(row, "student") - probability(row, "teacher")) for row in slides}
    ordered = sorted(distances, key=lambda name: -distances[name])
    assert [s["slide"] for s in sort_by_probability_distance(read_run(folder), "test")] == ordered
    assert ordered != sorted(distances), "the order of the table would pass as well"
    assert re.findall(r"<h4>(\w+)</h4>", page) == ordered[:12]
    assert f"difference {distances[ordered[0]]:.2f}" in page


# ---------------------------------------------------------------- plots


def draw(plot: Plot) -> Figure:
    figure = Figure()
    plot(figure)
    return figure


def test_reliability_is_drawn_from_tenths_of_the_slides(folder: Path, slides: list[dict[str, Any]]) -> None:
    """26 slides in ten bins of equal mass: six of three and four of two, by the probability of the called class."""
    axis = draw(plot_reliability(read_run(folder), "test")).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    for method in METHODS:
        p = np.array([probability(row, method) for row in slides])
        confidence, right = np.maximum(p, 1 - p), (p > 0.5) == [row["label"] == "lesion" for row in slides]
        order = np.argsort(confidence, kind="stable")
        starts = np.cumsum([0, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2])
        bins = [order[a:b] for a, b in pairwise(starts)]
        line = lines[method_label(method)]
        np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [confidence[b].mean() for b in bins], rtol=1e-9)
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [right[b].mean() for b in bins], rtol=1e-9)


def test_agreement_is_a_dot_a_slide_and_its_median(folder: Path, slides: list[dict[str, Any]]) -> None:
    plot = plot_agreement(read_run(folder), "test")
    assert plot is not None
    axes = draw(plot).axes
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names == [method_label(m) for m in reversed(METHODS[1:])], "the teacher does not agree with itself"
    for axis, key in zip(axes, ("spearman", "jaccard_top10", "js_divergence"), strict=True):
        for i, method in enumerate(reversed(METHODS[1:])):
            values = [row["methods"][method]["agreement"][key] for row in slides]
            dots, bar = axis.lines[2 * i : 2 * i + 2]
            assert np.asarray(dots.get_xdata(), float).tolist() == values
            assert np.asarray(bar.get_xdata(), float).tolist() == [np.median(values)] * 2


def test_no_agreement_is_drawn_without_a_teacher(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"val": 4, "test": 4})
    stored = json.loads((folder / "slides.json").read_text())
    for row in stored["slides"]:
        row["methods"] = {"student": row["methods"]["student"] | {"agreement": None}}
    (folder / "slides.json").write_text(json.dumps(stored))
    assert plot_agreement(read_run(folder), "test") is None


def test_forest_and_dots_are_at_the_figures(tmp_path: Path) -> None:
    rows = [
        {"method": "student", "other": "teacher", "value": 0.1, "low": -0.2, "high": 0.3},
        {"method": "student", "other": "labels_only", "value": 0.25, "low": None, "high": None},
    ]
    lines = draw(plot_forest(rows, METHODS)).axes[0].lines[2:]  # after those at 0 and at the margin
    assert [np.ravel(line.get_xdata()).tolist() for line in lines] == [[0.25], [-0.2, 0.3], [0.1]]
    record = read_run(write_series(tmp_path / "seeds", {"train": 4, "val": 6, "test": 12}, folds=0, seeds=3))
    values = [run["value"] for run in record.summary["student"]["test"]["auroc"]["runs"]]
    points = [np.ravel(line.get_xdata()).tolist() for line in draw(plot_runs(record, "test")).axes[0].lines]
    assert values in points and [pytest.approx(np.mean(values))] in points


# ---------------------------------------------------------------- curves


def line(seq: int, attempt: int, event: str, stage: str, **more: Any) -> dict[str, Any]:
    return {"seq": seq, "attempt": attempt, "event": event, "stage": stage, **more}


def test_a_later_attempt_overrides_the_epochs_that_it_did_again() -> None:
    """The first attempt reached epoch 3, the second resumed at epoch 2 and ended there: epoch 3 is dropped."""
    values = [(0, 0, 1.0), (0, 1, 0.8), (0, 2, 0.7), (0, 3, 0.6), (1, 2, 0.65)]
    events = [
        line(i, attempt, "Metric", "stage1", name="train/attn", value=value, step=step)
        for i, (attempt, step, value) in enumerate(values)
    ]
    (curve,) = read_training_curves(events)
    assert curve.series["train/attn"] == {0: 1.0, 1: 0.8, 2: 0.65}
    assert (curve.title, curve.chosen) == ("stage1", None)


def test_fits_of_one_stage_and_runs_of_a_series_are_curves_of_their_own() -> None:
    metric = {"name": "train/ce", "value": 1.0, "step": 0}
    events = [
        line(0, 0, "Progress", "runs", done=0, total=2),
        line(1, 0, "Metric", "stage2", **metric),
        line(2, 0, "StageDone", "stage2"),
        line(3, 0, "Metric", "stage2", **metric),
        line(4, 0, "Progress", "runs", done=1, total=2),
        line(5, 0, "Metric", "stage2", **metric),
        line(6, 0, "Metric", "stage3", name="lr 0.001", value=0.9, step=0),  # neither train/ nor val/: no curve
    ]
    assert [c.title for c in read_training_curves(events)] == [
        "stage2 · run 1",
        "stage2, fit 2 · run 1",
        "stage2 · run 2",
    ]


def test_the_epoch_that_is_kept_is_the_first_of_the_best(tmp_path: Path, page: str) -> None:
    values = [0.5, 0.9, float("nan"), 0.9, 0.7]
    events = [line(i, 0, "Metric", "teacher", name="select", value=v, step=i) for i, v in enumerate(values)]
    events.append(line(9, 0, "Metric", "teacher", name="val/auroc", value=0.5, step=4))
    assert read_training_curves(events)[0].chosen == 1
    write_events(tmp_path)
    curves = read_training_curves(read_run(tmp_path).events)
    assert [c.stage for c in curves] == ["teacher", "stage1", "stage2", "labels_only"]
    assert all(len(c.series["select"]) == 20 for c in curves), "the line that broke off and the attempt before it"
    assert f"20 epochs, epoch {(curves[0].chosen or 0) + 1} stored." in page


def test_a_run_that_broke_off_says_so(tmp_path: Path) -> None:
    write_events(tmp_path)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    (tmp_path / "events.jsonl").write_text("\n".join(text for text in lines if '"Finished"' not in text))
    assert "This run has not finished" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("teacher: /data/anna smith/enc.pt", "teacher: enc.pt"),
        (r"teacher: 'D:\anna\enc.pt'", "teacher: 'enc.pt'"),
        ("teacher: ~/enc.pt", "teacher: enc.pt"),
        ("teacher: hf:owner/name", "teacher: hf:owner/name"),
        ("lr: 1.0e-05", "lr: 1.0e-05"),
        ("teacher: models/enc.pt", "teacher: models/enc.pt"),
    ],
)
def test_the_configuration_is_shown_without_folders(line: str, expected: str) -> None:
    """Folders above a file often have the name of a user, and reports are sent to others."""
    assert shorten_paths(f"encoder:\n  {line}\nseed: 0\n") == f"encoder:\n  {expected}\nseed: 0\n"
