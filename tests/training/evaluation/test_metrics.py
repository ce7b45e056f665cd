"""Figures against hand-computed values and against scikit-learn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_training.evaluation.metrics import (
    MIN_CALIBRATION_SLIDES,
    MIN_PATIENTS_PER_CLASS,
    OVER_PATIENTS,
    OVER_SLIDES,
    Resampler,
    ScoredSlides,
    auroc_with_interval,
    calibration_error,
    classification_metrics,
    fit_temperature,
    multiclass_auroc,
    paired_difference,
    percentile_interval,
    reliability_bins,
)
from lrmil_training.evaluation.significance import (
    NON_INFERIORITY_MARGIN,
    assess_non_inferiority,
    delong_covariance,
    delong_test,
    smallest_class,
)


def _scored(n: int = 40, signal: float = 1.5, seed: int = 0) -> ScoredSlides:
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 2
    margin = signal * targets + rng.standard_normal(n)
    p = 1 / (1 + np.exp(-margin))
    return ScoredSlides(np.stack([1 - p, p], axis=1), targets, tuple(f"p{i // 2 * 2 + i % 2}" for i in range(n)))


def test_auroc_is_sklearns_for_two_and_three_classes() -> None:
    """Ranks with ties and one-against-rest means agree with the library's."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    targets = rng.integers(3, size=60)
    scores = np.round(rng.random((60, 3)) + 0.4 * np.eye(3)[targets], 1)
    p = scores / scores.sum(axis=1, keepdims=True)
    assert multiclass_auroc(p, targets) == pytest.approx(roc_auc_score(targets, p, multi_class="ovr"))
    two = _scored()
    assert multiclass_auroc(two.probabilities, two.targets) == pytest.approx(
        roc_auc_score(two.targets, two.probabilities[:, 1])
    )


def test_an_auroc_without_one_of_three_classes_is_undefined_and_says_why() -> None:
    """Also where the two others are told apart: a mean over fewer classes would be another figure."""
    targets = np.arange(12) % 2
    scored = ScoredSlides(np.eye(3)[targets] * 0.7 + 0.1, targets, tuple(f"p{i}" for i in range(12)))
    assert multiclass_auroc(scored.probabilities, targets) is None
    figure = auroc_with_interval(scored, Resampler(targets, scored.patients, 10))
    assert (figure["value"], figure["low"], figure["high"]) == (None, None, None)
    assert figure["reason"] == "a class is missing in this split"


def test_an_auroc_says_on_how_many_slides_patients_and_clusters_it_rests() -> None:
    """Six slides of three patients, each of which is a unit of the interval: 1, 2 and 3."""
    targets = np.arange(6) % 2
    scored = ScoredSlides(np.eye(2)[targets] * 0.8 + 0.1, targets, ("1", "2", "1+2", "1+2", "3", "3"))
    figure = auroc_with_interval(scored, Resampler(targets, scored.patients, 10))
    assert (figure["n_slides"], figure["n_patients"], figure["n_clusters"]) == (6, 3, 3)


def test_interval_holds_the_value_and_says_what_it_is_over() -> None:
    """Enough patients of each class: over patients; few: over slides, and it says so."""
    scored = _scored()
    result = auroc_with_interval(scored, Resampler(scored.targets, scored.patients, 300))
    assert result["low"] < result["value"] < result["high"]
    assert result["interval"] == OVER_PATIENTS
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


def test_an_interval_holds_the_middle_95_percent_of_the_resamples() -> None:
    """Of 0 to 1000 it is 25 to 975; an undefined resample or none at all leaves it undefined."""
    values = np.random.default_rng(0).permutation(1001).astype(float)
    assert percentile_interval(values) == pytest.approx((25, 975))
    assert percentile_interval(np.append(values, np.nan)) is None
    assert percentile_interval(np.array([])) is None


def test_interval_of_perfect_separation_is_a_point() -> None:
    """An AUROC of exactly 1 has the bootstrap interval 1 to 1, not an error."""
    scored = _scored(signal=50.0)
    result = auroc_with_interval(scored, Resampler(scored.targets, scored.patients, 100))
    assert (result["value"], result["low"], result["high"]) == (1.0, 1.0, 1.0)


