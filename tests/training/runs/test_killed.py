"""Resume after SIGKILL in each stage gives the metrics of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from lrmil_training.runs.event_log import EVENTS, read_events
from support.phantoms import copy_cohort
from support.processes import ended, start_command
from support.trained import Trained

STAGES = ("teacher", "stage1", "stage2", "stage3")
CONFIG: dict[str, Any] = {
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "baselines": [],
    "class_weights": "none",
    "teacher": {"epochs": 12, "min_epochs": 3, "patch_dropout": 0.2},
    "stage1": {"epochs": 5, "patches_per_slide": 8},
    "stage2": {"epochs": 12, "min_epochs": 3},
    "stage3": {"epochs": 5, "min_epochs": 2, "patches_per_slide": 6, "lr": [1e-4, 1e-3]},
}


@pytest.fixture(scope="module")
def folder(phantoms: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cohort of phantom slides, their HR features and a configuration."""
    folder = tmp_path_factory.mktemp("killed")
    copy_cohort(phantoms, folder, train=6, val=4, test=4)
    shared = {"encoder": {"teacher": trained.encoder}, "features": str(trained.copy_features(folder / "features"))}
    (folder / "config.yaml").write_text(json.dumps(CONFIG | shared))  # JSON is YAML
    return folder


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Any:
    """Return the metrics of a run that was not killed, in a process of its own."""
    call = [sys.executable, "-m", "napari_lrmil", *_train_arguments(folder, folder / "uninterrupted")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(call, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return json.loads((folder / "uninterrupted" / "metrics.json").read_text())


def _train_arguments(folder: Path, out: Path) -> list[str]:
    call = ["train", str(folder / "cohort.csv"), "--out", str(out)]
    return [*call, "--config", str(folder / "config.yaml"), "--device", "cpu"]


def _start(folder: Path, out: Path) -> BaseProcess:
    return start_command(*_train_arguments(folder, out))


def _epochs(out: Path, stage: str) -> int:
    """Return the number of epochs of a stage in the log."""
    return max(_progress(out, stage), default=0)


def _progress(out: Path, stage: str, attempt: int | None = None) -> list[int]:
    lines = read_events(out / EVENTS, attempt=attempt)
    return [line["done"] for line in lines if line["event"] == "Progress" and line["stage"] == stage]


@pytest.mark.timeout(600)  # four fits, one of them killed and begun again
@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed_equals_uninterrupted(folder: Path, uninterrupted: Any, stage: str) -> None:
    """The second start continues from the last complete epoch; SIGKILL leaves no time to write anything.

    Of its two learning rates, stage 3 chooses the same one.
    """
    out = folder / f"killed_in_{stage}"
    first = _start(folder, out)
    while _epochs(out, stage) < 2:
        first.join(0.01)
        assert first.exitcode is None, f"the run ended before two epochs of {stage}"
    first.kill()
    assert ended(first) == -signal.SIGKILL
    done = _epochs(out, stage)
    assert not (out / "metrics.json").exists()
    assert ended(_start(folder, out)) == 0
    again = _progress(out, stage, attempt=1)
    assert again[0] > 1, f"{done} epochs were done, but the first was fitted again"
    assert _flatten(json.loads((out / "metrics.json").read_text())) == pytest.approx(_flatten(uninterrupted), abs=1e-6)


def _flatten(figures: Any, name: str = "") -> dict[str, float]:
    if isinstance(figures, dict):
        timeless = {key: value for key, value in figures.items() if key != "cpu_seconds_per_slide"}
        return {k: v for key, value in timeless.items() for k, v in _flatten(value, f"{name}/{key}").items()}
    if isinstance(figures, list):
        return {k: v for i, value in enumerate(figures) for k, v in _flatten(value, f"{name}/{i}").items()}
    return {name: float(figures)} if isinstance(figures, int | float) else {}
