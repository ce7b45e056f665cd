"""Cohort table during editing: rows, checks of slides, splits, and reasons why training is blocked.

No Qt and no napari, so tests need no screen; `cohort_editor` shows the table.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal

from psygnal import Signal

from lrmil_training.data.cohort import (
    SPLITS,
    Cohort,
    CohortSlide,
    assign_splits,
    require_classes,
    require_disjoint_patients,
)
from lrmil_training.data.cohort_cells import find_slide, normal_split
from lrmil_training.data.cohort_file import REQUIRED_COLUMNS, parse_mpp, read_mpp_cell, read_table
from lrmil_training.data.patient_groups import count_patients, patient_clusters
from lrmil_training.data.validation_patients import few_validation_patients
from napari_lrmil.core.csv_files import write_csv
from napari_lrmil.core.errors import CohortError, LrmilError
from napari_lrmil.core.events import Event, Finished, Partial, Progress
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.models.card import MAX_NAME
from napari_lrmil.core.patching.grid import find_tissue_grid, require_resolution
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.slide_files import SLIDE_ENDINGS, SlideSearch
from napari_lrmil.core.slides.slide_names import slide_name
from napari_lrmil.core.text_escapes import printable

ColumnName = Literal["slide", "label", "patient", "split", "mpp"]
TABLE_ENDINGS = (".csv", ".tsv", ".txt")
COLUMNS: tuple[ColumnName, ...] = ("slide", "label", "patient", "split", "mpp")
COHORT_FILE = "cohort.csv"  # in the run folder, if the table is not saved elsewhere
UNSAVED_TABLE = Path("the table")  # stands for the path in errors of a cohort without a file


@dataclass(frozen=True)
class CohortRow:
    """Row of the table: one slide; cells without a value are empty strings."""

    path: Path
    label: str = ""
    patient: str = ""
    split: str = ""
    mpp: str = ""
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> tuple[Path, str]:
        """Identity of the slide for its check: path and stated resolution."""
        return self.path, self.mpp

    def as_slide(self) -> CohortSlide:
        """Return the row as a slide of a cohort."""
        return CohortSlide(self.path, self.patient, self.label, self.split)


@dataclass(frozen=True)
class SlideCheck:
    """Result of checking a slide.

    Attributes
    ----------
    fault
        Sentence on why it cannot be used; empty if it can.
    mpp
        µm per level-0 pixel; 0 if unknown.
    lr_patches, hr_patches
        Number of patches with tissue, for `plan`.
    seconds
        Time to open the slide and find its tissue.
    plan, tissue
        Resolutions, patch sizes and tissue mask of the check.
    lacks_mpp
        Whether the file states no resolution.
    is_missing
        Whether the file does not exist.
    """

    fault: str = ""
    mpp: float = 0.0
    lr_patches: int = 0
    hr_patches: int = 0
    seconds: float = 0.0
    plan: PatchPlan = field(default_factory=PatchPlan)
    tissue: TissueConfig = field(default_factory=TissueConfig)
    lacks_mpp: bool = False
    is_missing: bool = False


@dataclass(frozen=True)
class SlideChecked:
    """Result of a check with the key of its row."""

    key: tuple[Path, str]
    check: SlideCheck


@dataclass(frozen=True)
class ClassCount:
    """Number of slides and patients of a class in one split."""

    slides: int
    patients: int


def check_slide(row: CohortRow, plan: PatchPlan, tissue: TissueConfig | None = None) -> SlideCheck:
    """Check a slide: it opens, states its resolution, and has tissue; a failure is returned as the fault."""
    start, lacks_mpp, tissue = time.perf_counter(), False, tissue or TissueConfig()
    checked = partial(SlideCheck, plan=plan, tissue=tissue)
    try:
        with Slide(row.path, mpp=float(row.mpp) if row.mpp else None) as slide:
            lacks_mpp = not slide.has_mpp
            if plan.hr_mpp < plan.lr_mpp:  # equal without a teacher; the grid below checks LR
                require_resolution(slide, plan.hr_mpp, "teacher (HR)")
            grid = find_tissue_grid(slide, plan, tissue).grid
            mpp = slide.mpp.mean
    except LrmilError as error:
        seconds, fault = time.perf_counter() - start, _drop_path(error, row.path)
        is_missing = not row.path.exists()
        return checked(fault, seconds=seconds, lacks_mpp=lacks_mpp, is_missing=is_missing)
    except Exception as error:  # any library error on a damaged file: it concerns this slide, not the table
        return checked(f"cannot be read ({type(error).__name__}: {error})")
    return checked("", mpp, len(grid.lr_index), len(grid.hr_index), time.perf_counter() - start)


def _drop_path(error: LrmilError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def find_slides(folder: Path) -> tuple[tuple[CohortRow, ...], str]:
    """Return a row for every slide in a folder and its subfolders, and a sentence on what was left out.

    The name of a subfolder is the class. A DICOM series is one slide. Every slide gets its own patient, named after the
    file, because only the user knows which slides share a patient.

    Raises
    ------
    CohortError
        If there is no slide.
    """
    search = SlideSearch()
    search.add_folder(folder)
    if not search.slides:
        endings = f"no slide in this folder; expected files that end in {', '.join(SLIDE_ENDINGS)}"
        raise CohortError(folder, f"{endings} ({search.notice})" if search.notice else endings)
    rows = (
        CohortRow(path, "" if folder in (path, path.parent) else path.parent.name, slide_name(path))
        for path in sorted(search.slides)
    )
    return tuple(rows), search.notice


class CohortTable:
    """Cohort that the user edits; emits `changed` after every change.

    Attributes
    ----------
    rows
        The slides.
    path
        CSV file that was opened or saved; None without one.
    saved
        Whether the file has the current content.
    edited
        Whether the user changed something since the table was opened, built or saved.
    plan, tissue
        Resolutions, patch sizes and tissue mask for the checks.
    notices
        Sentences on what was left out when the table was opened or built, or read in another way than it is written.
    """

    changed = Signal()

    def __init__(self) -> None:
        self.rows: tuple[CohortRow, ...] = ()
        self.path: Path | None = None
        self.saved = self.edited = False
        self.notices: tuple[str, ...] = ()
        self.plan, self.tissue = PatchPlan(), TissueConfig()
        self.allows_unlabelled = False  # the settings have a teacher of another program, which replaces labels
        self._checks: dict[tuple[Path, str], SlideCheck] = {}
        self._columns: list[str] = []  # of the opened file, in its order

    # ------------------------------------------------------------ opening and saving

    def open(self, path: Path) -> None:
        """Read the rows of a CSV file; cells may be empty and slides may be missing, `blocked_by` reports them.

        Raises
        ------
        CohortError
            If the file is not a table of slides, or an mpp is not a resolution.
        """
        table = read_table(path)
        own_columns = ("slide", *COLUMNS[1:])
        rows, notices = [], list(table.notices)
        for read in table.rows:
            values = {key: read.cells.get(key, "") for key in own_columns}
            extra = tuple((name, cell) for name, cell in read.cells.items() if name not in own_columns)
            label, patient, split, mpp = (values[key] for key in COLUMNS[1:])
            split = normal_split(split, notices)
            if read_mpp_cell(path, read, notices) is not None:  # which refuses what is no resolution
                mpp = mpp.replace(",", ".")
            rows.append(CohortRow(find_slide(path, read, notices), label, patient, split, mpp, extra=extra))
        self._columns = list(table.columns)
        self.edited, self.notices = False, tuple(dict.fromkeys(notices))
        self._set_rows(tuple(rows), path.resolve(), saved=True)

    def build(self, folder: Path) -> None:
        """Start a table with every slide of a folder; without subfolders the user fills in the labels."""
        rows, notice = find_slides(folder)
        self._columns, self.edited, self.notices = [], False, (notice,) if notice else ()
        self._set_rows(rows, None, saved=False)

    def save(self, path: Path) -> None:
        """Write the table atomically, with slide paths relative to its folder if possible.

        Raises
        ------
        CohortError
            If the file cannot be written.
        """
        columns = list(dict.fromkeys([*self._columns, *REQUIRED_COLUMNS, "split"]))
        if any(row.mpp for row in self.rows) and "mpp" not in columns:
            columns.append("mpp")
        try:
            cells = [self._cells(row, path.parent) for row in self.rows]
            write_csv(path, [columns, *([row.get(column, "") for column in columns] for row in cells)])
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

    def _set_rows(self, rows: tuple[CohortRow, ...], path: Path | None, *, saved: bool) -> None:
        self.rows, self.path, self.saved = rows, path, saved
        self.changed.emit()

    # ------------------------------------------------------------ editing

    def edit(self, index: int, column: ColumnName, text: str) -> None:
        """Set a cell. A split belongs to a patient, so all slides of the patient get it.

        Raises
        ------
        CohortError
            If a patient would be in two splits, or the value is invalid; then nothing changes.
        """
        text = text.strip()
        row = self.rows[index]
        if column == "split":
            groups = patient_clusters([r.patient for r in self.rows])
            rows = [replace(r, split=text) if g == groups[index] else r for r, g in zip(self.rows, groups, strict=True)]
        else:
            _require_valid_cell(column, text)
            rows = list(self.rows)
            rows[index] = replace(row, **{column: text})  # type: ignore[arg-type]  # all these columns are text
        if tuple(rows) == self.rows:
            return
        if column == "patient" and not self._leak():
            require_disjoint_patients(self.path or UNSAVED_TABLE, [r.as_slide() for r in rows if r.split])
        self._set_edited(rows)

    def remove(self, indices: Collection[int]) -> None:
        """Remove slides from the table."""
        self._set_edited([row for i, row in enumerate(self.rows) if i not in indices])

    def propose_splits(self, seed: int = 0) -> None:
        """Assign all patients to train, val and test, 60/20/20 in each class; present splits are replaced.

        Raises
        ------
        LrmilError
            If a slide has no label or patient.
        """
        if lacking := self._lacking_cell():
            raise LrmilError(f"Proposing splits needs label and patient of each slide. {lacking}")
        assigned = assign_splits([row.as_slide() for row in self.rows], seed)
        self._set_edited([replace(row, split=slide.split) for row, slide in zip(self.rows, assigned, strict=True)])

    def _set_edited(self, rows: Sequence[CohortRow]) -> None:
        self.edited = True
        self._set_rows(tuple(rows), self.path, saved=False)

    # ------------------------------------------------------------ reasons that block training

    @property
    def blocked_by(self) -> str:
        """Sentence on why training is blocked; empty if it is not."""
        if not self.rows:
            return "Open a cohort table, or build one from a folder of slides."
        if lacking := self._lacking_cell():
            return lacking
        duplicates = [name for name, count in Counter(slide_name(row.path) for row in self.rows).items() if count > 1]
        if duplicates:
            return f"Two slides are named {duplicates[0]}; rename one, because features are stored by that name."
        return self._missing_files() or self._leak() or self._lacking_class()

    def _missing_files(self) -> str:
        """Return a sentence on missing files: a wrong path is a mistake in the table, not a damaged slide."""
        missing = [row.path for row in self.rows if (check := self.check_of(row)) is not None and check.is_missing]
        if not missing:
            return ""
        if len(missing) == 1:
            return f"There is no file {missing[0]}; put it there, or remove the slide."
        return f"{len(missing)} files are missing, first {missing[0]}; put them there, or remove the slides."

    @property
    def is_unlabelled(self) -> bool:
        """Whether no slide has a label, and none needs one."""
        return self.allows_unlabelled and not any(row.label for row in self.rows)

    def _lacking_cell(self) -> str:
        for column in ("patient",) if self.is_unlabelled else ("label", "patient"):
            lacking = [row for row in self.rows if not getattr(row, column)]
            if lacking:
                name = lacking[0].path.name
                if len(lacking) == 1:
                    return f"{name} has no {column}; fill it in or remove the slide."
                slides = format_count(len(lacking), "slide has", "slides have")
                return f"{slides} no {column}, first {name}; fill it in or remove them."
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
        if len(classes) < 2 and not self.is_unlabelled:
            return f"All slides are '{classes[0]}'; training needs two classes."
        if not any(s.split for s in slides):
            slides = assign_splits(slides, 0)
        try:
            names = () if self.is_unlabelled else classes
            require_classes(Cohort(UNSAVED_TABLE, tuple(slides), names), ("train", "val"))
        except CohortError as error:
            return _error_sentence(error)
        return ""

    @property
    def few_patients(self) -> str:
        """Sentence if validation of the table's splits has too few patients to rank methods; empty if not."""
        sentence = few_validation_patients((row.label, row.patient) for row in self.rows if row.split == "val")
        return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""

    @property
    def classes(self) -> list[str]:
        """Labels in the table, sorted."""
        return sorted({row.label for row in self.rows if row.label})

    def counts(self) -> dict[str, dict[str, ClassCount]]:
        """Return split -> class -> number of slides and patients; slides without a split are under the empty name."""
        counts: dict[str, dict[str, ClassCount]] = {}
        for split in ("", *SPLITS):
            rows = [row for row in self.rows if row.split == split]
            if rows:
                counts[split] = {c: _count_rows([r for r in rows if r.label == c]) for c in self.classes}
        return counts

    # ------------------------------------------------------------ checks of slides

    def check_of(self, row: CohortRow) -> SlideCheck | None:
        """Return the check of a row's slide; None if it is not checked yet."""
        return self._checks.get(row.key)

    @property
    def unchecked(self) -> list[CohortRow]:
        """Rows whose slides are not checked yet."""
        return [row for row in self.rows if row.key not in self._checks]

    @property
    def usable(self) -> list[tuple[CohortRow, SlideCheck]]:
        """Checked slides that can be used."""
        checks = ((row, self._checks.get(row.key)) for row in self.rows)
        return [(row, check) for row, check in checks if check is not None and not check.fault]

    @property
    def asks_mpp(self) -> bool:
        """Whether a slide states no resolution, or has one in the table."""
        return any(row.mpp or ((check := self.check_of(row)) is not None and check.lacks_mpp) for row in self.rows)

    @property
    def broken(self) -> int:
        """Number of slides that cannot be used."""
        return sum(bool(check and check.fault) for check in map(self.check_of, self.rows))

    def allow_unlabelled(self, allowed: bool) -> None:
        """Say whether slides may be without labels, because a teacher of another program is given."""
        if allowed != self.allows_unlabelled:
            self.allows_unlabelled = allowed
            self.changed.emit()

    def choose_plan(self, plan: PatchPlan, tissue: TissueConfig | None = None) -> bool:
        """Change resolutions, patch sizes and tissue mask; return whether all slides became unchecked by it."""
        tissue = tissue or TissueConfig()
        if (plan, tissue) == (self.plan, self.tissue):
            return False
        self.plan, self.tissue, self._checks = plan, tissue, {}
        self.changed.emit()
        return True

    def checking(self) -> Iterator[Event]:
        """Check every unchecked slide, one at a time, and yield each result as a `Partial` of `SlideChecked`."""
        rows, plan, tissue = self.unchecked, self.plan, self.tissue
        for done, row in enumerate(rows):
            yield Progress("slides", done, len(rows), "slides")
            yield Partial(SlideChecked(row.key, check_slide(row, plan, tissue)))
        yield Finished()

    def handle(self, event: Event) -> None:
        """Apply an event of `checking`; checks for other patch sizes are dropped."""
        if (
            isinstance(event, Partial)
            and isinstance(event.result, SlideChecked)
            and (event.result.check.plan, event.result.check.tissue) == (self.plan, self.tissue)
        ):
            self._checks[event.result.key] = event.result.check
            self.changed.emit()


def propose_model_name(cohort: Path) -> str:
    """Return a name for a model of a cohort, from its table or folder and today's date; empty if they say nothing.

    A table that is called as all tables are has the name of its folder.
    """
    path = cohort.parent if cohort.name.lower() == COHORT_FILE else cohort
    name = printable(path.stem if path is cohort and cohort.suffix.lower() in TABLE_ENDINGS else path.name)
    today = date.today().isoformat()
    return f"{name[: MAX_NAME - len(today) - 1].strip()} {today}" if name.strip() else ""


def _require_valid_cell(column: ColumnName, text: str) -> None:
    if column == "mpp" and text and parse_mpp(text) is None:
        raise CohortError(UNSAVED_TABLE, f"'{text}' is not a resolution; expected µm per pixel, such as 0.5")


def _count_rows(rows: Sequence[CohortRow]) -> ClassCount:
    return ClassCount(len(rows), count_patients(row.patient for row in rows))


def _relative_path(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return str(path)


def _error_sentence(error: CohortError) -> str:
    text = str(error).removeprefix(f"{UNSAVED_TABLE}: ")
    return f"{text[0].upper()}{text[1:]}."
