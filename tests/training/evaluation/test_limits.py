"""Operating point and conformal scores: thresholds and figures by hand, and what is said where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from lrmil_training.evaluation.limits import (
    choose_threshold,
    fit_limits,
    measure_limits,
    share_with_interval,
    wilson_interval,
)
from lrmil_training.evaluation.metrics import ScoredSlides
from napari_lrmil.core.models.limits import ConformalScores, NetworkLimits, OperatingPoint

CLASSES = ("normal", "lesion")
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.8])
IS_POSITIVE = np.array([False, False, True, False, True, True])


def slides(scores: object, positive: object, patients: list[str] | None = None) -> ScoredSlides:
    p = np.asarray(scores, np.float64)
    names = patients or [f"P{i}" for i in range(len(p))]
    return ScoredSlides(np.stack([1 - p, p], axis=1), np.asarray(positive).astype(np.int64), tuple(names))


@pytest.mark.parametrize(
    ("sensitivity", "threshold"),
    [
        (None, 0.25),  # sensitivity 1, specificity 2/3; from 0.6 on 2/3 and 1 have the same sum but miss a lesion
        (1.0, 0.25),
        (0.95, 0.25),
        (2 / 3, 0.5),
        (0.3, 0.7),
    ],
)
def test_threshold_by_hand(sensitivity: float | None, threshold: float) -> None:
    assert choose_threshold(SCORES, IS_POSITIVE, sensitivity) == pytest.approx(threshold)


def test_a_threshold_parts_neighbouring_numbers_and_the_lowest_slide() -> None:
    """Where no number lies between two slides the upper one is the threshold; below the lowest it is half of that."""
    upper = float(np.nextafter(0.5, 1))
    assert choose_threshold(np.array([0.5, upper]), np.array([False, True]), None) == upper
    assert choose_threshold(np.array([0.2, 0.5]), np.array([True, False]), 1.0) == pytest.approx(0.1)


def test_the_operating_point_says_what_it_reached() -> None:
    point = fit_limits(slides(SCORES, IS_POSITIVE), None, CLASSES, 0.6).operating_point
    assert point == OperatingPoint(
        positive="lesion",
        threshold=0.5,
        rule="sensitivity 0.6",
        sensitivity=2 / 3,
        specificity=1.0,
        positives=3,
        negatives=3,
    )


@pytest.mark.parametrize(
    ("val", "classes", "reason"),
    [
        (slides(SCORES, ~IS_POSITIVE), CLASSES, "no threshold parts the validation slides better than chance"),
        (slides(SCORES, [True] * 6), CLASSES, "the validation slides are of one class"),
        (slides(SCORES, IS_POSITIVE), ("a", "b", "c"), "the model has 3 classes, and a threshold parts two"),
    ],
)
def test_without_an_operating_point_there_is_a_reason(val: ScoredSlides, classes: tuple[str, ...], reason: str) -> None:
    reversed_scores = slides(1 - SCORES, IS_POSITIVE) if "chance" in reason else val
    limits = fit_limits(reversed_scores, None, classes, None)
    assert (limits.operating_point, limits.no_operating_point) == (None, reason)


def test_conformal_scores_are_those_of_the_true_classes() -> None:
    """0 where the truth is the most probable class, else the probability of the other; 9+11 and 11 are one group."""
    calibration = slides([0.9, 0.7, 0.2], [True, False, False], ["9+11", "11", "12"])
    limits = fit_limits(slides(SCORES, IS_POSITIVE), calibration, CLASSES, None)
    assert limits.conformal is not None
    assert limits.conformal.scores == pytest.approx((0, 0, 0.7))
    assert limits.conformal.patients == (0, 1, 0) and limits.conformal.n_patients == 2
    assert limits.no_conformal == "2 calibration patients are too few for 90 %; 9 are needed"
    assert measure_limits(calibration, limits, CLASSES)["prediction_sets"] == {"reason": limits.no_conformal}


def test_no_calibration_split_says_so() -> None:
    limits = fit_limits(slides(SCORES, IS_POSITIVE), None, CLASSES, None)
    assert (limits.conformal, limits.no_conformal) == (
        None,
        "the run set no calibration slides aside (split.calibration)",
    )


def test_figures_by_hand() -> None:
    """Six slides of five patients; the sets hold both classes up to a probability of 0.75."""
    scores, positive = [0.9, 0.6, 0.4, 0.3, 0.2, 0.1], [True, False, True, False, True, False]
    scored = slides(scores, positive, ["a", "b", "c", "d", "d", "e"])
    conformal = ConformalScores(scores=(0.0,) * 8 + (0.75,), patients=tuple(range(9)))
    point = OperatingPoint(
        positive="lesion", threshold=0.35, rule="-", sensitivity=1, specificity=1, positives=1, negatives=1
    )
    figures = measure_limits(scored, NetworkLimits(operating_point=point, conformal=conformal), CLASSES)
    side, sets = figures["operating_point"], figures["prediction_sets"]
    assert (side["sensitivity"]["value"], side["specificity"]["value"]) == pytest.approx((2 / 3, 2 / 3))
    assert (side["sensitivity"]["n_slides"], side["sensitivity"]["n_clusters"]) == (3, 3)
    # 0.9, 0.2 (0.8 normal) and 0.1 are above 0.75 and alone: of these the lesion at 0.2 is missed.
    assert sets["mean_size"] == pytest.approx(1.5) and sets["singletons"] == pytest.approx(0.5)
    assert sets["empirical"]["value"] == pytest.approx(5 / 6) and sets["empirical"]["n_clusters"] == 5
    assert {name: share["value"] for name, share in sets["by_class"].items()} == pytest.approx(
        {"normal": 1.0, "lesion": 2 / 3}
    )
    assert (sets["calibration_slides"], sets["calibration_patients"], sets["coverage"]) == (9, 9, 0.9)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (9, 10), (181, 200)])
def test_wilson_is_that_of_scipy(hits: int, n: int) -> None:
    interval = binomtest(hits, n).proportion_ci(0.95, "wilson")
    assert wilson_interval(hits / n, n) == pytest.approx((interval.low, interval.high))


def test_the_interval_counts_patients_and_a_share_of_nothing_is_undefined() -> None:
    every = np.ones(4, np.bool_)
    share = share_with_interval(every, every, ["a", "a", "a", "b"])
    assert (share["value"], share["n_slides"], share["n_clusters"]) == (1.0, 4, 2)
    assert (share["low"], share["high"]) == pytest.approx(wilson_interval(1.0, 2))
    assert share_with_interval(every, ~every, ["a"] * 4)["value"] is None
