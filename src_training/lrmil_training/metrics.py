"""Figures with intervals. A figure that is undefined is None and says why; nothing is ever reported as 0 instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.compare import auroc

Float = NDArray[np.float64]
Int = NDArray[np.int64]

FEWEST_CLUSTERS = 5  # patients of each class below which a bootstrap over patients says nothing
OVER_PATIENTS, OVER_SLIDES = "patients", "slides (patient uncertainty not covered)"
BINS = 10  # of equal mass, for the calibration error
LEVEL = 0.95
FEWEST_TO_CALIBRATE = 10  # validation slides
TEMPERATURES = (0.25, 10.0)  # bounds of the search


@dataclass(frozen=True)
class Scored:
    """What one method says of the slides of one split.

    Attributes
    ----------
    probabilities
        (N, C), rows sum to 1.
    targets
        (N,) class index.
    patients
        (N,) patient of each slide.
    """

    probabilities: Float
    targets: Int
    patients: tuple[str, ...]


def ranking_auroc(probabilities: NDArray[np.floating[Any]], targets: NDArray[np.integer[Any]]) -> float | None:
    """Return the AUROC: of class 1 where there are two, the mean over one-against-rest where there are more.

    None where a class is missing among the targets.
    """
    classes = probabilities.shape[1]
    counted = [1] if classes == 2 else range(classes)
    values = [auroc(probabilities[:, c], targets == c) for c in counted]
    return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))


class Resampler:
    """Class-stratified bootstrap over patients; over slides where a class has too few patients.

    Parameters
    ----------
    targets, patients
        Of the slides of a split.
    times
        Number of resamples.
    seed
        Fixes them, so that paired differences use the same ones.
    """

    def __init__(self, targets: Int, patients: Sequence[str], times: int, seed: int = 0) -> None:
        groups = _clusters(targets, patients)
        enough = all(len(of_class) >= FEWEST_CLUSTERS for of_class in groups.values())
        self.interval = OVER_PATIENTS if enough else OVER_SLIDES
        if not enough:
            groups = _clusters(targets, [str(i) for i in range(len(targets))])
        rng = np.random.default_rng(seed)
        self.draws = [_draw(groups, rng) for _ in range(times)]

    def bounds(self, figure: Callable[[Int], float | None]) -> tuple[float, float] | None:
        """Return the percentile interval of a figure of row indices; None where it is undefined in any resample."""
        values = [figure(rows) for rows in self.draws]
        known = np.array([v for v in values if v is not None])
        if len(known) < len(values):
            return None
        low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def _clusters(targets: Int, patients: Sequence[str]) -> dict[int, list[Int]]:
    """Return class -> rows of each of its patients; a patient counts with the class of the first slide."""
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows.setdefault(patient, []).append(row)
    groups: dict[int, list[Int]] = {}
    for its in rows.values():
        groups.setdefault(int(targets[its[0]]), []).append(np.array(its))
    return groups


def _draw(groups: dict[int, list[Int]], rng: np.random.Generator) -> Int:
    drawn = [of_class[i] for of_class in groups.values() for i in rng.integers(len(of_class), size=len(of_class))]
    return np.concatenate(drawn)


def auroc_with_interval(scored: Scored, resampler: Resampler) -> dict[str, Any]:
    """Return value, bounds and what the interval is over, as ``metrics.json`` has it."""
    value = ranking_auroc(scored.probabilities, scored.targets)
    found: dict[str, Any] = {
        "value": value,
        "low": None,
        "high": None,
        "n_slides": len(scored.targets),
        "n_patients": len(set(scored.patients)),
        "interval": resampler.interval,
    }
    if value is None:
        return found | {"reason": "a class is missing in this split"}
    bounds = resampler.bounds(lambda rows: ranking_auroc(scored.probabilities[rows], scored.targets[rows]))
    return found | ({"low": bounds[0], "high": bounds[1]} if bounds else {"reason": "a resample lacked a class"})


def paired_difference(a: Scored, b: Scored, resampler: Resampler) -> dict[str, float | None]:
    """Return AUROC of `a` less that of `b` on the same slides, with the bounds of the paired bootstrap."""

    def difference(rows: Int) -> float | None:
        one = ranking_auroc(a.probabilities[rows], a.targets[rows])
        other = ranking_auroc(b.probabilities[rows], b.targets[rows])
        return None if one is None or other is None else one - other

    value, bounds = difference(np.arange(len(a.targets))), resampler.bounds(difference)
    return {"value": value, "low": bounds[0] if bounds else None, "high": bounds[1] if bounds else None}


def classification(scored: Scored, classes: Sequence[str]) -> dict[str, Any]:
    """Return balanced accuracy, F1, ECE, Brier score and figures per class."""
    from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support

    predicted = scored.probabilities.argmax(axis=1)
    labels = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        scored.targets, predicted, labels=labels, zero_division=np.nan
    )
    per_class = {
        name: {
            "precision": _known(precision[i]),
            "recall": _known(recall[i]),
            "f1": _known(f1[i]),
            "n": int(support[i]),
        }
        for i, name in enumerate(classes)
    }
    average = {"average": "binary"} if len(classes) == 2 else {"average": "macro"}
    return {
        "balanced_accuracy": float(balanced_accuracy_score(scored.targets, predicted)),
        "f1": float(f1_score(scored.targets, predicted, zero_division=0.0, **average)),
        "ece": calibration_error(scored.probabilities, scored.targets),
        "brier": float(np.square(scored.probabilities - np.eye(len(classes))[scored.targets]).sum(axis=1).mean()),
        "per_class": per_class,
    }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def calibration_error(probabilities: Float, targets: Int) -> float:
    """Return the expected calibration error of the predicted class over ten bins of equal mass."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    order = np.argsort(confidence, kind="stable")
    bins = [rows for rows in np.array_split(order, BINS) if len(rows)]
    gaps = [len(rows) * abs(confidence[rows].mean() - right[rows].mean()) for rows in bins]
    return float(np.sum(gaps) / len(targets))


def fit_temperature(logits: Float, targets: Int) -> float | None:
    """Return the temperature that minimises cross-entropy on validation slides; None where they cannot tell it.

    They cannot where they are fewer than `FEWEST_TO_CALIBRATE`, or where the best temperature lies on the bounds of the
    search: without a single error they ask for certainty, and with logits that say nothing for none at all.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def entropy(log_temperature: float) -> float:
        chosen = log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(targets)), targets]
        return float(-chosen.mean())

    if len(targets) < FEWEST_TO_CALIBRATE:
        return None
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(entropy, bounds=(low, high), method="bounded")
    on_bound = min(found.x - low, high - found.x) < 0.01 * (high - low)
    return None if on_bound else float(np.exp(found.x))
