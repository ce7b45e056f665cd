"""The table of a cohort while it is edited: its rows, what is known of each slide, its splits, what keeps it back.

No Qt and no napari, so tests need no screen; see `sections/learners.py` for the table on the screen.
"""

from __future__ import annotations

import csv
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from psygnal import Signal

from lrmil_training.data.cohort import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    SPLITS,
    Cohort,
    CohortSlide,
    assign_splits,
    read_rows,
    require_classes,
    require_disjoint_patients,
)
from lrmil_training.data.patient_groups import patient_clusters, patient_parts
from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.errors import CohortError, LrmilError
from napari_lrmil.core.events import Event, Finished, Partial, Progress
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.grid import find_tissue_grid, require_resolution
from napari_lrmil.core.slides.openslide_handle import DICOM, SLIDE_ENDINGS, has_slide_ending
from napari_lrmil.core.slides.slide import Slide

ColumnName = Literal["slide", "label", "patient", "split", "mpp"]
COLUMNS: tuple[ColumnName, ...] = ("slide", "label", "patient", "split", "mpp")
UNSAVED_TABLE = Path("the table")  # what errors call a cohort that has no file yet


@dataclass(frozen=True)
class CohortRow:
    """One slide as the table has it; cells that are not filled in are empty."""

    path: Path
    label: str = ""
    patient: str = ""
    split: str = ""
    mpp: str = ""
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> tuple[Path, str]:
        """What a check depends on."""
        return self.path, self.mpp

    def as_slide(self) -> CohortSlide:
        """Return the row as training takes it."""
        return CohortSlide(self.path, self.patient, self.label, self.split)


@dataclass(frozen=True)
class SlideCheck:
    """What was found out about a slide.

    Attributes
    ----------
    fault
        A sentence on why it cannot be used; empty where it can.
    mpp
        µm per level-0 pixel; 0 where it could not be told.
    lr_patches, hr_patches
        How many of each have tissue, for `plan`.
    seconds
        What opening it and finding its tissue took.
    plan
        Resolutions and patch sizes that were asked about.
    silent
        Whether the file does not say how large its pixels are.
    absent
        Whether there is no such file.
    """

    fault: str = ""
    mpp: float = 0.0
    lr_patches: int = 0
    hr_patches: int = 0
    seconds: float = 0.0
    plan: PatchPlan = field(default_factory=PatchPlan)
    silent: bool = False
    absent: bool = False


@dataclass(frozen=True)
class SlideChecked:
    """A check and the row it is of."""

    key: tuple[Path, str]
    check: SlideCheck


@dataclass(frozen=True)
class ClassCount:
    """Slides and patients of a class on one side of the split."""

    slides: int
    patients: int


def check_slide(row: CohortRow, plan: PatchPlan) -> SlideCheck:
    """Return what can be told of a slide: whether it opens, says its resolution, and has tissue."""
    began, silent = time.perf_counter(), False
    try:
        with Slide(row.path, mpp=float(row.mpp) if row.mpp else None) as slide:
            silent = not slide.has_mpp
            require_resolution(slide, plan.hr_mpp, "teacher (HR)")
            grid = find_tissue_grid(slide, plan).grid
            mpp = slide.mpp.mean
    except LrmilError as error:
        seconds, absent = time.perf_counter() - began, not row.path.exists()
        return SlideCheck(_drop_path(error, row.path), seconds=seconds, plan=plan, silent=silent, absent=absent)
    except Exception as error:  # whatever a library says of a broken file: it is that slide's fault, not the table's
        return SlideCheck(f"cannot be read ({type(error).__name__}: {error})", plan=plan)
    return SlideCheck("", mpp, len(grid.lr_index), len(grid.hr_index), time.perf_counter() - began, plan)


