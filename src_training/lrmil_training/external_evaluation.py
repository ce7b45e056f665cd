"""Evaluation of a bundle on a cohort that it was not trained on: nothing is fitted and nothing is selected."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lrmil_training.data.cohort import SPLITS, Cohort, CohortSlide, read_cohort
from lrmil_training.evaluation.attention_files import write_attention_maps
from lrmil_training.evaluation.evaluate import (
    Results,
    SlideResult,
    Temperatures,
    add_limits,
    build_slide_table,
    evaluate_methods,
    note_lesion_files,
)
from lrmil_training.evaluation.groups import (
    BY,
    Grouping,
    group_by_distance,
    measure_groups,
    read_groupings,
    write_groups_table,
)
from lrmil_training.evaluation.patients import describe_mixed, group_slides
from lrmil_training.evaluation.patients_table import write_patients_table
from lrmil_training.evaluation.training_overlap import warn_of_training_slides
from lrmil_training.report.report import write_report
from lrmil_training.runs.event_log import METRICS, SLIDES, WARNINGS
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.errors import CohortError, LrmilError
from napari_lrmil.core.events import Event, Failed, Finished, Notice, Progress
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.limits import NetworkLimits
from napari_lrmil.core.models.model_choice import unnamed_model_warning
from napari_lrmil.core.results.cohort_tables import write_failures
from napari_lrmil.core.results.warning_summary import summarize_slides

ALL_SPLITS = "all"  # every slide of the table, whatever its split
BOOTSTRAP_RESAMPLES = 2000
AGREEMENT_ALONE = "the slides have no labels: agreement with the teacher is measured, and no AUROC"


@dataclass(frozen=True)
class ExternalEvaluation:
    """Settings of an evaluation.

    Attributes
    ----------
    bundle
        The model, with its calibration.
    split
        Split of the cohort, or ``all``.
    teacher
        Evaluate the HR teacher too.
    device, runtime
        Device and runtime of the encoders; see `predict`.
    full_paths
        Whether the report names the cohort by its absolute path, which may name a user.
    allow_missing
        Whether slides are evaluated of which more than a third of the tissue is missing.
    by
        Columns of the table; the figures are also given for the slides of each value of each column.
    is_unnamed
        Whether the caller named no model, which tissue slides must not have.
    """

    bundle: Bundle
    split: str
    teacher: bool
    device: str | torch.device
    runtime: str = "torch"
    full_paths: bool = False
    allow_missing: bool = False
    by: tuple[str, ...] = ()
    is_unnamed: bool = False


def evaluate_bundle(
    cohort_csv: Path, folder: Path, evaluation: ExternalEvaluation
) -> Generator[Event, None, dict[str, str]]:
    """Run a bundle on one split of a cohort, write metrics and report, and return slide -> reason of each failure.

    Writes ``metrics.json``, ``slides.json``, ``report.html``, ``attention/`` and ``thumbnails/``, ``patients.csv`` if a
    patient has several slides, and ``groups.csv`` if the figures are given by column, or by distance from the training
    slides.

    Parameters
    ----------
    cohort_csv
        Table of slides, patients and labels.
    folder
        Output folder.
    evaluation
        Bundle, split and device.

    Raises
    ------
    CohortError
        If the cohort has a class that the bundle does not know, or no slide of the split, or lacks a column of
        `by`.
    LrmilError
        If the bundle is broken, or every slide failed.
    """
    table = read_cohort(cohort_csv, unlabelled=_unlabelled_classes(evaluation))
    groupings = read_groupings(table, evaluation.by)
    cohort = note_lesion_files(select_cohort(table, evaluation.bundle, evaluation.split))
    if not cohort.is_labelled:
        cohort = replace(cohort, notices=(*cohort.notices, AGREEMENT_ALONE))
    groupings = [grouping.restrict({s.name for s in cohort.slides}) for grouping in groupings]
    warnings = warn_of_unnamed_model(cohort) if evaluation.is_unnamed else []  # first: hours would be spent in vain
    warnings += warn_of_training_slides(cohort, evaluation.bundle.path)
    notices = (*warnings, *cohort.notices, *_mixed_patients(cohort))
    yield from (Notice(text, cohort_csv.name) for text in notices)
    _ = evaluation.bundle.limits  # damaged ones would fail every slide
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    warnings_by_slide: dict[str, tuple[str, ...]] = {}
    results = yield from _evaluate_slides(cohort, evaluation, failures, warnings_by_slide)
    write_failures(folder, "evaluate", failures, {s.name for s in cohort.slides})
    failed = tuple(s for s in cohort.slides if s.name in failures)
    cohort = cohort.without(set(failures))
    if not cohort.slides:
        raise LrmilError(f"none of {len(failures)} slides could be read; the reasons are in {folder / 'failures.csv'}")
    about_slides = list(summarize_slides(warnings_by_slide))
    yield from (Notice(text, cohort_csv.name) for text in (about_slides if len(warnings_by_slide) > 1 else []))
    _write_measurements(folder, cohort, results, evaluation, groupings, failed, [*warnings, *about_slides])
    name = str(cohort_csv.resolve()) if evaluation.full_paths else f"{cohort_csv.parent.name}/{cohort_csv.name}"
    title, distilled = f"{evaluation.bundle.name} on {name}", evaluation.bundle.card.distilled
    write_report(folder, cohort_csv, title=title, full_paths=evaluation.full_paths, distilled=distilled)
    return failures


def _unlabelled_classes(evaluation: ExternalEvaluation) -> tuple[str, ...]:
    """Return the classes of a cohort without labels, which a given teacher that runs too allows; empty otherwise."""
    card = evaluation.bundle.card
    is_given = card.teacher is not None and card.teacher.origin is not None
    return card.classes if is_given and evaluation.teacher else ()


def _write_measurements(
    folder: Path,
    cohort: Cohort,
    results: Results,
    evaluation: ExternalEvaluation,
    groupings: Sequence[Grouping],
    failed: Sequence[CohortSlide],
    warnings: Sequence[str],
) -> None:
    """Write metrics, groups, the tables of slides and patients, and attention maps."""
    card = evaluation.bundle.card
    # The bundle's own calibration: fitting another on this cohort would be fitting.
    temperatures = {"student": card.temperature, "teacher": card.teacher_temperature}
    split = cohort.slides[0].split  # all slides have the same
    limits, model_limits = _limits_of_methods(evaluation, results), evaluation.bundle.limits
    level = model_limits.level if model_limits else "slide"
    measure = partial(_measure, split=split, temperatures=temperatures, limits=limits, level=level)
    groups = measure_groups(cohort, results, [*group_by_distance(results), *groupings], measure)
    further = ({BY: groups} if groups else {}) | ({WARNINGS: list(warnings)} if warnings else {})
    write_json(folder / METRICS, measure(cohort, results) | further)
    write_groups_table(folder, groups)
    write_patients_table(folder, cohort, results, temperatures, failed)
    write_json(folder / SLIDES, {"slides": build_slide_table(cohort, results, temperatures)})
    write_attention_maps(folder, results)


def _measure(
    cohort: Cohort,
    results: Results,
    *,
    split: str,
    temperatures: Temperatures,
    limits: Mapping[str, NetworkLimits],
    level: str,
) -> dict[str, Any]:
    """Return the metrics of some slides."""
    metrics = evaluate_methods(cohort, results, BOOTSTRAP_RESAMPLES, splits=(split,), temperatures=temperatures)
    add_limits(metrics, cohort, results, temperatures, limits, level=level)
    return metrics


def _limits_of_methods(evaluation: ExternalEvaluation, methods: Iterable[str]) -> dict[str, NetworkLimits]:
    """Return method -> limits of the bundle; empty if its version did not measure any."""
    limits = evaluation.bundle.limits
    if limits is None:
        return {}
    networks = {"student": limits.student, "teacher": limits.teacher}
    return {method: network for method in methods if (network := networks[method]) is not None}


def warn_of_unnamed_model(cohort: Cohort) -> list[str]:
    """Return the warning if one of the slides is tissue, which the model of phantoms does not know.

    Slides that cannot be opened are passed over: the evaluation lists them.
    """
    for row in cohort.slides:
        with suppress(LrmilError, OSError), row.open() as slide:
            if warning := unnamed_model_warning(slide):
                return [warning]
    return []


def _mixed_patients(cohort: Cohort) -> list[str]:
    """Return a notice if patients have slides of several labels, which no figure by patient can have."""
    mixed = group_slides([s.patient for s in cohort.slides], [cohort.target(s) for s in cohort.slides]).mixed
    return [f"{describe_mixed(mixed)}; figures by patient leave them out"] if mixed else []


def select_cohort(cohort: Cohort, bundle: Bundle, split: str) -> Cohort:
    """Return the slides of the split, with the classes in the bundle's order.

    Raises
    ------
    CohortError
        If the split has no slide, or the cohort a class that the bundle does not know.
    """
    classes = bundle.card.classes
    slides = cohort.slides if split == ALL_SPLITS else cohort.of(split)
    if not slides:
        splits = ", ".join(name for name in SPLITS if cohort.of(name))
        raise CohortError(cohort.path, f"no slide of split {split}; there are {splits}; or use --split all")
    unknown = sorted({s.label for s in slides} - set(classes)) if cohort.is_labelled else []
    if unknown:
        raise CohortError(
            cohort.path,
            f"slides are labelled {', '.join(unknown)}, but bundle {bundle.name} tells "
            f"{', '.join(classes)} apart; use its names in the table, or another bundle",
        )
    if split == ALL_SPLITS:
        # One split name for all, so that figures are over all slides and not per split.
        slides = tuple(replace(s, split=ALL_SPLITS) for s in slides)
    return replace(cohort, slides=slides, classes=classes)


def _evaluate_slides(
    cohort: Cohort,
    evaluation: ExternalEvaluation,
    failures: dict[str, str],
    warnings_by_slide: dict[str, tuple[str, ...]],
) -> Generator[Event, None, dict[str, list[SlideResult]]]:
    """Return method -> results of all slides that could be read; add the others to `failures`.

    The warnings of each slide that was read are added to `warnings_by_slide`.
    """
    methods = ("teacher", "student") if evaluation.teacher else ("student",)
    results: dict[str, list[SlideResult]] = {method: [] for method in methods}
    for count, row in enumerate(cohort.slides):
        yield Progress("evaluation", count, len(cohort.slides), "slides")
        try:
            slide_results, warnings_by_slide[row.name] = yield from _evaluate_slide(row, evaluation)
        except (LrmilError, OSError) as error:  # one broken slide must not end the evaluation
            failures[row.name] = str(error).removeprefix(f"{row.path}: ")  # others may see the table
            yield Failed(str(error), row.name, "evaluation", error)
            continue
        for method, result in slide_results.items():
            results[method].append(result)
    yield Progress("evaluation", len(cohort.slides), len(cohort.slides), "slides")
    return results


def _evaluate_slide(
    row: CohortSlide, evaluation: ExternalEvaluation
) -> Generator[Event, None, tuple[dict[str, SlideResult], tuple[str, ...]]]:
    """Return network -> result for one slide, and the warnings of its prediction."""
    prediction: Prediction | None = None
    patches = TeacherPatches.ALL if evaluation.teacher else TeacherPatches.NONE
    with row.open() as slide:
        for event in predict(
            slide,
            evaluation.bundle,
            device=evaluation.device,
            teacher=patches,
            runtime=evaluation.runtime,
            allow_missing=evaluation.allow_missing,
        ):
            match event:
                case Finished(result):
                    prediction = result
                case Notice():
                    yield event
    assert prediction is not None  # `predict` finishes or raises
    student = _slide_result(row, prediction, prediction.student, high=False)
    results = {"student": replace(student, cohort_distance=prediction.cohort_distance)}
    if prediction.teacher is not None:
        results["teacher"] = _slide_result(row, prediction, prediction.teacher, high=True)
    return results, prediction.warnings


def _slide_result(row: CohortSlide, prediction: Prediction, network: NetworkPrediction, *, high: bool) -> SlideResult:
    logits: NDArray[np.float32] = np.array([network.logits[c] for c in prediction.classes], dtype=np.float32)
    return SlideResult(
        row=row,
        grid=prediction.grid,
        logits=logits,
        attention=network.attention,
        high=high,
        pixels=network.pixels_decoded,
        cpu_seconds=network.cpu_seconds,
        mass=network.attention_mass,
    )
