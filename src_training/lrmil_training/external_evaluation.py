"""Evaluation of a bundle on a cohort that it was not made from: nothing is fitted, nothing is chosen."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lrmil_training.data.cohort import SPLITS, Cohort, CohortSlide, read_cohort
from lrmil_training.evaluation.attention_files import write_maps
from lrmil_training.evaluation.evaluate import SlideResult, evaluate, slide_table
from lrmil_training.report.report import write_report
from lrmil_training.runs.event_log import METRICS, SLIDES
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.errors import CohortError, LrmilError
from napari_lrmil.core.events import Event, Failed, Finished, Notice, Progress
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.results.cohort_tables import write_failures

ALL_SPLITS = "all"  # every slide of the table, whatever its split
BOOTSTRAP_RESAMPLES = 2000


@dataclass(frozen=True)
class ExternalEvaluation:
    """What is to be evaluated.

    Attributes
    ----------
    bundle
        The model, with its calibration.
    split
        Side of the cohort, or ``all``.
    teacher
        Whether the HR teacher is measured beside the student.
    device, runtime
        Where to encode, and with what; see `predict`.
    """

    bundle: Bundle
    split: str
    teacher: bool
    device: torch.device
    runtime: str = "torch"


def evaluate_bundle(
    cohort_csv: Path, folder: Path, question: ExternalEvaluation
) -> Generator[Event, None, dict[str, str]]:
    """Run a bundle over a side of a cohort, write figures and report, and return slide -> reason of those that failed.

    Writes ``metrics.json``, ``slides.json``, ``report.html``, ``attention/`` and ``thumbnails/``.

    Raises
    ------
    CohortError
        Where the cohort has a class that the bundle does not know, or no slide of the split.
    LrmilError
        Where the bundle is broken, or every slide failed.
    """
    cohort = _select_cohort(read_cohort(cohort_csv), question)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[SlideResult]] = {"teacher": [], "student": []} if question.teacher else {"student": []}
    failures: dict[str, str] = {}
    for done, row in enumerate(cohort.slides):
        yield Progress("evaluation", done, len(cohort.slides), "slides")
        try:
            found = yield from _evaluate_slide(row, question)
        except (LrmilError, OSError) as error:
            failures[row.name] = str(error)
            yield Failed(str(error), row.name, "evaluation", error)
            continue
        for method, result in found.items():
            results[method].append(result)
    yield Progress("evaluation", len(cohort.slides), len(cohort.slides), "slides")
    write_failures(folder, "evaluate", failures, {s.name for s in cohort.slides})
    cohort = cohort.without(set(failures))
    if not cohort.slides:
        raise LrmilError(f"none of {len(failures)} slides could be read; the reasons are in {folder / 'failures.csv'}")
    card = question.bundle.card
    temperatures = {"student": card.temperature, "teacher": card.teacher_temperature}
    side = cohort.slides[0].split
    figures = evaluate(cohort, results, BOOTSTRAP_RESAMPLES, splits=(side,), temperatures=temperatures)
    write_json(folder / METRICS, figures)
    write_json(folder / SLIDES, {"slides": slide_table(cohort, results, temperatures)})
    write_maps(folder, results)
    write_report(folder, cohort_csv, title=f"{question.bundle.name} on {cohort_csv.parent.name}/{cohort_csv.name}")
    return failures


def _select_cohort(cohort: Cohort, question: ExternalEvaluation) -> Cohort:
    """Return the slides that are asked for, with the classes in the bundle's order."""
    classes = question.bundle.card.classes
    slides = cohort.slides if question.split == ALL_SPLITS else cohort.of(question.split)
    if not slides:
        there = ", ".join(split for split in SPLITS if cohort.of(split))
        raise CohortError(cohort.path, f"no slide of split {question.split}; there are {there}; or use --split all")
    foreign = sorted({s.label for s in slides} - set(classes))
    if foreign:
        raise CohortError(
            cohort.path,
            f"slides are labelled {', '.join(foreign)}, but bundle {question.bundle.name} tells "
            f"{', '.join(classes)} apart; use its names in the table, or another bundle",
        )
    if question.split == ALL_SPLITS:
        slides = tuple(replace(s, split=ALL_SPLITS) for s in slides)
    return replace(cohort, slides=slides, classes=classes)


def _evaluate_slide(row: CohortSlide, question: ExternalEvaluation) -> Generator[Event, None, dict[str, SlideResult]]:
    """Return what the networks say of a slide."""
    found: Prediction | None = None
    with row.open() as slide:
        asked = TeacherPatches.ALL if question.teacher else TeacherPatches.NONE
        for event in predict(slide, question.bundle, device=question.device, teacher=asked, runtime=question.runtime):
            match event:
                case Finished(result):
                    found = result
                case Notice():
                    yield event
    assert found is not None  # `predict` finishes or raises
    results = {"student": _slide_result(row, found, found.student, high=False)}
    if found.teacher is not None:
        results["teacher"] = _slide_result(row, found, found.teacher, high=True)
    return results


def _slide_result(row: CohortSlide, found: Prediction, reading: NetworkPrediction, *, high: bool) -> SlideResult:
    logits: NDArray[np.float32] = np.array([reading.logits[c] for c in found.classes], dtype=np.float32)
    return SlideResult(row, found.grid, logits, reading.attention, high, reading.pixels_decoded, reading.cpu_seconds)
