"""Figures against hand-computed values and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from lrmil_training.metrics import (
    OVER_PATIENTS,
    OVER_SLIDES,
    Resampler,
    Scored,
    auroc_with_interval,
    calibration_error,
    classification,
    fit_temperature,
    paired_difference,
    ranking_auroc,
)


def _scored(n: int = 40, signal: float = 1.5, seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 2
    margin = signal * targets + rng.standard_normal(n)
    p = 1 / (1 + np.exp(-margin))
    return Scored(np.stack([1 - p, p], axis=1), targets, tuple(f"p{i // 2 * 2 + i % 2}" for i in range(n)))


def test_auroc_is_sklearns_for_two_and_three_classes() -> None:
    """Ranks with ties and one-against-rest means agree with the library's."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    targets = rng.integers(3, size=60)
    scores = np.round(rng.random((60, 3)) + 0.4 * np.eye(3)[targets], 1)
    p = scores / scores.sum(axis=1, keepdims=True)
    assert ranking_auroc(p, targets) == pytest.approx(roc_auc_score(targets, p, multi_class="ovr"))
    two = _scored()
    assert ranking_auroc(two.probabilities, two.targets) == pytest.approx(
        roc_auc_score(two.targets, two.probabilities[:, 1])
    )


def test_interval_holds_the_value_and_says_what_it_is_over() -> None:
    """Enough patients of each class: over patients; few: over slides, and it says so."""
    scored = _scored()
    found = auroc_with_interval(scored, Resampler(scored.targets, scored.patients, 300))
    assert found["low"] < found["value"] < found["high"]
    assert found["interval"] == OVER_PATIENTS
    few = Resampler(scored.targets, ["2+5+12"] * 20 + ["3"] * 20, 100)
    assert few.interval == OVER_SLIDES


def test_bootstrap_draws_whole_patients() -> None:
    """Two slides of one patient are drawn together or not at all."""
    targets = np.repeat([0, 1], 12)
    patients = [f"p{i // 2}" for i in range(24)]
    for rows in Resampler(targets, patients, 50).draws:
        counts = np.bincount(rows, minlength=24)
        assert (counts[0::2] == counts[1::2]).all()
        assert (targets[rows] == 1).sum() == 12


def test_interval_of_perfect_separation_is_a_point() -> None:
    """An AUROC of exactly 1 has the bootstrap interval 1 to 1, not an error."""
    scored = _scored(signal=50.0)
    found = auroc_with_interval(scored, Resampler(scored.targets, scored.patients, 100))
    assert (found["value"], found["low"], found["high"]) == (1.0, 1.0, 1.0)


def test_paired_difference_is_narrower_than_the_difference_of_intervals() -> None:
    """The same slides are drawn for both methods: a method against itself differs by exactly nothing."""
    a, b = _scored(signal=1.5), _scored(signal=0.5)
    resampler = Resampler(a.targets, a.patients, 200)
    assert paired_difference(a, a, resampler) == {"value": 0.0, "low": 0.0, "high": 0.0}
    found = paired_difference(a, b, resampler)
    assert found["value"] is not None and found["value"] > 0


def test_calibration_error_by_hand() -> None:
    """Ten slides at 0.8, of which six are right: one bin's gap of 0.2 in every bin order."""
    p = np.tile([0.2, 0.8], (10, 1))
    targets = np.array([1] * 6 + [0] * 4)
    assert calibration_error(p[:1], targets[:1]) == pytest.approx(0.2)
    assert calibration_error(p, targets) == pytest.approx(6 / 10 * 0.2 + 4 / 10 * 0.8)


def test_brier_and_accuracy_by_hand() -> None:
    """Two slides at 0.8: one right (0.08), one wrong (1.28): mean 0.68, balanced accuracy 0.5."""
    found = classification(Scored(np.array([[0.2, 0.8], [0.2, 0.8]]), np.array([1, 0]), ("a", "b")), ("n", "l"))
    assert found["brier"] == pytest.approx(0.68)
    assert found["balanced_accuracy"] == pytest.approx(0.5)
    assert found["per_class"]["n"]["recall"] == 0.0
    assert found["per_class"]["n"]["precision"] is None  # nothing was called n: undefined, not 0


def test_temperature_undoes_overconfidence() -> None:
    """Logits blown up by 3 get a temperature about 3 times that of the honest ones."""
    rng = np.random.default_rng(0)
    p = rng.random(4000)
    targets = (rng.random(4000) < p).astype(int)
    logits = np.stack([np.zeros(4000), np.log(p / (1 - p))], axis=1)
    assert fit_temperature(logits, targets) == pytest.approx(1.0, rel=0.1)
    assert fit_temperature(3 * logits, targets) == pytest.approx(3.0, rel=0.1)


def test_temperature_is_not_told_by_few_or_faultless_slides() -> None:
    """Five slides, or logits that separate the classes without an error, leave a model uncalibrated."""
    targets = np.arange(40) % 2
    apart = np.stack([np.zeros(40), np.where(targets == 1, 3.0, -3.0)], axis=1)
    assert fit_temperature(apart, targets) is None
    assert fit_temperature(apart[:5], targets[:5]) is None
