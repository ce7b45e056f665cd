"""Tables of predictions at the end of a call, and the warnings that its slides share."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from napari_lrmil.cli.console import print_notice


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
    of_call = [file for file in stored if file.slide in names]
    lines = list(summarize_warnings(of_call)) if len(of_call) > 1 else []
    for line in lines:
        print_notice("", line)
    if lines:
        print_notice("", "predictions.csv lists the warnings of each slide in its last column")
