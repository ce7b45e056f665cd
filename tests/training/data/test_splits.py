"""Folds: every slide is tested once, patients and their parts stay together, impossible folds are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lrmil_training.data.cohort import Cohort, CohortSlide, require_classes, require_disjoint_patients
from lrmil_training.data.patient_groups import patient_clusters
from lrmil_training.data.splits import hold_out_test, make_folds
from napari_lrmil.core.errors import CohortError

CLASSES = ("normal", "lesion")


def _cohort(rows: list[tuple[str, str, str]], classes: tuple[str, ...] = CLASSES) -> Cohort:
    """Return a cohort of (patient, label, site) rows."""
    slides = [CohortSlide(Path(f"s{i}.tif"), p, label, "", None, site) for i, (p, label, site) in enumerate(rows)]
    return Cohort(Path("cohort.csv"), tuple(slides), classes)


def _plain(n: int = 24) -> Cohort:
    """Return two slides per patient, an even number of patients of each class, three sites."""
    return _cohort([(f"p{i // 2}", CLASSES[i // 2 % 2], f"site{i % 3}") for i in range(n)])


def test_clusters_join_whatever_shares_a_part() -> None:
    """1+2 and 2+3 share 2, so 3 is in the cluster of 1; 4 is alone, and 12 is not 1 and 2."""
    groups = patient_clusters(["1+2", "3", "2+3", "4", "12", "4"])
    assert groups[0] == groups[1] == groups[2] == "1+2"
    assert groups[3] == groups[5] == "4"
    assert groups[4] == "12"


def test_clusters_join_sites_where_asked() -> None:
    """A patient with slides of two sites joins them; an empty site joins nothing."""
    assert len(set(patient_clusters(["a", "b", "c", "c", "d"], ["x", "y", "x", "y", "z"]))) == 2
    assert len(set(patient_clusters(["a", "b"], ["", ""]))) == 2


@pytest.mark.parametrize("k", [3, 4, 6])
def test_every_slide_is_tested_and_validated_once(k: int) -> None:
    """The folds' test sides are a partition, so are their validation sides, and each side has both classes."""
    cohort = _plain()
    folds = make_folds(cohort, k, seed=0)
    for split in ("test", "val"):
        assert sorted(s.name for fold in folds for s in fold.of(split)) == sorted(s.name for s in cohort.slides)
    for i, fold in enumerate(folds):
        require_disjoint_patients(fold.path, fold.slides)
        require_classes(fold, ("train", "val", "test"))
        assert [s.name for s in fold.slides] == [s.name for s in cohort.slides]
        assert {s.name for s in fold.of("val")} == {s.name for s in folds[(i + 1) % k].of("test")}


def test_a_fixed_test_side_stays_out() -> None:
    """What a table puts aside is in no fold; a test side that was dealt here is nothing to put aside."""
    slides = tuple(replace(s, split="test" if i < 4 else "train") for i, s in enumerate(_plain(28).slides))
    fixed = Cohort(Path("cohort.csv"), slides, CLASSES, fixed=True)
    assert [s.name for s in hold_out_test(fixed)] == ["s0", "s1", "s2", "s3"]
    for fold in make_folds(fixed, 3, 0):
        assert [s.name for s in fold.slides] == [s.name for s in slides[4:]]
    assert hold_out_test(replace(fixed, fixed=False)) == ()
    assert len(make_folds(replace(fixed, fixed=False), 3, 0)[0].slides) == 28


def test_the_seed_fixes_the_folds() -> None:
    """The same seed deals alike, another one differently."""
    cohort = _plain()
    assert make_folds(cohort, 3, 1) == make_folds(cohort, 3, 1)
    assert make_folds(cohort, 3, 1) != make_folds(cohort, 3, 2)


def test_pseudo_patients_stay_with_their_parts() -> None:
    """2+5 is in the fold of 2, of 5, and of 5+7."""
    rows = [("2", "normal", ""), ("5", "lesion", ""), ("2+5", "lesion", ""), ("5+7", "normal", ""), ("7", "lesion", "")]
    rows += [(f"p{i}", CLASSES[i % 2], "") for i in range(10)]
    for fold in make_folds(_cohort(rows), 4, 3):
        assert len({s.split for s in fold.slides[:5]}) == 1


def test_sites_stay_together_where_asked() -> None:
    """With `by_site` a site is on one side of every fold; without, it is not."""
    rows = [(f"p{i}", CLASSES[i % 2], f"site{i // 6}") for i in range(24)]
    cohort = _cohort(rows)
    for fold in make_folds(cohort, 4, 0, by_site=True):
        for site in {s.site for s in cohort.slides}:
            assert len({s.split for s in fold.slides if s.site == site}) == 1
    mixed = make_folds(cohort, 4, 0)[0]
    assert len({s.split for s in mixed.slides if s.site == "site0"}) > 1


def test_rare_classes_are_in_every_fold() -> None:
    """Three classes, the rarest with as many patients as there are folds."""
    labels = ["a"] * 30 + ["b"] * 12 + ["c"] * 4
    cohort = _cohort([(f"p{i}", label, "") for i, label in enumerate(labels)], ("a", "b", "c"))
    folds = make_folds(cohort, 4, 5)
    for fold in folds:
        counts = {side: Counter(s.label for s in fold.of(side)) for side in ("train", "val", "test")}
        assert {side: count["c"] for side, count in counts.items()} == {"train": 2, "val": 1, "test": 1}
        assert {side: count["b"] for side, count in counts.items()} == {"train": 6, "val": 3, "test": 3}
        assert {count["a"] for count in (counts["val"], counts["test"])} <= {7, 8}
        assert sum(count.total() for count in counts.values()) == len(labels)
    assert {s.name for fold in folds for s in fold.of("test") if s.label == "c"} == {"s42", "s43", "s44", "s45"}


@pytest.mark.parametrize(
    ("cohort", "k", "by_site", "message"),
    [
        (_plain(), 2, False, "2 folds leave nothing to learn from"),
        (_plain(), 7, False, "class normal has slides of 6 patients .* take 6 folds or fewer"),
        (_cohort([("1", "normal", ""), ("1+2", "lesion", ""), ("2", "normal", "")]), 3, False, "slides of 1 patients"),
        (_cohort([(f"p{i}", CLASSES[i % 2], "") for i in range(12)]), 3, True, "12 slides have no site, first s0"),
        (_plain(), 3, True, "1 groups of patients and sites"),
    ],
)
def test_what_cannot_be_dealt_is_refused(cohort: Cohort, k: int, by_site: bool, message: str) -> None:
    """One sentence that says what was seen and what to do."""
    with pytest.raises(CohortError, match=message):
        make_folds(cohort, k, 0, by_site=by_site)
