"""Cross-validation folds by patient: every slide is tested exactly once, and no patient is in two splits of a fold.

Slides that the table puts in the test split stay out, because nothing may be learned from the final test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.data.patient_groups import patient_clusters
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.formatting import format_count

MIN_FOLDS = 3  # one each for test, validation and training
MAX_ATTEMPTS = 20  # random orders to try: the library may leave a fold without a rare class


def make_folds(cohort: Cohort, k: int, seed: int, *, by_site: bool = False) -> list[Cohort]:
    """Return `k` cohorts of the same slides; cohort i tests on fold i and validates on the next fold.

    Slides in the table's own test split are in none of them; see `hold_out_test`.

    Parameters
    ----------
    cohort
        The slides. Apart from a fixed test split, its splits do not matter.
    k
        Number of folds, at least three.
    seed
        Seed of the assignment.
    by_site
        Keep the slides of a site together too, so that every test slide is from a site that training has not seen.

    Raises
    ------
    CohortError
        If a class has too few patients, or sites, for every fold to have one.
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


def make_inner_folds(cohort: Cohort, k: int, seed: int, *, by_site: bool = False) -> list[Cohort]:
    """Return `k` cohorts of the training and validation slides; cohort i validates on fold i, and trains on others.

    Test slides are in none of them. Patients, and sites if asked for, are kept together.

    Raises
    ------
    CohortError
        If a class has fewer independent patients, or sites, than folds.
    """
    cohort = replace(cohort, slides=tuple(s for s in cohort.slides if s.split in ("train", "val")))
    groups = _groups(cohort, by_site)
    _require_groups(cohort, groups, k, by_site, inner=True)
    fold = _assign_folds(cohort, groups, k, seed)
    return [
        replace(
            cohort,
            slides=tuple(
                replace(s, split="val" if f == i else "train") for s, f in zip(cohort.slides, fold, strict=True)
            ),
        )
        for i in range(k)
    ]


def require_inner_folds(cohort: Cohort, k: int, seed: int, *, by_site: bool = False) -> None:
    """Raise `CohortError` if training and validation cannot be dealt into `k` inner folds; 0 needs none."""
    if k:
        make_inner_folds(cohort, k, seed, by_site=by_site)


def hold_out_test(cohort: Cohort) -> tuple[CohortSlide, ...]:
    """Return the slides that stay out of folds: the test split, if the table states one."""
    return cohort.of("test") if cohort.fixed else ()


def _groups(cohort: Cohort, by_site: bool) -> list[str]:
    patients = [s.patient for s in cohort.slides]
    if not by_site:
        return patient_clusters(patients)
    without_site = [s.name for s in cohort.slides if not s.site]
    if without_site:
        raise CohortError(
            cohort.path,
            f"{format_count(len(without_site), 'slide has', 'slides have')} no site, "
            f"first {without_site[0]}; fill in that column, "
            "or do not deal by site",
        )
    return patient_clusters(patients, [s.site for s in cohort.slides])


def _require_groups(cohort: Cohort, groups: Sequence[str], k: int, by_site: bool, *, inner: bool = False) -> None:
    unit = "groups of patients and sites" if by_site else "patients"
    for label in cohort.classes if cohort.is_labelled else ("",):
        of_class = {group for group, s in zip(groups, cohort.slides, strict=True) if s.label == label}
        if len(of_class) < k and inner:
            fewer = f"set selection.inner_folds={len(of_class)} or less" if len(of_class) > 1 else "set inner_folds=0"
            raise CohortError(
                cohort.path,
                f"class {label} has training and validation slides of {len(of_class)} {unit} that share nothing with "
                f"each other, too few for {k} inner folds; {fewer}, or add patients",
            )
        if len(of_class) < k:
            what = f"class {label}" if label else "the cohort"
            raise CohortError(
                cohort.path,
                f"{what} has slides of {len(of_class)} {unit} that share nothing with each other, "
                f"too few for {k} folds; take {len(of_class)} folds or fewer, or add patients",
            )


def _assign_folds(cohort: Cohort, groups: Sequence[str], k: int, seed: int) -> NDArray[np.int64]:
    """Return the (N,) fold of each slide, with every class in every fold.

    `StratifiedGroupKFold` balances the shares of slides, not of groups, so a fold can lack a rare class: then another
    order is tried.
    """
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
    splits: Mapping[int, str] = {i: "test", (i + 1) % k: "val"}
    slides = (replace(s, split=splits.get(int(f), "train")) for s, f in zip(cohort.slides, fold, strict=True))
    return replace(cohort, slides=tuple(slides))
