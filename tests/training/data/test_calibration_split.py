"""Calibration split: disjoint by patient, stratified, out of training and validation, and refused where impossible."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lrmil_training.data.calibration_split import set_calibration_aside
from lrmil_training.data.cohort import Cohort, CohortSlide, require_disjoint_patients
from lrmil_training.data.patient_groups import patient_parts
from napari_lrmil.core.errors import CohortError


def cohort(patients: dict[str, str], slides: int = 2) -> Cohort:
    """Return training slides of patients with their labels, and a slide each of validation and test."""
    rows = [
        CohortSlide(Path(f"{p}-{i}.tif"), p, label, "train") for p, label in patients.items() for i in range(slides)
    ]
    rows += [CohortSlide(Path(f"{split}.tif"), split, "normal", split) for split in ("val", "test")]
    return Cohort(Path("cohort.csv"), tuple(rows), ("normal", "lesion"))


MANY = {f"P{i}": ("normal", "lesion")[i % 2] for i in range(20)}


def test_no_share_changes_nothing() -> None:
    whole = cohort(MANY)
    assert set_calibration_aside(whole, 0.0, 1) is whole


def test_patients_are_set_aside_by_class() -> None:
    """All slides of a patient; validation and test stay; the draw depends on the seed alone, not on the order."""
    whole = cohort(MANY)
    split = set_calibration_aside(whole, 0.5, 1)
    require_disjoint_patients(whole.path, split.slides)
    aside = {s.patient for s in split.of("calibration")}
    assert Counter(MANY[patient] for patient in aside) == {"normal": 5, "lesion": 5}
    assert len(split.of("calibration")) == 20 and len(split.of("train")) == 20
    assert (split.of("val"), split.of("test")) == (whole.of("val"), whole.of("test"))
    mixed = Cohort(whole.path, whole.slides[::-1], whole.classes)
    assert {s.patient for s in set_calibration_aside(mixed, 0.5, 1).of("calibration")} == aside
    assert {s.patient for s in set_calibration_aside(whole, 0.5, 2).of("calibration")} != aside
    assert split.summary()["calibration"] == {"normal": 10, "lesion": 10}


def test_patients_that_share_a_slide_go_together() -> None:
    whole = cohort({"1": "normal", "1+2": "normal", "2": "normal", "3": "normal", "4": "lesion", "5": "lesion"}, 1)
    for seed in range(20):
        split = set_calibration_aside(whole, 0.5, seed)
        parts = [{p for s in split.of(name) for p in patient_parts(s.patient)} for name in ("train", "calibration")]
        assert not parts[0] & parts[1]


def test_too_few_patients_for_a_set_say_so() -> None:
    (notice,) = set_calibration_aside(cohort(MANY), 0.2, 1).notices
    assert "the calibration split has 4 patients, and sets at 90 % coverage need 9" in notice
    assert set_calibration_aside(cohort(MANY), 0.5, 1).notices == ()


@pytest.mark.parametrize(
    ("share", "patients", "problem"),
    [
        (0.1, {"1": "normal", "2": "lesion"}, "is no patient of any class"),
        (0.8, {"1": "normal", "2": "normal", "3": "normal", "4": "lesion"}, "leaves class lesion without a training"),
    ],
)
def test_an_impossible_share_is_refused(share: float, patients: dict[str, str], problem: str) -> None:
    with pytest.raises(CohortError, match=rf"{problem}.*choose another share"):
        set_calibration_aside(cohort(patients), share, 0)
