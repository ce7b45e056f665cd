"""Free disk space is checked before features are computed; a user may go on all the same."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lrmil_training.config import build_config
from napari_lrmil.cli.disk_check import require_training_disk
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for number in range(6):
        write_slide(tmp_path / "slides", PhantomSlide(f"s{number}", LESION, number, (1024, 768)))
    return tmp_path / "slides"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=140_000))


@pytest.mark.usefixtures("full")
def test_features_that_would_not_fit_are_refused_before_any_work(call: Call, slides: Path, tmp_path: Path) -> None:
    arguments = ("features", slides, "--encoder", "demo", "--out", tmp_path / "out", "--device", "cpu")
    arguments = (*arguments, "--mpp", "2", "--patch-px", "64")
    code, _, err = call(*arguments)
    assert code == 2
    assert "the features need about 0." in err and "6 slides of " in err and "counted on 4 slides" in err
    assert "0.1 MB are free" in err and "--ignore-disk" in err
    assert not list((tmp_path / "out").rglob("*.h5"))
    assert call(*arguments, "--ignore-disk")[0] == 0
    assert len(list((tmp_path / "out").rglob("features_*/*.h5"))) == 6
    assert call(*arguments)[0] == 0  # nothing is left to be computed


@pytest.mark.usefixtures("full")
def test_a_training_that_would_not_fit_is_refused(call: Call, tmp_path: Path) -> None:
    assert call("phantom", tmp_path / "cohort", "--slides", 6, "--size", "1024x1024")[0] == 0
    small = ("--set", "hr_patch_px=64", "--set", "lr_patch_px=64", "--device", "cpu")
    code, _, err = call("train", tmp_path / "cohort" / "cohort.csv", "--out", tmp_path / "run", *small)
    assert code == 2
    assert "HR and " in err and "LR patches, 1,280 numbers each; counted on 4 slides), but 0.1 MB are free" in err


@pytest.mark.parametrize("has_column", [True, False])
def test_a_cohort_without_labels_is_counted(call: Call, tmp_path: Path, has_column: bool) -> None:
    """A given teacher needs none; whether they are needed is decided by the training, not by the disk's check."""
    assert call("phantom", tmp_path / "cohort", "--slides", 6, "--size", "1024x1024")[0] == 0
    table = tmp_path / "cohort" / "unlabelled.csv"
    with (tmp_path / "cohort" / "cohort.csv").open(newline="") as file:
        rows = [{"slide": row["slide"], "patient": row["patient"], "label": ""} for row in csv.DictReader(file)]
    names = ["slide", "patient", *(["label"] if has_column else [])]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    require_training_disk(table, tmp_path, build_config({"hr_patch_px": 64, "lr_patch_px": 64}), "cpu")
