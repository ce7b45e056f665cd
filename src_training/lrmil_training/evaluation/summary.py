"""Figures over several runs: mean and spread of what each run found, never of slides pooled over runs.

Slides of different folds are scored by different models, whose scores have no common scale: ranking them together
measures the scales. So a fold has its own AUROC, and what is told is their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SUMMARISED_METRICS = ("balanced_accuracy", "f1", "ece", "brier", "lesion_auroc")
AGREEMENT_METRICS = ("spearman", "jaccard_top10", "js_divergence")

RunMetrics = Mapping[str, Any]


def summarise_runs(runs: Sequence[RunMetrics]) -> dict[str, Any]:
    """Return method -> split -> figures over runs.

    Parameters
    ----------
    runs
        Each ``{"fold": i or None, "seed": s, "metrics": {method: {split: figures}}}``; what else ``metrics`` holds does
        not matter.

    Returns
    -------
    dict
        For every figure ``mean``, ``sd`` (sample; None for a single run), ``n_runs`` where it was defined; for
        ``auroc`` and each method of ``paired`` also ``runs``, the value of each; and for ``paired`` how many of
        them are ``positive``.

    Raises
    ------
    ValueError
        Where some runs are folds and others have the fixed split.
    """
    if len({run.get("fold") is None for run in runs}) > 1:
        raise ValueError("some runs are folds and others have the fixed split; summarise them apart")
    runs = [{**run, "metrics": {m: its for m, its in run["metrics"].items() if is_method_entry(its)}} for run in runs]
    methods = dict.fromkeys(method for run in runs for method in run["metrics"])
    return {method: _summarise_splits(runs, method) for method in methods}


def is_method_entry(entry: Any) -> bool:
    """Return whether an entry of ``metrics.json`` holds a method's figures by split."""
    return isinstance(entry, Mapping) and any(isinstance(f, Mapping) and "auroc" in f for f in entry.values())


def _summarise_splits(runs: Sequence[RunMetrics], method: str) -> dict[str, Any]:
    splits = dict.fromkeys(split for run in runs for split in run["metrics"].get(method, {}))
    return {
        s: _summarise_split([run for run in runs if s in run["metrics"].get(method, {})], method, s) for s in splits
    }


def _summarise_split(runs: Sequence[RunMetrics], method: str, split: str) -> dict[str, Any]:
    def over(*path: str, listed: bool = False) -> dict[str, Any]:
        return _summarise_values([(run, _get_nested(run["metrics"][method][split], path)) for run in runs], listed)

    found: dict[str, Any] = {"auroc": over("auroc", "value", listed=True)}
    found |= {name: over(name) for name in SUMMARISED_METRICS}
    found["agreement"] = {name: over("agreement", name) for name in AGREEMENT_METRICS}
    found["paired"] = {}
    for other in dict.fromkeys(o for run in runs for o in run["metrics"][method][split].get("paired", {})):
        difference = over("paired", other, "value", listed=True)
        positive = sum(one["value"] is not None and one["value"] > 0 for one in difference["runs"])
        found["paired"][other] = difference | {"positive": positive}
    return found


def _get_nested(figures: Any, path: Sequence[str]) -> float | None:
    """Return the figure under nested keys; None where one of them is missing or undefined."""
    for key in path:
        figures = figures.get(key) if isinstance(figures, Mapping) else None
    return None if figures is None else float(figures)


def _summarise_values(values: Sequence[tuple[RunMetrics, float | None]], listed: bool) -> dict[str, Any]:
    known = [value for _, value in values if value is not None]
    found: dict[str, Any] = {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "n_runs": len(known),
    }
    if listed:
        found["runs"] = [{"fold": run.get("fold"), "seed": run.get("seed"), "value": value} for run, value in values]
    return found
