"""Dry run of a training: plan, cost and checks, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]
SMALL = ("--set", "hr_patch_px=64", "--set", "lr_patch_px=64", "--device", "cpu")


@pytest.fixture
def table(tmp_path: Path, call: Call) -> Path:
    """Return the table of ten phantoms, six of them in train."""
    assert call("phantom", tmp_path / "cohort", "--slides", 10, "--size", "1024x1024")[0] == 0
    return tmp_path / "cohort" / "cohort.csv"


def test_plan_cost_and_checks_are_printed_and_nothing_is_written(table: Path, tmp_path: Path, call: Call) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = call("train", table, "--out", tmp_path / "run", *SMALL, "--dry-run")
    assert code == 0 and sorted(tmp_path.rglob("*")) == before
    assert "cohort     10 slides of 10 patients; classes normal, lesion" in out
    assert "train      6 slides of 6 patients (normal 3, lesion 3)" in out
    assert "outlines   beside 10 of 10 slides" in out and "encoders   teacher demo" in out
    assert "on the disk" in out and "counted on 10 of 10 slides" in out
    assert "ok       all 10 slides open" in out and "problem" not in out


def test_slides_that_do_not_open_and_outlines_outside_are_problems(table: Path, tmp_path: Path, call: Call) -> None:
    slides = sorted(table.parent.glob("*.tif"))
    slides[0].write_bytes(b"no slide")
    lesions = next(file for file in sorted(table.parent.glob("*_lesions.geojson")) if "coordinates" in file.read_text())
    far = "[[[9000, 9000], [9100, 9000], [9100, 9100], [9000, 9000]]]"
    feature = f'{{"type": "Feature", "properties": {{}}, "geometry": {{"type": "Polygon", "coordinates": {far}}}}}'
    other = slides[1].with_name(f"{slides[1].stem}_lesions.geojson")
    other.write_text(f'{{"type": "FeatureCollection", "features": [{feature}]}}')
    code, out, _ = call("train", table, "--out", tmp_path / "run", *SMALL, "--dry-run")
    assert code == 2 and lesions.exists()
    assert f"problem  {slides[0].name}: " in out
    assert f"{other.name}: outlines reach from 9000, 9000 to 9100, 9100, outside the slide of 1024 x 1024 px" in out
    assert "ok       all" not in out


def test_folds_and_remote_encoders_are_planned_without_a_download(table: Path, tmp_path: Path, call: Call) -> None:
    words = ("--set", "folds=3", "--set", "seeds=2", "--set", "encoder.teacher=hf:owner/name")
    code, out, _ = call("train", table, "--out", tmp_path / "run", *SMALL, *words, "--dry-run")
    assert code == 0 and "runs       6: 3 folds by patient, 2 seeds" in out
    assert "not checked: the encoder hf:owner/name" in out and "time unknown before a first run" in out


def test_faults_of_the_call_are_those_of_training(table: Path, tmp_path: Path, call: Call) -> None:
    table.write_text(table.read_text().replace(",val", ",train"))
    code, _, err = call("train", table, "--out", tmp_path / "run", *SMALL, "--dry-run")
    assert code == 2 and "split val has no slide at all" in err
    code, _, err = call("train", tmp_path / "none.csv", "--out", tmp_path / "run", "--dry-run")
    assert code == 2 and "no such file" in err
