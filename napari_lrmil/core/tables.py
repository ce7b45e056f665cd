"""The tables of a cohort: what was predicted, and what failed and why; both keep what earlier calls found."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_lrmil.core.files import write_text

FAILURE_COLUMNS = ("slide", "step", "reason")


def write_predictions(folder: Path) -> None:
    """Write ``predictions.csv`` from all results in the folder, this call's and earlier ones'."""
    stored = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*/prediction.json"))]
    classes = list(dict.fromkeys(c for one in stored for c in one["classes"]))
    header = ("slide", "predicted", *(f"probability_{c}" for c in classes), "n_patches", "n_hr_patches", "seconds")
    rows = [
        (
            one["slide"],
            one["predicted"],
            *(f"{one['probabilities'][c]:.6f}" if c in one["probabilities"] else "" for c in classes),
            one["n_patches"],
            one["n_hr_patches"],
            f"{one['seconds']['total']:.3f}",
        )
        for one in stored
    ]
    if rows:
        _write(folder / "predictions.csv", [header, *rows])


def write_failures(folder: Path, step: str, failures: Mapping[str, str], called: set[str]) -> None:
    """Write ``failures.csv``; it is taken away where nothing is left to list.

    Parameters
    ----------
    folder
        Where the results are.
    step
        What was being done.
    failures
        Slide -> reason, of this call.
    called
        Slides of this call; what earlier calls said of them no longer counts.
    """
    path = folder / "failures.csv"
    rows: list[Sequence[str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in list(csv.reader(file))[1:] if row and row[0] not in called]
    rows += [(name, step, reason) for name, reason in failures.items()]
    if rows:
        _write(path, [FAILURE_COLUMNS, *rows])
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
