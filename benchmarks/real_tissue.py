"""Distillation against training on labels alone, on real tissue: all methods, folds, seeds and controls.

    python benchmarks/real_tissue.py --shared SHARED --work WORK [--results FOLDER] [--only NAME…] [--workers N]

`SHARED` is the folder with the development data, which is not part of this repository. Slides, features and runs go to
`WORK` and may be deleted; what was measured goes to `FOLDER`, a small JSON file per cell. A cell that is there is not
measured again, so the command goes on where it stopped. ``--table`` prints the tables of what is there. With
``--recipes`` the grid is another: an old and a new training recipe on slides drawn by image (`real_tissue_recipes`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from real_tissue_cells import BASE, RESOLUTIONS, Cell, cells
from real_tissue_cohorts import cohort_folder, make_cohort, source_cohort
from real_tissue_recipes import (
    RECIPES,
    TEACHER_ALONE,
    cell_settings,
    measure_teacher,
    prepare_features,
    recipe_cells,
    write_sources,
)
from real_tissue_recipes_table import print_recipe_tables, write_recipe_tables
from real_tissue_table import print_tables, write_tables

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure the cells that are missing, or print the tables."""
    args = parse_arguments()
    if args.write:
        (write_recipe_tables if args.recipes else write_tables)(args.results, args.write)
        return
    if not args.table:
        measure(args)
    (print_recipe_tables if args.recipes else print_tables)(args.results)


def parse_arguments() -> argparse.Namespace:
    """Return the checked arguments."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--recipes", action="store_true", help="the grid of training recipes, with results of its own")
    p.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and tools")
    p.add_argument("--work", type=Path, help="folder for slides, features and runs")
    p.add_argument("--results", type=Path, help="folder of the results, in the repository if left out")
    p.add_argument("--only", nargs="*", default=(), help="parts of the names of the cells to measure")
    p.add_argument("--workers", type=int, default=2, help="cells at a time, each with one thread")
    p.add_argument("--table", action="store_true", help="only print the tables")
    p.add_argument("--write", type=Path, help="only put the tables into this page")
    args = p.parse_args()
    if args.work is None and not (args.table or args.write):
        p.error("--work is needed, for slides, features and runs")
    if args.results is None:
        args.results = RESULTS / ("real_tissue_recipes" if args.recipes else "real_tissue")
    return args


def measure(args: argparse.Namespace) -> None:
    """Measure the missing cells in parallel; a failed cell is reported and does not stop the others."""
    args.results.mkdir(parents=True, exist_ok=True)
    grid = recipe_cells() if args.recipes else cells()
    wanted = [c for c in grid if not args.only or any(part in c.name for part in args.only)]
    missing = [c for c in wanted if not (args.results / f"{c.name}.json").exists()]
    print(f"{len(wanted)} cells, {len(missing)} of them not measured yet", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the worker processes: two threads on shared cores are slower than one
    measure_side_by_side(args, missing)
    for cell in wanted:
        if cell.kind == "headline":
            measure_ceiling(args, cell)
            measure_cost(args, cell)


def measure_side_by_side(args: argparse.Namespace, missing: list[Cell]) -> None:
    """Measure cells in order on all workers; a cell starts when its features and learning rates are available."""
    waiting, running = list(missing), {}
    with ProcessPoolExecutor(args.workers) as pool:
        while waiting or running:
            for cell in [*waiting]:
                if len(running) < args.workers and _may_start(args, cell, running.values(), waiting):
                    waiting.remove(cell)
                    running[pool.submit(measure_cell, args, cell)] = cell
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell, error = running.pop(future), future.exception()
                if error is None:
                    _features(args, cell).with_suffix(".whole").touch()
                print(f"{cell.name}: {error or 'done'}", flush=True)


def _may_start(args: argparse.Namespace, cell: Cell, running: Collection[Cell], waiting: Collection[Cell]) -> bool:
    """Return whether no other cell computes the HR features of `cell`, and its learning rates are chosen."""
    features = _features(args, cell)
    making = {_features(args, other) for other in running}
    chooser = _chooser(cell)
    undecided = {other.name for other in (*running, *waiting)} - {cell.name}
    return (features not in making or features.with_suffix(".whole").exists()) and chooser.name not in undecided


# ---------------------------------------------------------------- cells


def measure_cell(args: argparse.Namespace, cell: Cell) -> None:
    """Train the networks of a cell and write its results."""
    import torch

    torch.set_num_threads(1)
    began, wall = cpu_seconds(), time.perf_counter()
    make_cohort(args, cell.cohort, cell.fold)
    table, values = cohort_folder(args, cell.cohort, cell.fold) / "cohort.csv", _settings(args, cell)
    if cell.recipe:
        write_sources(args, cell)
        context = prepare_features(args, cell, table, values)
    if cell.recipe and cell.kind in TEACHER_ALONE:
        figures = measure_teacher(context)
    else:
        figures = _measure_run(args, cell, table, values)
    results = {
        "cell": {k: v for k, v in cell.__dict__.items() if k != "changes"},
        "cpu_seconds": cpu_seconds() - began,  # of this attempt only, without interrupted ones
        "wall_seconds": time.perf_counter() - wall,
        **figures,
    }
    _write(args.results / f"{cell.name}.json", results)


def _measure_run(args: argparse.Namespace, cell: Cell, table: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Train all methods of a cell and return the figures of every learning rate and method."""
    from lrmil_training.config import build_config
    from lrmil_training.runs.event_log import METRICS
    from lrmil_training.train import train

    run: Path = args.work / "runs" / cell.name
    _reuse_teacher(args, cell, run)
    rates: dict[str, dict[str, float]] = {}
    for event in train(table, run, build_config(values), _cpu()):
        if type(event).__name__ == "Metric" and event.name.startswith("lr "):
            rates.setdefault(event.stage, {})[event.name[3:]] = event.value
    shutil.rmtree(run / "features", ignore_errors=True)  # LR features: large, and computed again if needed
    metrics = json.loads((run / METRICS).read_text())
    return {"rates": rates, "metrics": metrics, **({"slides": _test_slides(run)} if cell.recipe else {})}