def _drop_path(error: LrmilError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def find_slides(folder: Path) -> tuple[CohortRow, ...]:
    """Return a row for every slide in a folder and its subfolders; a subfolder's name is taken for the class.

    A folder of DICOM files is one slide. Every slide gets a patient of its own, by its file's name, because only the
    user knows which slides share a patient.

    Raises
    ------
    CohortError
        Where there is no slide.
    """
    files = [path for path in folder.rglob("*") if has_slide_ending(path) and not path.name.startswith(".")]
    if not files:
        raise CohortError(folder, f"no slide in this folder; expected files that end in {', '.join(SLIDE_ENDINGS)}")
    slides = sorted({path.parent if path.suffix.lower() == DICOM else path for path in files})
    return tuple(
        CohortRow(path, "" if folder in (path, path.parent) else path.parent.name, path.stem) for path in slides
    )


class CohortTable:
    """A cohort that is being put together; `changed` tells of every change.

    Attributes
    ----------
    rows
        The slides.
    path
        The CSV file that it came from or was written to; None before.
    saved
        Whether the file holds what is shown.
    edited
        Whether something was changed by hand since it was opened, built or saved.
    plan
        Resolutions and patch sizes that slides are checked against.
    """

    changed = Signal()

    def __init__(self) -> None:
        self.rows: tuple[CohortRow, ...] = ()
        self.path: Path | None = None
        self.saved = self.edited = False
        self.plan = PatchPlan()
        self._checks: dict[tuple[Path, str], SlideCheck] = {}
        self._columns: list[str] = []  # of the file that was read, in its order

    # ------------------------------------------------------------ where it comes from and goes to

    def open(self, path: Path) -> None:
        """Take the rows of a CSV file; cells may be empty, and slides missing: the rows tell."""
        read = read_rows(path)
        known = {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS} - {"site"}
        rows = []
        for cells in read:
            told = {key: (cells.get(key) or "").strip() for key in known}
            extra = tuple((k, v or "") for k, v in cells.items() if isinstance(k, str) and k not in known)
            where = path.parent / told.pop("slide")
            rows.append(CohortRow(where, **told, extra=extra))
        self._columns = [key for key in read[0] if isinstance(key, str)]
        self.edited = False
        self._take(tuple(rows), path.resolve(), saved=True)

    def build(self, folder: Path) -> None:
        """Take every slide of a folder; labels are to be filled in where subfolders do not tell them."""
        rows, self._columns, self.edited = find_slides(folder), [], False
        self._take(rows, None, saved=False)

    def save(self, path: Path) -> None:
        """Write the table, paths from its folder where they can be told so; whole or not at all."""
        columns = list(dict.fromkeys([*self._columns, *REQUIRED_COLUMNS, "split"]))
        if any(row.mpp for row in self.rows) and "mpp" not in columns:
            columns.append("mpp")
        try:
            with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self._cells(row, path.parent) for row in self.rows)
        except OSError as error:
            raise CohortError(
                path, f"the table cannot be written there ({error.strerror}); choose another folder"
            ) from error
        self.path, self.saved, self.edited = path.resolve(), True, False
        self.changed.emit()

    def _cells(self, row: CohortRow, folder: Path) -> dict[str, str]:
        cells = {key: getattr(row, key) for key in ("label", "patient", "split")} | dict(row.extra)
        if row.mpp or "mpp" in self._columns:
            cells["mpp"] = row.mpp
        return {"slide": _relative_path(row.path, folder), **cells}

    def _take(self, rows: tuple[CohortRow, ...], path: Path | None, *, saved: bool) -> None:
        self.rows, self.path, self.saved = rows, path, saved
        self.changed.emit()

    # ------------------------------------------------------------ editing

    def edit(self, index: int, column: ColumnName, text: str) -> None:
        """Fill in a cell. A split is a patient's: all slides of that patient move along.

        Raises
        ------
        CohortError
            Where a patient would come to lie on two sides; then nothing changes.
        """
        text = text.strip()
        row = self.rows[index]
        if column == "split":
            groups = patient_clusters([r.patient for r in self.rows])
            rows = [replace(r, split=text) if g == groups[index] else r for r, g in zip(self.rows, groups, strict=True)]
        else:
            _require_valid_cell(column, text)
            rows = list(self.rows)
            rows[index] = replace(row, **{column: text})  # type: ignore[arg-type]  # columns of text
        if tuple(rows) == self.rows:
            return
        if column == "patient" and not self._leak():
            require_disjoint_patients(self.path or UNSAVED_TABLE, [r.as_slide() for r in rows if r.split])
        self._edited(rows)

    def remove(self, indices: Collection[int]) -> None:
        """Leave slides out."""
        self._edited([row for i, row in enumerate(self.rows) if i not in indices])

    def propose_splits(self, seed: int = 0) -> None:
        """Deal all patients to train, val and test, 60/20/20, every class alike; what was there is replaced."""
        if lacking := self._lacking_cell():
            raise LrmilError(f"Splits are proposed by label and patient. {lacking}")
        dealt = assign_splits([row.as_slide() for row in self.rows], seed)
        self._edited([replace(row, split=slide.split) for row, slide in zip(self.rows, dealt, strict=True)])

    def _edited(self, rows: Sequence[CohortRow]) -> None:
        self.edited = True
        self._take(tuple(rows), self.path, saved=False)

    # ------------------------------------------------------------ what keeps it back

    @property
    def blocked_by(self) -> str:
        """Return a sentence on why nothing can be trained on it; empty where something can."""
        if not self.rows:
            return "Open a cohort table, or build one from a folder of slides."
        if lacking := self._lacking_cell():
            return lacking
        twice = [name for name, count in Counter(row.path.stem for row in self.rows).items() if count > 1]
        if twice:
            return f"Two slides are named {twice[0]}; rename one, for features are stored by that name."
        return self._absent() or self._leak() or self._lacking_class()

    def _absent(self) -> str:
        """Return which slides are not there: a path that leads nowhere is a mistake in the table, not a bad slide."""
        gone = [row.path for row in self.rows if (check := self.check_of(row)) is not None and check.absent]
        if not gone:
            return ""
        if len(gone) == 1:
            return f"There is no {gone[0]}; put it there, or remove the slide."
        return f"{len(gone)} slides are not there, first {gone[0]}; put them there, or remove them."

    def _lacking_cell(self) -> str:
        for column in ("label", "patient"):
            lacking = [row for row in self.rows if not getattr(row, column)]
            if lacking:
                name = lacking[0].path.name
                if len(lacking) == 1:
                    return f"{name} has no {column}; fill it in or remove the slide."
                return f"{len(lacking)} slides have no {column}, first {name}; fill it in or remove them."
        return ""

    def _leak(self) -> str:
        slides = [row.as_slide() for row in self.rows]
        try:
            if any(s.split for s in slides):
                unknown = next((s for s in slides if s.split not in ("", *SPLITS)), None)
                if unknown is not None:
                    return f"{unknown.path.name} has the split '{unknown.split}'; expected {', '.join(SPLITS)}."
                require_disjoint_patients(UNSAVED_TABLE, slides)
        except CohortError as error:
            return _error_sentence(error)
        return ""

    def _lacking_class(self) -> str:
        slides = [row.as_slide() for row in self.rows]
        classes = tuple(dict.fromkeys(s.label for s in slides))
        if len(classes) < 2:
            return f"All slides are '{classes[0]}'; two classes are needed to learn from."
        if not any(s.split for s in slides):
            slides = assign_splits(slides, 0)
        try:
            require_classes(Cohort(UNSAVED_TABLE, tuple(slides), classes), ("train", "val"))
        except CohortError as error:
            return _error_sentence(error)
        return ""

    @property
    def classes(self) -> list[str]:
        """The labels there are."""
        return sorted({row.label for row in self.rows if row.label})

    def counts(self) -> dict[str, dict[str, ClassCount]]:
        """Return split -> class -> slides and patients; the split of slides without one is empty."""
        found: dict[str, dict[str, ClassCount]] = {}
        for split in ("", *SPLITS):
            its = [row for row in self.rows if row.split == split]
            if its:
                found[split] = {c: _count_rows([r for r in its if r.label == c]) for c in self.classes}
        return found

    # ------------------------------------------------------------ checks of slides

    def check_of(self, row: CohortRow) -> SlideCheck | None:
        """Return what is known of a row's slide; None where it was not looked at yet."""
        return self._checks.get(row.key)

    @property
    def unchecked(self) -> list[CohortRow]:
        """The rows whose slides were not looked at yet."""
        return [row for row in self.rows if row.key not in self._checks]

    @property
    def usable(self) -> list[tuple[CohortRow, SlideCheck]]:
        """The slides that were looked at and can be used."""
        found = ((row, self._checks.get(row.key)) for row in self.rows)
        return [(row, check) for row, check in found if check is not None and not check.fault]

    @property
    def asks_mpp(self) -> bool:
        """Whether some slide does not say how large its pixels are, or was told so in the table."""
        return any(row.mpp or ((check := self.check_of(row)) is not None and check.silent) for row in self.rows)

    @property
    def broken(self) -> int:
        """How many slides cannot be used."""
        return sum(bool(check and check.fault) for check in map(self.check_of, self.rows))

    def choose_plan(self, plan: PatchPlan) -> None:
        """Count patches of other sizes from now on; slides are looked at anew."""
        if plan != self.plan:
            self.plan, self._checks = plan, {}
            self.changed.emit()

    def checking(self) -> Iterator[Event]:
        """Check every unchecked slide, one at a time, and yield each result as a `Partial` of `SlideChecked`."""
        rows, plan = self.unchecked, self.plan
        for done, row in enumerate(rows):
            yield Progress("slides", done, len(rows), "slides")
            yield Partial(SlideChecked(row.key, check_slide(row, plan)))
        yield Finished()

    def handle(self, event: Event) -> None:
        """Take an event of `checking`; what was found for other patch sizes is dropped."""
        if (
            isinstance(event, Partial)
            and isinstance(event.result, SlideChecked)
            and event.result.check.plan == self.plan
        ):
            self._checks[event.result.key] = event.result.check
            self.changed.emit()


def _require_valid_cell(column: ColumnName, text: str) -> None:
    if column == "mpp" and text:
        try:
            good = float(text) > 0
        except ValueError:
            good = False
        if not good:
            raise CohortError(UNSAVED_TABLE, f"'{text}' is no resolution; expected µm per pixel, such as 0.5")


def _count_rows(rows: Sequence[CohortRow]) -> ClassCount:
    return ClassCount(len(rows), len({part for row in rows for part in patient_parts(row.patient)}))


def _relative_path(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return str(path)


def _error_sentence(error: CohortError) -> str:
    told = str(error).removeprefix(f"{UNSAVED_TABLE}: ")
    return f"{told[0].upper()}{told[1:]}."
