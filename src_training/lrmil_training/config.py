"""What a training run is told: frozen values, a sentence below each field with meaning, unit and why this default."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.geometry import PatchPlan


class _Frozen(BaseModel):
    # Numbers may be text and names numbers: YAML reads 1e-4 as text, and precision=32 as a number.
    # The sentence below a field is its description: the window shows it.
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _as_people_write_it(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if get_origin(kind) is tuple and not isinstance(value, list | tuple):
            return _as_tuple(value)
        if get_origin(kind) is Literal and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if kind in (int, int | None) and isinstance(value, str):
            return _number(value)
        return value


def _as_tuple(value: Any) -> Any:
    """Return one value as a list of it; text at its commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return value if value is None or isinstance(value, dict) else (value,)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text  # refused where its type is checked, with what was written


SMALL_STUDENTS = ("mobilenet_v3_large", "mobilenet_v2", "convnext_atto")  # named, with random weights


class EncoderConfig(_Frozen):
    """Which networks look at patches."""

    teacher: str = "demo"
    """Frozen HR encoder: a .safetensors file, a folder, hf:owner/name, lazyslide:name, or a bundle."""
    student: str = "teacher"
    """The word teacher: start as a copy of it (the paper's choice); mobilenet_v3_large, mobilenet_v2 or convnext_atto:
    small, with random weights; or another encoder, as above."""


class TeacherConfig(_Frozen):
    """The HR teacher's MIL."""

    epochs: int = Field(60, ge=1)
    """Upper bound; early stopping usually ends sooner."""
    lr: float = Field(3e-3, gt=0)
    """Adam; of four settings the best on validation (Real tissue)."""
    aggregator: Literal["gated_attention"] = "gated_attention"
    """The paper's; the only one so far."""
    hidden: int = Field(64, ge=1)
    """Width of the attention's gate."""
    weight_decay: float = Field(1e-4, ge=0)
    """Bags are few and wide."""
    min_epochs: int = Field(15, ge=0)
    """No selection before: early AUROC on few slides is luck (Method 5)."""
    patience: int = Field(15, ge=1)
    """Epochs without a better validation figure before stopping."""
    ema: float = Field(0.97, ge=0, lt=1)
    """Weight averaging per step; 0.97 gave stable selection (Method 5)."""
    patch_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of patches left out at random each step; 0 until it helps."""


class Stage1Config(_Frozen):
    """Patch-level distillation."""

    epochs: int = Field(6, ge=0)
    """6 passes over 2,400 LR patches were enough (Method 5); 0 leaves it out."""
    lr: float = Field(4e-4, gt=0)
    """Peak of a one-cycle schedule."""
    batch_size: int = Field(32, ge=2)
    """LR patches."""
    patches_per_slide: int | None = Field(None, ge=1)
    """Drawn anew each epoch; None takes all, for small slides."""
    layers: tuple[str, ...] = ("block_12",)
    """Maps that the layer term compares: an intermediate one does no harm.
    Where the student is another architecture, teacher's:student's, such as block_12:block_9."""
    projection: Literal["learned", "identity"] = "learned"
    """Identity, which needs equal widths, compares maps in the teacher's units;
    on a late map it works against the attention term."""
    lambda_layer: float = Field(0.1, ge=0)
    """Weight of the layer term."""
    lambda_attn: float = Field(1.0, ge=0)
    """Weight of the attention-weighted embedding term."""
    attention: Literal["teacher", "uniform"] = "teacher"
    """Weights of the children; uniform is a control."""
    targets: Literal["stored", "on_the_fly"] = "stored"
    """HR embeddings from disk, or of the augmented HR pixels."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW."""
    augment: bool = True
    """Mirror and quarter-turn LR patch and children together."""
    stain_sd: float = Field(0.0, ge=0)
    """Relative change of each stain in LR and HR alike; needs targets on_the_fly."""

    @model_validator(mode="after")
    def _stain_reaches_the_teacher(self) -> Stage1Config:
        if self.stain_sd > 0 and self.targets == "stored":
            raise ValueError(
                "stain augmentation changes LR and HR pixels alike, which stored targets cannot follow; "
                "set stage1.targets=on_the_fly or stage1.stain_sd=0"
            )
        return self

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Stage1Config:
        if self.epochs > 0 and self.lambda_layer == self.lambda_attn == 0:
            raise ValueError("every weight is 0; raise lambda_layer or lambda_attn, or set stage1.epochs=0")
        return self


