"""Tables of benchmarks/real_tissue.py, computed from the results of its cells."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
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
BEGIN, END = "<!-- written by benchmarks/real_tissue.py --write -->", "<!-- end of what it writes -->"
TEACHER = "teacher_lr"
ORDER = ("headline", "ablation", "uniform", "permuted", "stain_matched")
COHORTS = {
    "default": "default slides",
    "harder": "smaller lesions",
    "third": "a third of the training slides",
    "matched": "slides of one colour",
    "permuted": "labels permuted",
}
KINDS = {
    "headline": "All methods",
    "ablation": "Each loss term off in turn, stages 1 and 2",
    "uniform": "Control: uniform attention in stage 1",
    "permuted": "Control: nothing to be learned",
    "stain_matched": "Control: stain",
}
OTHERS = ("labels_only", "labels_only_finetuned", "teacher")  # methods that differences are computed against


def write_tables(folder: Path, page: Path) -> None:
    """Write the tables between two marker lines of a page."""
    with redirect_stdout(StringIO()) as output:
        print_tables(folder)
    put_between(page, BEGIN, END, f"{output.getvalue()}\n")


def put_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replace the text between two marker lines of a page; exit with a message if they are missing."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise SystemExit(f"{page} has no place for the tables: expected the lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")


def print_tables(folder: Path) -> None:
    """Print a table for every kind, cohort and resolution with results."""
    cells_by_key: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    ceilings: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    costs = []
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        cell = result["cell"]
        if cell["kind"] == "cost":
            costs.append(result)
        elif cell["kind"] == "ceiling":
            ceilings[cell["cohort"], cell["resolution"]].append(result)
        else:
            cohort = "permuted" if cell["cohort"].startswith("permuted") else cell["cohort"]
            cells_by_key[cell["kind"], cohort, cell["resolution"]].append(result)
    _teachers_table({key[0]: cells for key, cells in cells_by_key.items() if key[0].startswith(TEACHER)})
    for key in sorted((key for key in cells_by_key if key[0] in ORDER), key=_place):
        print(f"\n### {KINDS[key[0]]}: {COHORTS[key[1]]}, {key[2]}\n")
        _auroc_table(cells_by_key[key])
        if key[0] == "headline":
            print_table(paired_rows(cells_by_key[key]))
            print_table(not_worse_rows(cells_by_key[key]))
            print(f"{interval_note(cells_by_key[key]) or ''}\n")
            _attention_table(cells_by_key[key], ceilings[key[1:]])
    _every_run(cells_by_key)
    print(f"\n### Goals, {NATIVE} as it is read\n")
    ceiling = mean([c["agreement"]["spearman"] for c in ceilings["default", NATIVE]])
    print_table(expectation_rows(expectations(cells_by_key, ceiling)))
    _cost_table(costs)
    hours = sum(result["cpu_seconds"] for cells in cells_by_key.values() for result in cells) / 3600
    print(f"\n{sum(map(len, cells_by_key.values()))} cells, {hours:.1f} CPU-hours")


def _place(key: tuple[str, str, str]) -> tuple[int, str, list[str]]:
    return ORDER.index(key[0]), key[2], [*COHORTS].index(key[1])


def _teachers_table(cells_by_kind: Mapping[str, Cells]) -> None:
    """Print the validation AUROC by which the teacher's settings were chosen, before any student was trained."""
    print("\n### The teacher's settings\n")
    rows = [["learning rate and width of the gate", "validation", "test"]]
    for kind, cells in cells_by_kind.items():
        means = [format_spread([_auroc(c, "teacher", split) for c in cells]) for split in ("val", "test")]
        rows.append([kind.removeprefix(TEACHER).replace("_hidden", ", "), *means])
    print_table(rows)


def _auroc_table(cells: Cells) -> None:
    """Print one row per method: test AUROC of each fold, mean over runs, differences within runs, validation."""
    folds = sorted({c["cell"]["fold"] for c in cells})
    shown = [o for o in OTHERS if any(o in c["metrics"] for c in cells)]
    head = ["method", "seeds", *(f"fold {f}" for f in folds), "mean", *(f"less {o}" for o in shown), "validation"]
    _row(head)
    print("|---" * len(head) + "|")
    for method in _methods(cells):
        row = [method, seeds_of(cells, method)]
        row += [_with_interval([c for c in cells if c["cell"]["fold"] == f], method) for f in folds]
        row += [format_spread([_auroc(c, method) for c in cells])]
        row += [_difference(cells, method, other) for other in shown]
        row += [format_spread([_auroc(c, method, "val") for c in cells])]
        _row(row)
    print()


