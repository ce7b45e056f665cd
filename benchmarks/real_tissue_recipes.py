"""Training recipes of benchmarks/real_tissue.py --recipes: an old and a new one on the same slides, drawn by image.

A cell is a recipe with what is trained (teacher alone, or students), a cohort, a fold and a seed. Cells come in order:
those that decide most are first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from real_tissue_cells import BASE, FOLDS, Cell
from real_tissue_cohorts import BY_IMAGE, measure_sources

SETTINGS = ("default", "harder", "third")
HARDER_5X = "harder at 5x"  # slides of "harder", students at 5x
SEEDS, PERMUTATIONS = 3, 10
LAMBDA_PATCH = 1.0  # weight of the term of outlines, where a recipe has it
TEACHER_ALONE = ("teacher", "permuted")  # kinds of cells without a student
OLD, NEW, UNCOLOURED, OUTLINES = "old", "new", "new_uncoloured", "new_outlines"
REGULARISED: dict[str, Any] = {"weight_decay": 1e-2, "feature_dropout": 0.5}
# The first grid tried 3e-4 too. It was best in one of eighteen choices, by less than 0.001.
RATES: dict[str, Any] = {"stage3": {"lr": [3e-5, 1e-4]}}
FINETUNED, FROZEN = "labels_only_finetuned", "labels_only"


@dataclass(frozen=True)
class Recipe:
    """Settings beyond those of the first grid.

    Attributes
    ----------
    changes
        The settings, by group.
    features
        Recipes of the same word use the same HR features.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    features: str = ""


_UNCOLOURED: dict[str, Any] = {
    "encoder": {"teacher_layers": ["block_15"]},
    "teacher": REGULARISED,
    "stage2": REGULARISED,
    "stage3": {"feature_dropout": REGULARISED["feature_dropout"]},  # its weight decay is 1e-2 in both
}
_NEW = _UNCOLOURED | {"stain": {"normalise": "reinhard"}}


