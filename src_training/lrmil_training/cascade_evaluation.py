"""Evaluation of a cascade on a labelled cohort: AUROC against mean CPU-seconds, and the share of slides that went up.

Every slide is read at every resolution, so that each of them and any cascade are measured on the same slides. Nothing
is fitted.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrmil_training.data.cohort import Cohort, CohortSlide, read_cohort
from lrmil_training.evaluation.limits import share_with_interval
from lrmil_training.evaluation.metrics import (
    Resampler,
    ScoredSlides,
    auroc_with_interval,
    classification_metrics,
    multiclass_auroc,
)
from lrmil_training.external_evaluation import BOOTSTRAP_RESAMPLES, select_cohort, warn_of_unnamed_model
from napari_lrmil.core.atomic_files import atomic_write, write_json
from napari_lrmil.core.csv_files import write_csv
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Failed, Notice, Progress
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.ladder.cascade import CascadeResult, replay_cascade
from napari_lrmil.core.ladder.climb import Climber, ClimbOptions, MissingRung, RungFigures, RungResult
from napari_lrmil.core.ladder.rungs import Ladder
from napari_lrmil.core.models.limits import SET_COVERAGE
from napari_lrmil.core.results.cohort_tables import write_failures
from napari_lrmil.core.results.warning_summary import summarize_slides
from napari_lrmil.core.slides.slide import Slide

METRICS_FILE, SLIDES_TABLE, PICTURE = "cascade_metrics.json", "cascade_slides.csv", "cascade.png"
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)  # of the curve: a smaller set climbs more rarely


@dataclass(frozen=True)
class CascadeEvaluation:
    """Settings of an evaluation of a cascade.

    Attributes
    ----------
    ladder
        The models; all but the finest have sets.
    split
        Split of the cohort, or ``all``.
    device, runtime
        Device and runtime of the encoders.
    budget
        Wall seconds for each slide; None for no limit.
    allow_missing, is_unnamed
        As in `ExternalEvaluation`.
    """

    ladder: Ladder
    split: str
    device: str | torch.device
    runtime: str = "auto"
    budget: float | None = None
    allow_missing: bool = False
    is_unnamed: bool = False


@dataclass(frozen=True)
class ClimbedSlide:
    """Figures of all resolutions of one slide.

    Attributes
    ----------
    row
        The slide.
    figures
        One entry for each rung, in the order of climbing.
    warnings
        Name of a resolution -> its warnings; the empty name has those of the slide, which hold at every resolution.
    """

    row: CohortSlide
    figures: tuple[RungFigures, ...]
    warnings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def evaluate_cascade(
    cohort_csv: Path, folder: Path, evaluation: CascadeEvaluation
) -> Generator[Event, None, dict[str, str]]:
    """Read a split of a cohort at all resolutions, measure the cascade, and return slide -> reason of each failure.

    Writes ``cascade_metrics.json``, ``cascade_slides.csv`` and ``cascade.png``.

    Raises
    ------
    CohortError
        If the cohort has a class that the models do not know, or no slide of the split.
    LrmilError
        If a bundle is broken, or no slide can be read at all resolutions.
    """
    cohort = select_cohort(read_cohort(cohort_csv), evaluation.ladder.bundles[0], evaluation.split)
    warnings = warn_of_unnamed_model(cohort) if evaluation.is_unnamed else []
    notices = (*warnings, *evaluation.ladder.notices, *cohort.notices)
    yield from (Notice(text, cohort_csv.name) for text in notices)
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    slides = yield from _climb_slides(cohort, evaluation, failures)
    write_failures(folder, "evaluate", failures, {s.name for s in cohort.slides})
    if not slides:
        raise LrmilError(
            f"none of {len(failures)} slides could be read at all resolutions; the reasons are in "
            f"{folder / 'failures.csv'}"
        )
    metrics = measure_cascade(cohort, slides, evaluation)
    about_slides = list(_summarize_warnings(slides))
    yield from (Notice(text, cohort_csv.name) for text in (about_slides if len(slides) > 1 else []))
    ranking = list(_warn_of_ranking(metrics))
    yield from (Notice(text, cohort_csv.name) for text in ranking)
    metrics |= {"warnings": [*warnings, *ranking, *about_slides]}
    write_json(folder / METRICS_FILE, metrics)
    _write_slides(folder, cohort, slides, evaluation.budget)
    draw_cascade(folder / PICTURE, metrics)
    return failures


def _climb_slides(
    cohort: Cohort, evaluation: CascadeEvaluation, failures: dict[str, str]
) -> Generator[Event, None, list[ClimbedSlide]]:
    """Return the slides that could be read at all resolutions; add the others to `failures`."""
    slides = []
    for count, row in enumerate(cohort.slides):
        yield Progress("evaluation", count, len(cohort.slides), "slides")
        try:
            began = time.perf_counter()
            with row.open() as slide:
                results = yield from _climb_slide(slide, evaluation, time.perf_counter() - began)
                warnings = _warnings_by_rung(slide, results)
        except (LrmilError, OSError) as error:  # one broken slide must not end the evaluation
            failures[row.name] = str(error).removeprefix(f"{row.path}: ")
            yield Failed(str(error), row.name, "evaluation", error)
            continue
        slides.append(ClimbedSlide(row, tuple(result.figures for result in results), warnings))
    yield Progress("evaluation", len(cohort.slides), len(cohort.slides), "slides")
    return slides


def _climb_slide(
    slide: Slide, evaluation: CascadeEvaluation, open_seconds: float
) -> Generator[Event, None, list[RungResult]]:
    """Return the results of all resolutions of an open slide."""
    options = ClimbOptions(evaluation.device, evaluation.runtime, evaluation.allow_missing)
    climber, results = Climber(slide, evaluation.ladder, options, open_seconds), list[RungResult]()
    for rung in evaluation.ladder.rungs:
        climb, outcome = climber.try_read(rung), None
        while outcome is None:
            try:
                event = next(climb)
            except StopIteration as end:
                outcome = end.value
            else:
                if isinstance(event, Notice):
                    yield event
        if isinstance(outcome, MissingRung):
            raise LrmilError(f"{rung.label} is missing: {outcome.reason}")
        results.append(outcome)
    return results


def _warnings_by_rung(slide: Slide, results: Sequence[RungResult]) -> dict[str, tuple[str, ...]]:
    """Return the warnings of a slide, see `ClimbedSlide`. A teacher has those of its bundle's student, so none."""
    own = dict.fromkeys(text for r in results for text in r.prediction.warnings if text in slide.warnings)
    warnings = {"": tuple(own)}
    for result in results:
        if not result.rung.is_teacher:
            name = f"{result.rung.label} ({result.rung.bundle.name})"
            warnings[name] = tuple(text for text in result.prediction.warnings if text not in own)
    return warnings


