"""What one run compares: the configured student, its baselines, and every loss term off in turn.

A method is a configuration that differs from the run's in a few settings, and whether it may look at the teacher.
Stages are stored under a hash of what they depend on, so methods that share a stage fit it once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lrmil_training.config import TrainConfig, build_config
from lrmil_training.config_hash import hashed_values, later_run_values
from lrmil_training.data.bags import BagItem, StoredBag
from lrmil_training.data.cohort import CohortSlide
from lrmil_training.data.feature_store import StoredRows
from lrmil_training.data.features import lr_patches, make_lr_features
from lrmil_training.data.teacher_targets import EMBEDDING, TeacherTargets, feature_statistics
from lrmil_training.fitting.checkpoints import read_score
from lrmil_training.losses import parent_scores
from lrmil_training.stages.bag_fitting import Loss, distillation_loss, fit_mil, label_loss, seeded_mil, stage_seed
from lrmil_training.stages.end_to_end import PixelBag, fit_end_to_end
from lrmil_training.stages.patch_distillation import fit_stage1
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.encoders import AlignedEncoder, round_to_half
from napari_lrmil.core.events import Event, Metric, Notice
from napari_lrmil.core.models.mil import GatedAttentionMIL

STUDENT = "student"
FINETUNING_EPOCHS = 15  # of the fine-tuned baseline where stage 3 is off: 450 updates on 60 slides (Method 5)


@dataclass(frozen=True)
class Method:
    """One row of the results.

    Attributes
    ----------
    name
        In ``metrics.json``.
    config
        The run's, but for what makes this method.
    taught
        Whether it learns from the teacher; else from labels alone, with a fresh MIL.
    """

    name: str
    config: TrainConfig
    taught: bool = True


@dataclass(frozen=True)
class TeacherOutputs:
    """What the teacher has to say: its MIL, and for every slide its view of it."""

    mil: GatedAttentionMIL
    slides: Mapping[str, TeacherTargets]


@dataclass(frozen=True)
class TrainedStudent:
    """A method's networks, and slide name -> the stored LR features of its encoder."""

    encoder: AlignedEncoder
    mil: GatedAttentionMIL
    features: Mapping[str, StoredRows]


def list_methods(config: TrainConfig) -> list[Method]:
    """Return what a run trains at low resolution: the student first, then baselines, then the ablation."""
    found = [Method(STUDENT, config)]
    found += [_baseline(name, config) for name in config.baselines]
    if config.ablation:
        found += _ablation(config)
    return found


def _baseline(name: str, config: TrainConfig) -> Method:
    no_stage1, no_stage3 = {"stage1": {"epochs": 0}}, {"stage3": {"epochs": 0}}
    fine = {"epochs": config.stage3.epochs or FINETUNING_EPOCHS, "keep_stage2_terms": False}
    told: dict[str, tuple[dict[str, Any], bool]] = {
        "labels_only": (no_stage1 | no_stage3, False),
        "labels_only_finetuned": (no_stage1 | {"stage3": fine}, False),
        "stage1_only": (no_stage3 | {"stage2": {"init": "frozen_head"}}, True),
        "stage2_only": (no_stage1 | no_stage3, True),
        "both": (no_stage3, True),
    }
    changes, taught = told[name]
    return Method(name, with_settings(config, changes), taught)


def _ablation(config: TrainConfig) -> list[Method]:
    """Return the student without each term, where its stage is fitted and other terms are left to learn from."""
    kept = config.stage3.epochs > 0 and config.stage3.keep_stage2_terms
    fitted = {"stage1": config.stage1.epochs > 0, "stage2": config.stage2.init != "frozen_head" or kept}
    found = []
    for stage, terms in (("stage1", ("layer", "attn")), ("stage2", ("ce", "bag", "soft", "hard"))):
        on = [term for term in terms if getattr(getattr(config, stage), f"lambda_{term}") > 0]
        for term in on if fitted[stage] and len(on) > 1 else ():
            found.append(Method(f"without_{term}", with_settings(config, {stage: {f"lambda_{term}": 0.0}})))
    return found


