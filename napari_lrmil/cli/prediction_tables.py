"""Tables of predictions at the end of a call, and the warnings that its slides share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.cli.console import print_notice
from napari_lrmil.core.formatting import format_count

if TYPE_CHECKING:
    from napari_lrmil.core.results.schema import PredictionFile


def write_table(folder: Path, names: Collection[str]) -> None:
    """Write ``predictions.csv``, and print what is left out of it and the warnings of several slides.

    Parameters
    ----------
    folder
        Folder of the results.
    names
        Slides of this call. Of a single one all warnings were printed while it was computed.
    """
    from napari_lrmil.core.results.cohort_tables import read_results, write_prediction_rows
    from napari_lrmil.core.results.warning_summary import summarize_warnings

    stored, errors = read_results(folder)
    write_prediction_rows(folder, stored)
    for error in errors:
        print_notice("", f"not in predictions.csv: {error}")
    models = _count_models(stored)
    if len(models) > 1:
        print_notice("", f"predictions.csv holds answers of {len(models)} models (column bundle): {_list(models)}")
    of_call = [file for file in stored if file.slide in names]
    lines = list(summarize_warnings(of_call)) if len(of_call) > 1 else []
    for line in lines:
        print_notice("", line)
    if lines:
        print_notice("", "predictions.csv lists the warnings of each slide in its last column")


def announce_replacements(folder: Path, names: Collection[str], sha256: str) -> None:
    """Print whose answers this call replaces: those of other models for the same slides.

    Parameters
    ----------
    folder
        Folder of the results.
    names
        Slides of this call.
    sha256
        Hash of its model.
    """
    from napari_lrmil.core.results.cohort_tables import read_results

    stored, _ = read_results(folder)  # broken ones are told with the table
    others = [file for file in stored if file.slide in names and file.bundle_sha256 != sha256]
    if others:
        advice = "use another --out to keep them"
        print_notice("", f"answers of another model in {folder} are replaced: {_list(_count_models(others))}; {advice}")


def _count_models(stored: Sequence[PredictionFile]) -> Counter[str]:
    return Counter(f"{file.bundle} ({file.bundle_sha256[:8]})" for file in stored)


def _list(models: Counter[str]) -> str:
    return ", ".join(f"{name} for {format_count(count, 'slide')}" for name, count in models.items())
