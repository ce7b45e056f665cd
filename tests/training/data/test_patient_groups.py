"""Patients behind pseudo-patients: counted once each, and clustered where they share tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lrmil_training.data.patient_groups import count_patients, patient_clusters
from lrmil_training.evaluation.metrics import OVER_PATIENTS, OVER_SLIDES, Resampler
from lrmil_training.report.run_record import RunRecord, count_by_split


def test_a_pseudo_patient_counts_as_its_patients() -> None:
    """Each patient counts once, however many slides name it and however the name is spaced."""
    assert count_patients(["9+11"]) == 2
    assert count_patients(["9+11", "9", "11 + 9", "12"]) == 3
    assert count_patients(["+", "+"]) == 1
    assert count_patients([]) == 0


def test_intervals_are_over_independent_groups_of_patients() -> None:
    """Pseudo-patients that share a patient are drawn together; too few independent groups give no such interval."""
    targets = np.array([0, 1] * 6)
    apart = [f"{2 * i}+{2 * i + 1}" for i in range(12)]
    chained = [f"{i}+{i + 1}" for i in range(12)]
    assert (Resampler(targets, apart, 5).interval, Resampler(targets, apart, 5).n_clusters) == (OVER_PATIENTS, 12)
    assert (Resampler(targets, chained, 5).interval, Resampler(targets, chained, 5).n_clusters) == (OVER_SLIDES, 1)
    assert len(set(patient_clusters(chained))) == 1
    pairs = ["1", "1+2", "2", "3"] + [str(i) for i in range(10, 18)]
    for draw in Resampler(targets, pairs, 20).draws:
        assert len({int((draw == row).sum()) for row in range(3)}) == 1  # always all three slides of 1 and 2


def test_the_report_counts_patients_once() -> None:
    slides = [
        {"split": "train", "patient": "9+11", "label": "a"},
        {"split": "train", "patient": "11", "label": "b"},
        {"split": "test", "patient": "7+8", "label": "b"},
    ]
    methods = {"teacher": {"probabilities": {"a": 0.5, "b": 0.5}}}
    record = RunRecord(Path("run"), {}, "", [], {}, None, [], {}, [slide | {"methods": methods} for slide in slides])
    rows = {row["split"]: row["patients"] for row in count_by_split(record)}
    assert rows == {"train": 2, "test": 2}
