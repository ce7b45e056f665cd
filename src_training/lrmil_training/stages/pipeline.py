"""Training pipeline of one run: HR features and teacher (or LR grids alone), methods, evaluation, bundle."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from lrmil_training.runs.event_log import BUNDLE, METRICS, WARNINGS
from lrmil_training.stages.comparison import fit_compared_teachers
from lrmil_training.stages.evaluate_run import evaluate_run
from lrmil_training.stages.export import export_bundle
from lrmil_training.stages.given_teacher import spread_cautions, take_teacher
from lrmil_training.stages.layer_candidates import candidate_features
from lrmil_training.stages.methods import STUDENT, Method, list_methods
from lrmil_training.stages.outline_use import switch_off_without_outlines
from lrmil_training.stages.outputs import Student, TeacherOutputs
from lrmil_training.stages.recipe_selection import choose_recipe
from lrmil_training.stages.run_context import RunContext
from lrmil_training.stages.stain import normalise_stain
from lrmil_training.stages.student import initial_encoder
from lrmil_training.stages.teacher import extract_hr_features, fit_teacher
from lrmil_training.stages.undistilled import find_lr_grids
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.events import Event, Finished


def run_stages(context: RunContext) -> Generator[Event, None, None]:
    """Run all stages and write the run folder. Stages that have ended before are not run again."""
    context = yield from switch_off_without_outlines(context)
    context = yield from normalise_stain(context)
    compared: dict[str, TeacherOutputs] = {}
    if context.config.distil:
        hr = yield from extract_hr_features(context)
        # Without the slides that gave no features; the encoder gives what the MIL is fitted to.
        context = replace(context, cohort=hr.cohort, encoder=hr.encoder, hr_source=hr.source)
        chosen = yield from choose_recipe(context, hr)
        hr = yield from candidate_features(context, hr, chosen.config.encoder.teacher_layers)
        context = chosen
        teacher = yield from (fit_teacher if context.head is None else take_teacher)(context, hr)
        compared = yield from fit_compared_teachers(context, hr)
    else:
        cohort, teacher = yield from find_lr_grids(context)
        context = replace(context, cohort=cohort)
    students = {}
    for method in list_methods(context.config):
        students[method.name] = yield from train_method(context, method, teacher)
    evaluation = yield from evaluate_run(context, teacher, students, compared)
    export_bundle(context.folder / BUNDLE, context, teacher, students[STUDENT], evaluation)
    cautions = spread_cautions(context.cohort, teacher)
    metrics = {**evaluation.metrics, **({WARNINGS: cautions} if cautions else {})}
    write_json(context.folder / METRICS, metrics)  # last: its presence marks a complete folder
    yield Finished(context.folder)


def train_method(context: RunContext, method: Method, teacher: TeacherOutputs) -> Generator[Event, None, Student]:
    """Run the stages of one method in order and return its networks, rounded as in a bundle, with their features."""
    student = Student(initial_encoder(context, teacher, aligned=method.is_aligned))
    for stage in method.stages:
        student = yield from stage.run(context, teacher, student)
    return student
