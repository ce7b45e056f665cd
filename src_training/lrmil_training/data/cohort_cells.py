"""Meaning of single cells of a cohort table: paths, splits, labels and patients as spreadsheets leave them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lrmil_training.data.cohort_file import CohortTableRow
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.formatting import shorten
from napari_lrmil.core.slides.slide_files import MIRAX, SLIDE_ENDINGS, has_slide_ending
from napari_lrmil.core.text_escapes import printable

SPLIT_WORDS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
MISSING_VALUES = ("nan", "na", "n/a", "#n/a", "<na>", "null", "#value!", "#ref!")  # as pandas, R and Excel write them
WITHOUT_ENDING = "column slide: a name without its ending is read as the one slide that has it"
MANGLED_NUMBER = re.compile(r"\d+([.,]\d+)?E\+\d+", re.IGNORECASE)  # a long number as Excel displays and saves it


def normal_split(text: str, notices: list[str]) -> str:
    """Return the split in the words of this program; an unknown word is returned as it is."""
    lower = text.casefold()
    if lower not in SPLIT_WORDS:
        return lower if lower in SPLIT_WORDS.values() else text
    notices.append(f"column split: '{text}' is read as {SPLIT_WORDS[lower]}")
    return SPLIT_WORDS[lower]


def find_slide(table: Path, row: CohortTableRow, notices: list[str]) -> Path:
    """Return the file of a row, relative to the table. It need not exist.

    A path that does not exist as it is written is tried as a path of Windows, from the home folder, and in the bytes
    of the table, because file names on Linux need not be UTF-8; and then with the ending of a slide.

    Parameters
    ----------
    table
        The table.
    row
        One of its rows.
    notices
        Sentences on what was read in another way than it is written; one is added for a name without ending.

    Raises
    ------
    CohortError
        If the name has no ending, and there are several slides that it could be.
    """
    text = row.cells["slide"]
    written = table.parent / text
    if os.path.isfile(written):
        return written
    if os.path.isdir(written):  # the slide is not the folder of its tiles, which has the same name
        mirax = written.with_name(f"{written.name}{MIRAX}")
        return mirax if mirax.is_file() else written
    alternatives = [table.parent / text.replace("\\", "/")]
    if text.startswith(("~/", "~\\")):
        alternatives.append(Path.home() / text[2:].replace("\\", "/"))
    with suppress(UnicodeEncodeError):  # of characters that no table in Windows-1252 holds
        alternatives.append(table.parent / os.fsdecode(text.encode("cp1252")))
    if existing := next((path for path in alternatives if os.path.exists(path)), None):
        return existing
    endless = next(filter(None, map(_with_endings, (written, *alternatives))), [])
    if len(endless) > 1:
        names = " or ".join(printable(path.name) for path in endless)
        raise CohortError(table, f"line {row.line}: '{shorten(text)}' could be {names}; write the ending")
    if endless:
        notices.append(WITHOUT_ENDING)
    return endless[0] if endless else written


def _with_endings(path: Path) -> list[Path]:
    """Return the slides that a path without ending could be; "a.1" may be "a.1.svs"."""
    if has_slide_ending(path) or not path.name:
        return []
    # Asked for by name: a listing of the folder for each of thousands of rows would take minutes.
    files = [path.with_name(path.name + end) for ending in SLIDE_ENDINGS for end in (ending, ending.upper())]
    existing = [file for file in files if os.path.isfile(file)]
    # On a disk that ignores case, two of the names are one file.
    return [file for i, file in enumerate(existing) if not any(map(file.samefile, existing[:i]))]


def similar_name(path: Path) -> str:
    """Return the one file beside a missing `path` whose name differs in case, quotes, blanks or ending; else ""."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return ""
    wanted = _bare(path.name)
    for key in (_bare, lambda name: Path(_bare(name)).stem):
        matches = [name for name in names if key(name) == wanted]
        if len(matches) == 1:
            return matches[0]
    return ""


def _bare(name: str) -> str:
    return name.strip("'\" ").casefold()


def require_unmangled(path: Path, rows: Sequence[CohortTableRow]) -> None:
    """Raise `CohortError` for a patient or label that a program wrote in place of a missing or a long value."""
    for row in rows:
        for column in ("patient", "label"):
            cell = row.cells.get(column, "")  # a cohort for a given teacher may have no labels
            if cell.casefold() in MISSING_VALUES:
                raise CohortError(
                    path,
                    f"line {row.line}, column {column}: '{cell}' stands for a missing value; write the {column}, or "
                    "delete the line",
                )
            if MANGLED_NUMBER.fullmatch(cell):
                raise CohortError(
                    path,
                    f"line {row.line}, column {column}: '{cell}' is a number that a spreadsheet has shortened, so that "
                    "different ones may look alike; format the column as text and save the table again",
                )


def require_clear_labels(path: Path, rows: Sequence[CohortTableRow]) -> None:
    """Raise `CohortError` if two labels differ only in case, blanks or the way a number is written."""
    first: dict[object, CohortTableRow] = {}
    for row in rows:
        label = row.cells["label"]
        seen = first.setdefault(_label_key(label), row)
        if (other := seen.cells["label"]) != label:
            raise CohortError(
                path,
                f"lines {seen.line} and {row.line}, column label: '{shorten(other)}' and '{shorten(label)}' are nearly "
                "the same and would be two classes; write them alike",
            )


def _label_key(label: str) -> object:
    """Return what two spellings of a label have in common."""
    try:
        return float(label)
    except ValueError:
        return re.sub(r"[\s_-]+", " ", label).casefold()
