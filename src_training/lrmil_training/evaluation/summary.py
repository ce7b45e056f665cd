"""Summary of several runs: mean and standard deviation of the metrics of each run; slides are never pooled.

Slides of different folds are scored by different models, whose scores have no common scale. Ranking them together would
measure the scales. Each fold therefore has its own AUROC, and the summary is their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrmil_training.evaluation.metrics import NO_LABELS
from lrmil_training.evaluation.patients import PATIENTS

STUDENT = "student"  # as the pipeline names it, whose module loads torch
PATIENT_METRICS = ("balanced_accuracy", "f1", "ece", "brier")
SUMMARISED_METRICS = (*PATIENT_METRICS, "lesion_auroc")
AGREEMENT_METRICS = ("spearman", "jaccard_top10", "js_divergence")

RunMetrics = Mapping[str, Any]


def summarise_runs(runs: Sequence[RunMetrics]) -> dict[str, Any]:
    """Return method -> split -> summary of each metric over runs.

    Parameters
    ----------
    runs
        Each ``{"fold": i or None, "seed": s, "metrics": {method: {split: metrics}}}``; other entries of ``metrics`` are
        ignored.

    Returns
    -------
    dict
        For each metric ``mean``, ``sd`` (sample; None for a single run) and ``n_runs``, the runs in which it is
        defined. ``auroc`` and each method of ``paired`` also have ``runs``, the value of each run, and ``paired`` has
        ``positive``, the number of positive values.

    Raises
    ------
    ValueError
        If some runs are folds and others have the fixed split.
    """
    if len({run.get("fold") is None for run in runs}) > 1:
        raise ValueError("some runs are folds and others have the fixed split; summarise them apart")
    runs = [
        {**run, "metrics": {m: entry for m, entry in run["metrics"].items() if is_method_entry(entry)}} for run in runs
    ]
    methods = dict.fromkeys(method for run in runs for method in run["metrics"])
    return {method: _summarise_splits(runs, method) for method in methods}


def is_method_entry(entry: Any) -> bool:
    """Return whether an entry of ``metrics.json`` holds the metrics of a method by split."""
    return isinstance(entry, Mapping) and any(
        isinstance(values, Mapping) and "auroc" in values for values in entry.values()
    )


def find_best_run(runs: Sequence[RunMetrics]) -> RunMetrics | None:
    """Return the run of ``metrics.json`` with the best student on validation slides, whose model a series keeps.

    Of equal runs it is the first. None if a run has no figures of the student on validation slides.
    """
    if not runs or any("val" not in run.get(STUDENT, {}) for run in runs):
        return None
    scores = [validation_score(run) for run in runs]
    return runs[int(np.argmax([-1.0 if score is None else score for score in scores]))]


def validation_score(run: RunMetrics) -> float | None:
    """Return the student's AUROC on validation slides, without labels its agreement; None if it is undefined."""
    figures = run[STUDENT]["val"]
    value = figures["auroc"]["value"]
    if value is None and figures["auroc"].get("reason") == NO_LABELS:
        value = figures["agreement"]["spearman"]
    return None if value is None else float(value)


def _summarise_splits(runs: Sequence[RunMetrics], method: str) -> dict[str, Any]:
    splits = dict.fromkeys(split for run in runs for split in run["metrics"].get(method, {}))
    return {
        s: _summarise_split([run for run in runs if s in run["metrics"].get(method, {})], method, s) for s in splits
    }


def _summarise_split(runs: Sequence[RunMetrics], method: str, split: str) -> dict[str, Any]:
    def over(*path: str, listed: bool = False) -> dict[str, Any]:
        return _summarise_values([(run, _get_nested(run["metrics"][method][split], path)) for run in runs], listed)

    summary: dict[str, Any] = {"auroc": over("auroc", "value", listed=True)}
    summary |= {name: over(name) for name in SUMMARISED_METRICS}
    summary["agreement"] = {name: over("agreement", name) for name in AGREEMENT_METRICS}
    if any(PATIENTS in run["metrics"][method][split] for run in runs):
        summary[PATIENTS] = {"auroc": over(PATIENTS, "auroc", "value", listed=True)}
        summary[PATIENTS] |= {name: over(PATIENTS, name) for name in PATIENT_METRICS}
    summary["paired"] = {}
    for other in dict.fromkeys(o for run in runs for o in run["metrics"][method][split].get("paired", {})):
        difference = over("paired", other, "value", listed=True)
        positive = sum(run["value"] is not None and run["value"] > 0 for run in difference["runs"])
        summary["paired"][other] = difference | {"positive": positive}
    return summary


def _get_nested(metrics: Any, path: Sequence[str]) -> float | None:
    """Return the value under nested keys; None if a key is missing or the value undefined."""
    for key in path:
        metrics = metrics.get(key) if isinstance(metrics, Mapping) else None
    return None if metrics is None else float(metrics)


def _summarise_values(values: Sequence[tuple[RunMetrics, float | None]], listed: bool) -> dict[str, Any]:
    defined = [value for _, value in values if value is not None]
    summary: dict[str, Any] = {
        "mean": float(np.mean(defined)) if defined else None,
        "sd": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "n_runs": len(defined),
    }
    if listed:
        summary["runs"] = [{"fold": run.get("fold"), "seed": run.get("seed"), "value": value} for run, value in values]
    return summary
