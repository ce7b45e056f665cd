"""Reader of cohort tables as spreadsheets write them: encoding, delimiter, head and cells, with the line of each fault.

Only what has one meaning is accepted. What was left out or read in another way than it is written becomes a notice.
Everything else is refused with line, column and remedy.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.csv_files import restore_cell
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.formatting import shorten

REQUIRED_COLUMNS = ("slide", "patient", "label")
OPTIONAL_COLUMNS = ("split", "mpp", "site")
DELIMITERS = (",", ";", "\t", "|")
MIN_MPP, MAX_MPP = 0.02, 100.0  # µm per pixel; the limits of --mpp
NOT_CSV = {  # first bytes of files that are often given as a table
    b"PK\x03\x04": "a workbook of Excel or LibreOffice",
    b"\xd0\xcf\x11\xe0": "a workbook of Excel",
    b"\x1f\x8b": "a compressed file",
    b"%PDF": "a PDF",
    b"SQLite": "a database",
}
BYTE_ORDER_MARKS = {  # longest first: the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class CohortTableRow:
    """A row of a table: the line of the file on which it begins, and column -> cell."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class TableFile:
    """Content of a table.

    Attributes
    ----------
    path
        The file.
    columns
        Names of the columns in their order; those of `REQUIRED_COLUMNS` and `OPTIONAL_COLUMNS` in lower case.
    rows
        Rows with at least one cell that is not empty.
    notices
        Sentences on what was left out or read in another way than it is written.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[CohortTableRow, ...]
    notices: tuple[str, ...] = ()


def read_table(path: Path, needed: Sequence[str] = REQUIRED_COLUMNS) -> TableFile:
    """Return the content of a CSV table with cells separated by comma, semicolon, tab or bar.

    Parameters
    ----------
    needed
        Columns that the table must have.

    Raises
    ------
    CohortError
        If the file is not a table, has no row, or lacks a column of `needed`; if a row has more or fewer cells than the
        head, two columns share a name, or a quote is left open.
    """
    notices: list[str] = []
    lines = _lines(path, notices)
    first, delimiter = _head_position(path, lines, notices)
    rows = list(_split_rows(path, lines, first, delimiter))
    head = rows.pop(0)[1]
    columns = _column_names(path, first + 1, head)
    if missing := [column for column in needed if column not in columns]:
        names = ", ".join(filter(None, columns))
        seen = "" if set(columns) & {*REQUIRED_COLUMNS} else f" (its columns are {shorten(names)})"
        raise CohortError(path, f"no column named {', '.join(missing)}{seen}; {_expected(needed)}")
    full = [(line, cells) for line, cells in rows if any(cells)]
    if not full:
        raise CohortError(path, f"the table has no rows; {_expected(needed)}")
    if len(full) < len(rows):
        notices.append(f"{_count(len(rows) - len(full), 'empty row')} left out")
    _require_cell_counts(path, columns, full)
    used = _used_columns(path, columns, full, notices)
    table = tuple(CohortTableRow(line, {columns[i]: cells[i] for i in used}) for line, cells in full)
    return TableFile(path, tuple(columns[i] for i in used), table, tuple(notices))


def read_mpp_cell(path: Path, row: CohortTableRow, notices: list[str]) -> float | None:
    """Return the resolution that a row states in µm per level-0 pixel; None if the cell is empty or missing.

    Raises
    ------
    CohortError
        If it is not a number from `MIN_MPP` to `MAX_MPP`.
    """
    text = row.cells.get("mpp", "")
    if not text:
        return None
    if re.fullmatch(r"\d+,\d+", text):
        notices.append("column mpp: decimal commas are read as points")
        text = text.replace(",", ".")
    value = parse_mpp(text)
    if value is None:
        raise CohortError(
            path,
            f"line {row.line}, column mpp: '{shorten(text)}'; expected µm per pixel, {MIN_MPP} to {MAX_MPP:g}, such "
            "as 0.5, or an empty cell if the slide states its own",
        )
    return value


def parse_mpp(text: str) -> float | None:
    """Return a number from `MIN_MPP` to `MAX_MPP`, or None if the text is no such number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and MIN_MPP <= value <= MAX_MPP else None


# ---------------------------------------------------------------- text


def _lines(path: Path, notices: list[str]) -> list[str]:
    """Return the lines of the file with their ends, in whatever encoding and with whatever line ends it has."""
    if not path.is_file():
        raise CohortError(path, "no such file; expected a CSV table of slides")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CohortError(path, f"the table cannot be read ({error.strerror}); check its permissions") from error
    if not content.strip():
        raise CohortError(path, f"the file is empty; {_expected(REQUIRED_COLUMNS)}")
    for first_bytes, kind in NOT_CSV.items():
        if content.startswith(first_bytes):
            raise CohortError(path, f"not a CSV table but {kind}; save the table as CSV (UTF-8)")
    lines = list(io.StringIO(_decode(path, content, notices), newline=""))
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise CohortError(path, f"line {number} has a NUL character; save the table again as CSV (UTF-8)")
    return lines


