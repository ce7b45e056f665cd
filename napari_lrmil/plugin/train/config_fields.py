"""Form fields of the training settings, derived from the configuration model, which defines names and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lrmil_training.config import PRESETS, TrainConfig, build_config
from napari_lrmil.core.yaml_text import parse_yaml

FieldKind = Literal["whole", "flag", "choice", "text"]
FIELD_LABELS = {
    "hr_mpp": "HR, µm per pixel",
    "lr_mpp": "LR, µm per pixel",
    "hr_patch_px": "HR patch, px",
    "lr_patch_px": "LR patch, px",
    "student_input_px": "Enlarge LR patches to, px",
    "lr": "Learning rate",
    "ema": "Weight averaging",
    "topk": "Top patches",
    "init": "Start from",
    "about": "About the model",
    "hr_mapping": "HR features: mapping",
    "hr_check": "HR features: encoded again",
    "calibration": "Share of training patients",
    "mil": "MIL of another program",
    "mil_classes": "Classes of that MIL",
}
GROUP_TITLES = {
    "": "General",
    "encoder": "Encoders",
    "stain": "Colour",
    "split": "Calibration split",
    "operating_point": "Operating point",
    "teacher": "Teacher",
    "selection": "Choice of the teacher's settings",
    "stage1": "Stage 1: patch by patch",
    "stage2": "Stage 2: slide by slide",
    "stage3": "Stage 3: end to end",
}


@dataclass(frozen=True)
class ConfigField:
    """Form field of one setting.

    Attributes
    ----------
    key
        Name of the setting, as for ``--set``.
    kind
        Kind of editor: whole number, check box, choice, or text in YAML syntax.
    sentence
        Meaning, unit and reason for the default.
    default
        Default value.
    choices
        Values of a choice.
    lowest
        Smallest whole number.
    """

    key: str
    kind: FieldKind
    sentence: str
    default: Any
    choices: tuple[str, ...] = ()
    lowest: int = 0

    @property
    def group(self) -> str:
        """Part of the configuration; empty for settings of the whole run."""
        return self.key.rpartition(".")[0]

    @property
    def label(self) -> str:
        """Label in the form."""
        name = self.key.rpartition(".")[2]
        return FIELD_LABELS.get(name, name.replace("lambda_", "weight of ").replace("_", " ").capitalize())

    def to_editor(self, value: Any) -> Any:
        """Return the editor's value for a setting's value."""
        if self.kind != "text":
            return value
        if isinstance(value, list | tuple):
            return ", ".join(map(str, value))
        short = f"{value:g}" if isinstance(value, float) else ""
        if short and float(short) == value:
            return short
        return "" if value is None else str(value)

    def from_editor(self, shown: Any) -> Any:
        """Return the setting's value for an editor's value; the configuration validates it."""
        if self.kind != "text":
            return shown
        text = str(shown).strip()
        if isinstance(self.default, tuple):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if isinstance(self.default, str):
            return text
        try:
            return parse_yaml(text) if text else None
        except ValueError:
            return text  # the configuration rejects it and quotes the text


def list_config_fields() -> tuple[ConfigField, ...]:
    """Return every setting, in the order of the configuration."""
    return tuple(_collect_fields(TrainConfig(), ""))


def _collect_fields(model: BaseModel, prefix: str) -> list[ConfigField]:
    collected = []
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        collected += (
            _collect_fields(value, f"{name}.")
            if isinstance(value, BaseModel)
            else [_make_field(prefix + name, info, value)]
        )
    return collected


def _make_field(key: str, info: FieldInfo, value: Any) -> ConfigField:
    sentence = " ".join((info.description or "").split())
    if info.annotation is bool:
        return ConfigField(key, "flag", sentence, value)
    if get_origin(info.annotation) is Literal:
        return ConfigField(key, "choice", sentence, value, choices=get_args(info.annotation))
    if info.annotation is int:
        return ConfigField(key, "whole", sentence, value, lowest=_minimum(info))
    return ConfigField(key, "text", sentence, value)


def _minimum(info: FieldInfo) -> int:
    for bound in info.metadata:
        if isinstance(bound, Ge):
            return int(str(bound.ge))
        if isinstance(bound, Gt):
            return int(str(bound.gt)) + 1
    return 0


def flatten_config(config: TrainConfig) -> dict[str, Any]:
    """Return a configuration as key -> value."""
    flat: dict[str, Any] = {}
    for name, value in config:
        flat |= {f"{name}.{k}": v for k, v in value} if isinstance(value, BaseModel) else {name: value}
    return flat


def unflatten_config(values: Mapping[str, Any]) -> TrainConfig:
    """Return the validated configuration of key -> value; raises `ConfigError` or `GeometryError`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[name] = value
    return build_config(tree)


def preset_config(name: str) -> TrainConfig:
    """Return the configuration of a preset."""
    return build_config(PRESETS[name])
