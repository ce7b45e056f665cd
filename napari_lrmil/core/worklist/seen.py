"""File of the answers that were shown to reviewers, ``review_seen.csv``: a row per slide, reviewer and place.

A verdict is blind only if its reviewer has not seen the model's answer before, also not before the window was opened
again. A row is on the disk before the answer is on the screen, so a process that is killed forgets none.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.csv_files import protect_cell, restore_cell
from napari_lrmil.core.errors import DiskFullError, ReviewError
from napari_lrmil.core.worklist.review import LOCK_TIMEOUT_S, normal_reviewer, reviewer_key, time_now

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
        self._stored = _read_keys(path)
        self._own: set[tuple[str, str, Where]] = set()  # noted here, also if they could not be written
        self._nameless: Counter[tuple[str, str, str]] = Counter()  # slide, place and time of own rows without a name

    def refresh(self) -> None:
        """Read the file again; raises `ReviewError`."""
        self._stored = _read_keys(self.path)

    def _has(self, slide: str, key: str, where: Where) -> bool:
        return (slide, key, where) in self._stored or (slide, key, where) in self._own

    def was_seen(self, slide: str, reviewer: str, where: Where) -> bool:
        """Return whether the answer for a slide was shown to a reviewer, or to somebody without a name."""
        return any(self._has(slide, key, where) for key in (reviewer_key(reviewer), ANYBODY))

    def was_seen_by_anybody(self, slide: str) -> bool:
        """Return whether the answer for a slide was shown to somebody who never entered a name."""
        return any(self._has(slide, ANYBODY, where) for where in Where)

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
        key = reviewer_key(name)
        new = [slide for slide in slides if not self._has(slide, key, where)]
        self._own.update((slide, key, where) for slide in new)
        if new:
            time = time_now()
            if not name:
                self._nameless.update((slide, where.value, time) for slide in new)
            with self._locked():
                self._write([(slide, name, where.value, time) for slide in new])

    def take_over(self, reviewer: str) -> None:
        """Put the first name that is entered into the rows that this object has written without one.

        Rows without a name of other processes stay: nobody knows who saw those answers.

        Parameters
        ----------
        reviewer
            Name of the reviewer; an empty one changes nothing.

        Raises
        ------
        ReviewError
            If the file cannot be read or written. The rows then stay without a name, and count for everybody.
        """
        name = normal_reviewer(reviewer)
        if not name or not self._nameless:
            return
        with self._locked():
            rows = list(self._named_rows(name))
            with atomic_write(self.path) as partial, partial.open("wb") as file:
                file.write(_as_lines(rows))
                file.flush()
                os.fsync(file.fileno())
            self._stored = _read_keys(self.path)
        self._nameless.clear()
        self._own = {(slide, key or reviewer_key(name), where) for slide, key, where in self._own}

    def _named_rows(self, name: str) -> Iterator[tuple[str, ...]]:
        """Yield the rows of the file, head included, with a name in those that this object has written without one."""
        left = self._nameless.copy()
        for cells in _read_lines(self.path):
            slide, reviewer, where, time = map(restore_cell, cells)
            if reviewer == ANYBODY and left[slide, where, time] > 0:
                left[slide, where, time] -= 1
                reviewer = name
            yield slide, reviewer, where, time

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCK_TIMEOUT_S):
                yield
        except (OSError, Timeout, DiskFullError) as error:
            busy = "another window is writing to it" if isinstance(error, Timeout) else str(error)
            reason = getattr(error, "strerror", None) or busy
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


def _read_keys(path: Path) -> set[tuple[str, str, Where]]:
    """Return slide, key of the reviewer, and place of each row; none if there is no file."""
    rows = filter(None, map(_parse_row, list(_read_lines(path))[1:]))
    return {(slide, reviewer_key(name), where) for slide, name, where in rows}


def _read_lines(path: Path) -> Iterator[list[str]]:
    """Yield the cells of the head and of each row; none if there is no file."""
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
        if number > 1 and cells and _parse_row(cells) is None:
            raise ReviewError(path, f"line {number} is no row of {', '.join(COLUMNS)}; {_REMEDY}")
        if cells:
            yield cells[:4]


def _is_row(line: str) -> bool:
    return any(_parse_row(cells) is not None for cells in csv.reader([line]))


def _parse_row(cells: Sequence[str]) -> tuple[str, str, Where] | None:
    try:
        slide, reviewer, where, _ = map(restore_cell, cells)
        return slide, reviewer, Where(where)
    except ValueError:
        return None