def _decode(path: Path, content: bytes, notices: list[str]) -> str:
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if encoding is None and b"\0" in content[:2]:  # UTF-16 without a mark: the first letter has one zero byte
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        if encoding is None:
            try:
                text = content.decode("cp1252")
            except UnicodeDecodeError:
                pass
            else:
                notices.append(f"not UTF-8 from line {line} on; read as Windows-1252, check names with accents")
                return text
        raise CohortError(
            path, f"line {line} is not valid text in {encoding or 'UTF-8'}; save the table as CSV (UTF-8)"
        ) from error


def _head_position(path: Path, lines: Sequence[str], notices: list[str]) -> tuple[int, str]:
    """Return the index of the line with the names of the columns, and the delimiter."""
    stated, first = None, 0
    for first, line in enumerate(lines):
        text = line.strip()
        if match := re.fullmatch(r'"?sep=(.|\\t)"?', text, re.IGNORECASE) or re.fullmatch(
            "sep=\t?", line.rstrip("\r\n")
        ):
            stated = "\t" if text.lower() in ("sep=", r"sep=\t") else match[1]  # Excel reads this line as an order
        elif text.startswith("#"):
            notices.append(f"line {first + 1} left out, it is a comment: {shorten(text)}")
        elif text.strip(",;\t| "):
            break
    else:
        raise CohortError(path, f"the table has no line with the names of the columns; {_expected(REQUIRED_COLUMNS)}")
    if len(lines[first]) > csv.field_size_limit():
        raise CohortError(path, f"line {first + 1} is no row of names of columns; {_expected(REQUIRED_COLUMNS)}")
    return first, stated or max(DELIMITERS, key=lambda d: _head_score(lines[first], d))


def _head_score(line: str, delimiter: str) -> tuple[int, int]:
    """Return how well a delimiter fits a head: known names in it, then its number of cells."""
    cells = next(csv.reader([line], delimiter=delimiter), [])
    names = {_column_name(cell) for cell in cells} & {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS}
    return len(names), len(cells)


def _split_rows(path: Path, lines: Sequence[str], first: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of every row from line `first` on, without blanks around the cells."""
    reader = csv.reader(lines[first:], delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        line = first + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise CohortError(
                path, f"line {line} is not a row of cells ({error}); close or remove the quotation mark in it"
            ) from error
        if first + reader.line_num > line and any("\n" in cell or "\r" in cell for cell in cells):
            raise CohortError(path, f"line {line} has a cell over several lines; close or remove its quotation mark")
        if cells:
            yield line, [restore_cell(cell.strip()) for cell in cells]


# ---------------------------------------------------------------- columns


def _column_name(cell: str) -> str:
    """Return the name of a column; names that this program knows are compared without case and spaces."""
    name = cell.strip()
    plain_name = name.strip("'\" ").casefold()
    return plain_name if plain_name in {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS} else name


def _column_names(path: Path, line: int, head: Sequence[str]) -> list[str]:
    columns = [_column_name(cell) for cell in head]
    for name, count in Counter(filter(None, columns)).items():
        if count > 1:
            numbers = " and ".join(str(i) for i, column in enumerate(columns, start=1) if column == name)
            raise CohortError(
                path, f"line {line} names {count} columns {shorten(name)} (columns {numbers}); delete or rename one"
            )
    return columns


def _require_cell_counts(path: Path, columns: Sequence[str], rows: Iterable[tuple[int, list[str]]]) -> None:
    """Raise `CohortError` at the first row whose cells do not match the head: they may belong to other columns."""
    for line, cells in rows:
        if len(cells) < len(columns):
            lacking = columns[len(cells)] or f"column {len(cells) + 1}"
            problem = f"the first that is missing is {shorten(lacking)}"
        elif any(cells[len(columns) :]):
            problem = f"the first too many is '{shorten(next(filter(None, cells[len(columns) :])))}'"
        else:
            continue
        raise CohortError(
            path,
            f"line {line} has {_count(len(cells), 'cell')} where the head has {len(columns)}; {problem}; fill in empty "
            "cells, or put a cell that contains the delimiter in quotation marks",
        )


def _used_columns(
    path: Path, columns: Sequence[str], rows: Sequence[tuple[int, list[str]]], notices: list[str]
) -> list[int]:
    """Return the indices of the columns to keep: those with a name. An index and empty columns are left out."""
    for i, name in enumerate(columns):
        filled = [(line, cells[i]) for line, cells in rows if cells[i]]
        if name or not filled:
            continue
        if i == 0 and all(cell.isdigit() for _, cell in filled):
            notices.append("the first column has no name and holds numbers; it is left out as an index")
            continue
        line, cell = filled[0]
        raise CohortError(
            path,
            f"column {i + 1} has no name, but line {line} has '{shorten(cell)}' in it; name the column or delete it",
        )
    return [i for i, name in enumerate(columns) if name]


def _expected(needed: Sequence[str]) -> str:
    optional = ", ".join(OPTIONAL_COLUMNS)
    return f"expected one row per slide with columns {', '.join(needed)} and, optionally, {optional}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
