"""Start of a run without a teacher: the LR grids of all slides, by the features of the student's untrained encoder."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from lrmil_training.config import TrainConfig
from lrmil_training.data.cohort import Cohort, require_classes
from lrmil_training.data.features import make_features
from lrmil_training.data.teacher_targets import TeacherTargets, grid_from_coords
from lrmil_training.stages.outline_use import note_outlines
from lrmil_training.stages.outputs import TeacherOutputs
from lrmil_training.stages.run_context import RunContext
from lrmil_training.stages.student import initial_encoder
from napari_lrmil.core.encoders import round_to_half
from napari_lrmil.core.events import Event
from napari_lrmil.core.features.bag import read_origin
from napari_lrmil.core.results.cohort_tables import write_failures


def frozen_encoder_notice(config: TrainConfig) -> str:
    """Return what a run without a teacher trains if it has no epochs of stage 3; empty if the encoder is fine-tuned."""
    if config.distil or config.stage3.epochs:
        return ""
    return (
        "stage3.epochs is 0, so the encoder stays frozen: the student is a MIL on its embeddings with the settings of "
        "`teacher`, and equals the baseline labels_only; set stage3.epochs to fine-tune the encoder"
    )


def find_lr_grids(context: RunContext) -> Generator[Event, None, tuple[Cohort, TeacherOutputs]]:
    """Return the slides that can be read, and their LR grids in the place of a teacher's outputs.

    The grids come with the LR features of the untrained encoder, the first that every method of such a run extracts.
    No HR patch is read, so slides may be coarser than `hr_mpp`.

    Raises
    ------
    CohortError
        If training or validation lacks a class without the slides that failed.
    """
    no_teacher = TeacherOutputs(None, {}, {})
    encoder = initial_encoder(context, no_teacher, aligned=False)
    round_to_half(encoder)  # as `UntrainedEncoder` leaves it, so that the features are found again
    request = context.lr_request(encoder)
    encoder.to(context.device)
    failures = yield from make_features(context.cohort.slides, request, context.device)
    encoder.cpu()
    # The list is written before the check below, so that it explains a class that is missing afterwards.
    write_failures(context.folder, "features", failures, {s.name for s in context.cohort.slides})
    cohort = context.cohort.without(set(failures))
    require_classes(cohort, ("train", "val"))
    slides = {}
    for row in cohort.slides:
        grid = grid_from_coords(*read_origin(request.path(row)), context.config.plan.n)
        slides[row.name] = TeacherTargets.without_teacher(row, grid)
    yield from note_outlines(replace(context, cohort=cohort), {name: slide.grid for name, slide in slides.items()})
    return cohort, TeacherOutputs(None, slides, {})
