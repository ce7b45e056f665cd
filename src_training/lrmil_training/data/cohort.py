"""A cohort: slides with patients, labels and splits. Splits go by patient; a patient on two sides is an error."""

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
SPLIT_SHARES = (0.6, 0.2, 0.2)  # of patients, where the table proposes no split


@dataclass(frozen=True)
class CohortSlide:
    """One row of the table.

    Attributes
    ----------
    path
        The slide.
    patient, label, split
        As the table has them; a pseudo-patient such as ``2+5`` holds tissue of both.
    mpp
        µm per level-0 pixel, where the table tells it.
    site
        Where the slide was made, where the table tells it; empty where not.
    extra
        Name and content of every further column.
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
        """The slide's file name without its ending."""
        return self.path.stem

    @property
    def lesions(self) -> Path:
        """Where lesion outlines lie, if there are any."""
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
        Its rows.
    classes
        In the order that logits have.
    fixed
        Whether the table itself says which slides are tested; else the splits were dealt here.
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
        """Return the cohort less some slides."""
        return replace(self, slides=tuple(s for s in self.slides if s.name not in names))

    @property
    def sha256(self) -> str:
        """Hash of what a run learns and measures: slides in their order, with patient, label, split, mpp and site."""
        rows = [(s.name, s.patient, s.label, s.split, s.mpp, s.site) for s in self.slides]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def summary(self) -> dict[str, dict[str, int]]:
        """Return slides per split and class."""
        return {split: dict(Counter(s.label for s in self.of(split))) for split in SPLITS if self.of(split)}


def read_cohort(path: Path, *, seed: int = 0) -> Cohort:
    """Return a checked cohort. Without a ``split`` column, patients are dealt out 60/20/20, stratified by label.

    Raises
    ------
    CohortError
        Where the table or a slide is missing, a split unknown, or two slides share a name.
    """
    rows = read_rows(path)
    slides = [_slide(path, i, row) for i, row in enumerate(rows, start=2)]
    missing = [s.path.name for s in slides if not s.path.exists()]
    if missing:
        raise CohortError(
            path,
            f"{len(missing)} of {len(slides)} slides are not there, first {missing[0]}; paths start at the table",
        )
    twice = [name for name, count in Counter(s.name for s in slides).items() if count > 1]
    if twice:
        raise CohortError(
            path, f"two slides are named {twice[0]}; their features would overwrite each other, rename one"
        )
    fixed = any(s.split for s in slides)
    if not fixed:
        slides = assign_splits(slides, seed)
    require_disjoint_patients(path, slides)
    return Cohort(path, tuple(slides), tuple(dict.fromkeys(_class_order(slides))), fixed)


def _class_order(slides: Sequence[CohortSlide]) -> list[str]:
    """Return labels with the ordinary one first where it is called so: bars and logits read alike in every cohort."""
    ordinary = ("normal", "benign", "negative", "0")
    return sorted({s.label for s in slides}, key=lambda label: (label.lower() not in ordinary, label))


def read_slides(path: Path) -> list[CohortSlide]:
    """Return the slides of a table for work that asks for neither patients nor labels; columns may be `slide` alone.

    Slides that are missing, or share a name, are let through: they fail one by one, and the others go on.

    Raises
    ------
    CohortError
        Where it is no table of slides, or a resolution is no number.
    """
    rows = read_rows(path, needed=("slide",))
    return [_slide(path, i, row, needed=("slide",)) for i, row in enumerate(rows, start=2)]


def read_rows(path: Path, needed: Sequence[str] = REQUIRED_COLUMNS) -> list[dict[str, str]]:
    """Return the rows of a table as they stand, column -> cell; nothing but the columns is checked.

    Raises
    ------
    CohortError
        Where it is no table, has no row, or lacks a column that is needed.
    """
    if not path.is_file():
        raise CohortError(path, "there is no such file; expected a CSV table of slides")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(
            path, f"not a readable table ({error}); expected CSV with columns {', '.join(needed)}"
        ) from error
    lacking = [column for column in needed if column not in (reader.fieldnames or ())]
    if lacking or not rows:
        what = f"no column {', '.join(lacking)}" if lacking else "no slide"
        raise CohortError(
            path,
            f"{what}; expected a row per slide with columns {', '.join(needed)} "
            f"and optional {', '.join(OPTIONAL_COLUMNS)}",
        )
    return rows


