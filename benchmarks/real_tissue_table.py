"""The tables of benchmarks/real_tissue.py, from the figures of its cells."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from real_tissue_verdicts import (
    NATIVE,
    Rows,
    expectation_rows,
    expectations,
    interval_note,
    mean,
    not_worse_rows,
    paired_rows,
    seeds_of,
)

Cells = Sequence[dict[str, Any]]
Read = Callable[[dict[str, Any]], float | None]
OTHERS = ("labels_only", "labels_only_finetuned", "teacher")  # what differences are told from


def print_tables(folder: Path) -> None:
    """Print a table for every kind, cohort and resolution that there are figures of."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    ceilings: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    costs = []
    for file in sorted(folder.glob("*.json")):
        told = json.loads(file.read_text())
        cell = told["cell"]
        if cell["kind"] == "cost":
            costs.append(told)
        elif cell["kind"] == "ceiling":
            ceilings[cell["cohort"], cell["resolution"]].append(told)
        else:
            cohort = "permuted" if cell["cohort"].startswith("permuted") else cell["cohort"]
            found[cell["kind"], cohort, cell["resolution"]].append(told)
    for key in sorted(found):
        print(f"\n### {', '.join(key)}\n")
        _auroc_table(found[key])
        if key[0] == "headline":
            _table(paired_rows(found[key]))
            _table(not_worse_rows(found[key]))
            print(f"{interval_note(found[key]) or ''}\n")
            _attention_table(found[key], ceilings[key[1:]])
    print(f"\n### Hoped for, {NATIVE} as it is read\n")
    ceiling = mean([c["agreement"]["spearman"] for c in ceilings["default", NATIVE]])
    _table(expectation_rows(expectations(found, ceiling)))
    _cost_table(costs)
    hours = sum(told["cpu_seconds"] for cells in found.values() for told in cells) / 3600
    print(f"\n{sum(map(len, found.values()))} cells, {hours:.1f} CPU-hours")


def _auroc_table(cells: Cells) -> None:
    """Print a row per method: test AUROC of every fold, mean over runs, differences within runs; validation last."""
    folds = sorted({c["cell"]["fold"] for c in cells})
    shown = [o for o in OTHERS if any(o in c["metrics"] for c in cells)]
    head = ["method", "seeds", *(f"fold {f}" for f in folds), "mean", *(f"less {o}" for o in shown), "validation"]
    _row(head)
    print("|---" * len(head) + "|")
    for method in _methods(cells):
        row = [method, seeds_of(cells, method)]
        row += [_with_interval([c for c in cells if c["cell"]["fold"] == f], method) for f in folds]
        row += [_spread([_auroc(c, method) for c in cells])]
        row += [_difference(cells, method, other) for other in shown]
        row += [_spread([_auroc(c, method, "val") for c in cells])]
        _row(row)
    print()


def _attention_table(cells: Cells, ceilings: Cells) -> None:
    """Print a row per method: agreement with the teacher, and how well attention finds lesions."""
    keys = ("spearman", "jaccard_top10", "js_divergence")
    _row(["method", "ρ", "top-10 % overlap", "divergence", "lesion AUROC", "patches"])
    print("|---" * 6 + "|")
    if ceilings:
        means = [_spread([c["agreement"][key] for c in ceilings]) for key in keys]
        _row(["teacher of another seed", *means, "", ""])
    for method in _methods(cells):
        row = [
            _spread([_figure(c, method, lambda m, key=key: (m["agreement"] or {}).get(key)) for c in cells])
            for key in keys
        ]
        row += [_spread([_figure(c, method, lambda m: m["lesion_auroc"]) for c in cells])]
        patches = [_figure(c, method, lambda m: m["cost"]["patches_per_slide"]) for c in cells]
        _row([method, *row, f"{np.mean([p for p in patches if p is not None]):.0f}"])
    print()


def _cost_table(costs: Cells) -> None:
    """Print what a slide costs, by resolution and network."""
    if not costs:
        return
    print("\n### Cost per slide\n")
    _row(["resolution", "network", "patches", "MPix", "CPU-s"])
    print("|---" * 5 + "|")
    for told in costs:
        for network, cost in told["cost"].items():
            figures = cost["patches_per_slide"], cost["pixels_per_slide"] / 1e6, cost["cpu_seconds_per_slide"]
            _row([told["cell"]["resolution"], network, f"{figures[0]:.0f}", f"{figures[1]:.2f}", f"{figures[2]:.2f}"])


def _table(rows: Rows) -> None:
    """Print head and rows."""
    _row(rows[0])
    print("|---" * len(rows[0]) + "|")
    for row in rows[1:]:
        _row(row)
    print()


def _row(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |")


def _methods(cells: Cells) -> list[str]:
    return list(dict.fromkeys(m for c in cells for m in c["metrics"] if "test" in c["metrics"][m]))


def _auroc(cell: dict[str, Any], method: str, split: str = "test") -> float | None:
    return _figure(cell, method, lambda m: m["auroc"]["value"], split)


def _figure(cell: dict[str, Any], method: str, read: Read, split: str = "test") -> float | None:
    figures = cell["metrics"].get(method, {}).get(split)
    return None if figures is None else read(figures)


def _with_interval(cells: Cells, method: str) -> str:
    """Return mean and deviation over seeds, and the 95 % interval over slides: its bounds' means over seeds."""
    bounds = [[_figure(c, method, lambda m, b=b: m["auroc"][b]) for c in cells] for b in ("low", "high")]
    low, high = ([v for v in found if v is not None] for found in bounds)
    span = f" ({np.mean(low):.2f} to {np.mean(high):.2f})" if low and high else ""
    return _spread([_auroc(c, method) for c in cells]) + span


def _spread(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.3f} ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else f"{known[0]:.3f}"


def _difference(cells: Cells, method: str, other: str) -> str:
    """Return mean paired difference over runs, and in how many of them it is above 0."""
    pairs = [(_auroc(c, method), _auroc(c, other)) for c in cells]
    known = [a - b for a, b in pairs if a is not None and b is not None]
    if method == other or not known:
        return "-"
    return f"{np.mean(known):+.3f} ({sum(d > 0 for d in known)} of {len(known)})"
