"""What a finished run found out, as a table: teacher, student, baselines, their intervals, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrmil_training.evaluation.summary import is_method_entry
from lrmil_training.report.run_record import METHOD_LABELS, SPLIT_ORDER, method_label
from lrmil_training.runs.event_log import BUNDLE, METRICS
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.models.bundle import CARD

FEW_TEST_SLIDES = 30
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class MethodRow:
    """One method on one side of the cohort, in words."""

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
    """What a run found out.

    Attributes
    ----------
    folder
        The run's.
    split
        On which slides it was measured.
    rows
        Teacher and student first.
    reliability
        Method -> (mean probability, share that was right) by bins; empty for a series.
    notes
        Sentences on how far to trust the figures.
    """

    folder: Path
    split: str
    rows: tuple[MethodRow, ...]
    reliability: Mapping[str, Sequence[tuple[float, float]]]
    notes: tuple[str, ...]

    @property
    def bundle(self) -> Path | None:
        """The model; None where the run has none."""
        folder = self.folder / BUNDLE
        return folder if (folder / CARD).exists() else None

    @property
    def report(self) -> Path | None:
        """The page; None where the run has none."""
        page = self.folder / REPORT_FILE
        return page if page.exists() else None


def read_run_result(folder: Path) -> RunResult | None:
    """Return what ``metrics.json`` says; None where the run has not come so far.

    Raises
    ------
    LrmilError
        Where the file is there and cannot be understood.
    """
    file = folder / METRICS
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        series = "summary" in found
        methods = found["summary"] if series else {name: its for name, its in found.items() if is_method_entry(its)}
        split = next(side for side in SPLIT_ORDER if any(side in its for its in methods.values()))
        figures = {name: methods[name][split] for name in sorted(methods, key=_method_rank) if split in methods[name]}
        make = _make_series_row if series else _make_row
        rows = tuple(make(name, its) for name, its in figures.items())
        reliability = {} if series else {name: _reliability_points(its) for name, its in figures.items()}
        return RunResult(folder, split, rows, reliability, _make_notes(figures, series))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise LrmilError(
            f"{file}: these figures cannot be read, they are damaged or of another version ({type(error).__name__}: "
            f"{error}); resume the run to write them anew"
        ) from error


def _method_rank(method: str) -> int:
    return list(METHOD_LABELS).index(method) if method in METHOD_LABELS else len(METHOD_LABELS)


def _make_row(method: str, its: Mapping[str, Any]) -> MethodRow:
    a, cost = its["auroc"], its["cost"]
    agreement = (its.get("agreement") or {}).get("spearman")
    megapixels = None if cost["pixels_per_slide"] is None else cost["pixels_per_slide"] / 1e6
    return MethodRow(
        method,
        method_label(method),
        _format_metric(a["value"]),
        "–" if a["low"] is None else f"{a['low']:.2f} to {a['high']:.2f}",
        _format_metric(its["balanced_accuracy"]),
        _format_metric(agreement),
        f"{cost['patches_per_slide']:,.0f}",
        _format_metric(megapixels, 3),
        _format_metric(cost["cpu_seconds_per_slide"], 2),
    )


def _make_series_row(method: str, its: Mapping[str, Any]) -> MethodRow:
    spread, agreement = its["auroc"]["sd"], its["agreement"]["spearman"]["mean"]
    around = "–" if spread is None else f"± {spread:.2f}"
    accuracy = _format_metric(its["balanced_accuracy"]["mean"])
    return MethodRow(
        method, method_label(method), _format_metric(its["auroc"]["mean"]), around, accuracy, _format_metric(agreement)
    )


def _format_metric(value: float | None, digits: int = 0) -> str:
    """Return a figure with two decimals, or with so many digits that count."""
    return "–" if value is None else f"{value:.{digits}g}" if digits else f"{value:.2f}"


def _reliability_points(its: Mapping[str, Any]) -> list[tuple[float, float]]:
    return [(float(b["confidence"]), float(b["accuracy"])) for b in its.get("reliability") or []]


def _make_notes(figures: Mapping[str, Mapping[str, Any]], series: bool) -> tuple[str, ...]:
    if series:
        runs = max(its["auroc"]["n_runs"] for its in figures.values())
        return (f"Mean ± standard deviation over {runs} runs.",)
    first = next(iter(figures.values()))["auroc"]
    notes = [f"{first['n_slides']} slides of {first['n_patients']} patients; intervals over {first['interval']}."]
    if first["n_slides"] < FEW_TEST_SLIDES:
        notes.append(f"{first['n_slides']} slides tell little: expect these figures to move.")
    student = figures.get("student")
    if student is not None and not student["calibrated"]:
        notes.append("The student's probabilities are not calibrated: too few validation slides could tell how.")
    return tuple(notes)