def test_paired_difference_is_narrower_than_the_difference_of_intervals() -> None:
    """The same slides are drawn for both methods: a method against itself differs by exactly nothing."""
    a, b = _scored(signal=1.5), _scored(signal=0.5)
    resampler = Resampler(a.targets, a.patients, 200)
    assert paired_difference(a, a, resampler) == {"value": 0.0, "low": 0.0, "high": 0.0}
    result = paired_difference(a, b, resampler)
    assert result["value"] is not None and result["value"] > 0


def test_calibration_error_by_hand() -> None:
    """Ten slides at 0.8, of which six are right: one bin with a gap of 0.2."""
    p = np.tile([0.2, 0.8], (10, 1))
    targets = np.array([1] * 6 + [0] * 4)
    assert calibration_error(p[:1], targets[:1]) == pytest.approx(0.2)
    assert calibration_error(p, targets) == pytest.approx(0.2)


def test_confidence_is_that_of_the_predicted_class_whichever_it_is() -> None:
    """Class 0 at 0.9, right; class 1 at 0.7, wrong; class 2 of three at 0.5, right: gaps 0.1, 0.7 and 0.5."""
    p = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.2, 0.3, 0.5]])
    targets = np.array([0, 2, 2])
    bins = reliability_bins(p, targets)
    assert [(b["n"], b["confidence"], b["accuracy"]) for b in bins] == [(1, 0.5, 1.0), (1, 0.7, 0.0), (1, 0.9, 1.0)]
    assert calibration_error(p, targets) == pytest.approx((0.1 + 0.7 + 0.5) / 3)


def test_slides_of_one_probability_are_one_bin_in_every_order() -> None:
    """60 slides at 0.9, of which 36 are right: the gap is 0.3, whichever rows come first."""
    p, targets = np.tile([0.1, 0.9], (60, 1)), np.repeat([1, 0], [36, 24])
    rng = np.random.default_rng(5)
    for rows in (np.arange(60), np.arange(60)[::-1], *(rng.permutation(60) for _ in range(20))):
        assert calibration_error(p[rows], targets[rows]) == pytest.approx(0.3)
        assert [b["n"] for b in reliability_bins(p[rows], targets[rows])] == [60]


def test_bins_are_cut_at_the_nearer_end_of_a_tie() -> None:
    """20 slides, cuts after every second: 3 of 0.6, 4 of 0.7, 3 of 0.8, and 10 alone.

    The cut after 2 moves to 3; those after 4 and 6 to 3 and 7; that after 8 to 7; that after 10 is the end of a tie.
    """
    confidence = np.concatenate([np.repeat([0.6, 0.7, 0.8], [3, 4, 3]), np.linspace(0.9, 0.99, 10)])
    bins = reliability_bins(np.stack([1 - confidence, confidence], 1), np.ones(20, dtype=int))
    assert [b["n"] for b in bins] == [3, 4, 3, 2, 2, 2, 2, 2]
    assert [b["confidence"] for b in bins[:4]] == pytest.approx([0.6, 0.7, 0.8, 0.905])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.75, 0.9, 1.0]), st.integers(0, 1)), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
)
def test_the_calibration_error_does_not_depend_on_the_order_of_rows(slides: list[tuple[float, int]], rng: Any) -> None:
    """Bit for bit, and a probability that several slides share is in one bin only."""
    shuffled = slides.copy()
    rng.shuffle(shuffled)
    results = []
    for rows in (slides, shuffled):
        confidence, targets = np.array([c for c, _ in rows]), np.array([t for _, t in rows])
        p = np.stack([1 - confidence, confidence], axis=1)
        results.append((calibration_error(p, targets), reliability_bins(p, targets)))
    assert results[0] == results[1]
    bins = results[0][1]
    assert sum(b["n"] for b in bins) == len(slides) and len(bins) <= min(10, len({c for c, _ in slides}))


def test_brier_and_accuracy_by_hand() -> None:
    """Two slides at 0.8: one right (0.08), one wrong (1.28): mean 0.68, balanced accuracy 0.5."""
    result = classification_metrics(
        ScoredSlides(np.array([[0.2, 0.8], [0.2, 0.8]]), np.array([1, 0]), ("a", "b")), ("n", "l")
    )
    assert result["brier"] == pytest.approx(0.68)
    assert result["balanced_accuracy"] == pytest.approx(0.5)
    assert result["per_class"]["n"]["recall"] == 0.0
    assert result["per_class"]["n"]["precision"] is None  # nothing was called n: undefined, not 0


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


