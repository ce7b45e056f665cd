"""Figures of patch scores from folds by patient: AUROC, operating point, calibration, intervals over patients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from breast_idc_patches import Float, Patch, Rows, targets_of
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

DRAWS = 1000
BINS = 10  # of the calibration curve, with equally many patches

Bools = NDArray[np.bool_]
Figures = Mapping[str, float]
Interval = tuple[float, float, float]  # value, 2.5 % and 97.5 % over patients


@dataclass(frozen=True)
class FoldScores:
    """Scores of one fold, as log odds of carcinoma.

    Attributes
    ----------
    rows, logits
        (S,) test patches and their scores.
    chosen_rows, chosen_logits
        (V,) patches of other patients, which choose the operating point and the recalibration.
    """

    rows: Rows
    logits: Float
    chosen_rows: Rows
    chosen_logits: Float


@dataclass(frozen=True)
class Judgement:
    """Out-of-fold answers for all N patches.

    Attributes
    ----------
    is_carcinoma
        (N,) labels.
    logits
        (N,) log odds of carcinoma; each by the model of the patch's fold.
    is_called
        (N,) whether the score exceeds the operating point of its fold.
    recalibrated
        (N,) probabilities after recalibration on the validation patients of the fold.
    """

    is_carcinoma: Bools
    logits: Float
    is_called: Bools
    recalibrated: Float

    @property
    def probabilities(self) -> Float:
        """(N,) probabilities as the model gives them."""
        return logistic(self.logits)

    def of(self, rows: Rows) -> Judgement:
        """Return the answers for (M,) of the patches."""
        fields = (self.is_carcinoma, self.logits, self.is_called, self.recalibrated)
        return Judgement(*(values[rows] for values in fields))


def logistic(logits: Float) -> Float:
    """Return the probabilities of (N,) log odds."""
    probabilities: Float = 1 / (1 + np.exp(-logits))
    return probabilities


def judge(patches: Sequence[Patch], folds: Sequence[FoldScores]) -> Judgement:
    """Return the answers for all patches.

    Raises
    ------
    ValueError
        If the folds do not score every patch once.
    """
    rows = np.concatenate([fold.rows for fold in folds])
    if not np.array_equal(np.sort(rows), np.arange(len(patches))):
        raise ValueError(f"{len(folds)} folds score {len(rows)} patches; expected each of {len(patches)} once")
    targets = targets_of(patches)
    logits, recalibrated, is_called = np.zeros(len(patches)), np.zeros(len(patches)), np.zeros(len(patches), bool)
    for fold in folds:
        chosen = targets[fold.chosen_rows]
        logits[fold.rows] = fold.logits
        is_called[fold.rows] = fold.logits > operating_point(chosen, fold.chosen_logits)
        recalibrated[fold.rows] = recalibrate(chosen, fold.chosen_logits, fold.logits)
    return Judgement(targets, logits, is_called, recalibrated)


def operating_point(targets: Bools, logits: Float) -> float:
    """Return the score above which a patch is called carcinoma: sensitivity plus specificity is greatest (Youden)."""
    false_rate, true_rate, thresholds = roc_curve(targets, logits)
    best = int(np.argmax(true_rate - false_rate))
    lowest_called = thresholds[best]
    below = logits[logits < lowest_called]
    return float(lowest_called if len(below) == 0 else (lowest_called + below.max()) / 2)


def recalibrate(targets: Bools, chosen: Float, logits: Float) -> Float:
    """Return probabilities of (S,) log odds, by a slope and an offset that fit (V,) `chosen` ones (Platt 1999)."""
    fitted = LogisticRegression(C=1e6).fit(chosen[:, None], targets)
    probabilities: Float = fitted.predict_proba(logits[:, None])[:, 1]
    return probabilities


# ---------------------------------------------------------------- figures


def measure(answers: Judgement, rows: Rows) -> dict[str, float]:
    """Return the figures of (M,) patches, some of which may be drawn several times."""
    is_carcinoma, is_called = answers.is_carcinoma[rows], answers.is_called[rows]
    sensitivity, specificity = is_called[is_carcinoma].mean(), 1 - is_called[~is_carcinoma].mean()
    figures = {
        "auroc": roc_auc_score(is_carcinoma, answers.logits[rows]),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }
    for name, values in (("", answers.probabilities), ("_recalibrated", answers.recalibrated)):
        figures[f"brier{name}"] = np.mean((values[rows] - is_carcinoma) ** 2)
        figures[f"ece{name}"] = calibration_error(is_carcinoma, values[rows])
    return {name: float(value) for name, value in figures.items()}


def calibration_curve(is_carcinoma: Bools, probabilities: Float) -> Float:
    """Return (B, 2) mean probability and share of carcinoma in bins of equally many patches, by rising probability."""
    bins = np.array_split(np.argsort(probabilities, kind="stable"), BINS)
    return np.array([(probabilities[rows].mean(), is_carcinoma[rows].mean()) for rows in bins])


def calibration_error(is_carcinoma: Bools, probabilities: Float) -> float:
    """Return the mean distance of the calibration curve from the diagonal (ECE, equally filled bins)."""
    curve = calibration_curve(is_carcinoma, probabilities)
    return float(np.abs(curve[:, 0] - curve[:, 1]).mean())


def draw_patients(patients: Sequence[str], draws: int = DRAWS, seed: int = 0) -> list[Rows]:
    """Return the rows of each bootstrap resample: patients are drawn with replacement, each with all its rows."""
    by_patient = defaultdict(list)
    for row, patient in enumerate(patients):
        by_patient[patient].append(row)
    groups, rng = [np.array(rows) for rows in by_patient.values()], np.random.default_rng(seed)
    return [np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]) for _ in range(draws)]


def with_intervals(figures: Figures, resampled: Sequence[Figures]) -> dict[str, Interval]:
    """Return each figure with its 95 % interval over the resamples."""
    intervals = {}
    for name, value in figures.items():
        low, high = np.quantile([drawn[name] for drawn in resampled], (0.025, 0.975))
        intervals[name] = (value, float(low), float(high))
    return intervals


def compare(
    answers: Mapping[str, Any], baseline: str, patients: Sequence[str], measured: Callable[[Any, Rows], Figures]
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Return the figures of each method and its differences to the baseline, on the same resamples of patients.

    Parameters
    ----------
    answers
        Method -> its answers for all rows.
    baseline
        Method that the others are compared with.
    patients
        (N,) patient of each row.
    measured
        Returns the figures of some rows.
    """
    everything, resamples = np.arange(len(patients)), draw_patients(patients)
    whole = {name: measured(own, everything) for name, own in answers.items()}
    drawn = {name: [measured(own, rows) for rows in resamples] for name, own in answers.items()}
    results = {}
    for name in answers:
        pairs = zip(drawn[name], drawn[baseline], strict=True)
        differences = with_intervals(
            _less(whole[name], whole[baseline]), [_less(figures, other) for figures, other in pairs]
        )
        results[name] = {"figures": with_intervals(whole[name], drawn[name]), "less_baseline": differences}
    return results


def _less(figures: Figures, others: Figures) -> dict[str, float]:
    return {name: value - others[name] for name, value in figures.items()}
