"""Patients behind pseudo-patients: counted once each, and what intervals count on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lrmil_training.data.patient_groups import count_patients, count_units, draw_owners, observed_patients
from lrmil_training.evaluation.metrics import OVER_PATIENTS, Resampler
from lrmil_training.report.run_record import RunRecord, count_by_split


def test_a_pseudo_patient_counts_as_its_patients() -> None:
    """Each patient counts once, however many slides name it and however the name is spaced."""
    assert count_patients(["9+11"]) == 2
    assert count_patients(["9+11", "9", "11 + 9", "12"]) == 3
    assert count_patients(["+", "+"]) == 1
    assert count_patients([]) == 0


def test_intervals_count_patients_and_at_most_slides() -> None:
    """Patients that never come apart are one; those of a chain are as many as there are slides."""
    apart = [f"{2 * i}+{2 * i + 1}" for i in range(12)]
    chained = [f"{i}+{i + 1}" for i in range(12)]
    assert [count_units(patients) for patients in (apart, apart * 2, chained, chained * 2)] == [12, 12, 12, 13]
    assert count_units(["9+11"] * 5) == 1 and count_units(["9+11", "9", "9"]) == 2
    assert count_units(["9", "9", "12"]) == count_patients(["9", "9", "12"]) == 2
    assert observed_patients(["9+11", "11 + 9", "3+4", "4"]) == [["9"], ["9"], ["3", "4"], ["4"]]


def test_a_slide_of_two_patients_counts_for_either() -> None:
    """About half of the resamples draw it with one of them, and never more often than that patient."""
    rng = np.random.default_rng(0)
    owners = [draw_owners([["1", "2"], ["1"], ["3"]], rng) for _ in range(400)]
    assert {owner[1] for owner in owners} == {"1"} and {owner[2] for owner in owners} == {"3"}
    assert 150 < sum(owner[0] == "1" for owner in owners) < 250
    patients = ["1+2", "1", "2", *(str(i) for i in range(10, 19))]
    resampler = Resampler(np.array([0, 1] * 6), patients, 200)
    assert (resampler.interval, resampler.n_clusters) == (OVER_PATIENTS, 11)
    for draw in resampler.draws:
        counts = np.bincount(draw, minlength=12)
        assert counts[0] in (counts[1], counts[2])


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