def test_ten_slides_are_enough_for_a_temperature_and_nine_are_not() -> None:
    """8 of 10 right at a margin of 2: 2 / T is log 4."""
    targets = np.arange(10) % 2
    margin = np.where(targets == 1, 2.0, -2.0) * np.repeat([-1, 1], [2, 8])
    logits = np.stack([np.zeros(10), margin], axis=1)
    assert MIN_CALIBRATION_SLIDES == 10
    assert fit_temperature(logits, targets) == pytest.approx(2 / np.log(4), rel=1e-3)
    assert fit_temperature(logits[:9], targets[:9]) is None


def test_confusion_has_true_classes_as_rows() -> None:
    """Of three a, two are called a and one b; the one b is called c; the one c is called c."""
    p = np.eye(3)[[0, 0, 1, 2, 2]]
    result = classification_metrics(ScoredSlides(p, np.array([0, 0, 0, 1, 2]), tuple("vwxyz")), ("a", "b", "c"))
    assert result["confusion"] == [[2, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert result["class_counts"] == {"a": 3, "b": 1, "c": 1}
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert result["f1"] == pytest.approx((4 / 5 + 0 + 2 / 3) / 3)
    assert result["brier"] == pytest.approx(2 * 2 / 5)


def test_figures_are_sklearns_for_three_classes() -> None:
    """Balanced accuracy and F1 agree with the library where every class is there."""
    from sklearn.metrics import balanced_accuracy_score, f1_score

    rng = np.random.default_rng(4)
    targets = rng.integers(3, size=90)
    p = rng.dirichlet(np.ones(3), size=90)
    result = classification_metrics(ScoredSlides(p, targets, tuple(map(str, range(90)))), ("a", "b", "c"))
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, p.argmax(1)))
    assert result["f1"] == pytest.approx(f1_score(targets, p.argmax(1), average="macro"))


def test_a_class_that_is_not_there_leaves_its_figures_undefined() -> None:
    """No slide of the positive class, and none called so: F1 is undefined, not 0, and nothing warns."""
    result = classification_metrics(
        ScoredSlides(np.tile([0.9, 0.1], (3, 1)), np.zeros(3, dtype=int), ("a", "b", "c")), ("n", "l")
    )
    assert result["f1"] is None
    assert result["per_class"]["l"] == {"precision": None, "recall": None, "f1": None, "n": 0}
    assert result["balanced_accuracy"] == 1.0


def test_reliability_bins_have_equal_mass_and_give_the_error() -> None:
    """23 slides: three bins of three and seven of two, by rising probability, whose gaps make the error."""
    scored = _scored(23)
    bins = reliability_bins(scored.probabilities, scored.targets)
    assert sorted(b["n"] for b in bins) == [2] * 7 + [3] * 3
    assert [b["confidence"] for b in bins] == sorted(b["confidence"] for b in bins)
    gaps = sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / 23
    assert calibration_error(scored.probabilities, scored.targets) == pytest.approx(gaps)


# ---------------------------------------------------------------- clusters


def test_patients_that_share_a_slide_are_drawn_one_by_one() -> None:
    """5 has a part of two slides. Each slide is drawn as often as one of its patients, of whom there are 13."""
    patients = ["2+5", "5+12", *(f"p{i}" for i in range(10))] * 2
    resampler = Resampler(np.repeat([0, 1], 12), patients, 200)
    assert (resampler.interval, resampler.n_clusters) == (OVER_PATIENTS, 13)
    counts = np.array([np.bincount(rows, minlength=24) for rows in resampler.draws])
    assert (counts[:, 0] != counts[:, 1]).any(), "2 and 12 are drawn apart"
    assert counts[:, [0, 1, 12, 13]].mean() == pytest.approx(1, abs=0.15)


def test_a_chain_of_pseudo_patients_counts_its_slides() -> None:
    """Twelve slides cannot be more than twelve observations, though they name thirteen patients."""
    resampler = Resampler(np.arange(12) % 2, [f"{i}+{i + 1}" for i in range(12)], 20)
    assert (resampler.interval, resampler.n_clusters) == (OVER_PATIENTS, 12)
    same = Resampler(np.arange(12) % 2, ["1+2"] * 12, 20)
    assert (same.interval, same.n_clusters) == (OVER_SLIDES, 1)