def _settings(args: argparse.Namespace, cell: Cell) -> dict[str, Any]:
    """Return the configuration of a cell; learning rates that were chosen on validation replace the list to try."""
    own = cell_settings(cell) if cell.recipe else {**BASE, **cell.changes}
    encoder = str(next((args.shared / "data" / "weights").glob("*.safetensors")))
    values = {
        **RESOLUTIONS[cell.resolution],
        **own,
        "seed": cell.seed,
        "features": str(_features(args, cell)),
        "encoder": {**own.get("encoder", {}), "teacher": encoder},
    }
    rates = chosen_rates(args.results, cell)
    if rates and values["stage3"].get("epochs", 1):
        values["stage3"] = {**values["stage3"], "lr": rates}
    return values


def _features(args: argparse.Namespace, cell: Cell) -> Path:
    """Return the folder of the HR features of a cell; tables over the same slides share it."""
    kind = RECIPES[cell.recipe].features if cell.recipe else ""
    shared = source_cohort(cell.cohort) + (f"-{kind}" if kind else "")
    folder: Path = args.work / "features" / shared / f"fold_{cell.fold}"
    return folder


def _test_slides(run: Path) -> list[dict[str, Any]]:
    """Return label and probability of malignancy by each method of the test slides of a run."""
    from lrmil_training.runs.event_log import SLIDES

    test = [s for s in json.loads((run / SLIDES).read_text())["slides"] if s["split"] == "test"]
    return [
        {key: s[key] for key in ("slide", "patient", "label")}
        | {"probabilities": {name: m["probabilities"]["malignant"] for name, m in s["methods"].items()}}
        for s in test
    ]


