"""K folds of a cohort by patient: every slide is tested exactly once, and no patient is on two sides of a fold.

A test side that the table fixes stays out: what was put aside for a last measurement is not to be learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.data.patient_groups import patient_clusters
from napari_lrmil.core.errors import CohortError

MIN_FOLDS = 3  # one to test, one to select, one to learn from
MAX_ATTEMPTS = 20  # orders that are dealt before we say that no fold division holds every class everywhere


def make_folds(cohort: Cohort, k: int, seed: int, *, by_site: bool = False) -> list[Cohort]:
    """Return `k` cohorts of the same slides: fold i is the test side of the i-th, the next fold its validation side.

    Slides that the table itself puts on the test side are in none of them; see `hold_out_test`.

    Parameters
    ----------
    cohort
        What to deal; beyond a fixed test side its own splits do not matter.
    k
        How many folds, three at least.
    seed
        Fixes who is in which fold.
    by_site
        Whether slides of one site stay together as well, so that every site is met for the first time when tested.

    Raises
    ------
    CohortError
        Where there are too few patients, or sites, of a class for every fold to have one.
    """
    if k < MIN_FOLDS:
        raise CohortError(
            cohort.path,
            f"{k} folds leave nothing to learn from; take {MIN_FOLDS} or more, or the table's fixed split",
        )
    cohort = cohort.without({s.name for s in hold_out_test(cohort)})
    groups = _groups(cohort, by_site)
    _require_groups(cohort, groups, k, by_site)
    fold = _assign_folds(cohort, groups, k, seed)
    return [_fold_cohort(cohort, fold, i, k) for i in range(k)]


def hold_out_test(cohort: Cohort) -> tuple[CohortSlide, ...]:
    """Return the slides that stay out of folds: the test side, where the table fixes one."""
    return cohort.of("test") if cohort.fixed else ()


def _groups(cohort: Cohort, by_site: bool) -> list[str]:
    patients = [s.patient for s in cohort.slides]
    if not by_site:
        return patient_clusters(patients)
    nameless = [s.name for s in cohort.slides if not s.site]
    if nameless:
        raise CohortError(
            cohort.path,
            f"{len(nameless)} slides have no site, first {nameless[0]}; fill in that column, or do not deal by site",
        )
    return patient_clusters(patients, [s.site for s in cohort.slides])


def _require_groups(cohort: Cohort, groups: Sequence[str], k: int, by_site: bool) -> None:
    what = "groups of patients and sites" if by_site else "patients"
    for label in cohort.classes:
        its = {group for group, s in zip(groups, cohort.slides, strict=True) if s.label == label}
        if len(its) < k:
            raise CohortError(
                cohort.path,
                f"class {label} has slides of {len(its)} {what} that share nothing with each other, too few for {k} "
                f"folds; take {len(its)} folds or fewer, or add patients",
            )


def _assign_folds(cohort: Cohort, groups: Sequence[str], k: int, seed: int) -> NDArray[np.int64]:
    """Return (N,) the fold of each slide, every class in every fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    targets = np.array([cohort.target(s) for s in cohort.slides])
    for attempt in range(
        MAX_ATTEMPTS
    ):  # the library balances shares of slides, and may leave a fold without a rare class
        order = int(np.random.default_rng([seed, attempt]).integers(2**31))
        splitter = StratifiedGroupKFold(k, shuffle=True, random_state=order)
        fold = np.empty(len(targets), dtype=np.int64)
        for i, (_, test) in enumerate(splitter.split(np.zeros(len(targets)), targets, list(groups))):
            fold[test] = i
        if all(set(targets[fold == i]) == set(targets) for i in range(k)):
            return fold
    raise CohortError(
        cohort.path, f"no way was found to deal {k} folds that all hold every class; take fewer folds, or add patients"
    )


def _fold_cohort(cohort: Cohort, fold: NDArray[np.int64], i: int, k: int) -> Cohort:
    side: Mapping[int, str] = {i: "test", (i + 1) % k: "val"}
    slides = (replace(s, split=side.get(int(f), "train")) for s, f in zip(cohort.slides, fold, strict=True))
    return replace(cohort, slides=tuple(slides))
