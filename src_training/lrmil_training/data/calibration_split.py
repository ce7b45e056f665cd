"""Calibration split: training patients that neither training, selection nor temperature sees, for conformal scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lrmil_training.data.cohort import CALIBRATION, Cohort
from lrmil_training.data.patient_groups import patient_clusters
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.metrics.conformal import fewest_patients
from napari_lrmil.core.models.limits import SET_COVERAGE


def set_calibration_aside(cohort: Cohort, share: float, seed: int) -> Cohort:
    """Return the cohort with a share of its training patients in the split ``calibration``, stratified by label.

    Patients that a pseudo-patient such as ``2+5`` links go together. Validation and test slides stay as they are.

    Parameters
    ----------
    cohort
        Slides with their splits.
    share
        Share of the training patients of each class, rounded to whole patients; 0 returns the cohort unchanged.
    seed
        Seed of the draw.

    Raises
    ------
    CohortError
        If the share is no patient at all, or leaves a class without a training patient.
    """
    if share == 0:
        return cohort
    train = cohort.of("train")
    groups = patient_clusters([s.patient for s in train])
    label = {group: s.label for group, s in zip(groups, train, strict=True)}
    rng, aside = np.random.default_rng([seed, *b"calibration"]), set[str]()
    for name in cohort.classes:
        # Sorted, so that the draw does not depend on the order of rows.
        of_class = sorted(group for group, class_name in label.items() if class_name == name)
        count = int(share * len(of_class) + 0.5)
        if of_class and count == len(of_class):
            raise _share_error(cohort, share, f"leaves class {name} without a training patient", of_class)
        aside |= {of_class[i] for i in rng.permutation(len(of_class))[:count]}
    if not aside:
        raise _share_error(cohort, share, "is no patient of any class", sorted(label))
    names = {s.name for s, group in zip(train, groups, strict=True) if group in aside}
    slides = (replace(s, split=CALIBRATION) if s.name in names else s for s in cohort.slides)
    return _with_notice(replace(cohort, slides=tuple(slides)), len(aside))


def _share_error(cohort: Cohort, share: float, problem: str, patients: list[str]) -> CohortError:
    return CohortError(
        cohort.path,
        f"split.calibration={share:g} of {len(patients)} training patients {problem}; choose another share, 0 for no "
        "calibration split, or add patients",
    )


def _with_notice(cohort: Cohort, n_patients: int) -> Cohort:
    """Return the cohort with a notice if its calibration patients are too few for the sets of a prediction."""
    needed = fewest_patients(SET_COVERAGE)
    if n_patients >= needed:
        return cohort
    notice = (
        f"the calibration split has {n_patients} patients, and sets at {100 * SET_COVERAGE:g} % coverage need "
        f"{needed}: predictions will have none; raise split.calibration or add patients"
    )
    return replace(cohort, notices=(*cohort.notices, notice))
