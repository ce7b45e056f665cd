"""The stages of one run, in order: HR features, the teacher, every method at low resolution, evaluation, bundle."""

from __future__ import annotations

import time
from collections.abc import Generator

import numpy as np
import torch
from numpy.typing import NDArray

from lrmil_training.data.cohort import CohortSlide, require_classes
from lrmil_training.data.feature_store import StoredRows
from lrmil_training.data.features import make_features
from lrmil_training.data.teacher_targets import (
    EMBEDDING,
    FeatureStatistics,
    TeacherTargets,
    feature_statistics,
    grid_from_coords,
)
from lrmil_training.evaluation.attention_files import write_maps
from lrmil_training.evaluation.evaluate import MEASURED, SlideResult, evaluate, slide_table
from lrmil_training.runs.event_log import BUNDLE, METRICS, SLIDES
from lrmil_training.stages.bag_fitting import fit_mil, label_loss, seeded_mil
from lrmil_training.stages.export import export_bundle
from lrmil_training.stages.methods import (
    STUDENT,
    TeacherOutputs,
    TrainedStudent,
    list_methods,
    round_result_to_half,
    teacher_bags,
    train_method,
)
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.events import Event, Finished, Progress, StageDone
from napari_lrmil.core.features.bag import read_origin
from napari_lrmil.core.models.mil import GatedAttentionMIL, pool_bag
from napari_lrmil.core.results.cohort_tables import write_failures


def run_stages(run: RunContext) -> Generator[Event, None, None]:
    """Run all stages and write what a run folder holds; stages that have ended are not run again."""
    arrays = yield from _hr_features(run)
    standards = _standards(run, arrays)
    run.standard = standards[EMBEDDING]
    lesson = yield from _teacher(run, arrays, standards)
    results = {"teacher": _read_teacher(run, lesson)}
    trained = {}
    for method in list_methods(run.config):
        trained[method.name] = yield from train_method(run, method, lesson)
        results[method.name] = _read_lr(run, lesson, trained[method.name])
    began = time.perf_counter()
    yield Progress("evaluation", 0, 1, "report")
    metrics = evaluate(run.cohort, results, run.config.bootstrap)
    write_json(run.folder / SLIDES, {"slides": slide_table(run.cohort, results)})
    write_maps(run.folder, {method: _measured(results[method]) for method in ("teacher", STUDENT)})
    yield StageDone("evaluation", time.perf_counter() - began)
    student = trained[STUDENT]
    encoders = {"teacher": run.encoder.encoder, "student": student.encoder}
    mils = {"teacher": lesson.mil, "student": student.mil}
    export_bundle(run.folder / BUNDLE, run.config, run.cohort, encoders, mils, results, metrics)
    write_json(run.folder / METRICS, metrics)  # comes last: a folder that has it is complete, but for the report
    yield Finished(run.folder)


def _measured(results: list[SlideResult]) -> list[SlideResult]:
    return [r for r in results if r.row.split in MEASURED]


def _hr_features(run: RunContext) -> Generator[Event, None, dict[str, dict[str, StoredRows]]]:
    """Return slide name -> the teacher's embeddings, final and by layer, as they lie on disk."""
    request = run.hr_request()
    run.encoder.encoder.to(run.device)
    run.failures |= yield from make_features(run.cohort.slides, request, run.device)
    write_failures(run.folder, "features", run.failures, {s.name for s in run.cohort.slides})
    run.cohort = run.cohort.without(set(run.failures))
    require_classes(run.cohort, ("train", "val"))
    stored = {}
    for s in run.cohort.slides:
        path = request.path(s)
        layers = {name: StoredRows.of(path, f"layers/{name}") for name in request.layers}
        stored[s.name] = {EMBEDDING: StoredRows.of(path)} | layers
    return stored


def _standards(run: RunContext, arrays: dict[str, dict[str, StoredRows]]) -> dict[str, FeatureStatistics]:
    """Return the teacher's training statistics of embeddings and of each layer."""
    train = [arrays[s.name] for s in run.cohort.of("train")]
    return {name: feature_statistics([of_slide[name] for of_slide in train]) for name in train[0]}


def _teacher(
    run: RunContext, arrays: dict[str, dict[str, StoredRows]], standards: dict[str, FeatureStatistics]
) -> Generator[Event, None, TeacherOutputs]:
    """Fit the teacher's MIL and return what it says of every slide."""
    settings = run.config.teacher
    plan = run.plan("teacher", settings, [])
    mil = seeded_mil(run.encoder.encoder.dim, len(run.cohort.classes), settings.hidden, plan.seed)
    mil.set_standard(standards[EMBEDDING].mean, standards[EMBEDDING].deviation)
    mil = yield from round_result_to_half(fit_mil(mil, label_loss, teacher_bags(run, arrays), settings, plan))
    return TeacherOutputs(mil, {s.name: _taught(run, s, mil, arrays[s.name], standards) for s in run.cohort.slides})


def _taught(
    run: RunContext,
    row: CohortSlide,
    teacher: GatedAttentionMIL,
    arrays: dict[str, StoredRows],
    standards: dict[str, FeatureStatistics],
) -> TeacherTargets:
    """Return what the frozen teacher says of a slide."""
    origin, coords = read_origin(arrays[EMBEDDING].path)
    pooled = pool_bag(teacher, arrays[EMBEDDING](), torch.device("cpu"))
    grid = grid_from_coords(origin, coords, run.config.plan.n)
    scores, logits = torch.from_numpy(pooled.scores), torch.from_numpy(pooled.logits)
    return TeacherTargets(row, grid, arrays, standards, scores, logits)


# ---------------------------------------------------------------- results


def _read_teacher(run: RunContext, lesson: TeacherOutputs) -> list[SlideResult]:
    found = []
    for s in run.cohort.slides:
        t = lesson.slides[s.name]
        attention = torch.softmax(t.scores, 0).numpy()
        found.append(_result(s, t, t.arrays[EMBEDDING], t.logits.numpy(), attention, high=True))
    return found


def _read_lr(run: RunContext, lesson: TeacherOutputs, trained: TrainedStudent) -> list[SlideResult]:
    found = []
    for s in run.cohort.slides:
        rows = trained.features[s.name]
        pooled = pool_bag(trained.mil, rows(), torch.device("cpu"))
        found.append(_result(s, lesson.slides[s.name], rows, pooled.logits, pooled.attention, high=False))
    return found


def _result(
    row: CohortSlide,
    taught: TeacherTargets,
    rows: StoredRows,
    logits: NDArray[np.float32],
    attention: NDArray[np.float32],
    *,
    high: bool,
) -> SlideResult:
    """Return what a method says of a slide, and what its features cost."""
    made = read_origin(rows.path)[0]
    return SlideResult(row, taught.grid, logits, attention, high, made.pixels_decoded, made.cpu_seconds)
