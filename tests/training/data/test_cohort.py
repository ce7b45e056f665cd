"""Cohort tables: one-sentence errors that say what to do, and assigned splits."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lrmil_training.data.cohort import read_cohort, require_classes
from napari_lrmil.core.errors import CohortError
from support.run_folders import synthetic_cohort

Table = Callable[..., Path]
HEADER = ("slide", "patient", "label", "split")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Return a writer of cohort tables whose slides exist as empty files."""

    def write(rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER, *, touch: bool = True) -> Path:
        for row in rows if touch else ():
            (tmp_path / row[0]).touch()
        path = tmp_path / "cohort.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return path

    return write


GOOD = [("a.tif", "p1", "normal", "train"), ("b.tif", "p2", "lesion", "train"), ("c.tif", "p3", "lesion", "val")]


def test_classes_start_with_the_ordinary_one(table: Table) -> None:
    """Logits and bars read alike in every cohort, whichever label comes first in the table."""
    cohort = read_cohort(table(GOOD[::-1]))
    assert cohort.classes == ("normal", "lesion")
    assert [s.name for s in cohort.of("train")] == ["b", "a"]


def test_extra_columns_are_no_fault(table: Table) -> None:
    """Users keep notes in their tables."""
    rows = [(*row, "0.5", "a note") for row in GOOD]
    cohort = read_cohort(table(rows, (*HEADER, "mpp", "remark")))
    assert cohort.slides[0].mpp == 0.5
    assert cohort.slides[0].extra == (("remark", "a note"),)


def test_sites_are_read(table: Table) -> None:
    """Where there is a column site, folds can keep sites together; without it the site is empty."""
    cohort = read_cohort(table([(*row, "ward 3") for row in GOOD], (*HEADER, "site")))
    assert {s.site for s in cohort.slides} == {"ward 3"}
    assert read_cohort(table(GOOD)).slides[0].site == ""


def test_dealt_splits_keep_pseudo_patients_with_their_parts(table: Table) -> None:
    """p0+p1 is on the side of p0 and of p1; splitting them would be refused as a leak."""
    rows = [(f"s{i}.tif", f"p{i}", "normal" if i % 2 else "lesion") for i in range(20)]
    rows += [("s20.tif", "p0+p1", "lesion"), ("s21.tif", "p1+p7", "normal")]
    sides = {s.name: s.split for s in read_cohort(table(rows, HEADER[:3])).slides}
    assert sides["s0"] == sides["s1"] == sides["s7"] == sides["s20"] == sides["s21"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*GOOD, ("d.tif", "p1", "normal", "test")], "patient p1 is in test and train"),
        ([*GOOD, ("d.tif", "p1+p9", "normal", "test")], "patient p1 is in test and train"),
        ([*GOOD, ("d.tif", "p4", "normal", "dev")], "unknown split 'dev'"),
        ([*GOOD, ("d.tif", "p4", "", "test")], "line 5 has no label"),
        ([*GOOD, ("d.tif", "p4", "normal", "")], "1 slide has no split"),
        ([*GOOD, ("a.svs", "p4", "normal", "test")], "two slides are named a"),
    ],
)
def test_unusable_tables_are_refused(table: Table, rows: list[tuple[str, ...]], message: str) -> None:
    """Each fault is named with the row or patient at fault."""
    with pytest.raises(CohortError, match=message.replace("+", r"\+")):
        read_cohort(table(rows))


def test_missing_slide_is_named(table: Table) -> None:
    """A path that is not there is found before any work is done."""
    with pytest.raises(CohortError, match=r"3 of 3 slides do not exist, first a\.tif"):
        read_cohort(table(GOOD, touch=False))


def test_missing_column_and_file(table: Table, tmp_path: Path) -> None:
    """The sentence lists the columns that are expected."""
    with pytest.raises(
        CohortError, match="no column named label; expected one row per slide with columns slide, patient, label"
    ):
        read_cohort(table([r[:2] for r in GOOD], HEADER[:2]))
    with pytest.raises(CohortError, match="no such file"):
        read_cohort(tmp_path / "absent.csv")


def test_a_split_without_one_class_is_refused(table: Table) -> None:
    """Nothing can be selected on a validation side that has one class only."""
    cohort = read_cohort(table(GOOD))
    require_classes(cohort, ("train",))
    with pytest.raises(CohortError, match="split val has only lesion"):
        require_classes(cohort, ("train", "val"))


def test_one_class_in_all_is_refused(table: Table) -> None:
    """A cohort of one class teaches nothing."""
    rows = [(name, patient, "normal", split) for name, patient, _, split in GOOD]
    with pytest.raises(CohortError, match="expected slides of two classes"):
        require_classes(read_cohort(table(rows)), ("train",))


def test_dealt_splits_are_stratified_and_repeatable(table: Table) -> None:
    """Without a split column every side gets both classes, and the same seed gives the same sides."""
    rows = [(f"s{i}.tif", f"p{i}", "normal" if i % 2 else "lesion") for i in range(20)]
    first, second, other = (read_cohort(table(rows, HEADER[:3]), seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first != other
    assert first.summary() == {s: {"lesion": n, "normal": n} for s, n in (("train", 6), ("val", 2), ("test", 2))}


@pytest.mark.parametrize("label", ["tumour\x07", "x" * 300])
def test_a_label_that_no_bundle_can_name_is_refused_before_training(tmp_path: Path, label: str) -> None:
    cohort = synthetic_cohort(tmp_path, {"train": 4, "val": 2})
    with pytest.raises(CohortError, match=r"column label: .* is no name of a class"):
        require_classes(replace(cohort, classes=("normal", label)), ("train",))
