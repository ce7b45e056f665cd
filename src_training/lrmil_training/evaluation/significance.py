"""One method against another on the same slides: DeLong's test, and whether one is not worse than the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lrmil_training.delong import delong, normal_interval, two_sided_p
from lrmil_training.metrics import LEVEL, OVER_SLIDES, Scored
from lrmil_training.patients import clusters

MARGIN = 0.03  # of AUROC, that a student may lie below its teacher and still be called not worse (docs/method.md 3)


def delong_paired(a: Scored, b: Scored) -> dict[str, Any]:
    """Return AUROC of `a` less that of `b` with DeLong's interval and two-sided p; None with a reason where undefined.

    Both must have scored the same slides in the same order, by one and the same model each: slides of several folds are
    scored by several models, and belong in no common ranking.
    """
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "p": None, "reason": _hindrance(a)}
    if found["reason"]:
        return found
    scores = np.stack([a.probabilities[:, 1], b.probabilities[:, 1]])
    both = delong(scores, a.targets == 1)
    if np.isin(both.values, (0.0, 1.0)).any():  # no pair of slides is out of order: the formula's variance is zero
        return found | {"reason": "an AUROC is exactly 0 or 1, where the formula's variance says nothing"}
    value = float(both.values[0] - both.values[1])
    variance = float(both.covariance[0, 0] + both.covariance[1, 1] - 2 * both.covariance[0, 1])
    if variance < 1e-12:
        return found | {"reason": "both methods rank the slides alike, which leaves no variance"}
    low, high = normal_interval(value, variance, LEVEL)
    return found | {"value": value, "low": low, "high": high, "p": two_sided_p(value / variance**0.5)}


def _hindrance(scored: Scored) -> str | None:
    """Return why DeLong's formula does not hold for these slides; None where it does."""
    if scored.probabilities.shape[1] != 2:
        return "DeLong's test is for two classes"
    if len(set(clusters(scored.patients))) < len(scored.patients):
        return "some patients have several slides, which are not independent"
    if min(np.bincount(scored.targets, minlength=2)) < 2:
        return "a class has fewer than two slides"
    return None


def non_inferiority(paired: Mapping[str, float | None], interval: str) -> dict[str, Any]:
    """Return whether a method is not worse than the teacher: the lower bound of the difference lies above -`MARGIN`.

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
    found: dict[str, Any] = {"margin": MARGIN, "low": low, "holds": None, "interval": interval}
    if low is None:
        return found | {"reason": "the paired difference has no interval"}
    if low == paired["high"]:
        return found | {"reason": "every resample has the same difference, so the interval has no width"}
    reason = "the interval is over slides: patient uncertainty not covered" if interval == OVER_SLIDES else None
    return found | {"holds": low > -MARGIN, "reason": reason}
