"""Table of all methods of a run with differences from teacher and student, ``comparison.csv`` and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_lrmil.core.csv_files import write_csv
from napari_lrmil.core.models.card import GATED, OF_STUDENTS

COMPARISON = "comparison.csv"
TEACHER, STUDENT = "teacher", "student"
CHOSEN = "chosen by the inner folds"  # aggregator of a teacher whose recipe the run chose, which may differ by fold
_PREFIX = f"{TEACHER}_"  # of the methods that are further teachers
HEADER = (
    *("split", "method", "network", "aggregator", "n_slides", "n_patients"),
    *("auroc", "auroc_low", "auroc_high", "interval"),
    *(f"minus_{other}{end}" for other in (TEACHER, STUDENT) for end in ("", "_low", "_high")),
)
SERIES_HEADER = (
    *("split", "method", "network", "aggregator", "n_runs", "auroc_mean", "auroc_sd"),
    *(f"minus_{other}_{end}" for other in (TEACHER, STUDENT) for end in ("mean", "sd", "runs_positive")),
)

Row = dict[str, Any]  # column -> value; None if it is undefined


def compared_method(aggregator: str) -> str:
    """Return the name in ``metrics.json`` of a further teacher."""
    return f"{_PREFIX}{aggregator}"


def comparison_rows(metrics: Mapping[str, Any], aggregator: str) -> list[Row]:
    """Return a row for each split and method, in the order of the methods.

    Parameters
    ----------
    metrics
        Method -> split -> metrics of a run, see `evaluate_methods`.
    aggregator
        That of the run's own teacher, or `CHOSEN`.
    """
    rows = []
    for method, split, values in _by_split(metrics):
        auroc = values["auroc"]
        row = {"split": split, **_describe(method, aggregator)}
        row |= {name: auroc[name] for name in ("n_slides", "n_patients")} | {"auroc": auroc["value"]}
        row |= {f"auroc_{end}": auroc[end] for end in ("low", "high")} | {"interval": auroc["interval"]}
        for other in (TEACHER, STUDENT):
            paired = values["paired"].get(other, {})
            row[f"minus_{other}"] = paired.get("value")
            row |= {f"minus_{other}_{end}": paired.get(end) for end in ("low", "high")}
        rows.append(row)
    return rows


def series_rows(summary: Mapping[str, Any], aggregator: str) -> list[Row]:
    """Return a row for each split and method of a series, from its summary over runs; see `comparison_rows`."""
    rows = []
    for method, split, values in _by_split(summary):
        auroc = values["auroc"]
        row = {"split": split, **_describe(method, aggregator), "n_runs": auroc["n_runs"]}
        row |= {"auroc_mean": auroc["mean"], "auroc_sd": auroc["sd"]}
        for other in (TEACHER, STUDENT):
            paired = values["paired"].get(other, {})
            row |= {f"minus_{other}_{end}": paired.get(end) for end in ("mean", "sd")}
            row[f"minus_{other}_runs_positive"] = paired.get("positive")
        rows.append(row)
    return rows


def write_comparison(folder: Path, rows: list[Row], header: tuple[str, ...] = HEADER) -> None:
    """Write ``comparison.csv``. An undefined value is an empty cell."""
    table = [[_cell(row[column]) for column in header] for row in rows]
    write_csv(folder / COMPARISON, [header, *table])


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else value


def _by_split(metrics: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    splits = dict.fromkeys(split for by_split in metrics.values() for split in by_split)
    return [(m, split, by_split[split]) for split in splits for m, by_split in metrics.items() if split in by_split]


def _describe(method: str, aggregator: str) -> Row:
    """Return method, network and aggregator. Students pool as their teacher, or by gated attention."""
    if method.startswith(_PREFIX):
        return {"method": method, "network": "HR", "aggregator": method.removeprefix(_PREFIX)}
    if method == TEACHER:
        return {"method": method, "network": "HR", "aggregator": aggregator}
    return {
        "method": method,
        "network": "LR",
        "aggregator": aggregator if aggregator in (*OF_STUDENTS, CHOSEN) else GATED,
    }
