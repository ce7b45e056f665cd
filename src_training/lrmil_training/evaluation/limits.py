"""Limits of a model: operating point from validation, conformal scores from the calibration split, and their figures.

Intervals are Wilson's, which hold where every slide is right. They count patients: a share of slides is taken as if
each patient had one slide (`count_units`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrmil_training.data.patient_groups import count_units, patient_clusters
from lrmil_training.evaluation.metrics import CONFIDENCE_LEVEL, ScoredSlides
from napari_lrmil.core.metrics.conformal import aps_scores, conformal_threshold, fewest_patients, prediction_sets
from napari_lrmil.core.models.limits import (
    NO_CALIBRATION_SPLIT,
    SET_COVERAGE,
    ConformalScores,
    NetworkLimits,
    OperatingPoint,
)

Float = NDArray[np.float64]
Flags = NDArray[np.bool_]
WILSON = "Wilson, over patients"
TOLERANCE = 1e-9  # of shares that are compared: 0.95 of 20 slides has no exact number


# ---------------------------------------------------------------- fitting


def fit_limits(
    val: ScoredSlides, calibration: ScoredSlides | None, classes: Sequence[str], sensitivity: float | None
) -> NetworkLimits:
    """Return the limits of one method.

    Parameters
    ----------
    val
        Calibrated probabilities of the validation slides, from which the operating point is chosen.
    calibration
        Those of the calibration split; None if the run has none.
    classes
        Class names.
    sensitivity
        Sensitivity that the operating point must reach; None for Youden's index.
    """
    point, no_point = _fit_operating_point(val, classes, sensitivity)
    conformal, no_sets = _fit_conformal(calibration)
    return NetworkLimits(operating_point=point, no_operating_point=no_point, conformal=conformal, no_conformal=no_sets)


def _fit_operating_point(
    val: ScoredSlides, classes: Sequence[str], sensitivity: float | None
) -> tuple[OperatingPoint | None, str]:
    """Return the operating point and an empty text, or None and why there is none."""
    if len(classes) != 2:
        return None, f"the model has {len(classes)} classes, and a threshold parts two"
    is_positive, scores = val.targets == 1, val.probabilities[:, 1]
    if is_positive.all() or not is_positive.any():
        return None, "the validation slides are of one class"
    threshold = choose_threshold(scores, is_positive, sensitivity)
    if threshold is None:
        return None, "no threshold parts the validation slides better than chance"
    rule = "Youden's index" if sensitivity is None else f"sensitivity {sensitivity:g}"
    return OperatingPoint(
        positive=classes[1],
        threshold=threshold,
        rule=rule,
        sensitivity=float((scores[is_positive] >= threshold).mean()),
        specificity=float((scores[~is_positive] < threshold).mean()),
        positives=int(is_positive.sum()),
        negatives=int((~is_positive).sum()),
    ), ""


def choose_threshold(scores: Float, is_positive: Flags, sensitivity: float | None) -> float | None:
    """Return the score from which on a slide counts as positive, halfway between two slides.

    Parameters
    ----------
    scores
        (N,) probability of the positive class.
    is_positive
        (N,) truth; both classes must occur.
    sensitivity
        The highest threshold that reaches this sensitivity is chosen. None: that with the largest sum of sensitivity
        and specificity, of equal ones the most sensitive; None is returned if no threshold is better than chance.
    """
    values = np.unique(scores)  # ascending; a slide is positive from its value on
    reached = np.array([(scores[is_positive] >= value).mean() for value in values])
    false = np.array([(scores[~is_positive] >= value).mean() for value in values])
    if sensitivity is None:
        index = int(np.argmax(np.round(reached - false, 12)))
        if reached[index] - false[index] <= TOLERANCE:
            return None
    else:
        index = int(np.flatnonzero(reached >= sensitivity - TOLERANCE)[-1])
    below = values[index - 1] if index else 0.0
    halfway = (below + values[index]) / 2
    return float(halfway if below < halfway else values[index])


def _fit_conformal(calibration: ScoredSlides | None) -> tuple[ConformalScores | None, str]:
    """Return the scores, and why they give no set at `SET_COVERAGE`; empty if they do."""
    if calibration is None:
        return None, NO_CALIBRATION_SPLIT
    scores = aps_scores(calibration.probabilities)[np.arange(len(calibration.targets)), calibration.targets]
    clusters = patient_clusters(calibration.patients)
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    order = np.argsort(scores, kind="stable").tolist()
    conformal = ConformalScores(
        scores=tuple(min(float(scores[i]), 1.0) for i in order), patients=tuple(number[clusters[i]] for i in order)
    )
    needed = fewest_patients(SET_COVERAGE)
    if conformal.n_patients >= needed:
        return conformal, ""
    return (
        conformal,
        f"{conformal.n_patients} calibration patients are too few for {100 * SET_COVERAGE:g} %; {needed} are needed",
    )


# ---------------------------------------------------------------- figures


def measure_limits(
    scored: ScoredSlides,
    limits: NetworkLimits,
    classes: Sequence[str],
    *,
    chosen_here: bool = False,
    level: str = "slide",
) -> dict[str, Any]:
    """Return ``operating_point`` and ``prediction_sets`` of ``metrics.json``: figures, or a reason.

    Parameters
    ----------
    scored
        Calibrated probabilities of the slides of one split, or of its patients.
    limits
        Limits of the method.
    classes
        Class names.
    chosen_here
        Whether the operating point was chosen on these slides, so that its figures are too good.
    level
        ``patient`` if the rows of `scored` are patients, each with all its slides; the entries then say so.
    """
    marked = {"level": level} if level == "patient" else {}
    return {
        "operating_point": _measure_point(scored, limits, chosen_here) | marked,
        "prediction_sets": _measure_sets(scored, limits, classes) | marked,
    }


def _measure_point(scored: ScoredSlides, limits: NetworkLimits, chosen_here: bool) -> dict[str, Any]:
    point = limits.operating_point
    if point is None:
        return {"reason": limits.no_operating_point}
    is_positive, reached = scored.targets == 1, scored.probabilities[:, 1] >= point.threshold
    return {
        "positive": point.positive,
        "threshold": point.threshold,
        "rule": point.rule,
        "chosen_here": chosen_here,
        "sensitivity": share_with_interval(reached, is_positive, scored.patients),
        "specificity": share_with_interval(~reached, ~is_positive, scored.patients),
        "interval": WILSON,
    }


def _measure_sets(scored: ScoredSlides, limits: NetworkLimits, classes: Sequence[str]) -> dict[str, Any]:
    conformal = limits.conformal
    if conformal is None:
        return {"reason": limits.no_conformal}
    threshold = conformal_threshold(conformal.scores, conformal.patients, SET_COVERAGE)
    if not len(scored.targets):
        return {"reason": "every patient has slides of several labels"}
    if threshold is None:
        return {"reason": limits.no_conformal}
    sets = prediction_sets(scored.probabilities, threshold)
    is_covered, sizes = sets[np.arange(len(sets)), scored.targets], sets.sum(axis=1)
    return {
        "coverage": SET_COVERAGE,
        "calibration_slides": len(conformal.scores),
        "calibration_patients": conformal.n_patients,
        "empirical": share_with_interval(is_covered, np.ones(len(sets), np.bool_), scored.patients),
        "by_class": {
            name: share_with_interval(is_covered, scored.targets == c, scored.patients)
            for c, name in enumerate(classes)
        },
        "mean_size": float(sizes.mean()),
        "singletons": float((sizes == 1).mean()),
        "interval": WILSON,
    }


def share_with_interval(hits: Flags, rows: Flags, patients: Sequence[str]) -> dict[str, Any]:
    """Return the share of hits among some slides, with Wilson's interval over their independent patients.

    Parameters
    ----------
    hits
        (N,) whether each slide counts.
    rows
        (N,) the slides to take.
    patients
        (N,) patient of each slide.
    """
    n_slides = int(rows.sum())
    if n_slides == 0:
        return {"value": None, "low": None, "high": None, "n_slides": 0, "n_clusters": 0}
    value = float(hits[rows].mean())
    n_clusters = count_units([patients[i] for i in np.flatnonzero(rows).tolist()])
    low, high = wilson_interval(value, n_clusters)
    return {"value": value, "low": low, "high": high, "n_slides": n_slides, "n_clusters": n_clusters}


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's interval at `CONFIDENCE_LEVEL` of a share of `n` independent draws."""
    from scipy.special import ndtri

    z2 = float(ndtri((1 + CONFIDENCE_LEVEL) / 2)) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (share * (1 - share) / n + z2 / (4 * n**2))) ** 0.5 / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)