def _slide(table: Path, line: int, row: dict[str, str], needed: Sequence[str] = REQUIRED_COLUMNS) -> CohortSlide:
    cells = {key: (row.get(key) or "").strip() for key in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)}
    empty = [key for key in needed if not cells[key]]
    if empty:
        raise CohortError(table, f"line {line} has no {', '.join(empty)}; fill it in or drop the line")
    if cells["split"] not in ("", *SPLITS):
        raise CohortError(table, f"line {line} has the unknown split '{cells['split']}'; expected {', '.join(SPLITS)}")
    try:
        mpp = float(cells["mpp"]) if cells["mpp"] else None
    except ValueError as error:
        raise CohortError(
            table, f"line {line} has the mpp '{cells['mpp']}'; expected µm per pixel, such as 0.5"
        ) from error
    extra = tuple((k, v or "") for k, v in row.items() if isinstance(k, str) and k not in cells)  # None: spare cells
    where = table.parent / cells["slide"]
    return CohortSlide(where, cells["patient"], cells["label"], cells["split"], mpp, cells["site"], extra)


def require_disjoint_patients(path: Path, slides: Sequence[CohortSlide]) -> None:
    """Raise `CohortError` where a patient is on two sides; a pseudo-patient such as ``2+5`` counts as both."""
    unsplit = [s.name for s in slides if not s.split]
    if unsplit:
        raise CohortError(
            path, f"{len(unsplit)} slides have no split while others do, first {unsplit[0]}; fill in all or none"
        )
    sides: dict[str, set[str]] = {}
    for s in slides:
        for part in patient_parts(s.patient):
            sides.setdefault(part, set()).add(s.split)
    leaks = {p: side for p, side in sides.items() if len(side) > 1}
    if leaks:
        patient, side = next(iter(leaks.items()))
        raise CohortError(
            path,
            f"patient {patient} is in {' and '.join(sorted(side))} ({len(leaks)} such patients); "
            "all slides of a patient must be in one split",
        )


def require_classes(cohort: Cohort, splits: Sequence[str]) -> None:
    """Raise `CohortError` where one of `splits` lacks a class, so that nothing could be learned or measured."""
    for split in splits:
        lacking = set(cohort.classes) - {s.label for s in cohort.of(split)}
        if lacking or len(cohort.classes) < 2:
            labels = sorted({s.label for s in cohort.of(split)})
            has = f"{', '.join(labels)} only" if labels else "no slide at all"
            needs = ", ".join(cohort.classes) if len(cohort.classes) > 1 else "two classes"
            raise CohortError(
                cohort.path, f"split {split} has {has}; expected slides of {needs}, add some or move patients"
            )


def assign_splits(slides: Sequence[CohortSlide], seed: int) -> list[CohortSlide]:
    """Return the slides with splits dealt by patient, stratified by label; pseudo-patients go with their parts."""
    rng = np.random.default_rng(seed)
    groups = patient_clusters([s.patient for s in slides])
    labels = {group: s.label for group, s in zip(groups, slides, strict=True)}
    side: dict[str, str] = {}
    for label in sorted(set(labels.values())):
        patients = sorted(p for p, its in labels.items() if its == label)
        order = rng.permutation(len(patients))
        ends = np.round(np.cumsum(SPLIT_SHARES) * len(patients)).astype(int)
        for rank, i in enumerate(order):
            side[patients[i]] = SPLITS[int(np.searchsorted(ends, rank, side="right"))]
    return [replace(s, split=side[group]) for s, group in zip(slides, groups, strict=True)]
