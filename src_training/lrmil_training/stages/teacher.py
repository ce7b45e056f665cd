"""Teacher of a run: HR features, the MIL that is fitted to them, and its targets for the student."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace

import numpy as np
import torch

from lrmil_training.data.bags import StoredBag
from lrmil_training.data.cohort import CohortSlide, require_classes
from lrmil_training.data.feature_store import ReducedRows, StoredRows
from lrmil_training.data.features import make_features
from lrmil_training.data.hr_features import (
    HrIntake,
    find_hr_folder,
    require_taken,
    source_fingerprint,
    take_features,
    take_request,
)
from lrmil_training.data.hr_placement import grid_of_features
from lrmil_training.data.patient_bags import group_by_bag, join_stored
from lrmil_training.data.teacher_targets import EMBEDDING, TeacherTargets, feature_statistics
from lrmil_training.stages.bag_fitting import by_side, fit_mil, label_loss, labelled_item, seeded_mil, with_outlines
from lrmil_training.stages.outline_use import note_outlines
from lrmil_training.stages.outputs import HrFeatures, TeacherOutputs
from lrmil_training.stages.pca import find_reduction
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.encoders import reduce_embedding, round_to_half
from napari_lrmil.core.events import Event, Notice
from napari_lrmil.core.features.bag import read_origin
from napari_lrmil.core.models.card import AGGREGATOR_NAMES, ATTENTION_NOTES, OF_STUDENTS
from napari_lrmil.core.models.mil import MIL, pool_bag
from napari_lrmil.core.models.patient_bag import attention_mass, bag_logits
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.results.cohort_tables import write_failures

CPU = torch.device("cpu")
TEACHER_STAGE = "teacher"  # the fit of the run's own teacher


def extract_hr_features(context: RunContext) -> Generator[Event, None, HrFeatures]:
    """Extract the missing HR features and return them with the cohort of the slides that have them.

    Raises
    ------
    CohortError
        If training or validation lacks a class without the slides that failed.
    """
    request, is_foreign = context.hr_request(), context.config.hr_features is not None
    context.encoder.encoder.to(context.device)
    if is_foreign:
        request = take_request(context.config, request)
        folder = find_hr_folder(context.config)
        intake = HrIntake(folder, context.config, request, context.encoder, context.device)
        failures = yield from take_features(context.cohort.slides, intake)
    else:
        failures = yield from make_features(context.cohort.slides, request, context.device)
    # The list is written before the checks below, so that it explains a class that is missing afterwards.
    write_failures(context.folder, "features", failures, {s.name for s in context.cohort.slides})
    if is_foreign:
        require_taken(context.cohort.slides, failures, folder)
    cohort = context.cohort.without(set(failures))
    require_classes(cohort, ("train", "val"))
    arrays = {}
    for slide in cohort.slides:
        path = request.path(slide)
        layers = {name: StoredRows.of(path, f"layers/{name}") for name in request.layers}
        arrays[slide.name] = {EMBEDDING: StoredRows.of(path)} | layers
    if is_foreign:
        context = replace(context, hr_source=source_fingerprint([request.path(s) for s in cohort.slides]))
    if context.config.selection.layers:  # `candidate_features` completes those of each candidate
        return HrFeatures(cohort, arrays, {}, context.encoder)
    return (yield from complete_features(replace(context, cohort=cohort), arrays))


def complete_features(
    context: RunContext, arrays: Mapping[str, dict[str, StoredRows]]
) -> Generator[Event, None, HrFeatures]:
    """Return HR features with the reduction of their embedding, if there is one, and the statistics.

    Parameters
    ----------
    context
        The run, with the cohort of the slides that have features and the encoder that gives their embedding.
    arrays
        Slide -> ``features`` or layer name -> stored embeddings; a reduction replaces those of ``features``.
    """
    cohort, encoder = context.cohort, context.encoder
    if context.config.encoder.pca is not None:
        train_rows = [arrays[s.name][EMBEDDING] for s in cohort.of("train")]
        reduction = yield from find_reduction(context, train_rows)
        encoder = reduce_embedding(encoder, reduction)
        for stored in arrays.values():
            stored[EMBEDDING] = ReducedRows.of_rows(stored[EMBEDDING], reduction)
    # Statistics of training slides alone: validation and test slides must not influence the fit.
    train = [arrays[s.name] for s in cohort.of("train")]
    statistics = {name: feature_statistics([by_name[name] for by_name in train]) for name in train[0]}
    return HrFeatures(cohort, arrays, statistics, encoder, context.hr_source)


def teacher_bag(context: RunContext, hr: HrFeatures, slide: CohortSlide, grid: NestedGrid) -> StoredBag:
    """Return the bag of a slide's HR features, with the targets of its outlines if the patch term is on."""
    lambda_patch = context.config.lambda_patch
    item = with_outlines(context, labelled_item(context, slide), slide, grid, lambda_patch, high=True)
    return StoredBag(hr.arrays[slide.name][EMBEDDING], item)


