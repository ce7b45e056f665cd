"""Agreement of reviewers: counts, Cohen's kappa against a published example, and what cannot be said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lrmil_training.evaluation.metrics import OVER_PATIENTS, OVER_SLIDES
from lrmil_training.evaluation.reviewers import MODEL, cohen_kappa, compare_reviewers
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.worklist.review import ReviewRow, Verdict


def reviews(reviewer: str, labels: str, predicted: str, patients: str = "") -> list[ReviewRow]:
    """Return a verdict per letter; ``?`` is unsure, and ``-`` a disagreement without a class."""
    rows = []
    for i, (label, answer) in enumerate(zip(labels, predicted, strict=True)):
        verdict = Verdict.AGREE if label == answer else Verdict.UNSURE if label == "?" else Verdict.DISAGREE
        patient = patients[i] if patients else ""
        rows.append(
            ReviewRow(
                f"s{i}", reviewer, verdict, label.strip("?-"), predicted=answer, bundle_sha256="f", patient=patient
            )
        )
    return rows


def test_kappa_is_that_of_cohens_formula() -> None:
    """The example of the article on Cohen's kappa: 20 and 15 agreements of 50, kappa 0.4."""
    first = np.array([1] * 25 + [0] * 25)
    second = np.array([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(np.zeros(5, dtype=np.int64), np.zeros(5, dtype=np.int64)) is None


def test_counts_and_pairs_of_two_reviewers_and_the_model() -> None:
    model = "abababababab"
    rows = reviews("Anna", "abababababa?", model) + reviews("Ben", "abababbbb-ab", model)
    comparison = compare_reviewers(rows, resamples=200)
    anna, ben = comparison.counts
    assert (anna.slides, anna.agree, anna.disagree, anna.unsure) == (12, 11, 0, 1)
    assert (ben.agree, ben.disagree, ben.without_class) == (9, 3, 1)
    pairs = {(pair.first, pair.second): pair for pair in comparison.pairs}
    assert set(pairs) == {("Anna", "Ben"), ("Anna", MODEL), ("Ben", MODEL)}
    between = pairs["Anna", "Ben"]
    assert between.slides == 10 and between.same_class == pytest.approx(0.8)
    assert dict(between.confusion) == {("a", "a"): 4, ("b", "b"): 4, ("a", "b"): 2}
    assert between.kappa == pytest.approx((0.8 - 0.48) / 0.52)  # chance: 0.6 * 0.4 + 0.4 * 0.6
    assert between.low is not None and between.high is not None and between.low < between.kappa < between.high
    assert pairs["Anna", MODEL].kappa == pytest.approx(1.0)
    assert comparison.slides["s0"]["Ben"].label == "a"


def test_slides_of_one_patient_are_drawn_together() -> None:
    model = "ab" * 12
    patients = "".join(letter * 4 for letter in "ABCDEF")
    rows = reviews("Anna", model, model, patients) + reviews("Ben", "ab" * 10 + "bbbb", model, patients)
    pair = compare_reviewers(rows, resamples=100).pairs[0]
    assert (pair.slides, pair.patients, pair.interval) == (24, 6, OVER_PATIENTS)
    few = compare_reviewers(rows[:4] + rows[24:28], resamples=100).pairs[0]
    assert few.interval == OVER_SLIDES


def test_what_cannot_be_said_has_a_reason() -> None:
    rows = reviews("Anna", "aaa", "aab") + reviews("Ben", "aa?", "aab") + reviews("Carl", "???", "aab")
    pairs = {(pair.first, pair.second): pair for pair in compare_reviewers(rows, resamples=100).pairs}
    same = pairs["Anna", "Ben"]
    assert (same.slides, same.same_class, same.kappa, same.low) == (2, 1.0, None, None)
    assert "same class" in same.reason
    assert pairs["Anna", "Carl"].slides == 0 and "no slide" in pairs["Anna", "Carl"].reason
    model = pairs["Anna", MODEL]
    assert model.kappa == pytest.approx(0.0) and model.low is None and "so rare" in model.reason


def test_an_interval_without_width_is_none() -> None:
    """A reviewer who gives one class has kappa 0 in every resample, which says nothing of certainty."""
    (pair,) = compare_reviewers(reviews("Anna", "a" * 12, "ab" * 6), resamples=100).pairs
    assert pair.kappa == pytest.approx(0.0) and (pair.low, pair.high) == (None, None)
    assert "every resample has the same kappa" in pair.reason


def test_answers_of_two_models_are_not_pooled() -> None:
    """Anna agrees with the first model always and with the second never: pooled, that would be kappa 0."""
    first = reviews("Anna", "abababab", "abababab")
    second = [
        replace(row, slide=f"t{i}", bundle="late", bundle_sha256="e", predicted="ba"[i % 2])
        for i, row in enumerate(first)
    ]
    unanswered = [replace(first[0], slide="u", predicted="", bundle_sha256="")]
    comparison = compare_reviewers(first + second + unanswered + reviews("Ben", "ab", "ab"), resamples=100)
    assert [model.bundle_sha256 for model in comparison.models] == ["f", "e"]
    by_model = [(p.first, p.model.bundle_sha256, p.slides, p.kappa) for p in comparison.pairs if p.model is not None]
    assert by_model == [("Anna", "f", 8, 1.0), ("Anna", "e", 8, -1.0), ("Ben", "f", 2, 1.0)]
    counts = [(c.reviewer, c.model and c.model.bundle_sha256, c.slides) for c in comparison.counts]
    assert counts == [("Anna", "f", 8), ("Anna", "e", 8), ("Anna", None, 1), ("Ben", "f", 2)]
    assert comparison.reviewers == ("Anna", "Ben") and comparison.pairs[0].model is None


def test_a_model_whose_folder_was_renamed_is_one_model() -> None:
    rows = reviews("Anna", "abab", "abab")
    renamed = [replace(row, bundle="other name") for row in rows[2:]]
    comparison = compare_reviewers(rows[:2] + renamed, resamples=100)
    assert len(comparison.models) == 1 and [pair.slides for pair in comparison.pairs] == [4]
    assert [(counts.slides, counts.model) for counts in comparison.counts] == [(4, None)]


def test_without_an_answer_the_agreement_with_the_model_has_a_reason() -> None:
    rows = [replace(row, predicted="", bundle_sha256="") for row in reviews("Anna", "ab", "ab")]
    comparison = compare_reviewers(rows, resamples=100)
    (pair,) = comparison.pairs
    assert (pair.second, pair.model, pair.slides) == (MODEL, None, 0) and "no slide" in pair.reason
    assert not comparison.models


def test_only_named_reviewers_are_compared_and_an_unknown_one_is_refused() -> None:
    rows = reviews("Anna", "ab", "ab") + reviews("Ben", "ab", "ab")
    assert [counts.reviewer for counts in compare_reviewers(rows, ["Ben"], 100).counts] == ["Ben"]
    with pytest.raises(ConfigError, match="no verdict of Eve; there are verdicts of Anna, Ben"):
        compare_reviewers(rows, ["Eve"])
    with pytest.raises(ConfigError, match="nobody"):
        compare_reviewers([])
