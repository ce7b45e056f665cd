"""The tables of benchmarks/real_tissue.py, from the figures of its cells."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Found = dict[tuple[str, str, str], list[dict[str, Any]]]  # (kind, cohort, resolution) -> cells
MARGIN = 0.03  # of "not worse", docs/method.md 3


def print_tables(folder: Path) -> None:
    """Print a table for every kind, cohort and resolution that there are figures of."""
    found: Found = defaultdict(list)
    hours = 0.0
    for file in sorted(folder.glob("*.json")):
        told = json.loads(file.read_text())
        cell = told["cell"]
        cohort = "permuted" if cell["cohort"].startswith("permuted") else cell["cohort"]
        found[cell["kind"], cohort, cell["resolution"]].append(told)
        hours += told["cpu_seconds"] / 3600
    for key in sorted(found):
        print(f"\n### {', '.join(key)}\n")
        _methods(found[key])
    print(f"\n{sum(map(len, found.values()))} cells, {hours:.1f} CPU-hours")


def _methods(cells: Sequence[dict[str, Any]]) -> None:
    """Print a row per method: AUROC of every fold, mean and deviation over runs, agreement, lesions, differences."""
    methods = list(dict.fromkeys(m for c in cells for m in c["metrics"] if "test" in c["metrics"][m]))
    folds = sorted({c["cell"]["fold"] for c in cells})
    told = ("val AUROC", "test AUROC", "ρ", "lesion AUROC", "less labels_only")
    head = ["method", *(f"test, fold {f}" for f in folds), *told]
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for method in methods:
        per_fold = [_spread([_auroc(c, method) for c in cells if c["cell"]["fold"] == f]) for f in folds]
        row = [
            method,
            *per_fold,
            _spread([_auroc(c, method, "val") for c in cells]),
            _spread([_auroc(c, method) for c in cells]),
            _spread([_figure(c, method, lambda m: (m["agreement"] or {}).get("spearman")) for c in cells]),
            _spread([_figure(c, method, lambda m: m["lesion_auroc"]) for c in cells]),
            _difference(cells, method, "labels_only"),
        ]
        print("| " + " | ".join(row) + " |")


def _auroc(cell: dict[str, Any], method: str, split: str = "test") -> float | None:
    return _figure(cell, method, lambda m: m["auroc"]["value"], split)


def _figure(
    cell: dict[str, Any], method: str, read: Callable[[dict[str, Any]], float | None], split: str = "test"
) -> float | None:
    figures = cell["metrics"].get(method, {}).get(split)
    return None if figures is None else read(figures)


def _spread(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.3f} ± {np.std(known):.3f}" if len(known) > 1 else f"{known[0]:.3f}"


def _difference(cells: Sequence[dict[str, Any]], method: str, other: str) -> str:
    """Return mean paired difference over runs, and in how many of them it is above 0."""
    pairs = [(_auroc(c, method), _auroc(c, other)) for c in cells]
    known = [a - b for a, b in pairs if a is not None and b is not None]
    if method == other or not known:
        return "-"
    return f"{np.mean(known):+.3f} ({sum(d > 0 for d in known)} of {len(known)})"
