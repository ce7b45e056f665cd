"""Choice of the teacher's recipe by an inner cross-validation on stored features; test slides are never used.

Every candidate is fitted on the same folds of the training and validation patients, for all epochs and without early
stopping. Its curve is the mean over folds of the held-out selection figure. The best epoch of this curve is the
candidate's: one epoch for all folds, because the best epoch of each fold would favour candidates that vary much.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_training.config import SelectionConfig, TrainConfig
from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.data.patient_bags import join_stored
from lrmil_training.data.patient_groups import count_patients, effective_patients
from lrmil_training.data.splits import make_inner_folds
from lrmil_training.data.teacher_targets import EMBEDDING, FeatureStatistics, feature_statistics
from lrmil_training.fitting.fit import FitPlan
from lrmil_training.fitting.plan import DivergedError
from lrmil_training.recipes import Recipe, list_recipes
from lrmil_training.runs.event_log import CHECKPOINTS, SELECTION
from lrmil_training.stages.bag_fitting import (
    by_side,
    fit_mil,
    label_loss,
    seeded_mil,
    selection_figure,
)
from lrmil_training.stages.layer_candidates import candidate_features
from lrmil_training.stages.outputs import HrFeatures
from lrmil_training.stages.run_context import RunContext
from lrmil_training.stages.teacher import slide_grid, teacher_bag
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Metric, Notice, Progress, StageDone
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.models.mil import MIL

STAGE = "selection"  # in events and names of files
AUROC, CE = "val/auroc", "val/ce"  # figures of the held-out fold, as the fit logs them


# ---------------------------------------------------------------- figures of a candidate


@dataclass(frozen=True)
class FoldCurve:
    """Figures of one candidate on one held-out fold, by epoch; ``diverged`` says why there are none."""

    auroc: tuple[float, ...] = ()
    ce: tuple[float, ...] = ()
    diverged: str = ""


@dataclass(frozen=True)
class RecipeResult:
    """Figures of one candidate over all inner folds.

    Attributes
    ----------
    recipe
        The candidate.
    epochs
        Best epoch of the mean curve, from 1; 0 if a fit diverged.
    select, auroc
        Selection figure and held-out AUROC of each fold at this epoch; empty if a fit diverged.
    diverged
        Why it has no figures; empty if it has.
    """

    recipe: Recipe
    epochs: int = 0
    select: tuple[float, ...] = ()
    auroc: tuple[float, ...] = ()
    diverged: str = ""

    @property
    def mean_auroc(self) -> float:
        """Mean over folds."""
        return float(np.mean(self.auroc))

    @property
    def sd_auroc(self) -> float:
        """Sample deviation over folds, which is no standard error: folds share training slides."""
        return float(np.std(self.auroc, ddof=1))


def summarise_candidate(recipe: Recipe, curves: Sequence[FoldCurve], first_epoch: int) -> RecipeResult:
    """Return the figures of a candidate at the best epoch of its mean curve.

    Parameters
    ----------
    recipe
        The candidate.
    curves
        Its curve on each fold, all of the same length.
    first_epoch
        First epoch that can be chosen, from 1.
    """
    diverged = next((curve.diverged for curve in curves if curve.diverged), "")
    if diverged:
        return RecipeResult(recipe, diverged=diverged)
    figures = np.array([[*map(selection_figure, curve.auroc, curve.ce)] for curve in curves])  # (folds, epochs)
    begin = max(0, min(first_epoch, figures.shape[1]) - 1)
    best = begin + int(figures.mean(axis=0)[begin:].argmax())
    aurocs = tuple(curve.auroc[best] for curve in curves)
    return RecipeResult(recipe, best + 1, tuple(figures[:, best].tolist()), aurocs)


def choose_candidate(results: Sequence[RecipeResult]) -> RecipeResult:
    """Return the candidate with the best mean selection figure; of equal ones the first.

    Raises
    ------
    DivergedError
        If every candidate diverged.
    """
    measured = [result for result in results if not result.diverged]
    if not measured:
        raise DivergedError(f"no candidate of the inner cross-validation could be fitted: {results[0].diverged}")
    return max(measured, key=lambda result: float(np.mean(result.select)))


# ---------------------------------------------------------------- fits


def choose_recipe(context: RunContext, hr: HrFeatures) -> Generator[Event, None, RunContext]:
    """Return the context with the chosen recipe; unchanged without inner folds. Writes ``selection.json``.

    A fit that has ended is not repeated by a later attempt.

    Raises
    ------
    CohortError
        If a class has fewer patients than inner folds.
    DivergedError
        If every candidate diverged.
    """
    config = context.config
    if config.selection.inner_folds == 0:
        return context
    began = time.perf_counter()
    folds = make_inner_folds(context.cohort, config.selection.inner_folds, config.seed, by_site=config.by_site)
    recipes, results, views = list_recipes(config), [], dict[tuple[str, ...], _LayerView]()
    for number, recipe in enumerate(recipes):
        if recipe.layers not in views:
            features = yield from candidate_features(context, hr, recipe.layers)
            views[recipe.layers] = _LayerView(features, [_training_statistics(cohort, features) for cohort in folds])
        view, curves = views[recipe.layers], []
        for i, cohort in enumerate(folds):
            inner = _inner_context(context, cohort, recipe, view.features)
            done = number * len(folds) + i, len(recipes) * len(folds)
            curves.append((yield from _measure_fold(inner, view.features, view.statistics[i], i, done)))
        results.append(summarise_candidate(recipe, curves, config.teacher.min_epochs))
    chosen = choose_candidate(results)
    write_json(context.folder / SELECTION, describe_selection(context.cohort, folds, results, chosen))
    yield from (_diverged_notice(result) for result in results if result.diverged)
    yield Notice(f"the inner cross-validation chose {describe_choice(chosen, context.cohort, len(results))}")
    yield StageDone(STAGE, time.perf_counter() - began)
    changes = _changed_settings(config, chosen.recipe)
    encoder = views[chosen.recipe.layers].features.encoder
    return replace(context, config=config.model_copy(update=changes), teacher_epochs=chosen.epochs, encoder=encoder)


@dataclass(frozen=True)
class _LayerView:
    """Features of a candidate's layers, and their statistics over the training slides of each fold."""

    features: HrFeatures
    statistics: Sequence[FeatureStatistics]


