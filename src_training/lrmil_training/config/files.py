"""Presets, and configurations in YAML files and in settings such as ``stage1.epochs=3``."""

from __future__ import annotations

import copy
import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from lrmil_training.config.fields import Fields
from lrmil_training.config.run import TrainConfig
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.formatting import shorten
from napari_lrmil.core.yaml_text import parse_yaml

# Preset `paper`: the paper's choices as recorded in docs/explanation/method.md. They are 256 px patches at 20x and 5x,
# stages 1 and 2 with every term, no stage 3, and a student that is a copy of the teacher, so that maps need no
# projection. Everything that the paper leaves open has our defaults. What a preset has beyond the defaults of the
# fields is for new runs: a default that changed would change the runs of earlier versions.
NEW_RUNS: dict[str, Any] = {"exclude_artefacts": True}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {**NEW_RUNS},
    "paper": {
        **NEW_RUNS,
        "hr_mpp": 0.5,
        "lr_mpp": 2.0,
        "hr_patch_px": 256,
        "lr_patch_px": 256,
        "encoder": {"student": "teacher"},
        "stage1": {"lambda_layer": 1.0, "lambda_attn": 1.0, "projection": "identity"},
        "stage2": {"lambda_hard": 1.0, "init": "teacher"},
        "stage3": {"epochs": 0},
    },
    # The shipped model `demo`, for phantoms: patches of 128 px, so that a small slide still has a map to look at.
    "demo": {
        "hr_mpp": 0.5,
        "lr_mpp": 2.0,
        "hr_patch_px": 128,
        "lr_patch_px": 128,
        "teacher": {"epochs": 60},
        "stage1": {"epochs": 12, "lr": 1e-3},  # chosen on validation slides
        "stage2": {"epochs": 60},
        "stage3": {"epochs": 0},  # phantoms need no third stage, and it takes longest
    },
}

MAX_FILE_BYTES = 1_000_000  # a configuration has a few thousand
MAX_DIFFERENCES = 5  # keys that a message names


def load_config(
    path: Path | str | None = None, settings: Sequence[str] = (), run_file: Path | None = None
) -> TrainConfig:
    """Return the configuration of a YAML file or a preset's name, changed by ``key=value`` settings.

    Parameters
    ----------
    path
        YAML file or name of a preset; None for the preset ``default``.
    settings
        Texts such as ``stage1.lambda_attn=0.5``, applied in order.
    run_file
        Configuration file of the run, if it was begun before: what presets have for new runs is not applied to a run of
        a version that did not know it, so that the same call continues it.

    Raises
    ------
    ConfigError
        If a key is unknown, a value is impossible, or the file is not YAML.
    GeometryError
        If the two resolutions do not nest.
    """
    # A deep copy, because settings are written into nested groups below.
    name = "default" if path is None else str(path)
    values = copy.deepcopy(PRESETS[name]) if name in PRESETS else _read(Path(name))
    if name in PRESETS and run_file is not None and run_file.exists():
        stored = _read(run_file)
        values = {key: value for key, value in values.items() if key in stored or key not in NEW_RUNS}
    for setting in settings:
        _apply_setting(values, setting)
    keys = {setting.partition("=")[0].strip() for setting in settings}
    if name in PRESETS and values.get("hr_features") and "exclude_artefacts" not in keys:
        values.pop("exclude_artefacts", None)  # the patches are those of the features
    return build_config(values)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: no path can have a null character
        raise ConfigError(
            f"{path}: cannot be read ({error}) and is not a preset; the presets are {', '.join(PRESETS)}"
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: more than {MAX_FILE_BYTES:,} bytes; expected a configuration in YAML")
    values = _parse_yaml(content, f"{path}: not a readable YAML file", "expected YAML in UTF-8")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected YAML with keys and values, found {type(values).__name__}")
    return values


def _parse_yaml(content: str | bytes, problem: str, remedy: str) -> Any:
    """Return the content of a YAML text; raise `ConfigError` if it cannot be read. See `parse_yaml`."""
    try:
        return parse_yaml(content, numbers=False)  # each field converts its own
    except ValueError as error:
        raise ConfigError(f"{problem} ({error}); {remedy}") from error


def build_config(values: Mapping[str, Any]) -> TrainConfig:
    """Return a checked configuration; see `load_config`."""
    try:
        config = TrainConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_validation_sentence(error)) from error
    assert config.plan.n  # raises GeometryError if the resolutions do not nest
    return config


def _validation_sentence(error: ValidationError) -> str:
    """Return a sentence on the first wrong key; the next call names the next."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"configuration key '{key}' is unknown; available: {', '.join(known_keys())}"
    if not key:
        return f"configuration: {message}"
    if first["input"] is None and first["type"] != "invalid_key":
        return f"configuration key '{key}' has no value; write one, or leave the key out for its default"
    return f"configuration key '{key}': {message}, got {reprlib.repr(first['input'])[:80]}"


def known_keys() -> list[str]:
    """Return all configuration keys as ``--set`` takes them."""
    groups = {name: type(value) for name, value in TrainConfig() if isinstance(value, Fields)}
    flat = [name for name in TrainConfig.model_fields if name not in groups]
    return flat + [f"{group}.{name}" for group, model in groups.items() for name in model.model_fields]


def describe_differences(stored: TrainConfig, config: TrainConfig) -> str:
    """Return the keys in which two configurations differ with both values, at most `MAX_DIFFERENCES`; empty if in none.

    Parameters
    ----------
    stored
        Configuration of the run that is there.
    config
        Configuration of this call.
    """
    texts = [
        f"{key} is {_shown(value)}, this call has {_shown(other)}"
        for (key, value), (_, other) in zip(_flat_values(stored), _flat_values(config), strict=True)
        if value != other
    ]
    rest = len(texts) - MAX_DIFFERENCES
    return "; ".join([*texts[:MAX_DIFFERENCES], *([f"and {rest} more"] if rest > 0 else [])])


def _flat_values(config: Fields, group: str = "") -> Iterator[tuple[str, Any]]:
    """Yield key, as ``--set`` takes it, and value of each field, in the order of the fields."""
    for name, value in config:
        if isinstance(value, Fields):
            yield from _flat_values(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", value


def _shown(value: Any) -> str:
    """Return a value as a configuration file writes it, shortened."""
    plain = to_jsonable_python(value)
    return shorten("null" if plain is None else json.dumps(plain, ensure_ascii=False))


def _apply_setting(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set {setting}: expected key=value, such as stage1.lambda_attn=0.5")
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {setting}: {parent} is a value, not a group of keys")
    # As in a file: text, lists, true and false.
    values[last] = _parse_yaml(
        text, f"--set {setting[:100]}: the value is not readable as YAML", "quote it if it holds brackets"
    )


def dump_config(config: TrainConfig) -> str:
    """Return the resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)  # in the order of the fields
