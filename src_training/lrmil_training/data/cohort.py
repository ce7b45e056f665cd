"""Cohort table: slides with patients, labels and splits.

Splits are by patient. A patient in two splits is an error, because test figures would then be too good.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lrmil_training.data.cohort_cells import (
    find_slide,
    normal_split,
    require_clear_labels,
    require_unmangled,
    similar_name,
)
from lrmil_training.data.cohort_file import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    CohortTableRow,
    TableFile,
    read_mpp_cell,
    read_table,
)
from lrmil_training.data.patient_groups import count_patients, patient_clusters, patient_parts
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.inference.teacher_comparison import lesion_file
from napari_lrmil.core.models.card import class_name_problem
from napari_lrmil.core.patching.stain import StainTransform
from napari_lrmil.core.slides.dicom_headers import dicom_series
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.slide_names import slide_name
from napari_lrmil.core.text_escapes import printable

SPLITS = ("train", "val", "test")
CALIBRATION = "calibration"  # split of `set_calibration_aside`; a table cannot state it
UNLABELLED = -1  # target of a slide without a label
SPLIT_SHARES = (0.6, 0.2, 0.2)  # of patients, if the table has no column split


@dataclass(frozen=True)
class CohortSlide:
    """Row of a cohort table.

    Attributes
    ----------
    path
        The slide file.
    patient, label, split
        Values of the table. A pseudo-patient such as ``2+5`` has tissue of both patients on one slide.
    mpp
        µm per level-0 pixel, if the table states it.
    site
        Hospital or scanner that made the slide; empty if the table does not state it.
    extra
        Name and value of every further column.
    stain
        Colour transform of the slide's patches; None leaves them as read.
    """

    path: Path
    patient: str
    label: str
    split: str
    mpp: float | None = None
    site: str = ""
    extra: tuple[tuple[str, str], ...] = ()
    stain: StainTransform | None = None

    @property
    def name(self) -> str:
        """Name of the slide, see `slide_name`."""
        return slide_name(self.path)

    @property
    def lesions(self) -> Path:
        """File of the lesion outlines; it need not exist."""
        return lesion_file(self.path)

    def open(self) -> Slide:
        """Return the opened slide."""
        return Slide(self.path, mpp=self.mpp)


@dataclass(frozen=True)
class Cohort:
    """All slides of a table.

    Attributes
    ----------
    path
        The table.
    slides
        Its rows, in the order of the table.
    classes
        Class names, in the order of the logits.
    fixed
        True if the table states the splits; False if they were assigned here.
    notices
        Sentences on what was left out of the table, or read in another way than it is written.
    """

    path: Path
    slides: tuple[CohortSlide, ...]
    classes: tuple[str, ...]
    fixed: bool = False
    notices: tuple[str, ...] = ()

    def of(self, split: str) -> tuple[CohortSlide, ...]:
        """Return the slides of one split."""
        return tuple(s for s in self.slides if s.split == split)

    @property
    def is_labelled(self) -> bool:
        """False if no slide has a label, which only a teacher that is given allows."""
        return not self.slides or any(s.label for s in self.slides)

    def target(self, slide: CohortSlide) -> int:
        """Return the index of the slide's class; `UNLABELLED` without a label."""
        return self.classes.index(slide.label) if slide.label else UNLABELLED

    def without(self, names: set[str]) -> Cohort:
        """Return the cohort without the slides of these names."""
        return replace(self, slides=tuple(s for s in self.slides if s.name not in names))

    @property
    def sha256(self) -> str:
        """Hash of the data of a run: slides in their order, with patient, label, split, mpp and site."""
        # Names, not paths: a run folder stays valid if the slides move.
        rows = [(s.name, s.patient, s.label, s.split, s.mpp, s.site) for s in self.slides]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def summary(self) -> dict[str, dict[str, int]]:
        """Return split -> class -> number of slides."""
        return {
            split: dict(Counter(s.label for s in self.of(split))) for split in (*SPLITS, CALIBRATION) if self.of(split)
        }


@dataclass(frozen=True)
class SlideTable:
    """Slides of a table for tasks without patients and labels, and the notices of its reading."""

    slides: tuple[CohortSlide, ...]
    notices: tuple[str, ...] = ()