def _changed_settings(config: TrainConfig, recipe: Recipe) -> dict[str, Any]:
    """Return the groups of the configuration with the settings of a candidate."""
    changes: dict[str, Any] = {"teacher": recipe.apply(config.teacher)}
    if recipe.layers:
        changes["encoder"] = config.encoder.model_copy(update={"teacher_layers": recipe.layers})
        changes["selection"] = config.selection.model_copy(update={"layers": ()})  # they are chosen
    return changes


def _training_statistics(cohort: Cohort, hr: HrFeatures) -> FeatureStatistics:
    return feature_statistics([hr.arrays[s.name][EMBEDDING] for s in cohort.of("train")])


def _inner_context(context: RunContext, cohort: Cohort, recipe: Recipe, hr: HrFeatures) -> RunContext:
    """Return the context of one fit: its fold as cohort, its candidate as settings of the teacher."""
    changes: dict[str, Any] = {
        **_changed_settings(context.config, recipe),
        "selection": SelectionConfig(),  # a fit does not depend on the other candidates
        "loggers": (),  # they are for the fits of the run
    }
    return replace(context, config=context.config.model_copy(update=changes), cohort=cohort, encoder=hr.encoder)


def _measure_fold(
    context: RunContext, hr: HrFeatures, statistics: FeatureStatistics, fold: int, done: tuple[int, int]
) -> Generator[Event, None, FoldCurve]:
    """Return the curve of one candidate on one fold, from its file if an earlier attempt has measured it."""
    settings = context.config.teacher
    plan = context.fit_plan(f"{STAGE}_fold{fold}", settings)
    folder = context.folder / CHECKPOINTS / STAGE
    file = folder / f"{plan.key}.json"
    yield Progress(STAGE, done[0] * settings.epochs, done[1] * settings.epochs, "epochs")
    if file.exists():
        return _read_curve(file)
    # Without a key the fit leaves no checkpoints: it is short, and a killed one begins again with the same result.
    plan = replace(plan, key="", patience=plan.epochs, folder=folder / plan.folder.name)
    mil = seeded_mil(context.encoder.encoder.dim, len(context.cohort.classes), settings, plan.seed)
    mil.set_standard(statistics.mean, statistics.deviation)
    try:
        curve = yield from _fit_fold(context, hr, mil, plan, done)
    except DivergedError as error:
        curve = FoldCurve(diverged=str(error))
    finally:
        shutil.rmtree(plan.folder, ignore_errors=True)
    write_json(file, asdict(curve))
    return curve


