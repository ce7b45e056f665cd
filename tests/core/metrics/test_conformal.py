"""Conformal sets: scores and thresholds by hand, and coverage over simulated calibration sets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from napari_lrmil.core.metrics.conformal import aps_scores, conformal_threshold, fewest_patients, prediction_sets

PROBABILITIES = np.array([[0.5, 0.2, 0.3], [0.1, 0.85, 0.05], [0.4, 0.4, 0.2]])


def test_scores_by_hand() -> None:
    """The sum of the probabilities of the classes that rank before; of equal ones the first ranks before."""
    expected = [[0, 0.8, 0.5], [0.85, 0, 0.95], [0, 0.4, 0.8]]
    assert aps_scores(PROBABILITIES) == pytest.approx(np.array(expected))


def test_sets_by_hand() -> None:
    sets = prediction_sets(PROBABILITIES, 0.5).tolist()
    assert sets == [[True, False, True], [False, True, False], [True, True, False]]
    assert prediction_sets(PROBABILITIES, 0.0).sum(axis=1).tolist() == [1, 1, 1]  # never empty


def test_the_threshold_is_the_quantile_of_the_finite_sample() -> None:
    """Of 19 slides the ceil(20 x 0.9) = 18th smallest score; of 9 the largest; of 8 there is none."""
    scores = [0.01 * i for i in range(1, 20)]
    assert conformal_threshold(scores[::-1], range(19), 0.9) == pytest.approx(0.18)
    assert conformal_threshold(scores[:9], range(9), 0.9) == pytest.approx(0.09)
    assert conformal_threshold(scores[:8], range(8), 0.9) is None
    assert conformal_threshold(scores[:8], range(8), 0.5) == pytest.approx(0.05)


@pytest.mark.parametrize(("coverage", "patients"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_fewest_patients(coverage: float, patients: int) -> None:
    assert fewest_patients(coverage) == patients
    assert conformal_threshold([0.1] * patients, range(patients), coverage) is not None
    assert conformal_threshold([0.1] * (patients - 1), range(patients - 1), coverage) is None


def test_a_patient_with_many_slides_weighs_as_much_as_one_with_one() -> None:
    """Nine patients; the hundred high scores of one of them are a ninth of the weight, not most of it."""
    scores = [0.0] * 8 + [0.7] * 100
    assert conformal_threshold(scores, [*range(8), *[8] * 100], 0.8) == 0.0
    assert conformal_threshold(scores, range(108), 0.8) == 0.7
    assert conformal_threshold([0.7] * 100, [0] * 100, 0.9) is None  # one patient, however many slides


@pytest.mark.parametrize("classes", [2, 4])
def test_coverage_of_exchangeable_slides(classes: int) -> None:
    """Over many draws the sets hold the truth at least as often as stated, by a bound on binomial luck."""
    rng, runs, n, coverage = np.random.default_rng(7), 4000, 30, 0.9
    hits = 0
    for _ in range(runs):
        logits = rng.normal(size=(n + 1, classes))
        truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # drawn from the softmax
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        scores = aps_scores(shares[:n])[np.arange(n), truth[:n]]
        threshold = conformal_threshold(scores.tolist(), range(n), coverage)
        assert threshold is not None
        hits += bool(prediction_sets(shares[n:], threshold)[0, truth[n]])
    assert hits >= binom.ppf(0.001, runs, coverage)
    # Scores are continuous but for those of right slides, so that there is no more coverage than one slide in n.
    assert hits <= binom.ppf(0.999, runs, coverage + 1 / (n + 1))
