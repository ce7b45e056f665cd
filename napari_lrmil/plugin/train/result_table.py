"""Result of a finished run as table rows: metrics, intervals and cost of teacher, student and baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrmil_training.evaluation.metrics import FEW_TEST_SLIDES, explain_no_spread
from lrmil_training.evaluation.summary import is_method_entry
from lrmil_training.report.run_record import SPLIT_ORDER, method_label, method_rank
from lrmil_training.report.series import (
    NOT_CALIBRATED,
    TOO_FEW_FOR_CALIBRATION,
    describe_series,
    mean_cost,
    name_spread,
)
from lrmil_training.runs.event_log import BUNDLE, METRICS, REPORT_FILE
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.models.card import CARD


@dataclass(frozen=True)
class MethodRow:
    """Metrics and cost of one method on one split, as text."""

    method: str
    name: str
    auroc: str
    interval: str
    accuracy: str
    agreement: str
    patches: str = "–"
    pixels: str = "–"
    seconds: str = "–"


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes
    ----------
    folder
        The run folder.
    split
        Split of the evaluated slides.
    rows
        Teacher and student first.
    reliability
        Method -> (mean probability, accuracy) of each bin; empty for a series.
    notes
        Sentences on the limits of the metrics.
    spread
        Name of the row below the AUROC: interval, or standard deviation of a series.
    """

    folder: Path
    split: str
    rows: tuple[MethodRow, ...]
    reliability: Mapping[str, Sequence[tuple[float, float]]]
    notes: tuple[str, ...]
    spread: str = "interval"

    @property
    def bundle(self) -> Path | None:
        """The model; None if the run has none."""
        folder = self.folder / BUNDLE
        return folder if (folder / CARD).exists() else None

    @property
    def report(self) -> Path | None:
        """The report; None if the run has none."""
        page = self.folder / REPORT_FILE
        return page if page.exists() else None


def read_run_result(folder: Path) -> RunResult | None:
    """Return the content of ``metrics.json``; None before the evaluation.

    Raises
    ------
    LrmilError
        If the file exists and is damaged.
    """
    file = folder / METRICS
    if not file.exists():
        return None
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        is_series = "summary" in metrics
        methods = metrics["summary"] if is_series else {m: v for m, v in metrics.items() if is_method_entry(v)}
        split = next(name for name in SPLIT_ORDER if any(name in splits for splits in methods.values()))
        results = {name: methods[name][split] for name in sorted(methods, key=method_rank) if split in methods[name]}
        if is_series:
            return _make_series_result(folder, split, results, metrics["runs"])
        rows = tuple(_make_row(name, values) for name, values in results.items())
        reliability = {name: _reliability_points(values) for name, values in results.items()}
        return RunResult(folder, split, rows, reliability, _make_notes(results))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise LrmilError(
            f"{file}: these metrics cannot be read, they are damaged or of another version ({type(error).__name__}: "
            f"{error}); resume the run to write them again"
        ) from error


def _make_row(method: str, values: Mapping[str, Any]) -> MethodRow:
    auroc = values["auroc"]
    agreement = (values.get("agreement") or {}).get("spearman")
    return MethodRow(
        method,
        method_label(method),
        _format_metric(auroc["value"]),
        _format_interval(auroc),
        _format_metric(values["balanced_accuracy"]),
        _format_metric(agreement),
        *_format_cost(values["cost"]),
    )


def _format_interval(auroc: Mapping[str, Any]) -> str:
    if explain_no_spread(auroc):
        return "no spread"  # which a note explains
    return "–" if auroc["low"] is None else f"{auroc['low']:.2f} to {auroc['high']:.2f}"


def _format_cost(cost: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return patches, megapixels and CPU-seconds of a slide, as text."""
    patches, pixels = cost["patches_per_slide"], cost["pixels_per_slide"]
    return (
        "–" if patches is None else f"{patches:,.0f}",
        _format_metric(None if pixels is None else pixels / 1e6, 3),
        _format_metric(cost["cpu_seconds_per_slide"], 2),
    )


def _make_series_result(
    folder: Path, split: str, results: Mapping[str, Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> RunResult:
    """Return the result of folds or seeds: means over runs, what their spread is over, and which model is kept."""
    rows = tuple(_make_series_row(m, values, mean_cost(runs, m, split)) for m, values in results.items())
    return RunResult(folder, split, rows, {}, tuple(describe_series(runs, split)), name_spread(runs))


def _make_series_row(method: str, values: Mapping[str, Any], cost: Mapping[str, Any]) -> MethodRow:
    spread, agreement = values["auroc"]["sd"], values["agreement"]["spearman"]["mean"]
    interval = "–" if spread is None else f"± {spread:.2f}"
    accuracy = _format_metric(values["balanced_accuracy"]["mean"])
    return MethodRow(
        method,
        method_label(method),
        _format_metric(values["auroc"]["mean"]),
        interval,
        accuracy,
        _format_metric(agreement),
        *_format_cost(cost),
    )


def _format_metric(value: float | None, digits: int = 0) -> str:
    """Return a value with two decimals, or with `digits` significant digits if given."""
    return "–" if value is None else f"{value:.{digits}g}" if digits else f"{value:.2f}"


def _reliability_points(values: Mapping[str, Any]) -> list[tuple[float, float]]:
    return [(float(b["confidence"]), float(b["accuracy"])) for b in values.get("reliability") or []]


def _make_notes(results: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    first = next(iter(results.values()))["auroc"]
    slides, patients = format_count(first["n_slides"], "slide"), format_count(first["n_patients"], "patient")
    notes = [f"{slides} of {patients}; intervals over {first['interval']}."]
    if first["n_slides"] < FEW_TEST_SLIDES:
        notes.append(f"Only {slides}: these metrics are uncertain and will change with more slides.")
    no_spread = {method: text for method, values in results.items() if (text := explain_no_spread(values["auroc"]))}
    if no_spread:  # the text is that of every method, because all were measured on the same slides
        notes.append(f"{', '.join(map(method_label, no_spread))}: {next(iter(no_spread.values()))}.")
    student = results.get("student")
    if student is not None and not student["calibrated"]:
        notes.append(f"{NOT_CALIBRATED}: {TOO_FEW_FOR_CALIBRATION}.")
    return tuple(notes)
