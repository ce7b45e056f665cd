"""Slides of a table for a worklist: faults of single rows become part of the rows, and the others go on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrmil_training.data.cohort_cells import find_slide, similar_name
from lrmil_training.data.cohort_file import CohortTableRow, read_mpp_cell, read_table
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.slides.dicom_headers import dicom_series
from napari_lrmil.core.slides.slide_files import path_in_cohort
from napari_lrmil.core.text_escapes import printable
from napari_lrmil.core.worklist.build import SlideListing, mark_same_names
from napari_lrmil.core.worklist.entry import ListedSlide


def list_table(path: Path) -> SlideListing:
    """Return the slides of a cohort table; ``slide`` is the only required column.

    A row that names a slide again, or a further file of its DICOM series, becomes a note of the first row.

    Raises
    ------
    CohortError
        If the file is not a table of slides.
    """
    table = read_table(path, needed=("slide",))
    notices = list(table.notices)
    slides: list[ListedSlide] = []
    lines: list[int] = []
    index_of: dict[str, int] = {}
    for row in table.rows:
        slide = _read_row(path, row, notices)
        key = dicom_series(slide.path) or os.path.abspath(slide.path)
        index = index_of.setdefault(key, len(slides))
        if index == len(slides):
            slides.append(slide)
            lines.append(row.line)
        else:
            slides[index] = _with_repetition(slides[index], slide, (lines[index], row.line))
    return SlideListing(mark_same_names(slides), tuple(dict.fromkeys(notices)))


def _read_row(path: Path, row: CohortTableRow, notices: list[str]) -> ListedSlide:
    """Return the slide of a row; a fault of a cell becomes its problem."""
    if not row.cells.get("slide"):
        return ListedSlide(path.parent / f"line {row.line}", problem=f"line {row.line} of the table names no slide")
    file, mpp, problem = path.parent / row.cells["slide"], None, ""
    try:
        file = find_slide(path, row, notices)
        mpp = read_mpp_cell(path, row, notices)
    except CohortError as error:
        problem = str(error).removeprefix(f"{path}: ")
    if not file.exists() and not problem:
        similar = similar_name(file)
        advice = f"; there is {printable(similar)}: correct the table" if similar else ""
        problem = f"line {row.line} of the table: no such file{advice}"
    return ListedSlide(file, row.cells.get("patient", ""), mpp, path_in_cohort(file, path.parent), problem=problem)


def _with_repetition(first: ListedSlide, other: ListedSlide, lines: Sequence[int]) -> ListedSlide:
    """Return the first row of a slide with a note on the other row."""
    differing = [
        name for name in ("patient", "mpp") if getattr(first, name) != getattr(other, name) and not other.problem
    ]
    difference = f" with another {' and '.join(differing)}, the first is used" if differing else ""
    note = f"the table names it twice, in lines {lines[0]} and {lines[1]}{difference}"
    return replace(first, notes=(*first.notes, note))
