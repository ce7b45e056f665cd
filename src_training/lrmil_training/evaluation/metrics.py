"""Figures with intervals. A figure that is undefined is None and says why; nothing is ever reported as 0 instead.

The bootstrap is own code: `scipy.stats.bootstrap`, `confidenceinterval` and `statsmodels` do not resample clusters of
patients within classes, nor keep the draws for paired differences. So is the calibration error: `torchmetrics` has only
bins of equal width. Bins of equal mass that split ties gave 0.300 to 0.420 for a true gap of 0.300, depending on the
order of 60 slides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrmil_training.data.patient_groups import patient_clusters
from napari_lrmil.core.metrics.agreement import auroc

Float = NDArray[np.float64]
Int = NDArray[np.int64]

MIN_PATIENTS_PER_CLASS = 5  # patients of each class below which a bootstrap over patients says nothing
OVER_PATIENTS, OVER_SLIDES = "patients", "slides (patient uncertainty not covered)"
N_RELIABILITY_BINS = 10  # of nearly equal mass, for the calibration error
CONFIDENCE_LEVEL = 0.95
MIN_CALIBRATION_SLIDES = 10  # validation slides
TEMPERATURE_BOUNDS = (0.25, 10.0)  # bounds of the search


@dataclass(frozen=True)
class ScoredSlides:
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


def multiclass_auroc(probabilities: NDArray[np.floating[Any]], targets: NDArray[np.integer[Any]]) -> float | None:
    """Return the AUROC: of class 1 where there are two, the mean over one-against-rest where there are more.

    None where a class is missing among the targets.
    """
    classes = probabilities.shape[1]
    counted = [1] if classes == 2 else range(classes)
    values = [auroc(probabilities[:, c], targets == c) for c in counted]
    return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))


class Resampler:
    """Class-stratified bootstrap over patients; over slides where a class has too few patients.

    Patients that share a part, such as ``2+5`` and ``5+12``, are one cluster and are drawn together or not at all. A
    cluster with slides of several classes counts for each of them, and is drawn among those of its rarest.

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
        rows = _group_rows(patient_clusters(patients))
        self.n_clusters = len(rows)
        held = [sum(bool((targets[its] == c).any()) for its in rows) for c in np.unique(targets)]
        enough = all(count >= MIN_PATIENTS_PER_CLASS for count in held)
        self.interval = OVER_PATIENTS if enough else OVER_SLIDES
        strata = _stratify(targets, rows if enough else [np.array([i]) for i in range(len(targets))])
        rng = np.random.default_rng(seed)
        self.draws = [_draw_rows(strata, rng) for _ in range(times)]
        self._kept: dict[int, tuple[ScoredSlides, Float]] = {}

    def bounds(self, figure: Callable[[Int], float | None]) -> tuple[float, float] | None:
        """Return the percentile interval of a figure of row indices; None where it is undefined in any resample."""
        return percentile_interval(np.array([_or_nan(figure(rows)) for rows in self.draws]))

    def aurocs(self, scored: ScoredSlides) -> Float:
        """Return the AUROC in every resample, NaN where it is undefined; kept, as many pairs of methods ask for it."""
        if id(scored) not in self._kept:
            found = [multiclass_auroc(scored.probabilities[rows], scored.targets[rows]) for rows in self.draws]
            self._kept[id(scored)] = scored, np.array([_or_nan(value) for value in found])
        return self._kept[id(scored)][1]


