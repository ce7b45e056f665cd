"""Small students by name: stage 1 trains them, and a bundle with one is used like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lrmil_training.config import build_config
from lrmil_training.train import train
from napari_lrmil.core.events import Finished, Notice
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.slides.slide import Slide
from support.phantoms import copy_cohort
from support.trained import Trained

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "teacher": {"epochs": 2, "min_epochs": 1},
    "stage2": {"epochs": 2, "min_epochs": 1},
    "stage3": {"epochs": 0},
    "baselines": [],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [("mobilenet_v3_large", ["block_12"]), ("convnext_atto", ["block_12:stage_3"]), ("mobilenet_v2", ["block_12"])],
)
def test_a_small_student_is_taught_and_used(
    name: str, layers: list[str], phantoms: Path, trained: Trained, tmp_path: Path
) -> None:
    """Its layers are named beside the teacher's; a projection carries its width; that it starts fresh is said."""
    table = copy_cohort(phantoms, tmp_path / "cohort", train=4, val=2, test=2)
    features = trained.copy_features(tmp_path / "features")
    changes = {"encoder": {"teacher": trained.encoder, "student": name}, "features": str(features)}
    config = build_config(SHORT | changes | {"stage1": {"epochs": 1, "layers": layers}})
    events = list(train(table, tmp_path / "run", config, CPU))
    messages = [event.message for event in events if isinstance(event, Notice)]
    assert isinstance(events[-1], Finished) and any(f"{name} starts with random weights" in text for text in messages)

    bundle = Bundle(tmp_path / "run" / "bundle")
    assert bundle.card.student.encoder.name == name
    slide = next(table.parent.glob("*.tif"))
    with Slide(slide) as opened:
        *_, last = predict(opened, bundle, device=CPU)
    assert isinstance(last, Finished)
    assert sum(last.result.student.probabilities.values()) == pytest.approx(1)
    assert bool(torch.isfinite(torch.from_numpy(last.result.student.attention)).all())
