"""Checkpoints: file names and entries; Lightning passes over a callback's state under another name without a word."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from lrmil_training.fitting.checkpoints import read_best, read_score
from lrmil_training.fitting.fit import fit
from lrmil_training.fitting.plan import FitPlan
from napari_lrmil.core.events import Progress
from support.fits import CPU, maker, plan
from support.shapes import STORED

TEACHER = STORED / "run" / "checkpoints" / "teacher-0e0c6a74"
MIL = [
    "mil.mean",
    "mil.deviation",
    "mil.V.weight",
    "mil.V.bias",
    "mil.U.weight",
    "mil.U.bias",
    "mil.w.weight",
    "mil.classifier.weight",
    "mil.classifier.bias",
]


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def test_an_unfinished_stage(tmp_path: Path) -> None:
    with closing(fit(maker(5), plan(tmp_path, key="the key"))) as events:
        for event in events:
            if isinstance(event, Progress) and event.done == 2:
                break
    assert {path.name for path in tmp_path.iterdir()} == {"toy.last.ckpt", "toy.prev.ckpt"}
    found = read(tmp_path / "toy.last.ckpt")
    assert found["lrmil_key"] == "the key" and found["lrmil_scale"] == 1.0 and found["epoch"] == 2
    assert set(found) == {
        "lrmil_key",
        "lrmil_scale",
        "epoch",
        "global_step",
        "pytorch-lightning_version",
        "state_dict",
        "current_model_state",
        "averaging_state",
        "optimizer_states",
        "lr_schedulers",
        "callbacks",
    }
    assert set(found["callbacks"]) == {"_Average", "_Selection"}
    assert set(found["callbacks"]["_Selection"]) == {"score", "waited", "best"}


def test_a_stage_that_ended(tmp_path: Path) -> None:
    list(fit(maker(5), plan(tmp_path, key="the key", epochs=1)))
    assert {path.name for path in tmp_path.iterdir()} == {"toy.ckpt", "toy.done"}
    assert set(read(tmp_path / "toy.ckpt")) == {"state_dict", "lrmil_score"}
    assert (tmp_path / "toy.done").read_text() == "the key"


def test_the_stored_stage_counts_as_done() -> None:
    key = (TEACHER / "teacher.done").read_text()
    assert len(key) == 64 and TEACHER.name == f"teacher-{key[:8]}"
    stored = FitPlan("teacher", 6, 15, 0, TEACHER, CPU, key=key)
    assert stored.is_done and read_score(stored) == pytest.approx(0.30484429001808167)
    assert list(read_best(stored)) == MIL