def test_patients_with_both_classes_count_for_both() -> None:
    """Seven patients with slides of either class are seven clusters; no draw lacks a class."""
    targets = np.arange(42) % 2
    resampler = Resampler(targets, [f"p{i // 6}" for i in range(42)], 100)
    assert resampler.interval == OVER_PATIENTS
    assert all(len(set(targets[rows])) == 2 for rows in resampler.draws)


def test_five_patients_of_each_class_are_enough_and_four_are_not() -> None:
    """At `MIN_PATIENTS_PER_CLASS` the bootstrap is over patients; with one fewer of either class it is over slides."""
    assert MIN_PATIENTS_PER_CLASS == 5
    for patients_of_class, interval in (((5, 5), OVER_PATIENTS), ((4, 5), OVER_SLIDES), ((9, 4), OVER_SLIDES)):
        targets = np.repeat([0, 1, 0, 1], [*patients_of_class, *patients_of_class])  # two slides of each patient
        patients = [f"p{i}" for i in range(sum(patients_of_class))] * 2
        assert Resampler(targets, patients, 10).interval == interval, patients_of_class


def test_a_patient_with_both_classes_is_drawn_among_those_of_the_rarer() -> None:
    """Five patients have one slide of the rare class and three of the common one; twenty have one of the common one.

    Drawn among the rare, every draw has five slides of that class; among the common, some would have none.
    """
    mixed, common = [f"m{i}" for i in range(5)], [f"c{i}" for i in range(20)]
    patients, targets = [*mixed, *mixed * 3, *common], np.repeat([1, 0, 0], [5, 15, 20])
    resampler = Resampler(targets, patients, 200)
    assert resampler.interval == OVER_PATIENTS
    assert {int(targets[rows].sum()) for rows in resampler.draws} == {5}
    assert {len(rows) for rows in resampler.draws} == {40}, "five patients of four slides, twenty of one"


def test_bootstrap_interval_covers_the_truth() -> None:
    """Of 120 cohorts with an AUROC of 0.76 in truth, about 95 % of the intervals hold it; over clusters of slides."""
    from scipy.stats import norm

    truth, held = float(norm.cdf(1 / np.sqrt(2))), 0
    for seed in range(120):
        rng = np.random.default_rng([7, seed])
        targets = np.repeat([0, 1], 60)
        own = np.repeat(rng.standard_normal(40), 3)  # what a patient's three slides have in common
        margin = targets + np.sqrt(0.5) * own + np.sqrt(0.5) * rng.standard_normal(120)
        p = 1 / (1 + np.exp(-margin))
        scored = ScoredSlides(np.stack([1 - p, p], 1), targets, tuple(f"p{i // 3}" for i in range(120)))
        result = auroc_with_interval(scored, Resampler(targets, scored.patients, 200))
        held += result["low"] <= truth <= result["high"]
    assert 0.88 <= held / 120 <= 0.99


# ---------------------------------------------------------------- DeLong


