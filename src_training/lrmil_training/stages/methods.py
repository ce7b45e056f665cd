"""Methods that a run compares: the configured student, its baselines, and the student without each loss term.

A method is a list of stage specifications, which the pipeline runs in order. A fit is stored under a hash of what its
result depends on, so methods that share a stage fit it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrmil_training.config import TrainConfig, build_config
from lrmil_training.config_hash import hashed_values, later_run_values
from lrmil_training.stages.end_to_end import EndToEnd
from lrmil_training.stages.outputs import Stage
from lrmil_training.stages.patch_distillation import PatchDistillation
from lrmil_training.stages.slide_distillation import LabelTraining, SlideDistillation
from lrmil_training.stages.student import InitialMil, LrFeatures, UntrainedEncoder
from napari_lrmil.core.models.card import AGGREGATOR_NAMES, OF_STUDENTS

STUDENT = "student"
# Epochs of the fine-tuned baseline if stage 3 is off: 450 updates on 60 slides (Method 5).
FINETUNING_EPOCHS = 15
FRESH_MIL_NOTICE = "the student is another network without stage 1, so stage 2 starts from a fresh MIL"


@dataclass(frozen=True)
class Method:
    """One row of the results.

    Attributes
    ----------
    name
        Key in ``metrics.json``.
    config
        The run's configuration with the changes that make this method.
    stages
        Stages in the order in which they run.
    is_aligned
        True if the student's embeddings are in the teacher's standardised space.
    """

    name: str
    config: TrainConfig
    stages: tuple[Stage, ...]
    is_aligned: bool


# ---------------------------------------------------------------- the stages of a method


def distilled_method(name: str, config: TrainConfig) -> Method:
    """Return a method that learns from the teacher, by the stages that `config` turns on."""
    aligned = _is_aligned(config)
    stages: list[Stage] = [_encoder_stage(config), LrFeatures(), _initial_distilled_mil(config, aligned=aligned)]
    if config.stage2.init != "frozen_head":
        depends = _slide_dependencies(config, aligned=aligned)
        stages.append(SlideDistillation(config.stage2, depends, lambda_patch=config.lambda_patch))
    if config.stage3.epochs > 0:
        depends = _tuning_dependencies(config, aligned=aligned)
        stages.append(EndToEnd(config.stage3, config.stage2, depends, lambda_patch=config.lambda_patch))
        stages.append(LrFeatures())  # again: stage 3 changes the encoder
    return Method(name, config, tuple(stages), aligned)


def labels_method(name: str, config: TrainConfig) -> Method:
    """Return a method that learns from the labels alone: by a MIL on the frozen encoder, or end to end."""
    # Without a teacher there are no statistics of HR features to be aligned with.
    aligned = config.distil and config.encoder.student == "teacher"
    if config.stage3.epochs > 0:
        # An aligned encoder is fitted from its start, so only another network's statistics need features before.
        features: list[Stage] = [] if aligned else [LrFeatures()]
        mil = InitialMil("labels_only_mil", standardises=not aligned)
        depends = _tuning_dependencies(config, aligned=aligned, uses_teacher=False)
        tuning = EndToEnd(config.stage3, None, depends, "finetuned", config.lambda_patch)
        return Method(name, config, (UntrainedEncoder(), *features, mil, tuning, LrFeatures()), aligned)
    mil = InitialMil("labels_only", standardises=not aligned)
    depends = _slide_dependencies(config, aligned=aligned, uses_teacher=False)
    training = LabelTraining(config.teacher, depends, lambda_patch=config.lambda_patch)
    return Method(name, config, (UntrainedEncoder(), LrFeatures(), mil, training), aligned)


def _encoder_stage(config: TrainConfig) -> Stage:
    if config.stage1.epochs == 0:
        return UntrainedEncoder()
    return PatchDistillation(config, tuple(_dependencies(config, [config.stage1])))


def _initial_distilled_mil(config: TrainConfig, *, aligned: bool) -> InitialMil:
    init = config.stage2.init
    is_frozen = init == "frozen_head"
    if init == "teacher" and config.teacher.aggregator not in OF_STUDENTS:
        name = AGGREGATOR_NAMES[config.teacher.aggregator]
        notice = f"the student has gated attention and its teacher {name}, so stage 2 starts from a fresh MIL"
        return InitialMil("stage2", standardises=not aligned, notice=notice)
    if not aligned and init == "teacher":  # the teacher's weights mean nothing for another network's embeddings
        return InitialMil("stage2", standardises=True, notice=FRESH_MIL_NOTICE)
    return InitialMil("stage2", copies_teacher=init != "fresh", standardises=not aligned, is_frozen=is_frozen)


def _is_aligned(config: TrainConfig) -> bool:
    """Return True if a distilled student's embeddings are in the teacher's standardised space.

    Another network that stage 1 does not train is taken as it is, with its own width and training statistics.
    Otherwise the comparison would be with a random projection in another network's units. The teacher's frozen head
    needs the teacher's space all the same.
    """
    distilled = config.stage1.epochs > 0 or config.stage2.init == "frozen_head"
    return config.encoder.student == "teacher" or distilled


# ---------------------------------------------------------------- what the result of a stage depends on
# The lists are part of checkpoint keys; see `config_hash` before changing them.


def _slide_dependencies(config: TrainConfig, *, aligned: bool, uses_teacher: bool = True) -> tuple[Any, ...]:
    """Return what the fit of a MIL on frozen features depends on beyond its own settings."""
    groups = [config.stage1, config.stage2, config.teacher] if uses_teacher else [config.teacher]
    return tuple(_dependencies(config, groups, aligned=aligned, uses_teacher=uses_teacher))


def _tuning_dependencies(config: TrainConfig, *, aligned: bool, uses_teacher: bool = True) -> tuple[Any, ...]:
    """Return what stage 3 depends on; each learning rate is added with its fit."""
    groups = [config.stage1, config.stage2, config.teacher] if uses_teacher else [config.teacher]
    stage3 = {name: value for name, value in hashed_values(config.stage3).items() if name != "lr"}
    return tuple(_dependencies(config, groups, stage3, aligned=aligned, uses_teacher=uses_teacher))


def _dependencies(
    config: TrainConfig, groups: list[Any], *later: Any, aligned: bool = True, uses_teacher: bool = True
) -> list[Any]:
    # The order of the values is part of the keys. A folder of an earlier version is resumed only if it stays.
    student = [uses_teacher, config.encoder.student, config.student_input_px, config.lr_mpp, config.lr_patch_px]
    statistics = [] if aligned else ["by its own statistics"]
    return [*student, *map(hashed_values, groups), *statistics, *later, *later_run_values(config)]


# ---------------------------------------------------------------- the methods of a run


def list_methods(config: TrainConfig) -> list[Method]:
    """Return what a run trains at low resolution: the student first, then baselines, then the ablation."""
    methods = [distilled_method(STUDENT, config) if config.distil else labels_method(STUDENT, config)]
    methods += [_baseline(name, config) for name in config.baselines]
    if config.ablation:
        methods += _ablation(config)
    return methods


def _baseline(name: str, config: TrainConfig) -> Method:
    no_stage1, no_stage3 = {"stage1": {"epochs": 0}}, {"stage3": {"epochs": 0}}
    tuning = {"epochs": config.stage3.epochs or FINETUNING_EPOCHS, "keep_stage2_terms": False}
    changes: dict[str, dict[str, Any]] = {
        "labels_only": no_stage1 | no_stage3,
        "labels_only_finetuned": no_stage1 | {"stage3": tuning},
        "stage1_only": no_stage3 | {"stage2": {"init": "frozen_head"}},
        "stage2_only": no_stage1 | no_stage3,
        "both": no_stage3,
    }
    build = labels_method if name.startswith("labels_only") else distilled_method
    return build(name, with_settings(config, changes[name]))


def _ablation(config: TrainConfig) -> list[Method]:
    """Return the student without each term, if its stage is fitted and has other terms to learn from.

    Without the patch term the student learns nothing from outlines, but its teacher is the same.
    """
    build = distilled_method if config.distil else labels_method
    without_patch = build_config(config.model_dump() | {"lambda_patch": 0.0, "ablation": False})
    patch_row = [build("without_patch", without_patch)] if config.lambda_patch > 0 else []
    if not config.distil:
        return patch_row
    keeps_terms = config.stage3.epochs > 0 and config.stage3.keep_stage2_terms
    is_fitted = {"stage1": config.stage1.epochs > 0, "stage2": config.stage2.init != "frozen_head" or keeps_terms}
    methods = []
    for stage, terms in (("stage1", ("layer", "attn")), ("stage2", ("ce", "bag", "soft", "hard"))):
        active = [term for term in terms if getattr(getattr(config, stage), f"lambda_{term}") > 0]
        for term in active if is_fitted[stage] and len(active) > 1 else ():
            changed = with_settings(config, {stage: {f"lambda_{term}": 0.0}})
            methods.append(distilled_method(f"without_{term}", changed))
    return methods + patch_row


def with_settings(config: TrainConfig, changes: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Return `config` with some settings of its groups changed, checked as a whole; raises `ConfigError`."""
    # Built from values and not by `model_copy`, which would skip the checks between fields.
    values = config.model_dump()
    for group, settings in changes.items():
        values[group] |= settings
    return build_config(values)
