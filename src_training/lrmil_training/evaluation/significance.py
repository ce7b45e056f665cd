"""One method against another on the same slides: DeLong's test, and whether one is not worse than the other.

DeLong's test is own code: `pauc`, `rocauc_comparison` and `MLstatkit` return only a p-value, do not handle an AUROC of
exactly 0 or 1, and do not compare several methods at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrmil_training.data.patient_groups import patient_clusters
from lrmil_training.evaluation.metrics import CONFIDENCE_LEVEL, OVER_SLIDES, ScoredSlides

Float = NDArray[np.float64]


@dataclass(frozen=True)
class AurocCovariance:
    """AUROCs of several scores of the same slides: (M,) values and their (M, M) covariance."""

    values: Float
    covariance: Float


def delong_covariance(scores: Float, positive: NDArray[np.bool_]) -> AurocCovariance:
    """Return AUROCs and their covariance.

    Parameters
    ----------
    scores
        (M, N), a row per method.
    positive
        (N,) whether a slide is of the class; at least two are and two are not, and slides are independent.
    """
    from scipy.stats import rankdata

    ours, others = scores[:, positive], scores[:, ~positive]  # (M, m), (M, n)
    m, n = ours.shape[1], others.shape[1]
    if min(m, n) < 2:
        raise ValueError(f"a variance needs two slides on either side, there are {m} and {n}")
    ranks = rankdata(scores, axis=1)  # midranks
    above = (ranks[:, positive] - rankdata(ours, axis=1)) / n
    below = 1 - (ranks[:, ~positive] - rankdata(others, axis=1)) / m
    covariance = np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n
    return AurocCovariance(above.mean(axis=1), np.asarray(covariance, dtype=np.float64))


def normal_interval(value: float, variance: float, level: float) -> tuple[float, float]:
    """Return the two-sided interval of a normal figure."""
    from scipy.stats import norm

    half = float(norm.ppf((1 + level) / 2)) * float(np.sqrt(variance))
    return value - half, value + half


def two_sided_p_value(z: float) -> float:
    """Return the probability of a standard normal figure at least as far from 0."""
    from scipy.stats import norm

    return float(2 * norm.sf(abs(z)))


NON_INFERIORITY_MARGIN = (
    0.03  # of AUROC, that a student may lie below its teacher and still be called not worse (Method 3)
)


def delong_test(a: ScoredSlides, b: ScoredSlides) -> dict[str, Any]:
    """Return AUROC of `a` less that of `b` with DeLong's interval and two-sided p; None with a reason where undefined.

    Both must have scored the same slides in the same order, by one and the same model each: slides of several folds are
    scored by several models, and belong in no common ranking.
    """
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "p": None, "reason": _why_undefined(a)}
    if found["reason"]:
        return found
    scores = np.stack([a.probabilities[:, 1], b.probabilities[:, 1]])
    both = delong_covariance(scores, a.targets == 1)
    if np.isin(both.values, (0.0, 1.0)).any():  # no pair of slides is out of order: the formula's variance is zero
        return found | {"reason": "an AUROC is exactly 0 or 1, where the formula's variance says nothing"}
    value = float(both.values[0] - both.values[1])
    variance = float(both.covariance[0, 0] + both.covariance[1, 1] - 2 * both.covariance[0, 1])
    if variance < 1e-12:
        return found | {"reason": "both methods rank the slides alike, which leaves no variance"}
    low, high = normal_interval(value, variance, CONFIDENCE_LEVEL)
    return found | {"value": value, "low": low, "high": high, "p": two_sided_p_value(value / variance**0.5)}


def _why_undefined(scored: ScoredSlides) -> str | None:
    """Return why DeLong's formula does not hold for these slides; None where it does."""
    if scored.probabilities.shape[1] != 2:
        return "DeLong's test is for two classes"
    if len(set(patient_clusters(scored.patients))) < len(scored.patients):
        return "some patients have several slides, which are not independent"
    if min(np.bincount(scored.targets, minlength=2)) < 2:
        return "a class has fewer than two slides"
    return None


def assess_non_inferiority(paired: Mapping[str, float | None], interval: str) -> dict[str, Any]:
    """Test that a method is not worse than the teacher: the lower bound of the difference is above the margin.

    Parameters
    ----------
    paired
        The method's AUROC less the teacher's with its bounds, as `metrics.paired_difference` returns it.
    interval
        What the bootstrap was over.

    Returns
    -------
    dict
        ``holds`` is None where no lower bound can be told; ``reason`` says why, or what the verdict leaves out.
    """
    low = paired["low"]
    found: dict[str, Any] = {"margin": NON_INFERIORITY_MARGIN, "low": low, "holds": None, "interval": interval}
    if low is None:
        return found | {"reason": "the paired difference has no interval"}
    if low == paired["high"]:
        return found | {"reason": "every resample has the same difference, so the interval has no width"}
    reason = "the interval is over slides: patient uncertainty not covered" if interval == OVER_SLIDES else None
    return found | {"holds": low > -NON_INFERIORITY_MARGIN, "reason": reason}