def fit_teacher(
    context: RunContext, hr: HrFeatures, stage: str = TEACHER_STAGE
) -> Generator[Event, None, TeacherOutputs]:
    """Fit the teacher's MIL to the labels and return its targets for every slide; `stage` names it in events."""
    settings = context.config.teacher
    if context.teacher_epochs is not None:  # the last of them is taken: validation chooses nothing
        settings = settings.model_copy(update={"epochs": context.teacher_epochs, "min_epochs": context.teacher_epochs})
    plan = context.fit_plan(stage, settings)
    if stage == TEACHER_STAGE and settings.aggregator not in OF_STUDENTS:
        yield Notice(f"{AGGREGATOR_NAMES[settings.aggregator]}: {ATTENTION_NOTES[settings.aggregator]}")
    mil = seeded_mil(context.encoder.encoder.dim, len(context.cohort.classes), settings, plan.seed)
    mil.set_standard(hr.statistics[EMBEDDING].mean, hr.statistics[EMBEDDING].deviation)
    grids = {s.name: slide_grid(context, hr, s) for s in context.cohort.slides}
    yield from note_outlines(context, grids)
    bags = by_side(context, lambda s: teacher_bag(context, hr, s, grids[s.name]), join_stored)
    mil = yield from fit_mil(mil, label_loss, bags, settings, plan)
    round_to_half(mil)  # the student learns from the weights that the bundle will hold
    return teacher_outputs(context, hr, mil, grids)


def teacher_outputs(context: RunContext, hr: HrFeatures, mil: MIL, grids: Mapping[str, NestedGrid]) -> TeacherOutputs:
    """Return the targets of a frozen MIL for every slide."""
    slides = {s.name: _teacher_targets(s, grids[s.name], mil, hr) for s in context.cohort.slides}
    if context.config.bag == "patient":
        slides = _join_patients(context, slides)
    return TeacherOutputs(mil, slides, hr.statistics)


def _join_patients(context: RunContext, targets: Mapping[str, TeacherTargets]) -> dict[str, TeacherTargets]:
    """Return the targets with the logits of each patient's bag. Scores of patches do not depend on the bag."""
    joined = dict(targets)
    for slides in group_by_bag(context.cohort.slides, "patient"):
        parts = [targets[s.name] for s in slides]
        masses = [attention_mass(part.scores.numpy()) for part in parts]
        logits = bag_logits(np.stack([part.logits.numpy() for part in parts]), masses).astype(np.float32)
        joined |= {part.row.name: replace(part, patient_logits=torch.from_numpy(logits)) for part in parts}
    return joined


def slide_grid(context: RunContext, hr: HrFeatures, slide: CohortSlide) -> NestedGrid:
    """Return the nested grids of a slide, rebuilt from its stored HR coordinates."""
    origin, coords = read_origin(hr.arrays[slide.name][EMBEDDING].path)
    return grid_of_features(origin, coords, context.config.plan)


def _teacher_targets(slide: CohortSlide, grid: NestedGrid, mil: MIL, hr: HrFeatures) -> TeacherTargets:
    """Return the scores and logits of the frozen teacher for a slide."""
    arrays: Mapping[str, StoredRows] = hr.arrays[slide.name]
    pooled = pool_bag(mil, arrays[EMBEDDING](), CPU)
    return TeacherTargets(
        row=slide,
        grid=grid,
        arrays=arrays,
        statistics=hr.statistics,
        scores=torch.from_numpy(pooled.scores),
        logits=torch.from_numpy(pooled.logits),
    )
