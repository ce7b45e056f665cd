"""Evaluation of a run: results of the teacher and of every method on all slides, written to the run folder."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from lrmil_training.data.feature_store import StoredRows
from lrmil_training.data.teacher_targets import EMBEDDING, TeacherTargets
from lrmil_training.evaluation.attention_files import write_attention_maps
from lrmil_training.evaluation.comparison_table import comparison_rows, write_comparison
from lrmil_training.evaluation.evaluate import (
    MEASURED_SPLITS,
    SlideResult,
    add_limits,
    build_slide_table,
    evaluate_methods,
    fit_method_limits,
    fit_method_temperatures,
)
from lrmil_training.evaluation.patients_table import write_patients_table
from lrmil_training.runs.event_log import SLIDES
from lrmil_training.stages.methods import STUDENT
from lrmil_training.stages.outputs import Evaluation, Student, TeacherOutputs
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.events import Event, Progress, StageDone
from napari_lrmil.core.features.bag import read_origin
from napari_lrmil.core.models.mil import pool_bag
from napari_lrmil.core.models.patient_bag import attention_mass

CPU = torch.device("cpu")


def evaluate_run(
    context: RunContext,
    teacher: TeacherOutputs,
    students: Mapping[str, Student],
    compared: Mapping[str, TeacherOutputs] | None = None,
) -> Generator[Event, None, Evaluation]:
    """Evaluate all methods, write ``slides.json`` and the attention maps, and return results and metrics.

    Parameters
    ----------
    context
        The run, with the cohort that was trained on.
    teacher
        Outputs of the teacher, which is the reference; without one no method has a reference.
    students
        Method -> trained student.
    compared
        Method -> further teachers, see `fit_compared_teachers`.
    """
    # All methods have the slides of the teacher's outputs in the same order, which paired tests rely on.
    by_patient = context.config.bag == "patient"
    results = {} if teacher.mil is None else {"teacher": _teacher_results(teacher, by_patient)}
    results |= {name: _teacher_results(other, by_patient) for name, other in (compared or {}).items()}
    results |= {name: _student_results(teacher, student, by_patient) for name, student in students.items()}
    began = time.perf_counter()
    yield Progress("evaluation", 0, 1, "report")
    cohort = context.cohort
    temperatures = fit_method_temperatures(cohort, results)
    sensitivity, level = context.config.operating_point.sensitivity, context.config.bag
    limits = fit_method_limits(cohort, results, temperatures, sensitivity, level)
    metrics = evaluate_methods(cohort, results, context.config.bootstrap, temperatures=temperatures)
    add_limits(metrics, cohort, results, temperatures, limits, chosen_on="val", level=level)
    if context.config.compare:
        write_comparison(context.folder, comparison_rows(metrics, context.config.teacher.aggregator))
    write_json(context.folder / SLIDES, {"slides": build_slide_table(cohort, results, temperatures)})
    write_patients_table(context.folder, cohort, results, temperatures)
    drawn = [name for name in ("teacher", STUDENT) if name in results]
    write_attention_maps(context.folder, {name: _held_out(results[name]) for name in drawn})
    yield StageDone("evaluation", time.perf_counter() - began)
    return Evaluation(results, metrics, limits)


def _held_out(results: Sequence[SlideResult]) -> list[SlideResult]:
    return [r for r in results if r.row.split in MEASURED_SPLITS]


def _teacher_results(teacher: TeacherOutputs, by_patient: bool) -> list[SlideResult]:
    results = []
    for t in teacher.slides.values():
        result = _slide_result(t, t.arrays[EMBEDDING], t.logits.numpy(), torch.softmax(t.scores, 0).numpy(), high=True)
        results.append(replace(result, mass=attention_mass(t.scores.numpy()) if by_patient else None))
    return results


def _student_results(teacher: TeacherOutputs, student: Student, by_patient: bool) -> list[SlideResult]:
    mil, features = student.require_mil(), student.require_features()
    results = []
    for name, targets in teacher.slides.items():
        pooled = pool_bag(mil, features[name](), CPU)  # on the CPU, so that figures do not depend on the device
        result = _slide_result(targets, features[name], pooled.logits, pooled.attention, high=False)
        results.append(replace(result, mass=attention_mass(pooled.scores) if by_patient else None))
    return results


def _slide_result(
    targets: TeacherTargets,
    features: StoredRows,
    logits: NDArray[np.float32],
    attention: NDArray[np.float32],
    *,
    high: bool,
) -> SlideResult:
    """Return the outputs of a method for a slide, with the cost of its features as their file records it."""
    origin = read_origin(features.path)[0]
    return SlideResult(
        row=targets.row,
        grid=targets.grid,
        logits=logits,
        attention=attention,
        high=high,
        pixels=origin.pixels_decoded,
        cpu_seconds=origin.cpu_seconds,
    )
