"""File of the answers that were shown to reviewers, ``review_seen.csv``: a row per slide, reviewer and place.

A verdict is blind only if its reviewer has not seen the model's answer before, also not before the window was opened
again. A row is on the disk before the answer is on the screen, so a process that is killed forgets none.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path

from napari_lrmil.core.csv_files import protect_cell, restore_cell
from napari_lrmil.core.errors import ReviewError
from napari_lrmil.core.worklist.review import LOCK_TIMEOUT_S, normal_reviewer, time_now

SEEN_FILE = "review_seen.csv"
COLUMNS = ("slide", "reviewer", "where", "time")
_REMEDY = "mend it, or move it away if nobody reads blind here. Until then no verdict counts as blind"
ANYBODY = ""  # reviewer of answers that were shown before a name was entered; they count for every reviewer


class Where(Enum):
    """Place where an answer was shown. The values are the words in the file."""

    CANVAS = "canvas"
    LIST = "list"


class SeenAnswers:
    """Answers that were shown to reviewers of one folder of results.

    Parameters
    ----------
    path
        The file. It and its folder need not exist.

    Raises
    ------
    ReviewError
        If the file cannot be read, or is no such table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: set[tuple[str, str, Where]] = set(_read_rows(path))

    def was_seen(self, slide: str, reviewer: str, where: Where) -> bool:
        """Return whether the answer for a slide was shown to a reviewer, or to somebody without a name."""
        return any((slide, name, where) in self._rows for name in (normal_reviewer(reviewer), ANYBODY))

    def add(self, slides: Iterable[str], reviewer: str, where: Where) -> None:
        """Note that answers are shown now. Those that were noted before are not written again.

        Parameters
        ----------
        slides
            Names of the slides' results.
        reviewer
            Name of the reviewer; empty without one.
        where
            Where the answers are shown.

        Raises
        ------
        ReviewError
            If the file cannot be written. The answers are then noted until the program ends.
        """
        name = normal_reviewer(reviewer)
        new = [slide for slide in slides if (slide, name, where) not in self._rows]
        self._rows.update((slide, name, where) for slide in new)
        if new:
            time = time_now()
            self._append([(slide, name, where.value, time) for slide in new])

    def _append(self, rows: list[tuple[str, ...]]) -> None:
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCK_TIMEOUT_S):
                self._write(rows)
        except (OSError, Timeout) as error:
            reason = getattr(error, "strerror", None) or "another window is writing to it"
            raise ReviewError(
                self.path,
                f"cannot be written ({reason}), so the next start will not know which answers were shown; do not read "
                "blind here, or choose a folder that you may write to",
            ) from error

    def _write(self, rows: list[tuple[str, ...]]) -> None:
        with self.path.open("a+b") as file:
            file.seek(0)
            lines = file.read().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):
                if _is_row(lines[-1].decode(errors="replace")):
                    lines.append(b"\n")
                    file.write(b"\n")
                else:
                    file.truncate(sum(map(len, lines[:-1])))
            file.write(_as_lines(rows if lines else [COLUMNS, *rows]))
            file.flush()
            os.fsync(file.fileno())  # before the answer is on the screen


def _as_lines(rows: Iterable[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([protect_cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode("utf-8", errors="backslashreplace")


def _read_rows(path: Path) -> Iterator[tuple[str, str, Where]]:
    """Yield slide, reviewer and place of each row; none if there is no file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ReviewError(path, f"cannot be read ({reason}); {_REMEDY}") from error
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n") and not _is_row(lines[-1]):
        lines.pop()  # a process ended while it wrote this row, before the answer was shown
    for number, cells in enumerate(csv.reader(lines), start=1):
        if number == 1 and cells[:4] != list(COLUMNS):
            raise ReviewError(path, f"the columns are not {', '.join(COLUMNS)}; {_REMEDY}")
        if number > 1 and cells:
            row = _parse_row(cells)
            if row is None:
                raise ReviewError(path, f"line {number} is no row of {', '.join(COLUMNS)}; {_REMEDY}")
            yield row


def _is_row(line: str) -> bool:
    return any(_parse_row(cells) is not None for cells in csv.reader([line]))


def _parse_row(cells: Sequence[str]) -> tuple[str, str, Where] | None:
    try:
        slide, reviewer, where, _ = map(restore_cell, cells)
        return slide, reviewer, Where(where)
    except ValueError:
        return None