def read_cohort(path: Path, *, seed: int = 0, unlabelled: Sequence[str] = ()) -> Cohort:
    """Return a checked cohort. Without a ``split`` column, patients are split 60/20/20, stratified by label.

    Parameters
    ----------
    path
        CSV table with the columns `REQUIRED_COLUMNS` and, optionally, `OPTIONAL_COLUMNS`; see `read_table`.
    seed
        Seed of the assigned splits.
    unlabelled
        Classes of a cohort that has no labels at all, which is then allowed. Empty: every slide needs a label.

    Raises
    ------
    CohortError
        If the table or a slide is missing, a cell is not what its column expects, or two slides share a name.
    """
    needed = tuple(name for name in REQUIRED_COLUMNS if name != "label" or not unlabelled)
    table = read_table(path, needed)
    notices = list(table.notices)
    rows = list(zip(table.rows, _read_slides(table, needed, notices), strict=True))
    _require_existing(path, rows)
    is_labelled = _require_all_or_no_labels(path, rows)
    require_unmangled(path, table.rows)
    if is_labelled:
        require_clear_labels(path, table.rows)
    slides = _one_row_per_slide(path, rows, notices)
    # A partly filled column counts as fixed and is refused below: a guess could put a patient in two splits.
    fixed = any(s.split for s in slides)
    if not fixed:
        slides = assign_splits(slides, seed)
    require_disjoint_patients(path, slides)
    classes = tuple(dict.fromkeys(_class_order(slides))) if is_labelled else tuple(unlabelled)
    return Cohort(path, tuple(slides), classes, fixed, tuple(dict.fromkeys(notices)))


def _require_all_or_no_labels(path: Path, rows: Sequence[tuple[CohortTableRow, CohortSlide]]) -> bool:
    """Return whether the slides have labels; raise `CohortError` if some have and others have not."""
    lacking = [row.line for row, slide in rows if not slide.label]
    if lacking and len(lacking) < len(rows):
        raise CohortError(
            path,
            f"{len(lacking)} of {len(rows)} slides have no label, first line {lacking[0]}; fill in all, or none for a "
            "teacher that is given",
        )
    return not lacking


def _require_existing(path: Path, rows: Sequence[tuple[CohortTableRow, CohortSlide]]) -> None:
    missing = [(row, slide) for row, slide in rows if not os.path.exists(slide.path)]
    if not missing:
        return
    row, slide = missing[0]
    similar = similar_name(slide.path)
    advice = f"there is {printable(similar)}: correct the table" if similar else "paths are relative to the table"
    first = f"{printable(slide.path.name)} (line {row.line})"
    raise CohortError(path, f"{len(missing)} of {len(rows)} slides do not exist, first {first}; {advice}")


def _one_row_per_slide(
    path: Path, rows: Iterable[tuple[CohortTableRow, CohortSlide]], notices: list[str]
) -> list[CohortSlide]:
    """Return the slides without further files of a DICOM series; raise `CohortError` if two slides share a name."""
    slides: list[CohortSlide] = []
    line_of_name: dict[str, tuple[int, CohortSlide]] = {}
    row_of_series: dict[str, tuple[int, CohortSlide]] = {}
    n_further = 0
    for row, slide in rows:
        series = dicom_series(slide.path)
        if series is not None and series in row_of_series:
            line, first = row_of_series[series]
            if replace(slide, path=first.path) != first:
                raise CohortError(
                    path,
                    f"lines {line} and {row.line} are files of one DICOM series with different cells; keep one line",
                )
            n_further += 1
            continue
        line, first = line_of_name.setdefault(slide.name, (row.line, slide))
        if first is not slide:  # feature files are named after slides
            raise CohortError(path, _same_name(f"lines {line} and {row.line}", first, slide))
        if series is not None:
            row_of_series[series] = row.line, slide
        slides.append(slide)
    if n_further:
        extra = format_count(n_further, "row left out that names", "rows left out that name")
        notices.append(f"{extra} further files of a DICOM series in the table")
    return slides


def _same_name(lines: str, first: CohortSlide, second: CohortSlide) -> str:
    if first.path == second.path:
        return f"{lines} are the same slide; delete one"
    return f"{lines}: two slides are named {second.name}; their features would overwrite each other, rename one"


def _class_order(slides: Sequence[CohortSlide]) -> list[str]:
    """Return labels with the negative class first if its name shows it, so that plots of all cohorts read alike."""
    negative = ("normal", "benign", "negative", "0")
    return sorted({s.label for s in slides}, key=lambda label: (label.lower() not in negative, label))


def read_slides(path: Path) -> SlideTable:
    """Return the slides of a table for tasks without patients and labels; ``slide`` is the only required column.

    A row that repeats a slide is left out. Slides that are missing or share a name are not refused here. They fail one
    by one, and the others go on.

    Raises
    ------
    CohortError
        If the file is not a table of slides, or an mpp is not a resolution.
    """
    table = read_table(path, needed=("slide",))
    notices = list(table.notices)
    slides = tuple(_read_slides(table, ("slide",), notices))
    _require_one_mpp(path, zip(table.rows, slides, strict=True))
    for row, slide in zip(table.rows, slides, strict=True):
        if not os.path.exists(slide.path) and (similar := similar_name(slide.path)):
            name = printable(slide.path.name)
            notices.append(f"line {row.line}: {name} does not exist; there is {printable(similar)}: correct the table")
    once = tuple({slide.path: slide for slide in slides}.values())  # a repeated row has the same mpp
    if len(once) < len(slides):
        notices.append(f"rows left out that repeat a slide: {len(slides) - len(once)}")
    return SlideTable(once, tuple(dict.fromkeys(notices)))