def with_settings(config: TrainConfig, changes: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Return `config` with some settings of its groups changed, checked as a whole; raises `ConfigError`."""
    values = config.model_dump()
    for group, its in changes.items():
        values[group] |= its
    return build_config(values)


def train_method(run: RunContext, method: Method, lesson: TeacherOutputs) -> Generator[Event, None, TrainedStudent]:
    """Fit one method's stages and return its networks, rounded to what a bundle holds, with its features."""
    encoder = yield from _stage1(run, method, lesson)
    tuned = method.config.stage3.epochs > 0
    if tuned and not method.taught and not _is_foreign(method):
        mil = _fresh_mil(run, method, encoder, "labels_only_mil")  # it starts from the frozen encoder alone
    else:
        features = yield from _lr_features(run, lesson, encoder)
        mil = yield from _slide_level(run, method, lesson, encoder, features)
    if tuned:
        encoder, mil = yield from _stage3(run, method, lesson, (encoder, mil))
        features = yield from _lr_features(run, lesson, encoder)
    return TrainedStudent(encoder, mil, features)


def _lr_features(
    run: RunContext, lesson: TeacherOutputs, encoder: AlignedEncoder
) -> Generator[Event, None, dict[str, StoredRows]]:
    grids = {name: taught.grid for name, taught in lesson.slides.items()}
    return (yield from make_lr_features(run.cohort, run.lr_request(encoder), encoder, run.device, grids))


def _is_foreign(method: Method) -> bool:
    """Return whether the student knows nothing of the teacher's space: another network that stage 1 does not teach.

    It is then taken as it is, by its own width and its own training statistics, or the comparison would be with a
    random projection in another network's units. The teacher's head as it is needs the teacher's space all the same.
    """
    config = method.config
    distilled = method.taught and (config.stage1.epochs > 0 or config.stage2.init == "frozen_head")
    return config.encoder.student != "teacher" and not distilled


# ---------------------------------------------------------------- stages


def _stage1(run: RunContext, method: Method, lesson: TeacherOutputs) -> Generator[Event, None, AlignedEncoder]:
    encoder = run.fresh_student(aligned=not _is_foreign(method))
    if method.config.stage1.epochs > 0 and method.taught:
        sides = {side: [lesson.slides[s.name] for s in run.cohort.of(side)] for side in ("train", "val")}
        plan = run.plan("stage1", method.config.stage1, stage_settings(method, 1))
        teacher = run.encoder.encoder
        encoder = yield from fit_stage1(encoder, sides, method.config, plan, teacher)
    round_to_half(encoder)
    return encoder


def _slide_level(
    run: RunContext, method: Method, lesson: TeacherOutputs, encoder: AlignedEncoder, features: Mapping[str, StoredRows]
) -> Generator[Event, None, GatedAttentionMIL]:
    """Fit the MIL on the frozen encoder: stage 2, or the labels-only baseline with the teacher's settings."""
    config = method.config
    bags = _sides(run, lambda s: StoredBag(features[s.name], _item(run, method, lesson, s)))
    if not method.taught:
        tuned = config.stage3.epochs > 0
        mil = _fresh_mil(run, method, encoder, "labels_only_mil" if tuned else "labels_only", features)
        if tuned:
            return mil
        plan = run.plan("labels_only", config.teacher, stage_settings(method, 2))
        return (yield from round_result_to_half(fit_mil(mil, label_loss, bags, config.teacher, plan)))
    settings = config.stage2
    mil = _fresh_mil(run, method, encoder, "stage2", features)
    if _is_foreign(method) and settings.init == "teacher":
        yield Notice("the student is another network without stage 1, so stage 2 starts from a fresh MIL")
    elif settings.init != "fresh":  # student instances come standardised, so the teacher's own statistics stay behind
        mil.load_state_dict(lesson.mil.state_dict() | {"mean": mil.mean, "deviation": mil.deviation})
    if settings.init == "frozen_head":
        return mil.eval().requires_grad_(False)
    plan = run.plan("stage2", settings, stage_settings(method, 2))
    if settings.features == "stored":
        return (yield from round_result_to_half(fit_mil(mil, distillation_loss(settings), bags, settings, plan)))
    fitting = fit_end_to_end(
        (encoder, mil),
        distillation_loss(settings),
        _pixel_sides(run, method, lesson),
        settings,
        plan,
        settings.lr,
        config.student_input_px,
    )
    mil = (yield from fitting)[1]
    round_to_half(mil)
    return mil


def _stage3(
    run: RunContext, method: Method, lesson: TeacherOutputs, networks: tuple[AlignedEncoder, GatedAttentionMIL]
) -> Generator[Event, None, tuple[AlignedEncoder, GatedAttentionMIL]]:
    """Fine-tune end to end with each learning rate, and return what validation likes best."""
    settings = method.config.stage3
    loss = stage3_loss(method)
    found: list[tuple[float, tuple[AlignedEncoder, GatedAttentionMIL]]] = []
    for lr in settings.lr:
        stage = "stage3" if method.taught else "finetuned"
        plan = run.plan(stage, settings, [*stage_settings(method, 3), lr])
        copies = copy.deepcopy(networks[0]), copy.deepcopy(networks[1])
        bags = _pixel_sides(run, method, lesson)
        fitting = fit_end_to_end(copies, loss, bags, settings, plan, lr, method.config.student_input_px)
        fitted = yield from fitting
        score = read_score(plan)  # of the whole stage: events tell of this attempt alone
        yield Metric(stage, f"lr {lr:g}", score)
        found.append((score, fitted))
    encoder, mil = max(found, key=lambda pair: pair[0])[1]
    round_to_half(encoder)
    round_to_half(mil)
    return encoder, mil


def stage3_loss(method: Method) -> Loss:
    """Return stage 2's loss where stage 3 goes on with it, else the label term alone."""
    distil = method.taught and method.config.stage3.keep_stage2_terms
    return distillation_loss(method.config.stage2) if distil else label_loss


# ---------------------------------------------------------------- what stages read


def stage_settings(method: Method, stage: int) -> list[Any]:
    """Return the settings that a stage's result depends on, beyond those of the run."""
    c = method.config
    told: list[Any] = [method.taught, c.encoder.student, c.student_input_px, c.lr_mpp, c.lr_patch_px]
    groups = [c.stage1] if stage == 1 else [c.stage1, c.stage2, c.teacher]
    told += [hashed_values(group) for group in groups if method.taught or group is c.teacher]
    if _is_foreign(method):
        told.append("by its own statistics")
    if stage == 3:
        told.append({name: value for name, value in hashed_values(c.stage3).items() if name != "lr"})
    return told + later_run_values(c)


def _fresh_mil(
    run: RunContext,
    method: Method,
    encoder: AlignedEncoder,
    stage: str,
    features: Mapping[str, StoredRows] | None = None,
) -> GatedAttentionMIL:
    """Return a MIL that knows nothing; it standardises the instances of a student that nobody brought to any scale."""
    classes, seed = len(run.cohort.classes), stage_seed(run.config.seed, stage)
    mil = seeded_mil(encoder.dim, classes, method.config.teacher.hidden, seed)
    if _is_foreign(method) and features is not None:
        standard = feature_statistics([features[s.name] for s in run.cohort.of("train")])
        mil.set_standard(standard.mean, standard.deviation)
    return mil


def _item(run: RunContext, method: Method, lesson: TeacherOutputs, s: CohortSlide) -> BagItem:
    """Return all but the instances of a slide's LR bag."""
    target, nothing = run.cohort.target(s), torch.empty(0)
    weight = run.weights[target]
    if not method.taught:
        return BagItem(nothing, target, weight=weight)
    t = lesson.slides[s.name]
    transfer = method.config.stage2.attention_transfer
    scores = parent_scores(t.scores, torch.from_numpy(t.grid.parent), len(t.grid.lr_index), transfer)
    return BagItem(nothing, target, t.logits, scores, weight)


def _pixel_sides(run: RunContext, method: Method, lesson: TeacherOutputs) -> dict[str, list[PixelBag]]:
    plan, input_px = method.config.plan, method.config.student_input_px
    return _sides(
        run,
        lambda s: PixelBag(s, lr_patches(lesson.slides[s.name].grid, plan, input_px), _item(run, method, lesson, s)),
    )


def _sides(run: RunContext, make: Callable[[CohortSlide], Any]) -> dict[str, list[Any]]:
    return {side: [make(s) for s in run.cohort.of(side)] for side in ("train", "val")}


def round_result_to_half(
    fitting: Generator[Event, None, GatedAttentionMIL],
) -> Generator[Event, None, GatedAttentionMIL]:
    """Round what was fitted to what the bundle will hold, so that what is measured is what is shared."""
    mil = yield from fitting
    round_to_half(mil)
    return mil


def teacher_bags(run: RunContext, arrays: Mapping[str, Mapping[str, StoredRows]]) -> dict[str, list[StoredBag]]:
    """Return the HR bags that the teacher's MIL learns from."""

    def bag(s: CohortSlide) -> StoredBag:
        target = run.cohort.target(s)
        return StoredBag(arrays[s.name][EMBEDDING], BagItem(torch.empty(0), target, weight=run.weights[target]))

    return _sides(run, bag)
