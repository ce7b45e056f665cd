"""CSV files that a spreadsheet shows and does not run: a text cell that it would take as a formula gets an apostrophe.

A cell is at risk if it begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return. Numbers are left alone. The
apostrophe is removed on reading, so that every cell is read as it was.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from napari_lrmil.core.atomic_files import write_text

# Apostrophes before the sign belong to the pattern: "'=1" must get a second one, or it would be read back as "=1".
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def protect_cell(cell: str) -> str:
    """Return a text cell that no spreadsheet runs as a formula."""
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def restore_cell(cell: str) -> str:
    """Return a text cell as it was before `protect_cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as UTF-8 CSV atomically. Text cells are protected, see `protect_cell`."""
    text = io.StringIO()
    # Line feeds on every system, so that equal results give equal files.
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([protect_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[list[str]]:
    """Return the rows of a file of `write_csv` that are not empty, the head included."""
    with path.open(newline="", encoding="utf-8") as file:
        return [[restore_cell(cell) for cell in row] for row in csv.reader(file) if row]