class Stage2Config(_Frozen):
    """Slide-level distillation."""

    epochs: int = Field(60, ge=1)
    """Upper bound; early stopping usually ends sooner."""
    lr: float = Field(3e-4, gt=0)
    """Lower than the teacher's: it starts from the teacher's head."""
    lambda_ce: float = Field(1.0, ge=0)
    """Weight of the labels; the three terms count alike until measured otherwise."""
    lambda_bag: float = Field(1.0, ge=0)
    """Weight of the teacher's class probabilities."""
    lambda_soft: float = Field(1.0, ge=0)
    """Weight of the teacher's attention."""
    lambda_hard: float = Field(0.0, ge=0)
    """Top against bottom patches; did nothing in Method 5."""
    temperature_bag: float = Field(2.0, gt=0)
    """Softens class probabilities; 1 = unchanged."""
    temperature_attn: float = Field(2.0, gt=0)
    """Softens attention on both sides; 2 was best (Method 5)."""
    topk: int = Field(4, ge=1)
    """Patches on either side of the hard term; small slides have few that stand out."""
    attention_transfer: Literal["logsumexp", "mean", "max"] = "logsumexp"
    """Children to parent; exact at temperature 1."""
    init: Literal["teacher", "fresh", "frozen_head"] = "teacher"
    """Frozen_head: the teacher's head as it is, no stage 2."""
    features: Literal["stored", "on_the_fly"] = "stored"
    """On_the_fly encodes augmented pixels in every epoch: slower."""
    patch_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of patches left out at random each step; 0 until it helps."""
    weight_decay: float = Field(1e-4, ge=0)
    """Adam; as the teacher's, whose architecture it has."""
    min_epochs: int = Field(15, ge=0)
    """No selection before: early AUROC on few slides is luck (Method 5)."""
    patience: int = Field(15, ge=1)
    """Epochs without a better validation figure before stopping."""
    ema: float = Field(0.97, ge=0, lt=1)
    """Weight averaging per step; 0.97 gave stable selection (Method 5)."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Stage2Config:
        terms = (self.lambda_ce, self.lambda_bag, self.lambda_soft, self.lambda_hard)
        if self.init != "frozen_head" and not any(terms):
            raise ValueError("every weight is 0; raise one of lambda_ce, lambda_bag, lambda_soft, lambda_hard")
        return self


class Stage3Config(_Frozen):
    """End-to-end fine-tuning of the student's encoder through its MIL."""

    epochs: int = Field(15, ge=0)
    """450 updates on 60 slides, which validation favours (Real tissue). 0 leaves stage 3 out."""
    lr: tuple[float, ...] = Field((3e-5, 1e-4, 3e-4), min_length=1)
    """AdamW; several: validation chooses, it is fragile."""
    patches_per_slide: int = Field(24, ge=1)
    """Drawn anew at each step: bounds memory."""
    slides_per_step: int = Field(2, ge=1)
    """Slides whose gradients make an update."""
    keep_stage2_terms: bool = True
    """Go on distilling attention and probabilities; false: labels alone."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW, as in stage 1: the encoder has many weights and few slides."""
    augment: bool = True
    """Mirror and quarter-turn every patch: tissue has no upright."""
    min_epochs: int = Field(5, ge=0)
    """No selection before; fewer than in stage 2, for it starts from a fitted student."""
    patience: int = Field(15, ge=1)
    """Epochs without a better validation figure before stopping."""
    ema: float = Field(0.97, ge=0, lt=1)
    """Weight averaging per step: single steps are fragile here (Method 5)."""

    @field_validator("lr")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0:
            raise ValueError("learning rates must be above 0")
        return value


Baseline = Literal["labels_only", "labels_only_finetuned", "stage1_only", "stage2_only", "both"]


