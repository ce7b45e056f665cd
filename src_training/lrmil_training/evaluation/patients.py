"""Figures by patient: one answer for all slides of a patient, beside the figures by slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from lrmil_training.data.patient_groups import bags_by_patient
from lrmil_training.evaluation.metrics import (
    OVER_PATIENTS,
    Float,
    Resampler,
    ScoredSlides,
    auroc_with_interval,
    classification_metrics,
    paired_difference,
)
from napari_lrmil.core.results.patient_answers import MEAN_OF_LOGITS

PATIENTS = "patients"  # key of the figures by patient in metrics.json
FEW_PATIENTS = "patients (fewer than five of a class: a rough guide)"
MAX_NAMED = 5  # patients that a message names


@dataclass(frozen=True)
class PatientBag:
    """All slides of one patient.

    Attributes
    ----------
    patient
        Cell of the column ``patient``. A pseudo-patient such as ``9+11`` is a bag of its own, because its slides do not
        say which tissue is whose.
    rows
        Rows of its slides.
    target
        Index of the class; None if the slides have several.
    """

    patient: str
    rows: tuple[int, ...]
    target: int | None


@dataclass(frozen=True)
class PatientBags:
    """The patients of some slides.

    Attributes
    ----------
    all
        Every patient, in order of appearance.
    """

    all: tuple[PatientBag, ...]

    @property
    def labelled(self) -> tuple[PatientBag, ...]:
        """Patients whose slides have one label."""
        return tuple(bag for bag in self.all if bag.target is not None)

    @property
    def mixed(self) -> tuple[str, ...]:
        """Names of the patients whose slides have several labels. They have no true class, so no figure has them."""
        return tuple(bag.patient for bag in self.all if bag.target is None)

    @property
    def has_several_slides(self) -> bool:
        """Whether a patient has several slides; otherwise figures by patient are those by slide."""
        return any(len(bag.rows) > 1 for bag in self.all)


def group_slides(patients: Sequence[str], targets: Sequence[int]) -> PatientBags:
    """Return the patients of slides.

    Parameters
    ----------
    patients
        (N,) patient of each slide.
    targets
        (N,) index of the class of each slide.
    """
    bags = []
    for patient, rows in bags_by_patient(patients).items():
        labels = {targets[row] for row in rows}
        bags.append(PatientBag(patient, rows, labels.pop() if len(labels) == 1 else None))
    return PatientBags(tuple(bags))


def mean_logits(logits: NDArray[np.floating[Any]], bags: Sequence[PatientBag]) -> Float:
    """Return (P, C) mean logits of the slides of each patient, from (N, C) logits of the slides."""
    return np.array([logits[list(bag.rows)].astype(np.float64).mean(axis=0) for bag in bags])


def measure_patients(
    bags: PatientBags,
    logits: Mapping[str, Float],
    temperatures: Mapping[str, float | None],
    classes: Sequence[str],
    bootstrap: int,
    pooling: str = MEAN_OF_LOGITS,
) -> dict[str, dict[str, Any]]:
    """Return method -> figures by patient, the entry ``patients`` of a method and split in ``metrics.json``.

    Parameters
    ----------
    bags
        The patients.
    logits
        Method -> (P, C) logits of the labelled patients.
    temperatures
        Method -> calibration temperature of the method.
    classes
        Names of the classes.
    bootstrap
        Number of resamples of patients.
    pooling
        How an answer was made of a patient's slides.
    """
    targets, names = np.array([bag.target for bag in bags.labelled]), tuple(bag.patient for bag in bags.labelled)
    if not names:
        return {method: _without_patients(bags, pooling) for method in logits}
    scored = {m: ScoredSlides(scale_logits(rows, temperatures[m]), targets, names) for m, rows in logits.items()}
    resampler = Resampler(targets, names, bootstrap)
    n_slides = sum(len(bag.rows) for bag in bags.labelled)
    return {
        method: {
            "pooling": pooling,
            "n_bags": len(names),
            "left_out": list(bags.mixed),
            "auroc": _patient_auroc(scored[method], resampler, n_slides),
            **classification_metrics(scored[method], classes),
            "calibrated": temperatures[method] is not None,
            "paired": {o: paired_difference(scored[method], scored[o], resampler) for o in scored if o != method},
        }
        for method in logits
    }


def scale_logits(logits: Float, temperature: float | None) -> Float:
    """Return the probabilities of (P, C) logits."""
    return np.asarray(softmax(logits.astype(np.float64) / (temperature or 1.0), axis=1), dtype=np.float64)


def _patient_auroc(scored: ScoredSlides, resampler: Resampler, n_slides: int) -> dict[str, Any]:
    # A row is a patient here, so that a bootstrap over rows is one over patients too.
    interval = OVER_PATIENTS if resampler.interval == OVER_PATIENTS else FEW_PATIENTS
    return auroc_with_interval(scored, resampler) | {"n_slides": n_slides, "interval": interval}


def _without_patients(bags: PatientBags, pooling: str) -> dict[str, Any]:
    reason = "every patient has slides of several labels"
    auroc = {"value": None, "low": None, "high": None, "n_slides": 0, "n_patients": 0, "reason": reason}
    return {"pooling": pooling, "n_bags": 0, "left_out": list(bags.mixed), "auroc": auroc}


def describe_mixed(patients: Sequence[str]) -> str:
    """Return a sentence on patients with slides of several labels, naming the first `MAX_NAMED`."""
    named = ", ".join(patients[:MAX_NAMED]) + (f" and {len(patients) - MAX_NAMED} more" * (len(patients) > MAX_NAMED))
    return f"patients with slides of several labels: {len(patients)} ({named})"
