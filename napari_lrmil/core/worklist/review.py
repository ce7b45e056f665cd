"""File of verdicts, ``review.csv``: one row per slide and reviewer, written at once with every verdict.

Every write reads the file again under a lock and changes one row of it. So verdicts of several windows and reviewers
are merged, columns and rows of others stay, and a process that is killed loses nothing.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Self

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.csv_files import protect_cell, restore_cell
from napari_lrmil.core.errors import DiskFullError, ReviewError
from napari_lrmil.core.slides.slide_files import has_slide_ending
from napari_lrmil.core.text_escapes import printable

REVIEW_FILE = "review.csv"
LABEL = "class"  # column of `ReviewRow.label`
COLUMNS = (
    *("slide", "patient", "reviewer", "verdict", LABEL, "comment", "time", "blind"),
    *("predicted", "probability", "bundle", "bundle_sha256"),
)
NEEDED_COLUMNS = ("slide", "reviewer", "verdict")
DELIMITERS = (",", ";", "\t")  # a spreadsheet saves with that of its language
LOCK_TIMEOUT_S = 2.0  # others hold the lock for milliseconds
YES, NO = "yes", "no"


class Verdict(Enum):
    """Judgement of a reviewer on a model's answer. The values are the words in the file."""

    AGREE = "agree"
    DISAGREE = "disagree"
    UNSURE = "unsure"


@dataclass(frozen=True)
class ReviewRow:
    """Verdict of a reviewer on a slide.

    Attributes
    ----------
    slide, patient, reviewer
        Name of the slide's results, patient if it is known, and name of the reviewer.
    verdict
        The verdict.
    label
        Class that the reviewer gives the slide; empty if unsure, or if it is only known that the model's is wrong.
    comment
        Free text.
    time
        Time of the verdict, ISO 8601 with the offset of the time zone.
    is_blind
        Whether the model's answer was hidden until the verdict.
    predicted, probability
        Answer of the model at that time; empty and None without one.
    bundle, bundle_sha256
        Name and hash of the model.
    """

    slide: str
    reviewer: str
    verdict: Verdict
    label: str = ""
    comment: str = ""
    time: str = ""
    is_blind: bool = False
    predicted: str = ""
    probability: float | None = None
    bundle: str = ""
    bundle_sha256: str = ""
    patient: str = ""

    @classmethod
    def from_cells(cls, cells: Mapping[str, str]) -> Self:
        """Return the row in the cells of a table. Raises `ValueError` if the verdict is none."""
        return cls(
            slide=cells["slide"],
            reviewer=cells["reviewer"],
            verdict=Verdict(cells["verdict"].strip().casefold()),
            label=cells.get(LABEL, ""),
            comment=cells.get("comment", ""),
            time=cells.get("time", ""),
            is_blind=cells.get("blind", "").strip().casefold() == YES,
            predicted=cells.get("predicted", ""),
            probability=_parse_probability(cells.get("probability", "")),
            bundle=cells.get("bundle", ""),
            bundle_sha256=cells.get("bundle_sha256", ""),
            patient=cells.get("patient", ""),
        )

    def as_cells(self) -> dict[str, str]:
        """Return column -> cell."""
        return {
            "slide": self.slide,
            "patient": self.patient,
            "reviewer": self.reviewer,
            "verdict": self.verdict.value,
            LABEL: self.label,
            "comment": self.comment,
            "time": self.time,
            "blind": YES if self.is_blind else NO,
            "predicted": self.predicted,
            "probability": "" if self.probability is None else f"{self.probability:.6f}",
            "bundle": self.bundle,
            "bundle_sha256": self.bundle_sha256,
        }


def _parse_probability(cell: str) -> float | None:
    """Return the probability in a cell; None without one. A spreadsheet may have made the point a comma."""
    try:
        return float(cell.replace(",", "."))
    except ValueError:
        return None


