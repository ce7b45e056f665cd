"""Keys of a training configuration, the words that they take, and the presets."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from lrmil_training.config import PRESETS, TrainConfig, known_keys, load_config

KEYS = {
    "": "name about intended_use seed seeds folds distil by_site hr_mpp lr_mpp hr_patch_px lr_patch_px "
    "student_input_px exclude_artefacts class_weights sampling bag lambda_patch baselines compare ablation bootstrap "
    "features hr_features hr_mapping hr_check devices precision loggers",
    "encoder": "teacher student teacher_layers pca",
    "stain": "normalise",
    "split": "calibration",
    "operating_point": "sensitivity",
    "teacher": "epochs lr aggregator hidden weight_decay min_epochs patience ema patch_dropout "
    "feature_dropout patches_per_slide top_share mil mil_classes",
    "selection": "inner_folds aggregators lr layers",
    "stage1": "epochs lr batch_size patches_per_slide layers projection lambda_layer lambda_attn attention targets "
    "weight_decay augment stain_sd",
    "stage2": "epochs lr lambda_ce lambda_bag lambda_soft lambda_hard temperature_bag temperature_attn topk "
    "attention_transfer init features patch_dropout feature_dropout patches_per_slide weight_decay min_epochs patience "
    "ema",
    "stage3": "epochs lr patches_per_slide slides_per_step keep_stage2_terms weight_decay augment min_epochs "
    "patience ema feature_dropout",
}
AGGREGATORS = "gated_attention linear_topk mean max abmil clam_sb dsmil transmil"
WORDS = {
    "teacher.aggregator": AGGREGATORS,
    "selection.aggregators": AGGREGATORS,
    "compare": AGGREGATORS,
    "stain.normalise": "none reinhard density_gain",
    "stage1.projection": "learned identity",
    "stage1.attention": "teacher uniform",
    "stage1.targets": "stored on_the_fly",
    "stage2.attention_transfer": "logsumexp mean max",
    "stage2.init": "teacher fresh frozen_head",
    "stage2.features": "stored on_the_fly",
    "class_weights": "balanced none",
    "sampling": "slide patient",
    "bag": "slide patient",
    "baselines": "labels_only labels_only_finetuned stage1_only stage2_only both",
    "precision": "auto 32 bf16",
    "loggers": "csv tensorboard wandb mlflow",
}


def test_keys() -> None:
    expected = [f"{group}.{key}" if group else key for group, keys in KEYS.items() for key in keys.split()]
    assert sorted(known_keys()) == sorted(expected)


def choices(model: type[BaseModel], group: str = "") -> dict[str, str]:
    """Return the words that each key may be, where only some are allowed."""
    found = {}
    for name, field in model.model_fields.items():
        kind: Any = get_args(field.annotation)[0] if get_origin(field.annotation) is tuple else field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= choices(kind, f"{name}.")
        elif get_origin(kind) is Literal:
            found[group + name] = " ".join(get_args(kind))
    return found


def test_words() -> None:
    assert choices(TrainConfig) == WORDS


def test_presets() -> None:
    assert PRESETS == {
        "default": {"exclude_artefacts": True},
        "paper": {
            "exclude_artefacts": True,
            "hr_mpp": 0.5,
            "lr_mpp": 2.0,
            "hr_patch_px": 256,
            "lr_patch_px": 256,
            "encoder": {"student": "teacher"},
            "stage1": {"lambda_layer": 1.0, "lambda_attn": 1.0, "projection": "identity"},
            "stage2": {"lambda_hard": 1.0, "init": "teacher"},
            "stage3": {"epochs": 0},
        },
        "demo": {
            "hr_mpp": 0.5,
            "lr_mpp": 2.0,
            "hr_patch_px": 128,
            "lr_patch_px": 128,
            "teacher": {"epochs": 60},
            "stage1": {"epochs": 12, "lr": 1e-3},
            "stage2": {"epochs": 60},
            "stage3": {"epochs": 0},
        },
    }


@pytest.mark.parametrize("name", ["default", "paper", "demo"])
def test_presets_are_called_by_name(name: str) -> None:
    """Without a name the settings are those of ``default``, which leaves artefacts out; ``demo`` does not."""
    values = {"exclude_artefacts": False} | PRESETS[name]
    assert load_config(name) == load_config(None, _settings(values))


def _settings(values: dict[str, Any], group: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        found += _settings(value, f"{key}.") if isinstance(value, dict) else [f"{group}{key}={value}"]
    return found
