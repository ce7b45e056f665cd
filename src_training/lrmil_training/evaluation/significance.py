"""Comparison of two methods on the same slides: DeLong's test and non-inferiority.

DeLong's test is own code: `pauc`, `rocauc_comparison` and `MLstatkit` return only a p-value, do not handle an AUROC of
exactly 0 or 1, and do not compare several methods at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrmil_training.data.patient_groups import count_units, patient_clusters
from lrmil_training.evaluation.metrics import CONFIDENCE_LEVEL, OVER_SLIDES, ScoredSlides

Float = NDArray[np.float64]
FEWEST_OF_A_CLASS = 5  # patients of each class below which resamples repeat the same few, and no bound is believed


@dataclass(frozen=True)
class AurocCovariance:
    """AUROCs of M methods on the same slides.

    Attributes
    ----------
    values
        (M,) AUROCs.
    covariance
        (M, M) covariance of the AUROCs.
    """

    values: Float
    covariance: Float


def delong_covariance(scores: Float, positive: NDArray[np.bool_]) -> AurocCovariance:
    """Return AUROCs and their covariance after DeLong et al., Biometrics 1988, by midranks (Sun & Xu, 2014).

    Parameters
    ----------
    scores
        (M, N) scores, a row per method.
    positive
        (N,) whether a slide is of the positive class. Slides must be independent.

    Raises
    ------
    ValueError
        If a class has fewer than two slides.
    """
    from scipy.stats import rankdata

    positives, negatives = scores[:, positive], scores[:, ~positive]  # (M, m), (M, n)
    m, n = positives.shape[1], negatives.shape[1]
    if min(m, n) < 2:
        raise ValueError(f"a variance needs two slides of each class, there are {m} and {n}")
    ranks = rankdata(scores, axis=1)  # midranks
    above = (ranks[:, positive] - rankdata(positives, axis=1)) / n
    below = 1 - (ranks[:, ~positive] - rankdata(negatives, axis=1)) / m
    covariance = np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n
    return AurocCovariance(above.mean(axis=1), np.asarray(covariance, dtype=np.float64))


def normal_interval(value: float, variance: float, level: float) -> tuple[float, float]:
    """Return the two-sided interval of a normally distributed estimate."""
    from scipy.stats import norm

    half_width = float(norm.ppf((1 + level) / 2)) * float(np.sqrt(variance))
    return value - half_width, value + half_width


def two_sided_p_value(z: float) -> float:
    """Return the two-sided p value of a standard normal statistic."""
    from scipy.stats import norm

    return float(2 * norm.sf(abs(z)))


NON_INFERIORITY_MARGIN = (
    0.03  # of AUROC, that a student may lie below its teacher and still be called not worse (Method 3)
)


def delong_test(a: ScoredSlides, b: ScoredSlides) -> dict[str, Any]:
    """Return AUROC of `a` minus AUROC of `b` with DeLong's interval and two-sided p; None with a reason if undefined.

    Both must have scored the same slides in the same order, each with a single model. Slides of several folds are
    scored by several models, so they cannot be ranked together.
    """
    result: dict[str, Any] = {"value": None, "low": None, "high": None, "p": None, "reason": _why_undefined(a)}
    if result["reason"]:
        return result
    scores = np.stack([a.probabilities[:, 1], b.probabilities[:, 1]])
    aurocs = delong_covariance(scores, a.targets == 1)
    if np.isin(aurocs.values, (0.0, 1.0)).any():  # perfect order: the formula's variance is 0
        return result | {"reason": "an AUROC is exactly 0 or 1, where the formula's variance is not valid"}
    value = float(aurocs.values[0] - aurocs.values[1])
    variance = float(aurocs.covariance[0, 0] + aurocs.covariance[1, 1] - 2 * aurocs.covariance[0, 1])
    if variance < 1e-12:
        return result | {"reason": "both methods rank the slides alike, which leaves no variance"}
    low, high = normal_interval(value, variance, CONFIDENCE_LEVEL)
    return result | {"value": value, "low": low, "high": high, "p": two_sided_p_value(value / variance**0.5)}


def _why_undefined(scored: ScoredSlides) -> str | None:
    """Return why DeLong's formula does not hold for these slides; None if it holds."""
    if scored.probabilities.shape[1] != 2:
        return "DeLong's test is for two classes"
    if len(set(patient_clusters(scored.patients))) < len(scored.patients):
        return "some patients have several slides, which are not independent"
    if min(np.bincount(scored.targets, minlength=2)) < 2:
        return "a class has fewer than two slides"
    return None


def smallest_class(scored: ScoredSlides) -> int:
    """Return the number of patients of the class that has the fewest; a class that is absent has none."""
    groups = [scored.targets == c for c in range(scored.probabilities.shape[1])]
    return min(count_units([scored.patients[i] for i in np.flatnonzero(rows).tolist()]) for rows in groups)


def assess_non_inferiority(paired: Mapping[str, float | None], interval: str, fewest: int) -> dict[str, Any]:
    """Return whether a method is non-inferior to the teacher: the lower bound of the difference is above −margin.

    Parameters
    ----------
    paired
        AUROC of the method minus that of the teacher, from `metrics.paired_difference`.
    interval
        `Resampler.interval`: the units that the bootstrap drew.
    fewest
        Patients of the smallest class, see `smallest_class`; below `FEWEST_OF_A_CLASS` there is no verdict.

    Returns
    -------
    dict
        ``holds`` is None without a lower bound; ``reason`` says why, or states the limits of the verdict.
    """
    low = paired["low"]
    result: dict[str, Any] = {"margin": NON_INFERIORITY_MARGIN, "low": low, "holds": None, "interval": interval}
    if low is None:
        return result | {"reason": "the paired difference has no interval"}
    if fewest < FEWEST_OF_A_CLASS:
        count = f"{fewest} test {'patient' if fewest == 1 else 'patients'}"
        return result | {"reason": f"a class has {count}; a verdict needs {FEWEST_OF_A_CLASS}"}
    if low == paired["high"]:
        return result | {"reason": "every resample has the same difference, so the interval has no width"}
    reason = "the interval is over slides: patient uncertainty not covered" if interval == OVER_SLIDES else None
    return result | {"holds": low > -NON_INFERIORITY_MARGIN, "reason": reason}
