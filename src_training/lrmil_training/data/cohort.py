"""Cohort table: slides with patients, labels and splits.

Splits are by patient. A patient in two splits is an error, because test figures would then be too good.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lrmil_training.data.patient_groups import patient_clusters, patient_parts
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.inference.teacher_comparison import lesion_file
from napari_lrmil.core.slides.slide import Slide

SPLITS = ("train", "val", "test")
REQUIRED_COLUMNS = ("slide", "patient", "label")
OPTIONAL_COLUMNS = ("split", "mpp", "site")
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
    """

    path: Path
    patient: str
    label: str
    split: str
    mpp: float | None = None
    site: str = ""
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The slide's file name without its suffix."""
        return self.path.stem

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
    """

    path: Path
    slides: tuple[CohortSlide, ...]
    classes: tuple[str, ...]
    fixed: bool = False

    def of(self, split: str) -> tuple[CohortSlide, ...]:
        """Return the slides of one split."""
        return tuple(s for s in self.slides if s.split == split)

    def target(self, slide: CohortSlide) -> int:
        """Return the index of the slide's class."""
        return self.classes.index(slide.label)

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
        return {split: dict(Counter(s.label for s in self.of(split))) for split in SPLITS if self.of(split)}


def read_cohort(path: Path, *, seed: int = 0) -> Cohort:
    """Return a checked cohort. Without a ``split`` column, patients are split 60/20/20, stratified by label.

    Parameters
    ----------
    path
        CSV table with the columns `REQUIRED_COLUMNS` and, optionally, `OPTIONAL_COLUMNS`.
    seed
        Seed of the assigned splits.

    Raises
    ------
    CohortError
        If the table or a slide is missing, a split is unknown, or two slides share a name.
    """
    rows = read_rows(path)  # line 1 is the header, so rows are counted from 2 in messages
    slides = [_slide(path, i, row) for i, row in enumerate(rows, start=2)]
    missing = [s.path.name for s in slides if not s.path.exists()]
    if missing:
        raise CohortError(
            path,
            f"{len(missing)} of {len(slides)} slides do not exist, first {missing[0]}; paths are relative to the table",
        )
    # Feature files are named after slides.
    duplicates = [name for name, count in Counter(s.name for s in slides).items() if count > 1]
    if duplicates:
        raise CohortError(
            path, f"two slides are named {duplicates[0]}; their features would overwrite each other, rename one"
        )
    # A partly filled column counts as fixed and is refused below: a guess could put a patient in two splits.
    fixed = any(s.split for s in slides)
    if not fixed:
        slides = assign_splits(slides, seed)
    require_disjoint_patients(path, slides)
    return Cohort(path, tuple(slides), tuple(dict.fromkeys(_class_order(slides))), fixed)


def _class_order(slides: Sequence[CohortSlide]) -> list[str]:
    """Return labels with the negative class first if its name shows it, so that plots of all cohorts read alike."""
    negative = ("normal", "benign", "negative", "0")
    return sorted({s.label for s in slides}, key=lambda label: (label.lower() not in negative, label))


def read_slides(path: Path) -> list[CohortSlide]:
    """Return the slides of a table for tasks without patients and labels; ``slide`` is the only required column.

    Slides that are missing or share a name are not refused here. They fail one by one, and the others go on.

    Raises
    ------
    CohortError
        If the file is not a table of slides, or an mpp is not a number.
    """
    rows = read_rows(path, needed=("slide",))
    return [_slide(path, i, row, needed=("slide",)) for i, row in enumerate(rows, start=2)]


def read_rows(path: Path, needed: Sequence[str] = REQUIRED_COLUMNS) -> list[dict[str, str]]:
    """Return the rows of a table, column -> cell. Only the columns are checked.

    Raises
    ------
    CohortError
        If the file is not a table, has no row, or lacks a column of `needed`.
    """
    if not path.is_file():
        raise CohortError(path, "no such file; expected a CSV table of slides")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(
            path, f"not a readable table ({error}); expected CSV with columns {', '.join(needed)}"
        ) from error
    missing = [column for column in needed if column not in (reader.fieldnames or ())]
    if missing or not rows:
        problem = f"no column named {', '.join(missing)}" if missing else "the table has no rows"
        raise CohortError(
            path,
            f"{problem}; expected one row per slide with columns {', '.join(needed)} "
            f"and, optionally, {', '.join(OPTIONAL_COLUMNS)}",
        )
    return rows


def _slide(table: Path, line: int, row: dict[str, str], needed: Sequence[str] = REQUIRED_COLUMNS) -> CohortSlide:
    cells = {key: (row.get(key) or "").strip() for key in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)}
    empty = [key for key in needed if not cells[key]]
    if empty:
        raise CohortError(table, f"line {line} has no {', '.join(empty)}; fill it in or delete the line")
    if cells["split"] not in ("", *SPLITS):
        raise CohortError(table, f"line {line} has the unknown split '{cells['split']}'; expected {', '.join(SPLITS)}")
    try:
        mpp = float(cells["mpp"]) if cells["mpp"] else None
    except ValueError as error:
        raise CohortError(
            table, f"line {line} has the mpp '{cells['mpp']}'; expected µm per pixel, such as 0.5"
        ) from error
    extra = tuple((k, v or "") for k, v in row.items() if isinstance(k, str) and k not in cells)  # key None: surplus
    slide = table.parent / cells["slide"]
    return CohortSlide(slide, cells["patient"], cells["label"], cells["split"], mpp, cells["site"], extra)


def require_disjoint_patients(path: Path, slides: Sequence[CohortSlide]) -> None:
    """Raise `CohortError` if a patient is in two splits; a pseudo-patient such as ``2+5`` counts as both."""
    unsplit = [s.name for s in slides if not s.split]
    if unsplit:
        raise CohortError(
            path, f"{len(unsplit)} slides have no split while others do, first {unsplit[0]}; fill in all splits or none"
        )
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
    """Raise `CohortError` if one of `splits` lacks a class, because nothing could then be learned or measured."""
    for split in splits:
        missing = set(cohort.classes) - {s.label for s in cohort.of(split)}
        if missing or len(cohort.classes) < 2:
            labels = sorted({s.label for s in cohort.of(split)})
            has = f"only {', '.join(labels)}" if labels else "no slide at all"
            needs = ", ".join(cohort.classes) if len(cohort.classes) > 1 else "two classes"
            raise CohortError(
                cohort.path, f"split {split} has {has}; expected slides of {needs}; add slides or move patients"
            )


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
