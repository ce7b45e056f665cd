"""Tables and picture of the recipes of benchmarks/real_tissue.py.

python benchmarks/real_tissue_recipes_table.py OUT.png [--results FOLDER]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from real_tissue_cells import FOLDS
from real_tissue_cohorts import BY_IMAGE
from real_tissue_panels import draw_row, finish_panel, make_figure
from real_tissue_recipes import HARDER_5X, SETTINGS, recipe_cells, students_of
from real_tissue_recipes_verdicts import (
    PAIRS,
    Row,
    auroc,
    fold_figures,
    format_difference,
    lesion_auroc,
    measured_rows,
    over_folds,
    paired_difference,
    permuted_aurocs,
    recipe_goals,
    runs_of,
    spearman,
)
from real_tissue_table import COHORTS, format_spread, print_table, put_between
from real_tissue_verdicts import Cells, signed

BEGIN, END = "<!-- written by benchmarks/real_tissue.py --recipes --write -->", "<!-- end of what it writes -->"
PANELS = {**{setting: COHORTS[setting] for setting in SETTINGS}, HARDER_5X: f"{COHORTS['harder']}, students at 5x"}
VERDICTS = {True: "held", False: "missed", None: "open"}


@dataclass(frozen=True)
class Results:
    """Contents of a results folder: cells, sources by cohort and fold, and CPU-seconds outside of cells."""

    cells: Cells
    sources: Mapping[tuple[str, int], Mapping[str, float]]
    preparation_seconds: float


def read_results(folder: Path) -> Results:
    """Return the contents of all result files of a folder."""
    cells, sources, seconds = [], {}, 0.0
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        cell = result["cell"]
        if cell["kind"] == "sources":
            sources[cell["cohort"], cell["fold"]] = result["sources"]
        elif cell["kind"] == "preparation":  # slides and features that were made before the first cell
            seconds += result["cpu_seconds"]
        else:
            cells.append(result)
    return Results(cells, sources, seconds)


def write_recipe_tables(folder: Path, page: Path) -> None:
    """Write the tables between two marker lines of a page."""
    with redirect_stdout(StringIO()) as output:
        print_recipe_tables(folder)
    put_between(page, BEGIN, END, f"{output.getvalue()}\n")


def print_recipe_tables(folder: Path) -> None:
    """Print goals, training sources, figures by setting, differences, every run, permutations and cost."""
    results = read_results(folder)
    print("\n### Goals\n")
    goals = recipe_goals(results.cells)
    print_table([["goal", "measured", ""], *([g.statement, g.measured, VERDICTS[g.held]] for g in goals)])
    _print_sources(results.sources)
    for setting in PANELS:
        _print_setting(results.cells, setting)
    _print_every_run(results)
    _print_permutations(results.cells)
    _print_cost(results)


def _print_sources(sources: Mapping[tuple[str, int], Mapping[str, float]]) -> None:
    print("\n### Malignant cores to learn from\n")
    rows = [["slides", "fold", "training slides", "cores", "images", "effective", "patients", "effective"]]
    for setting in SETTINGS:
        for fold in range(len(FOLDS)):
            s = sources.get((f"{BY_IMAGE}{setting}", fold))
            if s is not None:
                counts = [f"{s[key]:.0f}" for key in ("slides", "cores", "images")]
                images, patients = (f"{s[f'effective_{key}']:.1f}" for key in ("images", "patients"))
                rows.append([COHORTS[setting], str(fold), *counts, images, f"{s['patients']:.0f}", patients])
    print_table(rows)


def _print_setting(cells: Cells, setting: str) -> None:
    """Print AUROC by fold, and paired differences, of all rows that were measured on a setting."""
    rows = list(measured_rows(cells, setting))
    if not rows:
        return
    print(f"\n### Test AUROC: {PANELS[setting]}\n")
    head = ["method", "seeds", *(f"fold {f}" for f in range(len(FOLDS))), "mean over folds", "validation"]
    print_table([[*head, "lesion AUROC", "ρ"], *(_figures_row(cells, row, setting) for row in rows)])
    pairs = [(a, b, paired_difference(cells, a, b, setting)) for a, b in PAIRS]
    differences = [
        [f"{a.label} less {b.label}", *(_fold(d.folds, f) for f in range(len(FOLDS))), format_difference(d)]
        for a, b, d in pairs
        if d is not None
    ]
    if differences:
        print_table([["difference", *(f"fold {f}" for f in range(len(FOLDS))), "mean over folds"], *differences])


def _figures_row(cells: Cells, row: Row, setting: str) -> list[str]:
    by_fold = fold_figures(cells, row, setting, auroc)
    counts = [len(by_fold.get(fold, [])) for fold in range(len(FOLDS))]
    seeds = str(counts[0]) if len(set(counts)) == 1 else "/".join(map(str, counts))
    folds = [format_spread(by_fold.get(fold, [])) for fold in range(len(FOLDS))]
    others = [
        fold_figures(cells, row, setting, read, split)
        for read, split in ((auroc, "val"), (lesion_auroc, "test"), (spearman, "test"))
    ]
    return [row.label, seeds, *folds, *(_level(figures) for figures in (by_fold, *others))]


def _level(figures: dict[int, list[float]]) -> str:
    value = over_folds(figures)
    return "-" if value is None else f"{value:.3f}"


def _fold(values: Mapping[int, float], fold: int) -> str:
    return signed(values.get(fold))


def _print_every_run(results: Results) -> None:
    """Print the test AUROC of every run; each fold's head has the effective numbers of its default slides."""
    columns = [(fold, seed) for fold in range(len(FOLDS)) for seed in range(3)]
    print("\n### Every run: test AUROC by fold and seed\n")
    rows = [["slides", "method", *(f"f{fold} s{seed}" for fold, seed in columns)]]
    for setting in PANELS:
        rows.append([PANELS[setting], "effective images, patients", *_effective(results, setting, columns)])
        for row in measured_rows(results.cells, setting):
            runs = runs_of(results.cells, row, setting)
            values = [auroc(runs[key]["metrics"][row.method]["test"]) if key in runs else None for key in columns]
            rows.append([PANELS[setting], row.label, *("" if v is None else f"{v:.3f}" for v in values)])
    print_table(rows)


