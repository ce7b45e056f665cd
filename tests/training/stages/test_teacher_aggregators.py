"""Aggregators of the teacher in training: each learns, students keep theirs, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrmil_training.config import build_config
from lrmil_training.stages.teacher import fit_teacher
from lrmil_training.train import train
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import Event, Notice, StageDone
from napari_lrmil.core.metrics.agreement import auroc
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import Aggregator
from napari_lrmil.core.models.mil import GatedAttentionMIL
from support.trained import SHORT, TINY, Trained
from training.stages.test_recipe_selection import drain, make_cohort, make_context, make_features

CPU = torch.device("cpu")
NAMES: tuple[Aggregator, ...] = ("mean", "max", "abmil", "clam_sb", "dsmil", "transmil")


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_learns_and_a_second_call_fits_nothing(tmp_path: Path, name: Aggregator) -> None:
    """A few patches of each slide tell its class; the stored fit gives the same numbers."""
    hr = make_features(tmp_path, make_cohort(tmp_path))
    values = {"teacher": {"epochs": 12, "min_epochs": 10, "lr": 2e-2, "ema": 0.5, "aggregator": name, "hidden": 4}}
    context = make_context(tmp_path, values)
    events, teacher = drain(fit_teacher(context, hr))
    test = [teacher.slides[s.name].logits for s in context.cohort.slides if s.split == "val"]
    targets = np.array([context.cohort.target(s) for s in context.cohort.slides if s.split == "val"])
    value = auroc(np.array([float(x[1] - x[0]) for x in test]), targets == 1)
    assert value is not None and value > 0.9
    assert any(isinstance(e, Notice) and "attention" in e.message for e in events)
    again, second = drain(fit_teacher(context, hr))
    assert [e.seconds for e in again if isinstance(e, StageDone)] == [0]
    for slide, targets_of in teacher.slides.items():
        torch.testing.assert_close(second.slides[slide].logits, targets_of.logits, rtol=0, atol=0)
        torch.testing.assert_close(second.slides[slide].scores, targets_of.scores, rtol=0, atol=0)


def test_a_run_with_such_a_teacher(tmp_path: Path, trained: Trained, call: Any) -> None:
    """The student has gated attention, and the bundle's teacher runs beside it."""
    teacher = SHORT["teacher"] | {"aggregator": "transmil", "hidden": 4}
    encoder = {"encoder": {"teacher": trained.encoder}}
    values = TINY | SHORT | encoder | {"teacher": teacher, "features": str(trained.copy_features(tmp_path / "hr"))}
    events: list[Event] = list(train(trained.cohort, tmp_path / "run", build_config(values), CPU))
    assert any(isinstance(e, Notice) and "starts from a fresh MIL" in e.message for e in events)
    bundle = Bundle(tmp_path / "run" / "bundle")
    assert isinstance(bundle.student.mil, GatedAttentionMIL)
    assert bundle.card.teacher is not None and bundle.card.teacher.aggregator == "transmil"
    slide = next(trained.cohort.parent.glob("*.tif*"))
    code, out, _ = call("compare", slide, "--bundle", bundle.path, "--out", tmp_path / "answer")
    assert code == 0, out
    (file,) = (tmp_path / "answer").rglob("agreement.json")
    assert -1 <= json.loads(file.read_text())["spearman"] <= 1


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"teacher": {"aggregator": "dsmil"}, "stage2": {"init": "frozen_head"}}, "cannot pool as dsmil does"),
        ({"teacher": {"aggregator": "max"}, "baselines": ["stage1_only"]}, "baseline stage1_only gives"),
        ({"teacher": {"aggregator": "transmil"}, "lambda_patch": 0.5}, "transmil has no linear class scores"),
        ({"teacher": {"aggregator": "clam_sb"}, "lambda_patch": 0.5}, "clam_sb has no linear class scores"),
        ({"teacher": {"aggregator": "abmil"}, "distil": False, "baselines": []}, "the run has none"),
        ({"teacher": {"aggregator": "abmil"}, "bag": "patient"}, "abmil in teacher.aggregator does not pool"),
        (
            {"selection": {"inner_folds": 3, "aggregators": ["clam_sb"]}, "stage2": {"init": "frozen_head"}},
            "cannot pool as clam_sb does",
        ),
        ({"teacher": {"aggregator": "attention"}}, "transmil"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build_config(values)
