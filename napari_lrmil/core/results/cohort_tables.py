"""CSV tables of a cohort: predictions, and failures with their reasons. Rows of earlier calls are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.csv_files import read_csv, write_csv
from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.formatting import describe_conflict
from napari_lrmil.core.results.schema import PREDICTION, PredictionFile
from napari_lrmil.core.text_escapes import printable

if TYPE_CHECKING:
    from napari_lrmil.core.inference.slide_limits import OperatingSide, PredictionSet
    from napari_lrmil.core.results.schema import OperatingPointResult, PredictionSetResult

FAILURES = "failures.csv"
FAILURE_COLUMNS = ("slide", "step", "reason")
WARNING_SEPARATOR = " | "  # between sentences in a cell
LIMIT_COLUMNS = ("positive", "operating_point", "prediction_set", "coverage")  # if a result has them


def write_predictions_table(folder: Path) -> tuple[StoredError, ...]:
    """Write ``predictions.csv`` from all results in the folder, of this call and of earlier ones.

    Returns
    -------
    tuple of StoredError
        Results that are not in the table because they are broken or of a newer version.
    """
    stored, errors = read_results(folder)
    write_prediction_rows(folder, stored)
    return tuple(errors)


def write_prediction_rows(folder: Path, stored: Sequence[PredictionFile]) -> None:
    """Write ``predictions.csv`` from the given results; without any, no file is written."""
    # Models with different classes may share a folder: their columns are joined.
    classes = list(dict.fromkeys(c for file in stored for c in file.classes))
    header = ("slide", "predicted", *(f"probability_{c}" for c in classes), "n_patches", "n_hr_patches", "seconds")
    header += ("scope", "calibrated")  # a region score must not be read as a slide's probability
    has_limits = any(file.operating_point or file.prediction_set for file in stored)
    header += LIMIT_COLUMNS if has_limits else ()
    has_distance = any(file.cohort_distance for file in stored)
    header += ("distance_quantile",) if has_distance else ()
    header += ("bundle", "bundle_sha256", "warnings")  # models may share a folder, and a name
    rows = [
        (
            file.slide,
            file.predicted,
            *(f"{file.probabilities[c]:.6f}" if c in file.probabilities else "" for c in classes),
            file.n_patches,
            file.n_hr_patches,
            f"{file.seconds['total']:.3f}",
            file.scope or _whole_slide_text(),
            file.calibrated,
            *(limit_cells(file.operating_point, file.prediction_set, file.predicted) if has_limits else ()),
            *((_quantile_cell(file),) if has_distance else ()),
            file.bundle,
            file.bundle_sha256,
            printable(WARNING_SEPARATOR.join(file.warnings)),
        )
        for file in stored
    ]
    if rows:
        write_csv(folder / "predictions.csv", [header, *rows])


def limit_cells(
    point: OperatingPointResult | OperatingSide | None,
    classes: PredictionSetResult | PredictionSet | None,
    predicted: str,
) -> tuple[str, ...]:
    """Return the cells of `LIMIT_COLUMNS`; empty where a result has no such limit.

    The cell of the operating point says so if it counts the slide as another class than `predicted`, the column beside.
    """
    cells = ["", ""]
    if point is not None:
        side = f"{'at or above' if point.reached else 'below'} {point.threshold:.6f}"
        cells = [
            point.positive,
            "; ".join(filter(None, (side, describe_conflict(point.positive, point.reached, predicted)))),
        ]
    return (*cells, *((" | ".join(classes.classes), f"{classes.coverage:g}") if classes is not None else ("", "")))


def _quantile_cell(file: PredictionFile) -> str:
    return f"{file.cohort_distance.quantile:.4f}" if file.cohort_distance else ""


def _whole_slide_text() -> str:
    """Return the scope of results that are too old to state one."""
    from napari_lrmil.core.patching.roi import WHOLE_SLIDE  # here, because it loads NumPy and Shapely

    return WHOLE_SLIDE.text


def read_results(folder: Path) -> tuple[list[PredictionFile], list[StoredError]]:
    """Return the results in the folder, sorted by slide, and the errors of those that cannot be read."""
    files, errors = [], []
    for path in sorted(folder.glob(f"*/{PREDICTION}")):
        try:
            files.append(PredictionFile.read(path.parent))
        except StoredError as error:
            errors.append(error)
    return files, errors


def write_failures(folder: Path, step: str, failures: Mapping[str, str], slides: set[str]) -> None:
    """Write ``failures.csv``, or delete it if no failure is left.

    Parameters
    ----------
    folder
        Folder of the results.
    step
        Step at which the slides of this call failed.
    failures
        Slide -> reason, of this call.
    slides
        Slides of this call. Their rows of earlier calls are dropped.
    """
    write_failure_rows(folder, [(name, step, reason) for name, reason in failures.items()], slides)


def write_failure_rows(folder: Path, failures: Sequence[Sequence[str]], slides: set[str]) -> None:
    """Write ``failures.csv`` from rows of (slide, step, reason) of this call; see `write_failures`."""
    rows: list[Sequence[str]] = [row for row in read_failures(folder) if row[0] not in slides]
    _write_failures(folder, [*rows, *failures])


def merge_failures(folder: Path, sources: Sequence[Path]) -> None:
    """Write ``failures.csv`` from those of the folders in `sources`; identical rows become one."""
    _write_failures(folder, list(dict.fromkeys(row for source in sources for row in read_failures(source))))


def read_failures(folder: Path) -> list[tuple[str, ...]]:
    """Return (slide, step, reason) of each row of ``failures.csv``; none if there is no such file."""
    path = folder / FAILURES
    # The first row has the names of the columns.
    return [tuple(row) for row in read_csv(path)[1:]] if path.exists() else []


def _write_failures(folder: Path, rows: Sequence[Sequence[str]]) -> None:
    if rows:
        write_csv(folder / FAILURES, [FAILURE_COLUMNS, *rows])
    else:
        # No file rather than an empty one, so that its existence means failures.
        (folder / FAILURES).unlink(missing_ok=True)