def _summarize_warnings(slides: Sequence[ClimbedSlide]) -> Iterator[str]:
    """Yield a line for each warning, those of the slides first and then of each resolution, with their slides."""
    for name in dict.fromkeys(name for slide in slides for name in slide.warnings):
        lines = summarize_slides({slide.row.name: slide.warnings.get(name, ()) for slide in slides})
        yield from (f"{name}: {line}" if name else line for line in lines)


def measure_cascade(cohort: Cohort, slides: Sequence[ClimbedSlide], evaluation: CascadeEvaluation) -> dict[str, Any]:
    """Return the content of ``cascade_metrics.json``: each resolution alone, the cascade, and its curve.

    Parameters
    ----------
    cohort
        Classes in the models' order.
    slides
        At least one.
    evaluation
        Ladder, split and budget.
    """
    rungs, targets = evaluation.ladder.rungs, np.array([cohort.target(s.row) for s in slides])
    resampler = Resampler(targets, [s.row.patient for s in slides], BOOTSTRAP_RESAMPLES)
    measure = partial(_measure_answers, cohort, slides, resampler)
    alone = [
        {
            "rung": rung.label,
            "mpp": rung.mpp,
            "bundle": rung.bundle.name,
            "bundle_sha256": rung.bundle.sha256,
            "patches_per_slide": float(np.mean([s.figures[i].n_patches for s in slides])),
            "cpu_seconds_per_slide": float(np.mean([s.figures[i].alone.cpu_seconds for s in slides])),
            "seconds_per_slide": float(np.mean([s.figures[i].alone.seconds for s in slides])),
            **measure([s.figures[i] for s in slides], SET_COVERAGE),
        }
        for i, rung in enumerate(rungs)
    ]
    replays = [replay_cascade(s.figures, evaluation.budget) for s in slides]
    return {
        "schema_version": 1,
        "split": evaluation.split,
        "n_slides": len(slides),
        "runtime": evaluation.runtime,
        "coverage": SET_COVERAGE,
        "budget": evaluation.budget,
        "rungs": alone,
        "cascade": _describe_policy(replays) | measure([r.answer for r in replays], SET_COVERAGE),
        "curve": [_curve_point(cohort, slides, evaluation.budget, coverage) for coverage in COVERAGES],
    }