def normal_reviewer(name: str) -> str:
    """Return the name of a reviewer on one line, without blanks around it."""
    return printable(" ".join(name.split()))


def reviewer_key(name: str) -> str:
    """Return what spellings of one reviewer's name have in common: they may differ in case and outer blanks."""
    return normal_reviewer(name).casefold()


def time_now() -> str:
    """Return the present local time as `ReviewRow.time` has it."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def common_slide_names(names: Iterable[str]) -> dict[str, str]:
    """Return name of a slide -> the name without ending, if a slide is named both with and without it.

    Files that this program writes have names without ending; tables that were written by hand may have file names.

    Raises
    ------
    ValueError
        If a name without ending could be two of the names, such as ``a`` beside ``a.svs`` and ``a.tif``.
    """
    common = {name: name for name in names}
    with_ending: dict[str, list[str]] = {}
    for name in common:
        if has_slide_ending(Path(name)) and Path(name).stem in common:
            with_ending.setdefault(Path(name).stem, []).append(name)
    for bare, full in with_ending.items():
        if len(full) > 1:
            raise ValueError(f"the slide {printable(bare)} could be {' or '.join(map(printable, full))}")
        common[full[0]] = bare
    return common


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class ReviewTable:
    """Content of a ``review.csv``: its columns, and column -> cell of each row, unknown columns included."""

    columns: tuple[str, ...] = COLUMNS
    cells: tuple[Mapping[str, str], ...] = ()

    @property
    def rows(self) -> tuple[ReviewRow, ...]:
        """The verdicts in the order of the file."""
        return tuple(map(ReviewRow.from_cells, self.cells))

    def find(self, slide: str, reviewer: str) -> int | None:
        """Return the index of the verdict of a reviewer on a slide, the last one if there are several."""
        return self._find_all(reviewer).get(slide)

    def _find_all(self, reviewer: str) -> dict[str, int]:
        """Return slide -> index of a reviewer's last verdict on it.

        A row that was written by hand may name the file of a slide: it also holds for the name without ending, if that
        has no row of its own and is no other file's.
        """
        written = {cells["slide"]: index for index, cells in enumerate(self.cells) if cells["reviewer"] == reviewer}
        files: dict[str, list[int]] = {}
        for name, index in written.items():
            if has_slide_ending(Path(name)):
                files.setdefault(Path(name).stem, []).append(index)
        return {bare: indices[0] for bare, indices in files.items() if len(indices) == 1} | written

    def spelling_of(self, reviewer: str) -> str:
        """Return the name of a reviewer as the table spells it; the name itself if the table has none like it."""
        name = normal_reviewer(reviewer)
        spellings = [cells["reviewer"] for cells in self.cells if reviewer_key(cells["reviewer"]) == reviewer_key(name)]
        return name if name in spellings or not spellings else spellings[0]

    def verdict(self, slide: str, reviewer: str) -> ReviewRow | None:
        """Return the verdict of a reviewer on a slide, or None."""
        index = self.find(slide, reviewer)
        return None if index is None else ReviewRow.from_cells(self.cells[index])

    def verdicts(self, reviewer: str) -> dict[str, ReviewRow]:
        """Return slide -> verdict of a reviewer."""
        return {slide: ReviewRow.from_cells(self.cells[index]) for slide, index in self._find_all(reviewer).items()}

    def with_verdict(self, slide: str, reviewer: str, row: ReviewRow | None) -> Self:
        """Return the table with a verdict replaced, added or (None) taken out. Cells of unknown columns stay."""
        index, cells = self.find(slide, reviewer), list(self.cells)
        if row is None:
            if index is not None:
                del cells[index]
        elif index is None:
            cells.append(row.as_cells())
        else:
            cells[index] = {**cells[index], **row.as_cells()}
        columns = (*self.columns, *(name for name in COLUMNS if name not in self.columns))
        return replace(self, columns=columns, cells=tuple(cells))


def read_review(path: Path) -> ReviewTable:
    """Return the verdicts in a file; an empty table if there is no such file.

    Raises
    ------
    ReviewError
        If the file is no table of verdicts.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return ReviewTable()
    except OSError as error:
        raise ReviewError(path, f"cannot be read ({error.strerror}); close it in other programs") from error
    except UnicodeDecodeError as error:
        raise ReviewError(path, "is not UTF-8; save it as CSV (UTF-8)") from error
    lines = list(_split_rows(path, text))
    if not lines:
        return ReviewTable()
    columns = tuple(cell.strip() for cell in lines[0][1])
    missing = [name for name in NEEDED_COLUMNS if name not in columns]
    if missing or len(set(columns)) < len(columns):
        fault = f"no column {', '.join(missing)}" if missing else "two columns of one name"
        raise ReviewError(path, f"{fault}; restore the first line, or move the file away to begin a new one")
    return ReviewTable(columns, tuple(_row_cells(path, columns, line, cells) for line, cells in lines[1:]))