def cpu_seconds() -> float:
    """Return the CPU-seconds of this process and its finished child processes, which paint slides."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


# ---------------------------------------------------------------- agreement of teachers, cost


def measure_ceiling(args: argparse.Namespace, cell: Cell) -> None:
    """Write the agreement between teachers of different seeds on the test slides of a fold, on the LR grid."""
    from itertools import combinations

    file = args.results / f"ceiling-{cell.cohort}-{cell.resolution.replace(' ', '_')}-fold{cell.fold}.json"
    same = [Cell(**{**cell.__dict__, "seed": seed}) for seed in range(5)]
    runs = [args.work / "runs" / item.name for item in same if (args.results / f"{item.name}.json").exists()]
    maps = [run / "attention" / "teacher" for run in runs if (run / "attention" / "teacher").is_dir()]
    pairs = list(combinations(maps, 2))
    if not pairs or (file.exists() and json.loads(file.read_text())["teachers"] == len(maps)):
        return
    agreements = [_agreement(args, cell, a, b) for a, b in pairs]
    mean = {name: sum(item[name] for item in agreements) / len(agreements) for name in agreements[0]}
    cell_fields = {k: v for k, v in cell.__dict__.items() if k in ("cohort", "fold", "resolution")}
    _write(file, {"cell": cell_fields | {"kind": "ceiling"}, "teachers": len(maps), "agreement": mean})


def _agreement(args: argparse.Namespace, cell: Cell, a: Path, b: Path) -> dict[str, float]:
    """Return the mean agreement of two teachers over the test slides, on the LR grid of the cell's resolution."""
    import numpy as np

    from lrmil_training.config import build_config
    from lrmil_training.data.cohort import read_cohort
    from lrmil_training.evaluation.attention_files import read_attention_map
    from napari_lrmil.core.metrics.agreement import measure_agreement, pool_to_lr_grid
    from napari_lrmil.core.patching.grid import find_nested_grid

    plan = build_config({**BASE, **RESOLUTIONS[cell.resolution]}).plan
    rows = []
    for row in read_cohort(cohort_folder(args, cell.cohort, cell.fold) / "cohort.csv").of("test"):
        first, second = (read_attention_map(folder / f"{row.name}.h5") for folder in (a, b))
        assert first is not None and second is not None
        with row.open() as slide:
            grid = find_nested_grid(slide, plan)
        agreement = measure_agreement(grid, pool_to_lr_grid(grid, first.attention), second.attention)
        rows.append((agreement.spearman, agreement.jaccard_top10, agreement.js_divergence))
    means = np.nanmean(np.array(rows, dtype=float), axis=0).tolist()
    return dict(zip(("spearman", "jaccard_top10", "js_divergence"), means, strict=True))


def measure_cost(args: argparse.Namespace, cell: Cell) -> None:
    """Write the cost of a slide at a resolution for student and teacher, with the first run's bundle on one thread."""
    from lrmil_training.external_evaluation import ExternalEvaluation, evaluate_bundle
    from lrmil_training.runs.event_log import BUNDLE
    from napari_lrmil.core.models.bundle import Bundle

    file = args.results / f"cost-{cell.resolution.replace(' ', '_')}.json"
    bundle = args.work / "runs" / cell.name / BUNDLE
    if file.exists() or not bundle.exists():
        return
    evaluation = ExternalEvaluation(Bundle(bundle), "test", teacher=True, device=_cpu())
    out = args.work / "cost" / cell.resolution.replace(" ", "_")
    for _ in evaluate_bundle(cohort_folder(args, cell.cohort, cell.fold) / "cohort.csv", out, evaluation):
        pass
    figures = json.loads((out / "metrics.json").read_text())
    cost = {method: splits["test"]["cost"] for method, splits in figures.items()}
    _write(file, {"cell": {"kind": "cost", "resolution": cell.resolution}, "cost": cost})


def _write(file: Path, results: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.stem}.partial")
    partial.write_text(json.dumps(results, indent=1))
    partial.replace(file)


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


def chosen_rates(results: Path, cell: Cell) -> list[float]:
    """Return the learning rates chosen on validation; an empty list if this cell chooses them."""
    file = results / f"{_chooser(cell).name}.json"
    if _chooser(cell).name == cell.name or not file.exists():
        return []
    rates_of_stage = json.loads(file.read_text())["rates"]
    return sorted({float(max(rates, key=rates.get)) for rates in rates_of_stage.values()})


def _chooser(cell: Cell) -> Cell:
    """Return the cell that tries all learning rates for this one: the first seed at native 2.5x.

    Training on patches of 128 px costs four times as much, and encoder, fold and slides are the same.
    """
    return replace(cell, resolution="2.5x", seed=0, changes={})


def _reuse_teacher(args: argparse.Namespace, cell: Cell, run: Path) -> None:
    """Copy the teacher of a finished cell with the same slides and seed; its folder name is a hash of both."""
    for other in (args.work / "runs").glob(f"*-fold{cell.fold}-seed{cell.seed}"):
        for folder in (other / "checkpoints").glob("teacher-*"):
            target = run / "checkpoints" / folder.name
            if not target.exists() and list(folder.glob("*.done")):
                shutil.copytree(folder, target)


if __name__ == "__main__":
    main()