def _fit_fold(
    context: RunContext, hr: HrFeatures, mil: MIL, plan: FitPlan, done: tuple[int, int]
) -> Generator[Event, None, FoldCurve]:
    bags = by_side(context, lambda s: teacher_bag(context, hr, s, slide_grid(context, hr, s)), join_stored)
    figures: dict[str, dict[int, float]] = {AUROC: {}, CE: {}}
    with closing(fit_mil(mil, label_loss, bags, context.config.teacher, plan)) as events:
        for event in events:
            match event:
                case Metric(_, name, value, step) if name in figures:
                    figures[name][step] = value
                case Progress(_, epoch, total):
                    yield Progress(STAGE, done[0] * total + epoch, done[1] * total, "epochs")
                case Notice():
                    yield event
    auroc, ce = (tuple(value for _, value in sorted(by_epoch.items())) for by_epoch in figures.values())
    return FoldCurve(auroc, ce)


def _read_curve(file: Path) -> FoldCurve:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return FoldCurve(tuple(values["auroc"]), tuple(values["ce"]), values["diverged"])
    except (ValueError, KeyError, TypeError) as error:
        raise LrmilError(f"{file}: not a curve of the inner cross-validation ({error}); delete it") from error


def _diverged_notice(result: RecipeResult) -> Notice:
    return Notice(f"candidate {result.recipe.text} was left out, because its fit diverged: {result.diverged}")


# ---------------------------------------------------------------- description


def describe_choice(chosen: RecipeResult, cohort: Cohort, count: int) -> str:
    """Return a clause on the chosen recipe and its figures."""
    at_chance = "" if chosen.mean_auroc > 0.5 else "; no better than chance, so the choice has no meaning"
    used = [s.patient for s in cohort.slides if s.split in ("train", "val")]
    return (
        f"{chosen.recipe.text}, {format_count(chosen.epochs, 'epoch')}, of {count} candidates: held-out AUROC "
        f"{chosen.mean_auroc:.3f} ± {chosen.sd_auroc:.3f} over {len(chosen.auroc)} inner folds of "
        f"{count_patients(used)} patients (effective number {effective_patients(used):.1f}){at_chance}"
    )


def describe_selection(
    cohort: Cohort, folds: Sequence[Cohort], results: Sequence[RecipeResult], chosen: RecipeResult
) -> dict[str, Any]:
    """Return the content of ``selection.json``: patients by class and fold, all candidates, and the choice."""
    slides = [s for s in cohort.slides if s.split in ("train", "val")]
    return {
        "inner_folds": len(folds),
        "patients": _describe_patients(slides),
        "classes": {c: _describe_patients([s for s in slides if s.label == c]) for c in cohort.classes},
        "folds": [_describe_patients(fold.of("val")) for fold in folds],
        "candidates": [_describe_candidate(result, result is chosen) for result in results],
        "choice": describe_choice(chosen, cohort, len(results)),
    }


def _describe_patients(slides: Sequence[CohortSlide]) -> dict[str, Any]:
    patients = [s.patient for s in slides]
    return {
        "n_slides": len(slides),
        "n_patients": count_patients(patients),
        "effective_patients": effective_patients(patients),
    }


def _describe_candidate(result: RecipeResult, is_chosen: bool) -> Mapping[str, Any]:
    values = {**asdict(result.recipe), "chosen": is_chosen}
    if not result.recipe.layers:  # there was no choice of layers
        del values["layers"]
    if result.diverged:
        return values | {"diverged": result.diverged}
    auroc = {"mean": result.mean_auroc, "sd": result.sd_auroc, "folds": list(result.auroc)}
    return values | {"epochs": result.epochs, "auroc": auroc}