def _warn_of_ranking(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence if the cascade ranks slides worse than its cheapest network alone."""
    cascade, cheapest = metrics["cascade"]["auroc"]["value"], metrics["rungs"][0]
    alone = cheapest["auroc"]["value"]
    if cascade is not None and alone is not None and cascade < alone:
        yield (
            f"the cascade ranks slides worse (AUROC {cascade:.3f}) than {cheapest['rung']} alone ({alone:.3f}): a "
            "probability does not mean the same in all its networks; calibrate on slides like these, or use one network"
        )


def _measure_answers(
    cohort: Cohort,
    slides: Sequence[ClimbedSlide],
    resampler: Resampler,
    answers: Sequence[RungFigures],
    coverage: float,
) -> dict[str, Any]:
    """Return AUROC, balanced accuracy, and how often the sets hold the true class, of one answer for each slide."""
    scored = _score(cohort, slides, answers)
    sets = [answer.set_at(coverage) for answer in answers]
    has_set = np.array([classes is not None for classes in sets])
    holds = [classes is not None and s.row.label in classes.classes for classes, s in zip(sets, slides, strict=True)]
    return {
        "auroc": auroc_with_interval(scored, resampler),
        "balanced_accuracy": classification_metrics(scored, cohort.classes)["balanced_accuracy"],
        "sets_hold": share_with_interval(np.array(holds), has_set, scored.patients),
    }


def _score(cohort: Cohort, slides: Sequence[ClimbedSlide], answers: Sequence[RungFigures]) -> ScoredSlides:
    probabilities = np.array([[answer.probabilities[name] for name in cohort.classes] for answer in answers])
    targets = np.array([cohort.target(s.row) for s in slides])
    return ScoredSlides(probabilities, targets, tuple(s.row.patient for s in slides))


def _describe_policy(replays: Sequence[CascadeResult]) -> dict[str, Any]:
    """Return mean cost, share of slides that went up, and share that each resolution answered."""
    labels = [step.rung.label for step in replays[0].steps]
    answered = [r.answer.rung.label for r in replays]
    return {
        "cpu_seconds_per_slide": float(np.mean([r.cost.cpu_seconds for r in replays])),
        "seconds_per_slide": float(np.mean([r.cost.seconds for r in replays])),
        "share_went_up": float(np.mean([r.went_up for r in replays])),
        "share_left_open": float(np.mean([not r.is_settled for r in replays])),
        "share_answered": {label: answered.count(label) / len(replays) for label in labels},
    }


def _curve_point(
    cohort: Cohort, slides: Sequence[ClimbedSlide], budget: float | None, coverage: float
) -> dict[str, Any]:
    """Return AUROC and cost of the cascade whose sets have another coverage."""
    replays = [replay_cascade(s.figures, budget, coverage) for s in slides]
    scored = _score(cohort, slides, [r.answer for r in replays])
    policy = _describe_policy(replays)
    return {
        "coverage": coverage,
        "auroc": multiclass_auroc(scored.probabilities, scored.targets),
        "cpu_seconds_per_slide": policy["cpu_seconds_per_slide"],
        "share_went_up": policy["share_went_up"],
    }


def _write_slides(folder: Path, cohort: Cohort, slides: Sequence[ClimbedSlide], budget: float | None) -> None:
    """Write ``cascade_slides.csv``: for each slide what the cascade answers, and the answer of each resolution."""
    labels = [figures.rung.label for figures in slides[0].figures]
    head = ["slide", "patient", "label", "answered_by", "predicted", "went_up", "is_settled", "cpu_seconds", "seconds"]
    columns = [f"{label}: {name}" for label in labels for name in (*cohort.classes, "set", "cpu_seconds")]
    rows: list[list[Any]] = [head + columns]
    for slide in slides:
        result = replay_cascade(slide.figures, budget)
        cells: list[Any] = [slide.row.name, slide.row.patient, slide.row.label, result.answer.rung.label]
        cells += [result.answer.predicted, result.went_up, result.is_settled]
        cells += [result.cost.cpu_seconds, result.cost.seconds]
        for figures in slide.figures:
            classes = figures.set_at()
            cells += [figures.probabilities[name] for name in cohort.classes]
            cells += ["" if classes is None else " | ".join(classes.classes), figures.alone.cpu_seconds]
        rows.append(cells)
    write_csv(folder / SLIDES_TABLE, rows)


def draw_cascade(path: Path, metrics: Mapping[str, Any]) -> None:
    """Draw AUROC against mean CPU-seconds: each resolution alone, and the cascade at several coverages of its sets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for rung in metrics["rungs"]:
        _draw_point(axis, rung, rung["rung"], "o")
    curve = [point for point in metrics["curve"] if point["auroc"] is not None]
    points = [point["cpu_seconds_per_slide"] for point in curve], [point["auroc"] for point in curve]
    axis.plot(*points, ".-", color="0.55", linewidth=1, zorder=0, label="cascade, sets at 50 % to 95 %")
    cascade = metrics["cascade"]
    name = f"cascade at {100 * metrics['coverage']:g} %, {100 * cascade['share_went_up']:.0f} % of slides went up"
    _draw_point(axis, cascade, name, "*")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("CPU-seconds per slide, mean (lower is better)")
    axis.set_ylabel("AUROC (higher is better)")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8, title=format_count(metrics["n_slides"], "slide"), title_fontsize=8)
    figure.suptitle("Resolutions and their cascade · research use only", fontsize=11)
    with atomic_write(path) as partial_file:
        figure.savefig(partial_file, format="png")


def _draw_point(axis: Any, entry: Mapping[str, Any], name: str, marker: str) -> None:
    """Draw AUROC and its interval; nothing if it is undefined."""
    auroc = entry["auroc"]
    if auroc["value"] is None:
        return
    low, high = (auroc["value"] if end is None else end for end in (auroc["low"], auroc["high"]))
    spread = [[max(0.0, auroc["value"] - low)], [max(0.0, high - auroc["value"])]]
    size = 13 if marker == "*" else 7
    axis.errorbar(
        entry["cpu_seconds_per_slide"], auroc["value"], yerr=spread, fmt=marker, markersize=size, capsize=3, label=name
    )