def percentile_interval(values: Float) -> tuple[float, float] | None:
    """Return the bounds that hold `CONFIDENCE_LEVEL` of the values; None where one of them is NaN."""
    if len(values) == 0 or np.isnan(values).any():
        return None
    low, high = np.quantile(values, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return float(low), float(high)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _group_rows(names: Sequence[str]) -> list[Int]:
    """Return the rows of each name, in order of first appearance."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return [np.array(its) for its in rows.values()]


def _stratify(targets: Int, rows: Sequence[Int]) -> list[list[Int]]:
    """Return the clusters by class; a mixed one goes with the class that has fewest slides, or draws might lack it."""
    counts = np.bincount(targets)
    strata: dict[int, list[Int]] = {}
    for its in rows:
        strata.setdefault(min(targets[its].tolist(), key=lambda c: (counts[c], c)), []).append(its)
    return list(strata.values())


def _draw_rows(strata: Sequence[Sequence[Int]], rng: np.random.Generator) -> Int:
    drawn = [its[i] for its in strata for i in rng.integers(len(its), size=len(its))]
    return np.concatenate(drawn)


def auroc_with_interval(scored: ScoredSlides, resampler: Resampler) -> dict[str, Any]:
    """Return value, bounds and what the interval is over, as ``metrics.json`` has it."""
    value = multiclass_auroc(scored.probabilities, scored.targets)
    found: dict[str, Any] = {
        "value": value,
        "low": None,
        "high": None,
        "n_slides": len(scored.targets),
        "n_patients": len(set(scored.patients)),
        "n_clusters": resampler.n_clusters,
        "interval": resampler.interval,
    }
    if value is None:
        return found | {"reason": "a class is missing in this split"}
    bounds = percentile_interval(resampler.aurocs(scored))
    return found | ({"low": bounds[0], "high": bounds[1]} if bounds else {"reason": "a resample lacked a class"})


def paired_difference(a: ScoredSlides, b: ScoredSlides, resampler: Resampler) -> dict[str, float | None]:
    """Return AUROC of `a` less that of `b` on the same slides, with the bounds of the paired bootstrap."""
    one, other = multiclass_auroc(a.probabilities, a.targets), multiclass_auroc(b.probabilities, b.targets)
    value = None if one is None or other is None else one - other
    bounds = None if value is None else percentile_interval(resampler.aurocs(a) - resampler.aurocs(b))
    return {"value": value, "low": bounds[0] if bounds else None, "high": bounds[1] if bounds else None}


def classification_metrics(scored: ScoredSlides, classes: Sequence[str]) -> dict[str, Any]:
    """Return balanced accuracy, F1, confusion matrix, calibration and figures per class, each with its slide count.

    ``confusion`` has true classes as rows and predicted ones as columns, both in the order of `classes`; ``f1`` is that
    of class 1 where there are two, the mean over classes where there are more. ``brier`` is Brier's own score, the
    squared error summed over all classes, 0 to 2: with two classes twice scikit-learn's ``brier_score_loss``. A figure
    without a slide it could be measured on is None.
    """
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    predicted = scored.probabilities.argmax(axis=1)
    labels = list(range(len(classes)))
    told: dict[str, Any] = {"labels": labels, "zero_division": np.nan}
    precision, recall, f1, support = precision_recall_fscore_support(scored.targets, predicted, **told)
    per_class = {
        name: {
            "precision": _finite_or_none(precision[i]),
            "recall": _finite_or_none(recall[i]),
            "f1": _finite_or_none(f1[i]),
            "n": int(support[i]),
        }
        for i, name in enumerate(classes)
    }
    if len(classes) == 2:
        told = {"pos_label": 1, "average": "binary", "zero_division": np.nan}
    else:
        told |= {"average": "macro"}
    return {
        "balanced_accuracy": _finite_or_none(recall[support > 0].mean()),  # of the classes that are there
        "f1": _finite_or_none(f1_score(scored.targets, predicted, **told)),
        "ece": calibration_error(scored.probabilities, scored.targets),
        "brier": float(np.square(scored.probabilities - np.eye(len(classes))[scored.targets]).sum(axis=1).mean()),
        "per_class": per_class,
        "class_counts": {name: int(support[i]) for i, name in enumerate(classes)},
        "confusion": confusion_matrix(scored.targets, predicted, labels=labels).tolist(),
        "reliability": reliability_bins(scored.probabilities, scored.targets),
    }


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def reliability_bins(probabilities: Float, targets: Int) -> list[dict[str, float]]:
    """Return bins of slides by the probability of their predicted class, ten of equal mass if no two slides tie.

    Slides of equal probability share a bin. Otherwise the order of rows would decide which of them are averaged
    together, and the calibration error would change with it. So ties make bins larger, and there may be fewer than ten.

    Returns
    -------
    list
        By rising probability: ``n`` slides, their mean ``confidence``, and their ``accuracy``, the share that is right.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    order = np.argsort(confidence, kind="stable")
    bins = [rows for rows in np.split(order, _bin_edges(confidence[order])) if len(rows)]
    return [
        {"n": len(rows), "confidence": float(confidence[rows].mean()), "accuracy": float(right[rows].mean())}
        for rows in bins
    ]


def _bin_edges(ordered: Float) -> Int:
    """Return the cuts of sorted values into `N_RELIABILITY_BINS` equal parts, each moved to the nearer end of a tie."""
    equal = np.cumsum([len(part) for part in np.array_split(ordered, N_RELIABILITY_BINS)])[:-1]
    cuts = equal[equal < len(ordered)]
    first, last = (np.searchsorted(ordered, ordered[cuts], side) for side in ("left", "right"))
    return np.unique(np.where(cuts - first <= last - cuts, first, last))


def calibration_error(probabilities: Float, targets: Int) -> float:
    """Return the expected calibration error of the predicted class over the bins of `reliability_bins`."""
    bins = reliability_bins(probabilities, targets)
    return float(sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(targets))


def fit_temperature(logits: Float, targets: Int) -> float | None:
    """Return the temperature that minimises cross-entropy on validation slides; None where they cannot tell it.

    They cannot if they are fewer than `MIN_CALIBRATION_SLIDES`, or if the best temperature is on the bounds of the
    search: without a single error they ask for certainty, and with logits that say nothing for none at all.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def entropy(log_temperature: float) -> float:
        chosen = log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(targets)), targets]
        return float(-chosen.mean())

    if len(targets) < MIN_CALIBRATION_SLIDES:
        return None
    low, high = np.log(TEMPERATURE_BOUNDS)
    found = minimize_scalar(entropy, bounds=(low, high), method="bounded")
    on_bound = min(found.x - low, high - found.x) < 0.01 * (high - low)
    return None if on_bound else float(np.exp(found.x))