def _split_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row that is not empty."""
    first = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cells):
                yield line, [restore_cell(cell) for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise ReviewError(path, f"line {line} is no row of cells ({error}); mend the line") from error


def _row_cells(path: Path, columns: Sequence[str], line: int, cells: Sequence[str]) -> Mapping[str, str]:
    """Return column -> cell of a row. Raises `ReviewError` if it is no verdict."""
    if len(cells) != len(columns):
        raise ReviewError(path, f"line {line} has {len(cells)} cells where the head has {len(columns)}; mend the line")
    row = dict(zip(columns, cells, strict=True))
    try:
        ReviewRow.from_cells(row)
    except ValueError as error:
        words = ", ".join(verdict.value for verdict in Verdict)
        raise ReviewError(path, f"line {line}: the verdict is '{row['verdict']}'; expected {words}") from error
    return row


# ---------------------------------------------------------------- the file


@dataclass(frozen=True)
class UndoStep:
    """What one undo takes back: the verdict of a slide before (None for none) and after it was given."""

    slide: str
    before: ReviewRow | None
    after: ReviewRow

    @property
    def text(self) -> str:
        """What was taken back, as a sentence."""
        slide, before, after = printable(self.slide), self.before, self.after
        if before is None:
            return f"Taken back on {slide}: {after.verdict.value}{', with its comment' if after.comment else ''}."
        if (before.verdict, before.label) == (after.verdict, after.label):
            return f"Taken back on {slide}: the change of the comment. The verdict '{after.verdict.value}' stays."
        return f"Taken back on {slide}: {_verdict_text(after)}. The verdict is '{_verdict_text(before)}' again."

    def joined_by(self, row: ReviewRow) -> bool:
        """Whether a verdict only adds the first comment to the one of this step, and so belongs to it."""
        return not self.after.comment and replace(row, comment="", time="") == replace(self.after, time="")


def _verdict_text(row: ReviewRow) -> str:
    return f"{row.verdict.value} ({printable(row.label)})" if row.label else row.verdict.value


class ReviewFile:
    """The verdicts of one reviewer in a ``review.csv``, with undo.

    Parameters
    ----------
    path
        The file. It and its folder need not exist.
    reviewer
        Name of the reviewer. One that the file spells with other case or outer blanks is the same reviewer.

    Attributes
    ----------
    reviewer
        The name as the file spells it.
    table
        The file as it was last read.
    """

    def __init__(self, path: Path, reviewer: str) -> None:
        self.path, self.table = path, read_review(path)
        self.reviewer = self.table.spelling_of(reviewer)
        self._undo: list[UndoStep] = []

    @property
    def verdicts(self) -> dict[str, ReviewRow]:
        """Slide -> verdict of this reviewer."""
        return self.table.verdicts(self.reviewer)

    @property
    def can_undo(self) -> bool:
        """Whether a verdict of this session can be taken back."""
        return bool(self._undo)

    def refresh(self) -> None:
        """Read the file again; raises `ReviewError`."""
        self.table = read_review(self.path)

    def record(self, row: ReviewRow) -> None:
        """Write a verdict. The first comment on the verdict that was written last is one step of undo with it.

        Raises
        ------
        ReviewError
            If the reviewer has no name, the file cannot be written, or another program changed this verdict. The file
            is then as it was, and `table` is up to date: the same call again replaces the other verdict.
        """
        if not self.reviewer:
            raise ReviewError(self.path, "a verdict needs the name of the reviewer; enter your name")
        before = self.table.verdict(row.slide, self.reviewer)
        comment = printable(" ".join(row.comment.split()))  # as it is read back, which undo compares
        after = replace(row, reviewer=self.reviewer, comment=comment)
        self._exchange(row.slide, after)
        last = self._undo[-1] if self._undo else None
        if last is not None and before == last.after and last.joined_by(after):
            before = self._undo.pop().before
        self._undo.append(UndoStep(row.slide, before, after))

    def undo(self) -> UndoStep | None:
        """Take the last verdict of this session back, and return what that was; None if there is none.

        Raises
        ------
        ReviewError
            As `record`. A verdict that was changed elsewhere since is left alone.
        """
        if not self._undo:
            return None
        step = self._undo[-1]
        slide, after = step.slide, step.after
        if self.table.verdict(slide, self.reviewer) != after:
            self._undo.pop()
            raise ReviewError(self.path, f"the verdict on {slide} was changed since and was not taken back")
        self._exchange(slide, step.before)
        self._undo.pop()
        return step

    def _exchange(self, slide: str, row: ReviewRow | None) -> None:
        """Write one changed verdict into the present content of the file."""
        seen = self.table.verdict(slide, self.reviewer)
        with self._locked():
            table = read_review(self.path)
            current = table.verdict(slide, self.reviewer)
            if current != seen:
                self.table = table
                raise ReviewError(self.path, _changed_text(slide, self.reviewer, current))
            table = table.with_verdict(slide, self.reviewer, row)
            self._write(table)
            self.table = table

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        self._require_not_in_spreadsheet()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCK_TIMEOUT_S):
                yield
        except Timeout as error:
            reason = "another window is writing to it; the verdict was not stored, give it again"
            raise ReviewError(self.path, reason) from error
        except OSError as error:
            reason = f"the verdict was not stored ({error.strerror}); close the file in other programs, or choose"
            raise ReviewError(self.path, f"{reason} a folder that you may write to") from error

    def _require_not_in_spreadsheet(self) -> None:
        """Raise `ReviewError` if LibreOffice has the file open: saving there would overwrite new verdicts."""
        lock = self.path.with_name(f".~lock.{self.path.name}#")
        try:
            owner = lock.read_text(encoding="utf-8", errors="replace").split(",")
        except OSError:
            return
        name = next((part.strip() for part in owner[:2] if part.strip()), "somebody")
        raise ReviewError(
            self.path,
            f"{printable(name)} has it open in LibreOffice, so the verdict was not stored; close it there (or delete "
            f"{lock.name} if it is not open)",
        )

    def _write(self, table: ReviewTable) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows([protect_cell(cells.get(name, "")) for name in table.columns] for cells in table.cells)
        try:
            with atomic_write(self.path) as partial, partial.open("wb") as file:
                file.write(text.getvalue().encode("utf-8", errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())  # a verdict must outlive the machine too
        except DiskFullError as error:
            raise ReviewError(self.path, f"the verdict was not stored: {error}") from error


def _changed_text(slide: str, reviewer: str, current: ReviewRow | None) -> str:
    if current is None:
        return f"the verdict of {reviewer} on {slide} was deleted by another program; give it again to store it"
    return (
        f"another program stored the verdict '{current.verdict.value}' of {reviewer} on {slide} ({current.time}); it "
        "was not overwritten, give yours again to replace it"
    )