def _every_run(cells_by_key: Mapping[tuple[str, str, str], Cells]) -> None:
    """Print the test AUROC of every run, one column per run."""
    headline = {key: cells for key, cells in cells_by_key.items() if key[0] == "headline"}
    runs = sorted({(c["cell"]["fold"], c["cell"]["seed"]) for cells in headline.values() for c in cells})
    print("\n### Every run: test AUROC by fold and seed\n")
    rows = [["slides, resolution", "method", *(f"f{fold} s{seed}" for fold, seed in runs)]]
    for key in sorted(headline, key=_place):
        by = {(c["cell"]["fold"], c["cell"]["seed"]): c for c in headline[key]}
        for method in _methods(headline[key]):
            values = [_auroc(by[run], method) if run in by else None for run in runs]
            rows.append([f"{key[1]}, {key[2]}", method, *("" if v is None else f"{v:.3f}" for v in values)])
    print_table(rows)


def _attention_table(cells: Cells, ceilings: Cells) -> None:
    """Print one row per method: agreement with the teacher, and lesion AUROC of the attention."""
    keys = ("spearman", "jaccard_top10", "js_divergence")
    _row(["method", "ρ", "top-10 % overlap", "divergence", "lesion AUROC", "patches"])
    print("|---" * 6 + "|")
    if ceilings:
        means = [format_spread([c["agreement"][key] for c in ceilings]) for key in keys]
        _row(["teacher of another seed", *means, "", ""])
    for method in _methods(cells):
        row = [
            format_spread([_figure(c, method, lambda m, key=key: (m["agreement"] or {}).get(key)) for c in cells])
            for key in keys
        ]
        row += [format_spread([_figure(c, method, lambda m: m["lesion_auroc"]) for c in cells])]
        patches = [_figure(c, method, lambda m: m["cost"]["patches_per_slide"]) for c in cells]
        _row([method, *row, f"{np.mean([p for p in patches if p is not None]):.0f}"])
    print()


def _cost_table(costs: Cells) -> None:
    """Print the cost of a slide by resolution and network."""
    if not costs:
        return
    print("\n### Cost per slide\n")
    _row(["resolution", "network", "patches", "MPix", "CPU-s"])
    print("|---" * 5 + "|")
    for result in costs:
        for network, cost in result["cost"].items():
            figures = cost["patches_per_slide"], cost["pixels_per_slide"] / 1e6, cost["cpu_seconds_per_slide"]
            _row([result["cell"]["resolution"], network, f"{figures[0]:.0f}", f"{figures[1]:.2f}", f"{figures[2]:.2f}"])


def print_table(rows: Rows) -> None:
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
    """Return mean and deviation over seeds, and the mean bounds of the 95 % intervals; see `interval_note`."""
    bounds = [[_figure(c, method, lambda m, b=b: m["auroc"][b]) for c in cells] for b in ("low", "high")]
    low, high = ([v for v in side if v is not None] for side in bounds)
    span = f" ({np.mean(low):.2f} to {np.mean(high):.2f})" if low and high else ""
    return format_spread([_auroc(c, method) for c in cells]) + span


def format_spread(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation of the values that are not None, or a dash without any."""
    defined = [v for v in values if v is not None]
    if not defined:
        return "-"
    return f"{np.mean(defined):.3f} ± {np.std(defined, ddof=1):.3f}" if len(defined) > 1 else f"{defined[0]:.3f}"


def _difference(cells: Cells, method: str, other: str) -> str:
    """Return the mean paired difference over runs, and the number of runs in which it is above 0."""
    pairs = [(_auroc(c, method), _auroc(c, other)) for c in cells]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if method == other or not differences:
        return "-"
    return f"{np.mean(differences):+.3f} ({sum(d > 0 for d in differences)} of {len(differences)})"
