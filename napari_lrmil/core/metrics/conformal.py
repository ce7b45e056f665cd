"""Split conformal prediction: sets of classes that hold the true one with a stated probability.

The scores are adaptive prediction sets (APS; Romano, Sesia and Candès, *Classification with valid and adaptive
coverage*, NeurIPS 2020), in their variant without a random number. The set is then never empty and the same in every
call. The price: a model that errs on fewer slides than the stated share has more coverage than stated.

Slides of one patient are not exchangeable with slides of another. Each patient therefore has the same weight, shared by
its slides (Lee, Barber and Willett, *Distribution-free inference with hierarchical data*, 2023). With one slide of each
patient this is the usual quantile, the ceil((n + 1)(1 - alpha))-th smallest score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

TOLERANCE = 1e-9  # of shares that are compared: 1 / (n + 1) has no exact number


def aps_scores(probabilities: Float) -> Float:
    """Return the score of each class: the sum of the probabilities of the classes that rank before it.

    Parameters
    ----------
    probabilities
        (N, C), rows sum to 1. Of equal classes the first ranks before.

    Returns
    -------
    ndarray
        (N, C), 0 for the most probable class.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    before = np.zeros_like(ranked)
    before[:, 1:] = np.cumsum(ranked, axis=1)[:, :-1]
    scores = np.empty_like(before)
    np.put_along_axis(scores, order, before, axis=1)
    return scores


def conformal_threshold(scores: Sequence[float], patients: Sequence[int], coverage: float) -> float | None:
    """Return the score up to which classes are in a set; None if there are too few patients for this coverage.

    Parameters
    ----------
    scores
        (n,) scores of the true classes of the calibration slides.
    patients
        (n,) number of each slide's patient, or of the patients that share slides.
    coverage
        Probability that a set holds the true class, between 0 and 1.
    """
    _, patient, slides = np.unique(np.asarray(patients, np.int64), return_inverse=True, return_counts=True)
    # The new slide's patient is one more, and its score may be above all others.
    weights = 1 / ((len(slides) + 1) * slides[patient])
    order = np.argsort(scores, kind="stable")
    reached = np.flatnonzero(np.cumsum(weights[order]) >= coverage - TOLERANCE)
    return float(np.asarray(scores)[order][reached[0]]) if len(reached) else None


def fewest_patients(coverage: float) -> int:
    """Return the smallest number of calibration patients for which a set of this coverage exists."""
    return math.ceil(coverage / (1 - coverage) - TOLERANCE)


def prediction_sets(probabilities: Float, threshold: float) -> NDArray[np.bool_]:
    """Return (N, C) whether a class is in the set of a slide; the most probable class always is."""
    return np.asarray(aps_scores(probabilities) <= threshold + TOLERANCE)
