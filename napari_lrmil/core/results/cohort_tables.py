"""The tables of a cohort: what was predicted, and what failed and why; both keep what earlier calls found."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.patching.roi import WHOLE_SLIDE
from napari_lrmil.core.results.schema import PREDICTION, PredictionFile

FAILURES = "failures.csv"
FAILURE_COLUMNS = ("slide", "step", "reason")


def write_predictions_table(folder: Path) -> tuple[StoredError, ...]:
    """Write ``predictions.csv`` from all results in the folder, this call's and earlier ones'.

    Returns
    -------
    tuple of StoredError
        Why results were left out of the table: broken, or written by a newer version.
    """
    stored, left_out = _stored(folder)
    classes = list(dict.fromkeys(c for file in stored for c in file.classes))
    header = ("slide", "predicted", *(f"probability_{c}" for c in classes), "n_patches", "n_hr_patches", "seconds")
    header += ("scope", "calibrated")  # a region's score must not be taken for a slide's probability
    rows = [
        (
            file.slide,
            file.predicted,
            *(f"{file.probabilities[c]:.6f}" if c in file.probabilities else "" for c in classes),
            file.n_patches,
            file.n_hr_patches,
            f"{file.seconds['total']:.3f}",
            file.scope or WHOLE_SLIDE.text,
            file.calibrated,
        )
        for file in stored
    ]
    if rows:
        _write(folder / "predictions.csv", [header, *rows])
    return tuple(left_out)


def _stored(folder: Path) -> tuple[list[PredictionFile], list[StoredError]]:
    """Return the results in the folder, by slide, and the errors of those that cannot be read."""
    files, errors = [], []
    for path in sorted(folder.glob(f"*/{PREDICTION}")):
        try:
            files.append(PredictionFile.read(path.parent))
        except StoredError as error:
            errors.append(error)
    return files, errors


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
    write_failure_rows(folder, [(name, step, reason) for name, reason in failures.items()], called)


def write_failure_rows(folder: Path, failed: Sequence[Sequence[str]], called: set[str]) -> None:
    """Write ``failures.csv`` from (slide, step, reason) of this call; see `write_failures`."""
    rows: list[Sequence[str]] = [row for row in read_failures(folder) if row[0] not in called]
    _write_failures(folder, [*rows, *failed])


def merge_failures(folder: Path, parts: Sequence[Path]) -> None:
    """Write ``failures.csv`` from those of the folders of `parts`; what failed alike in several is one line."""
    _write_failures(folder, list(dict.fromkeys(row for part in parts for row in read_failures(part))))


def read_failures(folder: Path) -> list[tuple[str, ...]]:
    """Return slide, step and reason of each line of ``failures.csv``; nothing where there is none."""
    path = folder / FAILURES
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [tuple(row) for row in list(csv.reader(file))[1:] if row]


def _write_failures(folder: Path, rows: Sequence[Sequence[str]]) -> None:
    if rows:
        _write(folder / FAILURES, [FAILURE_COLUMNS, *rows])
    else:
        (folder / FAILURES).unlink(missing_ok=True)


def _write(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
