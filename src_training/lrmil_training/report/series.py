"""Sentences and figures on a series of folds or seeds, for the report and the Train dock.

A series is the list ``runs`` of ``metrics.json``: ``{"fold": i or None, "seed": s, method: {split: metrics}}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrmil_training.evaluation.metrics import FEW_TEST_SLIDES, NO_LABELS
from lrmil_training.evaluation.summary import find_best_run, is_method_entry, validation_score
from napari_lrmil.core.formatting import format_count

COST_KEYS = ("patches_per_slide", "pixels_per_slide", "cpu_seconds_per_slide")
NOT_CALIBRATED = "The student's probabilities are not calibrated"
TOO_FEW_FOR_CALIBRATION = "there were too few validation slides"

Runs = Sequence[Mapping[str, Any]]


def name_spread(runs: Runs) -> str:
    """Return what the standard deviation of a series is taken over, such as ``SD over 3 seeds``."""
    n_folds, n_seeds = _count_folds(runs), len({run["seed"] for run in runs})
    if not n_folds:
        return f"SD over {format_count(n_seeds, 'seed')}"
    return f"SD over {format_count(n_folds, 'fold')}" if n_seeds == 1 else f"SD over {format_count(len(runs), 'run')}"


def describe_series(runs: Runs, split: str) -> list[str]:
    """Return sentences on the limits of the figures of a series on one split, and on which run's model is kept."""
    sentences = [
        f"Mean and standard deviation (SD) over {format_count(len(runs), 'run')}, {_describe_runs(runs)}, "
        f"{_describe_slides(runs, split)}.",
        "The SD shows how much a single run varies; it is not a confidence interval.",
    ]
    fewest = min(_slide_counts(runs, split))
    if fewest < FEW_TEST_SLIDES:
        where = " in a fold" if _count_folds(runs) else ""
        slides = format_count(fewest, f"{split} slide")
        sentences.append(f"Only {slides}{where}: these metrics are uncertain and will change with more slides.")
    return [*sentences, *_describe_calibration(runs, split), *_describe_model(runs)]


def mean_cost(runs: Runs, method: str, split: str) -> dict[str, float | None]:
    """Return the cost of a slide as mean over the runs of a series; None where a run did not measure it."""
    costs = [run[method][split].get("cost") or {} for run in runs if split in run.get(method, {})]
    values = {key: [cost.get(key) for cost in costs] for key in COST_KEYS}
    return {
        key: float(np.mean([float(v) for v in column if v is not None])) if column and None not in column else None
        for key, column in values.items()
    }


def _count_folds(runs: Runs) -> int:
    return len({run["fold"] for run in runs} - {None})


def _describe_runs(runs: Runs) -> str:
    n_folds, n_seeds = _count_folds(runs), len({run["seed"] for run in runs})
    if n_folds and n_seeds > 1:
        return f"{n_folds} folds with each of {n_seeds} seeds"
    return "one for each fold" if n_folds else "one for each seed"


def _describe_slides(runs: Runs, split: str) -> str:
    """Return the slides of a split: seeds share them, folds have their own."""
    counts = _slide_counts(runs, split)
    in_each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    if not _count_folds(runs):
        return f"on the same {in_each} {split} slide{'' if in_each == '1' else 's'}"
    if split != "test":  # validation and training slides of the folds overlap
        return f"on {in_each} {split} slides in a fold"
    first_seed = min(run["seed"] for run in runs)
    total = sum(_slide_counts([run for run in runs if run["seed"] == first_seed], split))
    return f"on {format_count(total, 'test slide')} in all, {in_each} in a fold"


def _slide_counts(runs: Runs, split: str) -> list[int]:
    """Return the number of slides of each run that has the split; every method of a run was measured on the same."""
    methods = [[entry for entry in run.values() if is_method_entry(entry) and split in entry] for run in runs]
    return [int(entries[0][split]["auroc"]["n_slides"]) for entries in methods if entries]


def _describe_calibration(runs: Runs, split: str) -> list[str]:
    students = [run["student"][split] for run in runs if split in run.get("student", {})]
    n_uncalibrated = sum(not figures.get("calibrated", True) for figures in students)
    if not n_uncalibrated:
        return []
    where = "" if n_uncalibrated == len(students) else f" in {n_uncalibrated} of {len(students)} runs"
    return [f"{NOT_CALIBRATED}{where}: {TOO_FEW_FOR_CALIBRATION}."]


def _describe_model(runs: Runs) -> list[str]:
    """Return a sentence on the run whose model is the bundle; none if the runs have no figures of validation."""
    best = find_best_run(runs)
    if best is None:
        return []
    fold = "" if best["fold"] is None else f"fold {best['fold']}, "
    has_labels = best["student"]["val"]["auroc"].get("reason") != NO_LABELS
    figure = "AUROC" if has_labels else "agreement with the teacher"
    name, score = f"The model is that of {fold}seed {best['seed']}", validation_score(best)
    if score is None:
        return [f"{name}, the first run: no run has an {figure} on validation slides."]
    is_tied = sum(validation_score(run) == score for run in runs) > 1
    first = ", the first of equal runs" if is_tied else ""
    return [f"{name}: its student has the highest {figure} on validation slides{first}."]