def merge_settings(*settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with those of later tables put over those of earlier ones, key by key within a group."""
    merged: dict[str, Any] = {}
    for table in settings:
        for name, value in table.items():
            is_group = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = merged[name] | value if is_group else value
    return merged


RECIPES = {
    OLD: Recipe(),
    NEW: Recipe(_NEW, "new"),
    UNCOLOURED: Recipe(_UNCOLOURED, "uncoloured"),
    OUTLINES: Recipe(_NEW | {"lambda_patch": LAMBDA_PATCH}, "new"),
}


def recipe_cells() -> Iterator[Cell]:
    """Yield all cells, those that decide most first."""
    for setting in ("default", "harder"):
        yield from _grid("teacher", OLD, setting, SEEDS)
        yield from _grid("teacher", NEW, setting, SEEDS)
    yield from _grid("teacher", UNCOLOURED, "default", SEEDS)
    for setting in SETTINGS:
        yield from _grid("student", NEW, setting, SEEDS, {"baselines": [FINETUNED]}, _SEED_0)
    for recipe in (OLD, NEW):
        yield from _grid("teacher", recipe, "third", SEEDS)
    for number in range(PERMUTATIONS):
        for fold in range(len(FOLDS)):
            yield Cell("permuted", f"{BY_IMAGE}permuted_{number}", fold, "2.5x", number, {}, NEW)
    for setting in SETTINGS:
        yield from _grid("student", OUTLINES, setting, 1, {"baselines": [FINETUNED]})
        yield from _grid("student", OLD, setting, 1, {"baselines": [FINETUNED]})
        yield from _grid("uniform", NEW, setting, 1, _UNIFORM)
    for fold in range(len(FOLDS)):  # are smaller lesions too small at 2.5x, or too few?
        yield Cell("student", *students_of(HARDER_5X, fold), 0, {"baselines": [FINETUNED]}, NEW)


def students_of(setting: str, fold: int) -> tuple[str, int, str]:
    """Return cohort, fold and resolution of the students of a setting."""
    slides, _, resolution = setting.partition(" at ")
    return f"{BY_IMAGE}{slides}", fold, resolution or "2.5x"


# One seed of the rows that are no verdict's.
_SEED_0: dict[str, Any] = {"baselines": [FINETUNED, FROZEN, "stage1_only", "both"]}
_UNIFORM: dict[str, Any] = {"stage1": {"attention": "uniform"}, "stage3": {"epochs": 0}, "baselines": ["stage1_only"]}


def _grid(
    kind: str,
    recipe: str,
    setting: str,
    seeds: int,
    changes: dict[str, Any] | None = None,
    first: dict[str, Any] | None = None,
) -> Iterator[Cell]:
    """Yield the cells of every seed and fold; `first` replaces the changes of seed 0."""
    for seed in range(seeds):
        for fold in range(len(FOLDS)):
            own = changes if first is None or seed else first
            yield Cell(kind, f"{BY_IMAGE}{setting}", fold, "2.5x", seed, own or {}, recipe)


def cell_settings(cell: Cell) -> dict[str, Any]:
    """Return the settings of a cell of this grid; its own changes come last."""
    return merge_settings(BASE, RATES, RECIPES[cell.recipe].changes, cell.changes)


def write_sources(args: argparse.Namespace, cell: Cell) -> None:
    """Write how many images and patients a cell's cohort has, real and effective, once for a cohort and fold."""
    file: Path = args.results / f"sources-{cell.cohort}-fold{cell.fold}.json"
    if not file.exists():
        cell_fields = {"kind": "sources", "cohort": cell.cohort, "fold": cell.fold}
        sources = measure_sources(args, cell.cohort, cell.fold)
        file.write_text(json.dumps({"cell": cell_fields, "sources": sources}, indent=1))


def prepare_features(args: argparse.Namespace, cell: Cell, cohort_csv: Path, values: dict[str, Any]) -> Any:
    """Write the HR features of a recipe, so that all its cells find them, and return the run's context."""
    import torch
    from real_tissue_encoding import OpenVinoEncoder

    from lrmil_training.config import build_config
    from lrmil_training.data.cohort import read_cohort
    from lrmil_training.data.features import make_features
    from lrmil_training.stages.run_context import RunContext
    from lrmil_training.stages.stain import normalise_stain
    from lrmil_training.train import check_encoders

    config, device = build_config(values), torch.device("cpu")
    cohort, run = read_cohort(cohort_csv, seed=config.seed), args.work / "runs" / cell.name
    context = _last(normalise_stain(RunContext(config, cohort, run, device, check_encoders(config))))
    request = context.hr_request()
    if not all(request.path(slide).exists() for slide in context.cohort.slides):  # a fit checks those that exist
        encoder = OpenVinoEncoder(request.encoder, request.layers, request.patch_px)
        failures = _last(make_features(context.cohort.slides, replace(request, encoder=encoder), device))
        if failures:
            raise SystemExit(f"no features of {', '.join(failures)}")
    return context


def measure_teacher(context: Any) -> dict[str, Any]:
    """Fit the teacher of a run alone and return its figures as a run states them, and its test slides.

    A run would also compute LR features of every slide, which cost more than the teacher's fit.
    """
    import numpy as np
    import torch

    from lrmil_training.evaluation.metrics import multiclass_auroc
    from lrmil_training.stages.teacher import extract_hr_features, fit_teacher

    context.folder.mkdir(parents=True, exist_ok=True)
    teacher = _last(fit_teacher(context, _last(extract_hr_features(context))))
    figures, slides = {}, []
    for side in ("val", "test"):
        rows = context.cohort.of(side)
        logits = torch.stack([teacher.slides[row.name].logits for row in rows])
        probabilities = torch.softmax(logits.double(), dim=1).numpy()
        targets = np.array([context.cohort.target(row) for row in rows])
        value = multiclass_auroc(probabilities, targets)
        figures[side] = {"auroc": {"value": value}, "lesion_auroc": None, "agreement": None}
        slides = [
            {"slide": row.name, "patient": row.patient, "label": row.label, "probabilities": {"teacher": float(p)}}
            for row, p in zip(rows, probabilities[:, context.cohort.classes.index("malignant")], strict=True)
        ]
    return {"rates": {}, "metrics": {"teacher": figures}, "slides": slides}  # of the test slides, which come last


def _last(events: Any) -> Any:
    """Return what a generator of events returns."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value
