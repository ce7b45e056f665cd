"""DeLong's variance of AUROCs measured on the same slides, by midranks.

DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988), as Sun & Xu compute it (IEEE Signal Process. Lett. 21, 2014).
With m slides X of the class and n slides Y of the others, a score's components are the shares of the other side that
each slide stands above (ties count half):

    V10(X_i) = (R(X_i) - R_X(X_i)) / n        V01(Y_j) = 1 - (R(Y_j) - R_Y(Y_j)) / m

where R are midranks among all slides and R_X, R_Y among their own side. The AUROC is the mean of V10; the covariance
of several AUROCs is S10 / m + S01 / n with S10, S01 the sample covariances of the components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Aurocs:
    """AUROCs of several scores of the same slides: (M,) values and their (M, M) covariance."""

    values: Float
    covariance: Float


def delong(scores: Float, positive: NDArray[np.bool_]) -> Aurocs:
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
    return Aurocs(above.mean(axis=1), np.asarray(covariance, dtype=np.float64))


def normal_interval(value: float, variance: float, level: float) -> tuple[float, float]:
    """Return the two-sided interval of a normal figure."""
    from scipy.stats import norm

    half = float(norm.ppf((1 + level) / 2)) * float(np.sqrt(variance))
    return value - half, value + half


def two_sided_p(z: float) -> float:
    """Return the probability of a standard normal figure at least as far from 0."""
    from scipy.stats import norm

    return float(2 * norm.sf(abs(z)))
