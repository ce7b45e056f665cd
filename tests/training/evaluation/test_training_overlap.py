"""An evaluation on slides of the training says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.evaluation.training_overlap import warn_of_training_slides

USED = [("a", "P1", "train"), ("b", "P2", "val"), ("c", "P3", "calibration"), ("d", "P4", "test")]


def _cohort(*rows: tuple[str, str], split: str = "test", fixed: bool = True) -> Cohort:
    slides = tuple(CohortSlide(Path(f"{name}.tif"), patient, "lesion", split) for name, patient in rows)
    return Cohort(Path("cohort.csv"), slides, ("lesion", "normal"), fixed)


def _run(folder: Path) -> Path:
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / "lrmil.json").write_text("{}")
    slides = [{"slide": slide, "patient": patient, "split": split} for slide, patient, split in USED]
    (folder / "slides.json").write_text(json.dumps({"slides": slides}))
    return folder / "bundle"


def test_slides_of_the_training_are_counted(tmp_path: Path) -> None:
    bundle = _run(tmp_path / "run")
    (text,) = warn_of_training_slides(_cohort(("a", "P1"), ("b", "P2"), ("c", "P3"), ("d", "P4")), bundle)
    assert text.startswith("3 of 4 slides were used to train this model or to choose its settings")
    assert "(1 in calibration, 1 in train, 1 in val)" in text


def test_test_slides_and_namesakes_of_other_patients_are_silent(tmp_path: Path) -> None:
    assert warn_of_training_slides(_cohort(("d", "P4"), ("a", "P9")), _run(tmp_path / "run")) == []


def test_the_best_run_of_a_series_is_looked_up(tmp_path: Path) -> None:
    part = _run(tmp_path / "series" / "runs" / "fold_0")
    bundle = tmp_path / "series" / "bundle"
    shutil.copytree(part, bundle)
    (text,) = warn_of_training_slides(_cohort(("a", "P1"), ("d", "P4")), bundle)
    assert "1 of 2 slides" in text


def test_a_table_without_splits_is_told_unless_all_slides_are_asked_for(tmp_path: Path) -> None:
    bundle, cohort = _run(tmp_path / "run").rename(tmp_path / "elsewhere"), _cohort(("a", "P1"), fixed=False)
    (text,) = warn_of_training_slides(cohort, bundle)
    assert "no column split" in text
    every = replace(cohort, slides=tuple(replace(s, split="all") for s in cohort.slides))
    assert warn_of_training_slides(every, bundle) == []