def _brute(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return AUROCs and covariance from the definition: the kernel over all pairs, its row and column means."""
    ours, others = np.flatnonzero(positive), np.flatnonzero(~positive)
    kernel = np.zeros((len(scores), len(ours), len(others)))
    for (m, row), (i, x), (j, y) in itertools.product(enumerate(scores), enumerate(ours), enumerate(others)):
        kernel[m, i, j] = 1.0 if row[x] > row[y] else 0.5 if row[x] == row[y] else 0.0
    v10, v01, values = kernel.mean(2), kernel.mean(1), kernel.mean((1, 2))
    covariance = np.zeros((len(scores), len(scores)))
    for a, b in itertools.product(range(len(scores)), repeat=2):
        s10 = ((v10[a] - values[a]) * (v10[b] - values[b])).sum() / (len(ours) - 1)
        s01 = ((v01[a] - values[a]) * (v01[b] - values[b])).sum() / (len(others) - 1)
        covariance[a, b] = s10 / len(ours) + s01 / len(others)
    return values, covariance


def test_delong_is_the_u_statistics_covariance() -> None:
    """Midranks give what the definition gives, ties and unequal sides included."""
    rng = np.random.default_rng(3)
    positive = np.arange(31) % 3 == 0
    scores = np.round(rng.standard_normal((3, 31)) + 0.8 * positive, 1)
    result = delong_covariance(scores, positive)
    values, covariance = _brute(scores, positive)
    assert result.values == pytest.approx(values)
    assert result.covariance == pytest.approx(covariance)


def test_delong_by_hand() -> None:
    """Positives 1, 3 against negatives 0, 2: three of four pairs in order; V10 = (1/2, 1), V01 = (1, 1/2)."""
    result = delong_covariance(np.array([[1.0, 3.0, 0.0, 2.0]]), np.array([True, True, False, False]))
    assert result.values[0] == pytest.approx(0.75)
    assert result.covariance[0, 0] == pytest.approx(0.125 / 2 + 0.125 / 2)  # both sample variances are 1/8


def _single(scored: ScoredSlides) -> ScoredSlides:
    return ScoredSlides(scored.probabilities, scored.targets, tuple(f"q{i}" for i in range(len(scored.targets))))


def test_delong_agrees_with_the_bootstrap() -> None:
    """On 200 independent slides interval and bootstrap tell the same story, and a real difference is result."""
    a, b = _single(_scored(200, 1.5, 1)), _single(_scored(200, 0.5, 2))
    result = delong_test(a, b)
    boot = paired_difference(a, b, Resampler(a.targets, a.patients, 1000))
    assert result["value"] == pytest.approx(boot["value"])
    assert (result["low"], result["high"]) == pytest.approx((boot["low"], boot["high"]), abs=0.02)
    assert result["p"] < 0.01 and result["reason"] is None


def test_delong_is_undefined_where_its_formula_says_nothing() -> None:
    """Several slides per patient, an AUROC of 1, two alike, three classes: None, and why."""
    a, b = _scored(40), _scored(40, seed=3)
    shared = ScoredSlides(a.probabilities, a.targets, ("2+5", "5", *(f"q{i}" for i in range(38))))
    perfect = _single(_scored(40, signal=50.0))
    three = ScoredSlides(np.full((6, 3), 1 / 3), np.arange(6) % 3, tuple("abcdef"))
    for pair, reason in (
        ((shared, b), "several slides"),
        ((_single(a), perfect), "exactly 0 or 1"),
        ((_single(a), _single(a)), "alike"),
        ((three, three), "two classes"),
    ):
        result = delong_test(*pair)
        assert result["p"] is None and result["low"] is None
        assert reason in result["reason"]


@pytest.mark.parametrize(("low", "holds"), [(-0.02, True), (-0.03, False), (-0.2, False), (None, None)])
def test_not_worse_hangs_on_the_lower_bound(low: float | None, holds: bool | None) -> None:
    """Above -0.03, not at it; without a bound there is no verdict."""
    result = assess_non_inferiority({"value": 0.0, "low": low, "high": 0.1}, OVER_PATIENTS, 5)
    assert result["holds"] is holds
    assert result["margin"] == NON_INFERIORITY_MARGIN == 0.03
    assert (result["reason"] is None) == (low is not None)


def test_a_verdict_says_what_it_leaves_out() -> None:
    """Over slides patients are not covered; at the ceiling the interval has no width."""
    assert "patient" in assess_non_inferiority({"value": 0.0, "low": -0.01, "high": 0.1}, OVER_SLIDES, 5)["reason"]
    ceiling = assess_non_inferiority({"value": 0.0, "low": 0.0, "high": 0.0}, OVER_PATIENTS, 5)
    assert ceiling["holds"] is None
    assert "no width" in ceiling["reason"]


def test_few_patients_of_a_class_give_no_verdict() -> None:
    """Four slides of one patient are one observation; a class without slides has none."""
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.2, 0.8]] * 3)
    scored = ScoredSlides(probabilities, np.array([0] * 4 + [1] * 3), ("a", "a", "a", "a", "b", "c", "d"))
    assert smallest_class(scored) == 1
    assert smallest_class(ScoredSlides(probabilities, np.zeros(7, int), tuple("abcdefg"))) == 0
    result = assess_non_inferiority({"value": 0.0, "low": -0.01, "high": 0.1}, OVER_PATIENTS, 4)
    assert result["holds"] is None and result["reason"] == "a class has 4 test patients; a verdict needs 5"