def _effective(results: Results, setting: str, columns: Sequence[tuple[int, int]]) -> list[str]:
    sources = [results.sources.get(students_of(setting, fold)[:2]) for fold, _ in columns]
    return ["" if s is None else f"{s['effective_images']:.1f}, {s['effective_patients']:.1f}" for s in sources]


def _print_permutations(cells: Cells) -> None:
    values = permuted_aurocs(cells)
    if values:
        print(f"\nNew teacher with permuted labels: test AUROC {format_spread(values)} over {len(values)} runs.\n")


def _print_cost(results: Results) -> None:
    """Print how many cells were measured of how many, and the CPU-hours."""
    print("\n### Cells\n")
    names = Counter(f"{c.kind}, {c.recipe}" for c in recipe_cells())
    done = Counter(f"{c['cell']['kind']}, {c['cell']['recipe']}" for c in results.cells)
    print_table([["cells", "measured", "of"], *([name, str(done[name]), str(n)] for name, n in names.items())])
    hours = (results.preparation_seconds + sum(c["cpu_seconds"] for c in results.cells)) / 3600
    print(f"{len(results.cells)} of {names.total()} cells, {hours:.1f} CPU-hours")


# ---------------------------------------------------------------- picture


def main() -> None:
    """Draw a panel for every setting that was measured: one point per run, one row per method."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "real_tissue_recipes")
    args = p.parse_args()
    cells = read_results(args.results).cells
    settings = [s for s in PANELS if any(measured_rows(cells, s))]
    rows = list(dict.fromkeys(row for s in settings for row in measured_rows(cells, s)))[::-1]
    figure, axes = make_figure(len(settings), 2.6 + 2.9 * len(settings), 1.2 + 0.32 * len(rows))
    for axis, setting in zip(axes, settings, strict=True):
        for at, row in enumerate(rows):
            figures = fold_figures(cells, row, setting, auroc)
            draw_row(axis, at, figures, over_folds(figures))
        finish_panel(axis, PANELS[setting])
    axes[0].set_yticks(range(len(rows)), [row.label for row in rows], fontsize=9)
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
