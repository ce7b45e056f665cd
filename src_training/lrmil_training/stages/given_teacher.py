"""Teacher whose MIL another program trained: it is read and frozen, and only the student's stages run.

Slides need no labels then. What needs them is refused or left out: the label term, labels-only baselines, calibration.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch

from lrmil_training.config import UNDISTILLED_BASELINES, TrainConfig
from lrmil_training.data.cohort import Cohort
from lrmil_training.data.mil_head import MilHead, read_mil_head
from lrmil_training.data.teacher_targets import EMBEDDING
from lrmil_training.evaluation.metrics import multiclass_auroc
from lrmil_training.stages.methods import with_settings
from lrmil_training.stages.outline_use import note_outlines
from lrmil_training.stages.outputs import HrFeatures, TeacherOutputs
from lrmil_training.stages.run_context import RunContext
from lrmil_training.stages.teacher import slide_grid, teacher_outputs
from napari_lrmil.core.encoders import LoadedEncoder
from napari_lrmil.core.errors import CohortError, ConfigError
from napari_lrmil.core.events import Event, Notice

GREATEST_HALF = 65_504.0  # of float16, in which a bundle holds the student's weights
LEAST_SPREAD = 0.05  # of a class's probability over the slides; below, a teacher gives all slides one answer
LABEL_BASELINES = (*UNDISTILLED_BASELINES, "labels_only_finetuned")


# ---------------------------------------------------------------- before a run


def read_given_head(config: TrainConfig) -> MilHead | None:
    """Return the teacher's MIL that the configuration names; None if the teacher is trained here.

    Raises
    ------
    ConfigError
        If the file cannot be used, or has another number of classes than `TeacherConfig.mil_classes`.
    """
    if config.teacher.mil is None:
        return None
    head, names = read_mil_head(config.teacher.mil), config.teacher.mil_classes
    if names and len(names) != head.classes:
        raise ConfigError(
            f"{config.teacher.mil}: the head has {head.classes} classes, and teacher.mil_classes names {len(names)}: "
            f"{', '.join(names)}; name each of its outputs"
        )
    return head


def unlabelled_classes(config: TrainConfig, head: MilHead | None) -> tuple[str, ...]:
    """Return the classes of a cohort without labels; empty without a given head, because labels are then required."""
    if head is None:
        return ()
    return config.teacher.mil_classes or tuple(f"class {i}" for i in range(head.classes))


def fit_head_to_cohort(head: MilHead, config: TrainConfig, cohort: Cohort) -> MilHead:
    """Return the head with its classes in the order of the cohort's.

    Raises
    ------
    CohortError
        If the cohort's labels are not the classes of the head.
    """
    names = config.teacher.mil_classes
    if len(cohort.classes) != head.classes or (names and set(names) != set(cohort.classes)):
        classes = f" ({', '.join(names)})" if names else ""
        raise CohortError(
            cohort.path,
            f"the labels are {', '.join(cohort.classes)}, and the teacher's MIL {head.file} has {head.classes} "
            f"classes{classes}; correct the labels or teacher.mil_classes, or leave all labels empty",
        )
    return head.with_order([names.index(c) for c in cohort.classes]) if names else head


def require_encoder_of_head(head: MilHead, encoder: LoadedEncoder) -> None:
    """Raise `ConfigError` if the head takes embeddings of another width than the encoder gives."""
    if head.dim != encoder.encoder.dim:
        raise ConfigError(
            f"the teacher's MIL {head.file} takes features of {head.dim} dimensions, and the encoder "
            f"{encoder.spec.name} gives {encoder.encoder.dim}; set encoder.teacher to the encoder that the MIL was "
            "trained with"
        )


def settings_without_labels(config: TrainConfig, cohort: Cohort) -> TrainConfig:
    """Return the configuration of a run on a cohort; without labels, without what needs them.

    Raises
    ------
    CohortError
        If a setting that was asked for needs labels.
    """
    if cohort.is_labelled:
        return config
    needs_labels = {
        "lambda_patch": config.lambda_patch > 0,
        "split.calibration": config.split.calibration > 0,
        "operating_point.sensitivity": config.operating_point.sensitivity is not None,
        "stage3.keep_stage2_terms=false": config.stage3.epochs > 0 and not config.stage3.keep_stage2_terms,
        "compare": bool(config.compare),
        "baselines=labels_only_finetuned": "labels_only_finetuned" in config.baselines,
    }
    if refused := [name for name, is_asked in needs_labels.items() if is_asked]:
        raise CohortError(
            cohort.path, f"the slides have no labels, which {', '.join(refused)} needs; add labels, or leave it out"
        )
    changes: dict[str, Any] = {"stage2": {"lambda_ce": 0.0}}
    distilled = with_settings(config, changes)
    return distilled.model_copy(update={"baselines": tuple(b for b in config.baselines if b not in LABEL_BASELINES)})


def label_notices(config: TrainConfig, cohort: Cohort, head: MilHead | None) -> Iterator[str]:
    """Yield sentences on what a given teacher, or a cohort without labels, changes."""
    if head is None:
        return
    if head.note:
        yield f"{head.file}: {head.note}"
    if not config.teacher.mil_classes:
        outputs = ", ".join(f"output {i} is {name}" for i, name in enumerate(cohort.classes))
        yield f"{head.file} names no classes: {outputs}; if that is wrong, set teacher.mil_classes"
    if not cohort.is_labelled:
        yield (
            "the slides have no labels: the student learns from the teacher alone (lambda_ce 0, no baseline "
            "labels_only), agreement with the teacher selects, and no AUROC can be measured"
        )


# ---------------------------------------------------------------- the stage


def take_teacher(context: RunContext, hr: HrFeatures) -> Generator[Event, None, TeacherOutputs]:
    """Return the given head as the frozen teacher, with its targets for every slide.

    Raises
    ------
    ConfigError
        If a weight is too large for the half precision of a bundle.
    """
    head = context.head
    assert head is not None  # the pipeline asks
    mil = head.build(hr.statistics[EMBEDDING])
    greatest = max(float(values.abs().max()) for values in mil.state_dict().values())
    if greatest > GREATEST_HALF:
        raise ConfigError(
            f"the teacher's MIL {head.file} has a weight of {greatest:.3g} on standardised features; half precision, "
            f"in which a student is stored, ends at {GREATEST_HALF:g}: train it with weight decay"
        )
    yield Notice(f"the teacher's MIL is {head.layout} from {head.file}, frozen: it is not trained here")
    grids = {s.name: slide_grid(context, hr, s) for s in context.cohort.slides}
    yield from note_outlines(context, grids)
    outputs = teacher_outputs(context, hr, mil, grids)
    yield from _note_order(context, outputs)
    yield from (Notice(text) for text in spread_cautions(context.cohort, outputs))
    return outputs


def spread_cautions(cohort: Cohort, outputs: TeacherOutputs) -> list[str]:
    """Return a caution if the teacher gives all slides of a cohort without labels much the same probabilities.

    With labels its AUROC shows it.
    """
    if cohort.is_labelled:
        return []
    logits = torch.stack([targets.logits for targets in outputs.slides.values()])
    probabilities = torch.softmax(logits.double(), dim=1)
    spread = float((probabilities.amax(dim=0) - probabilities.amin(dim=0)).max())
    if spread >= LEAST_SPREAD:
        return []
    return [
        f"the teacher hardly tells the classes apart: its probabilities differ by {spread:.3f} at most over "
        f"{len(outputs.slides)} slides (expected {LEAST_SPREAD:g} or more), so the student has nothing to learn; check "
        "that encoder.teacher and the size of patches are those that the teacher's MIL was trained with"
    ]


def _note_order(context: RunContext, outputs: TeacherOutputs) -> Iterator[Event]:
    """Yield a notice if the head ranks the labelled training and validation slides worse than chance."""
    slides = [s for side in ("train", "val") for s in context.cohort.of(side)]
    if not context.cohort.is_labelled:
        return
    logits = torch.stack([outputs.slides[s.name].logits for s in slides])
    targets = np.array([context.cohort.target(s) for s in slides])
    auroc = multiclass_auroc(torch.softmax(logits, dim=1).numpy(), targets)
    if auroc is not None and auroc < 0.5:
        yield Notice(
            f"the teacher's AUROC on training and validation slides is {auroc:.3f}, below chance: its outputs may be "
            "in another order than the cohort's classes; see teacher.mil_classes"
        )
