"""Killed with SIGKILL at any stage and started again, every command ends with the results of an unbroken run.

Plain pytest makes two kills of each kind. ``make fuzz`` sets LRMIL_FUZZ and makes twenty.
"""

from __future__ import annotations

import csv
import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fuzz.kills import files_written, kill_until_done, mid_evaluation, mid_features, mid_fit
from lrmil_training.runs.event_log import EVENTS, read_events
from napari_lrmil.core.encoders import save_encoder
from support.networks import untrained_bundle, untrained_encoder
from support.phantoms import copy_cohort
from support.processes import ended, start_command

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
KILLS = 20 if os.environ.get("LRMIL_FUZZ") else 2
FITS = ("teacher", "stage1", "stage2", "stage3")
RATES = (1e-4, 1e-3)  # of stage 3; it fits once for each
# A kill takes several of the shortest epochs until it is noticed that one has come.
EPOCHS = {"teacher": 12 * KILLS, "stage1": 4 * KILLS, "stage2": 12 * KILLS, "stage3": 2 * KILLS}
CONFIG: dict[str, Any] = {
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "baselines": [],
    "class_weights": "none",
    "teacher": {"epochs": EPOCHS["teacher"], "min_epochs": EPOCHS["teacher"], "patch_dropout": 0.2},
    "stage1": {"epochs": EPOCHS["stage1"], "patches_per_slide": 4},
    "stage2": {"epochs": EPOCHS["stage2"], "min_epochs": EPOCHS["stage2"]},
    "stage3": {"epochs": EPOCHS["stage3"], "min_epochs": EPOCHS["stage3"], "patches_per_slide": 2, "lr": RATES},
}
TIMES = ("seconds", "cpu_seconds", "cpu_seconds_per_slide", "created", "machine")


@pytest.fixture(scope="module")
def folder(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cohort of phantom slides, an encoder, a bundle and a configuration."""
    folder = tmp_path_factory.mktemp("killed")
    copy_cohort(phantoms, folder, train=6, val=4, test=4)
    save_encoder(folder / "encoder.safetensors", untrained_encoder())
    untrained_bundle(folder / "bundle", teacher=False)
    encoder = {"encoder": {"teacher": str(folder / "encoder.safetensors")}}
    (folder / "config.yaml").write_text(json.dumps(CONFIG | encoder))  # JSON is YAML
    return folder


def train_call(folder: Path, out: Path) -> list[object]:
    return ["train", folder / "cohort.csv", "--out", out, "--config", folder / "config.yaml", "--device", "cpu"]


def predict_call(folder: Path, out: Path) -> list[object]:
    return ["predict", folder / "cohort.csv", "--bundle", folder / "bundle", "--out", out, "--device", "cpu"]


def features_call(folder: Path, out: Path) -> list[object]:
    words = ["features", folder / "cohort.csv", "--encoder", folder / "encoder.safetensors", "--patch-px", "64"]
    return [*words, "--out", out, "--device", "cpu"]


def run_unbroken(words: list[object], said: Path) -> None:
    assert ended(start_command(*words, said=said)) == 0, said.read_text()


@pytest.mark.slow
@pytest.mark.timeout(3000)  # more than a hundred starts in the whole campaign
def test_a_training_that_is_killed_in_every_stage_ends_like_an_unbroken_one(folder: Path) -> None:
    """The run is one chain of attempts. None fits epochs again that an earlier one had finished."""
    unbroken, out, said = folder / "unbroken", folder / "killed", folder / "said"
    run_unbroken(train_call(folder, unbroken), said)
    points = [mid_features(i) for i in range(KILLS)]
    points += [mid_fit(stage, i) for stage in FITS for i in range(KILLS)]
    points += [mid_evaluation(i) for i in range(KILLS)]
    outcome = kill_until_done(train_call(folder, out), out, points, said)
    assert outcome.kills == dict.fromkeys(("features", *FITS, "evaluation"), KILLS)
    assert_no_epoch_is_lost(out)
    assert flatten(out / "metrics.json") == pytest.approx(flatten(unbroken / "metrics.json"), abs=1e-6)
    assert names(out) == names(unbroken)


def assert_no_epoch_is_lost(out: Path) -> None:
    """Each attempt goes on at most one epoch before the last that is in the log: the one that was not yet saved."""
    for stage in FITS[:3]:  # stage 3 counts its epochs from the beginning for each learning rate
        last = 0
        epochs = [line for line in read_events(out / EVENTS) if line["event"] == "Progress" and line["stage"] == stage]
        for _, lines in groupby(epochs, key=lambda line: line["attempt"]):
            done = [line["done"] for line in lines]
            assert done[0] >= last, f"{stage}: {last} epochs were done, epoch {done[0]} was fitted again"
            last = done[-1]
        assert last == EPOCHS[stage]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_prediction_that_is_killed_ends_like_an_unbroken_one(folder: Path) -> None:
    unbroken, out, said = folder / "predicted", folder / "killed predicting", folder / "said predicting"
    run_unbroken(predict_call(folder, unbroken), said)
    points = [files_written("predict", 1 + i % 4) for i in range(KILLS)]
    assert kill_until_done(predict_call(folder, out), out, points, said).kills["predict"] == KILLS
    assert names(out) == names(unbroken)
    for result in unbroken.glob("*/prediction.json"):
        mine = out / result.parent.name
        assert flatten(mine / "prediction.json") == pytest.approx(flatten(result), abs=1e-6)
        assert_same_arrays(mine / "attention.h5", result.with_name("attention.h5"))
    assert [row["slide"] for row in rows(out)] == [row["slide"] for row in rows(unbroken)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_features_that_are_killed_end_like_unbroken_ones(folder: Path) -> None:
    unbroken, out, said = folder / "extracted", folder / "killed extracting", folder / "said extracting"
    run_unbroken(features_call(folder, unbroken), said)
    points = [files_written("features", 1 + i % 2) for i in range(KILLS)]
    assert kill_until_done(features_call(folder, out), out, points, said).kills["features"] == KILLS
    assert names(out) == names(unbroken)
    for file in unbroken.rglob("*.h5"):
        assert_same_arrays(out / file.relative_to(unbroken), file)


# ---------------------------------------------------------------- results


def names(folder: Path) -> list[str]:
    """Return the files of a folder; half-written ones that a kill has left would be among them."""
    skipped = ("events.out", ".log")  # of loggers: one for each attempt
    files = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in files if not any(part in name for part in skipped))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_arrays(mine: Path, other: Path) -> None:
    with h5py.File(mine) as a, h5py.File(other) as b:
        assert list(a) == list(b)
        for name in b:
            np.testing.assert_allclose(a[name][()], b[name][()], atol=1e-6)


def flatten(file: Path) -> dict[str, float]:
    """Return the numbers of a JSON file without times, by their path in it."""
    return _flatten(json.loads(file.read_text(encoding="utf-8")), "")


def _flatten(figures: Any, name: str) -> dict[str, float]:
    if isinstance(figures, dict):
        timeless = {key: value for key, value in figures.items() if key not in TIMES}
        return {k: v for key, value in timeless.items() for k, v in _flatten(value, f"{name}/{key}").items()}
    if isinstance(figures, list):
        return {k: v for i, value in enumerate(figures) for k, v in _flatten(value, f"{name}/{i}").items()}
    return {name: float(figures)} if isinstance(figures, int | float) else {}