def _require_one_mpp(path: Path, rows: Iterable[tuple[CohortTableRow, CohortSlide]]) -> None:
    """Raise `CohortError` if two rows state different resolutions of one slide."""
    first: dict[Path, tuple[CohortTableRow, CohortSlide]] = {}
    for row, slide in rows:
        earlier, same = first.setdefault(slide.path, (row, slide))
        if same.mpp != slide.mpp:
            name = printable(slide.path.name)
            raise CohortError(
                path, f"lines {earlier.line} and {row.line} state different mpp for {name}; delete one of the lines"
            )


def _read_slides(table: TableFile, needed: Sequence[str], notices: list[str]) -> list[CohortSlide]:
    return [_read_slide(table.path, row, needed, notices) for row in table.rows]


def _read_slide(path: Path, row: CohortTableRow, needed: Sequence[str], notices: list[str]) -> CohortSlide:
    cells = {key: row.cells.get(key, "") for key in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)}
    empty = [key for key in needed if not cells[key]]
    if empty:
        raise CohortError(path, f"line {row.line} has no {', '.join(empty)}; fill it in or delete the line")
    split = normal_split(cells["split"], notices)
    if split not in ("", *SPLITS):
        raise CohortError(path, f"line {row.line} has the unknown split '{split}'; expected {', '.join(SPLITS)}")
    extra = tuple((name, cell) for name, cell in row.cells.items() if name not in cells)
    mpp, file = read_mpp_cell(path, row, notices), find_slide(path, row, notices)
    return CohortSlide(file, cells["patient"], cells["label"], split, mpp, cells["site"], extra)


def require_disjoint_patients(path: Path, slides: Sequence[CohortSlide]) -> None:
    """Raise `CohortError` if a patient is in two splits; a pseudo-patient such as ``2+5`` counts as both."""
    unsplit = [s.name for s in slides if not s.split]
    if unsplit:
        count = format_count(len(unsplit), "slide has", "slides have")
        raise CohortError(path, f"{count} no split while others do, first {unsplit[0]}; fill in all splits or none")
    splits: dict[str, set[str]] = {}
    for s in slides:
        for part in patient_parts(s.patient):
            splits.setdefault(part, set()).add(s.split)
    leaks = {patient: names for patient, names in splits.items() if len(names) > 1}
    if leaks:
        patient, names = next(iter(leaks.items()))
        raise CohortError(
            path,
            f"patient {patient} is in {' and '.join(sorted(names))} (patients in two splits: {len(leaks)}); "
            "all slides of a patient must be in one split",
        )


def require_classes(cohort: Cohort, splits: Sequence[str]) -> None:
    """Raise `CohortError` if one of `splits` lacks a class, because nothing could then be learned or measured.

    Labels that cannot be names of classes in a bundle are refused here, and not after hours of training.
    """
    if problem := class_name_problem(cohort.classes):
        raise CohortError(cohort.path, f"column label: {problem}; rename it")
    if len(cohort.slides) > 1 and count_patients(s.patient for s in cohort.slides) == 1:
        raise CohortError(
            cohort.path,
            f"all {len(cohort.slides)} slides are of one patient, {cohort.slides[0].patient}; learning and validation "
            "need different patients: correct the column patient, or add patients",
        )
    if not cohort.is_labelled:
        _require_slides(cohort, splits)
        return
    for split in splits:
        missing = set(cohort.classes) - {s.label for s in cohort.of(split)}
        if missing or len(cohort.classes) < 2:
            labels = sorted({s.label for s in cohort.of(split)})
            has = f"only {', '.join(labels)}" if labels else "no slide at all"
            needs = ", ".join(cohort.classes) if len(cohort.classes) > 1 else "two classes"
            raise CohortError(
                cohort.path, f"split {split} has {has}; expected slides of {needs}; add slides or move patients"
            )


def _require_slides(cohort: Cohort, splits: Sequence[str]) -> None:
    for split in splits:
        if not cohort.of(split):
            raise CohortError(cohort.path, f"split {split} has no slide at all; add slides or move patients")


def assign_splits(slides: Sequence[CohortSlide], seed: int) -> list[CohortSlide]:
    """Return the slides with splits assigned by patient, stratified by label.

    All slides of patients that are linked by a pseudo-patient get one split.
    """
    rng = np.random.default_rng(seed)
    groups = patient_clusters([s.patient for s in slides])
    labels = {group: s.label for group, s in zip(groups, slides, strict=True)}
    splits: dict[str, str] = {}
    for label in sorted(set(labels.values())):
        of_label = sorted(group for group, group_label in labels.items() if group_label == label)
        # Each class is split on its own, which stratifies by label; sorting makes the draw independent of row order.
        order = rng.permutation(len(of_label))
        ends = np.round(np.cumsum(SPLIT_SHARES) * len(of_label)).astype(int)
        for rank, i in enumerate(order):
            splits[of_label[i]] = SPLITS[int(np.searchsorted(ends, rank, side="right"))]
    return [replace(s, split=splits[group]) for s, group in zip(slides, groups, strict=True)]
