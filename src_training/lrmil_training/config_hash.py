"""Configuration values in checkpoint keys: a new field with a neutral default orphans no run.

A stage's key is a hash of all that its result depends on. A stage that ended under the same key is not fitted again,
and an unfinished one goes on from its last epoch, so two rules must hold across versions of the program:

- A run from before a field existed keeps its keys as long as the field has its default. Therefore a field that was
  added after 0.1.0 is part of a key only if its value differs from its default.
- Different settings never share a key. Therefore the fields of 0.1.0 are always part of it, by value and in the order
  of 0.1.0: a changed default of theirs changes the keys. Such keys are byte for byte those of 0.1.0, so one key serves
  both versions. With differences from the defaults alone, every stage would need a second key to accept runs of 0.1.0,
  and a changed default would resume a run that was fitted with the old one.

When the configuration changes:

- New field: its default must compute what versions without the field computed. Do not add it to `FIRST_FIELDS`.
- Changed default of a field that was added after 0.1.0: this is a change of format. A run without the field, or with
  the old default, would count as one with the new default. Add a field under another name instead.
- Removed field of 0.1.0: `hashed_values` must go on giving its last default.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from lrmil_training.config import (
    EncoderConfig,
    Stage1Config,
    Stage2Config,
    Stage3Config,
    TeacherConfig,
    TrainConfig,
)

# The fields of version 0.1.0, in its order. Nothing is ever added here, removed or moved.
FIRST_FIELDS: dict[type[BaseModel], tuple[str, ...]] = {
    TrainConfig: (
        *("name", "about", "seed", "seeds", "folds", "by_site"),
        *("hr_mpp", "lr_mpp", "hr_patch_px", "lr_patch_px", "student_input_px"),
        *("encoder", "teacher", "stage1", "stage2", "stage3"),
        *("class_weights", "baselines", "ablation", "bootstrap", "features", "devices", "precision", "loggers"),
    ),
    EncoderConfig: ("teacher", "student"),
    TeacherConfig: (
        *("epochs", "lr", "aggregator", "hidden", "weight_decay", "min_epochs", "patience", "ema", "patch_dropout"),
    ),
    Stage1Config: (
        *("epochs", "lr", "batch_size", "patches_per_slide", "layers", "projection", "lambda_layer", "lambda_attn"),
        *("attention", "targets", "weight_decay", "augment", "stain_sd"),
    ),
    Stage2Config: (
        *("epochs", "lr", "lambda_ce", "lambda_bag", "lambda_soft", "lambda_hard", "temperature_bag"),
        *("temperature_attn", "topk", "attention_transfer", "init", "features", "patch_dropout", "weight_decay"),
        *("min_epochs", "patience", "ema"),
    ),
    Stage3Config: (
        *("epochs", "lr", "patches_per_slide", "slides_per_step", "keep_stage2_terms", "weight_decay", "augment"),
        *("min_epochs", "patience", "ema"),
    ),
}

# Later fields that no weight depends on, and the file of a given head, whose content is part of the keys of its run.
NOT_FITTED = {"intended_use", "hr_check", "compare", "mil", "mil_classes"}


def hashed_values(config: BaseModel) -> dict[str, Any]:
    """Return the values of a group that are part of a key, ready for JSON: those of 0.1.0, then `later_values`."""
    values = config.model_dump(mode="json")
    return {name: values[name] for name in _first_fields(config)} | later_values(config)


def later_values(config: BaseModel) -> dict[str, Any]:
    """Return the fields that were added after 0.1.0 and differ from their defaults, by name and ready for JSON.

    Of a group that was added as a whole, only the differing fields are given.
    """
    values = config.model_dump(mode="json")
    fields = type(config).model_fields
    differing = {}
    # Sorted: the order in which later versions declare fields must not matter.
    for name in sorted(set(fields) - set(_first_fields(config)) - NOT_FITTED):
        default = to_jsonable_python(fields[name].get_default(call_default_factory=True))
        if values[name] != default:
            value = getattr(config, name)
            differing[name] = later_values(value) if isinstance(value, BaseModel) else values[name]
    return differing


def later_run_values(config: TrainConfig) -> list[dict[str, Any]]:
    """Return what every key of a run has beyond 0.1.0: `later_values` of the run's own fields and of its encoders.

    The list is empty if nothing differs. The groups of the stages are not included: each is hashed with its stage.
    """
    values = later_values(config)
    encoder = later_values(config.encoder)
    if encoder:
        values["encoder"] = encoder
    return [values] if values else []


def _first_fields(config: BaseModel) -> tuple[str, ...]:
    # By `isinstance`, so that a subclass keeps the first fields of its base.
    return next((names for kind, names in FIRST_FIELDS.items() if isinstance(config, kind)), ())