class TrainConfig(_Frozen):
    """A training run."""

    name: str = "lrmil"
    """Of the bundle."""
    about: str = ""
    """A sentence or two for its card: what it is, and what it is not."""
    seed: int = Field(0, ge=0)
    """Of weights, order and augmentation."""
    seeds: int = Field(1, ge=1)
    """How many runs, with seed, seed + 1, …; figures of one seed are partly luck."""
    folds: int = Field(0, ge=0)
    """0: the cohort's fixed split; k: every patient is tested once in k runs."""
    by_site: bool = False
    """Folds keep the slides of a site together, where the table has a column site."""
    hr_mpp: float = Field(0.5, gt=0)
    """Resolution of the teacher's patches, µm per pixel: 20x."""
    lr_mpp: float = Field(2.0, gt=0)
    """Resolution of the student's patches, µm per pixel: 5x."""
    hr_patch_px: int = Field(256, ge=32)
    """Side of an HR patch."""
    lr_patch_px: int = Field(256, ge=32)
    """Side of an LR patch."""
    student_input_px: int | None = Field(None, ge=32)
    """Side to which LR patches are enlarged; None: as read."""
    encoder: EncoderConfig = EncoderConfig()
    """Which networks look at patches."""
    teacher: TeacherConfig = TeacherConfig()
    """The HR teacher's MIL."""
    stage1: Stage1Config = Stage1Config()
    """Patch-level distillation."""
    stage2: Stage2Config = Stage2Config()
    """Slide-level distillation."""
    stage3: Stage3Config = Stage3Config()
    """End-to-end fine-tuning of the student's encoder through its MIL."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """Labels' loss by inverse frequency: rare classes count."""
    baselines: tuple[Baseline, ...] = ("labels_only",)
    """LR, frozen encoder, labels alone: what distillation must beat."""
    ablation: bool = False
    """Also every loss term off in turn."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples behind every interval."""
    features: Path | None = None
    """Folder of patch features that several runs share; None: in the run folder."""
    devices: int = Field(1, ge=1)
    """Processes that train together; gradients are averaged over them."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Auto: bf16 on CUDA, where it is twice as fast, else fp32."""
    loggers: tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...] = ()
    """Besides events.jsonl, always written."""

    @model_validator(mode="after")
    def _stage_3_has_something_to_learn_from(self) -> TrainConfig:
        s = self.stage2
        something = any((s.lambda_ce, s.lambda_bag, s.lambda_soft, s.lambda_hard))
        if self.stage3.epochs and self.stage3.keep_stage2_terms and not something:
            raise ValueError(
                "stage 3 keeps the terms of stage 2, whose every weight is 0; raise one of stage2.lambda_ce, "
                "lambda_bag, lambda_soft, lambda_hard, or set stage3.keep_stage2_terms=false"
            )
        return self

    @property
    def plan(self) -> PatchPlan:
        """The two resolutions; raises `GeometryError` where they do not nest."""
        return PatchPlan(self.hr_mpp, self.lr_mpp, self.hr_patch_px, self.lr_patch_px)

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The teacher's layers that the layer term of stage 1 needs; empty if the term or the stage is off."""
        stage = self.stage1
        is_used = stage.lambda_layer > 0 and stage.epochs > 0
        return tuple(name.partition(":")[0] for name in stage.layers) if is_used else ()


# The paper's choices as far as docs/explanation/method.md records them: 256 px patches at 20x and 5x, both stages
# with every term, the student a copy of the teacher, whose maps hence need no projection, nothing after stage 2.
# What the paper leaves open stays at our defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "hr_mpp": 0.5,
        "lr_mpp": 2.0,
        "hr_patch_px": 256,
        "lr_patch_px": 256,
        "encoder": {"student": "teacher"},
        "stage1": {"lambda_layer": 1.0, "lambda_attn": 1.0, "projection": "identity"},
        "stage2": {"lambda_hard": 1.0, "init": "teacher"},
        "stage3": {"epochs": 0},
    },
}


def load_config(path: Path | str | None = None, settings: Sequence[str] = ()) -> TrainConfig:
    """Return the configuration of a YAML file or a preset's name, with ``key=value`` settings laid over it.

    Raises
    ------
    ConfigError
        Where a key is unknown, a value impossible, or the file not YAML.
    GeometryError
        Where the two resolutions do not nest.
    """
    values = copy.deepcopy(PRESETS[str(path)]) if str(path) in PRESETS else _read(path)
    for setting in settings:
        _apply_setting(values, setting)
    return build_config(values)


def _read(path: Path | str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        presets = ", ".join(PRESETS)
        raise ConfigError(f"{path}: not a readable YAML file ({error}), nor one of the presets {presets}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected YAML with keys and values, found {type(values).__name__}")
    return values


def build_config(values: Mapping[str, Any]) -> TrainConfig:
    """Return a checked configuration; see `load_config`."""
    try:
        config = TrainConfig.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"configuration key '{key}' is unknown; there are: {', '.join(known_keys())}") from error
        if not key:
            raise ConfigError(f"configuration: {first['msg']}") from error
        raise ConfigError(f"configuration key '{key}': {first['msg']}, got {first['input']!r}") from error
    assert config.plan.n  # built, hence checked
    return config


def known_keys() -> list[str]:
    """Return all configuration keys as ``--set`` takes them."""
    groups = {name: type(value) for name, value in TrainConfig() if isinstance(value, _Frozen)}
    flat = [name for name in TrainConfig.model_fields if name not in groups]
    return flat + [f"{group}.{name}" for group, model in groups.items() for name in model.model_fields]


def _apply_setting(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set {setting}: expected key=value, such as stage1.lambda_attn=0.5")
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {setting}: {parent} is a value, not a group of keys")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {setting}: the value is not readable as YAML; quote it if it holds brackets"
        ) from error


def dump_config(config: TrainConfig) -> str:
    """Return the resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
