"""Distillation against training on labels alone, on real tissue: all methods, folds, seeds and controls.

    python benchmarks/real_tissue.py --shared SHARED --work WORK [--results FOLDER] [--only NAME…] [--workers N]

`SHARED` is the folder with the development data, which is not part of this repository. Slides, features and runs go to
`WORK` and may be deleted; what was measured goes to `FOLDER`, a small JSON file per cell. A cell that is there is not
measured again, so the command goes on where it stopped. ``--table`` prints the tables of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from real_tissue_table import print_tables, write_tables

FOLDS = (  # patients of train, val, test; each split has both classes
    ("2,4,8,13", "10,12", "3,5,16"),
    ("3,5,8,16", "10,12", "2,4,13"),
    ("2,4,5,13", "3,16", "8,10,12"),
)
SLIDES = {"train": 60, "val": 20, "test": 40}
SHARES = {"default": "0.10,0.20", "harder": "0.02,0.04", "matched": "0.10,0.20"}
THIRD = 20  # training slides of the cohort with few of them
# An LR patch has a footprint of 512 level-0 px, so that four HR patches of 128 px lie along its side.
RESOLUTIONS: dict[str, dict[str, Any]] = {
    "2.5x": {"lr_mpp": 4.0, "lr_patch_px": 64},
    "2.5x enlarged": {"lr_mpp": 4.0, "lr_patch_px": 64, "student_input_px": 128},
    "5x": {"lr_mpp": 2.0, "lr_patch_px": 128},
}
RATES = (3e-5, 1e-4, 3e-4)  # of fine-tuning; chosen on validation with a fold's first seed
ROWS = ("labels_only", "labels_only_finetuned", "stage1_only", "stage2_only", "both")
BASE: dict[str, Any] = {
    "hr_patch_px": 128,
    "teacher": {"lr": 3e-3, "hidden": 64},  # what validation favours among TEACHERS
    "bootstrap": 1000,
    "stage1": {"patches_per_slide": 40},
    "stage3": {"epochs": 15, "lr": list(RATES)},
    "baselines": list(ROWS),
}
# The teacher without a student that learns.
ALONE: dict[str, Any] = {
    "baselines": [],
    "stage1": {"epochs": 0},
    "stage2": {"init": "frozen_head"},
    "stage3": {"epochs": 0},
}
TEACHERS = ((3e-4, 64), (1e-3, 64), (1e-3, 128), (3e-3, 64))  # learning rate, width of the gate


@dataclass(frozen=True)
class Cell:
    """One run: a cohort, a fold, a resolution, a seed, and the changed settings."""

    kind: str  # headline, ablation, or the name of a control
    cohort: str
    fold: int
    resolution: str
    seed: int
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """File name of its results."""
        return f"{self.kind}-{self.cohort}-{self.resolution.replace(' ', '_')}-fold{self.fold}-seed{self.seed}"


def cells() -> Iterator[Cell]:
    """Yield all cells, the most important ones first."""
    for lr, hidden in TEACHERS:  # chosen on validation before any student is trained
        for fold in range(len(FOLDS)):
            changes = ALONE | {"teacher": {"lr": lr, "hidden": hidden}}
            yield Cell(f"teacher_lr{lr:g}_hidden{hidden}", "default", fold, "2.5x", 0, changes)
    ablation = {"ablation": True, "baselines": [], "stage3": {"epochs": 0}}
    uniform = {"stage1": {**BASE["stage1"], "attention": "uniform"}, "baselines": ["stage1_only"]}
    for seed in range(10):
        for fold in range(len(FOLDS)):
            if seed < 5:
                yield Cell("headline", "default", fold, "2.5x", seed)
            if seed < 3:
                yield Cell("headline", "third", fold, "2.5x", seed)
                yield Cell("headline", "harder", fold, "2.5x", seed)
            if seed < 2:
                yield Cell("uniform", "default", fold, "2.5x", seed, uniform | {"stage3": {"epochs": 0}})
                yield Cell("ablation", "default", fold, "2.5x", seed, ablation)
            yield Cell("permuted", f"permuted_{seed}", fold, "2.5x", seed, ALONE)
        if seed < 5:  # patches of 128 px are the most expensive
            for fold in range(len(FOLDS)):
                yield Cell("headline", "default", fold, "2.5x enlarged", seed)
                yield Cell("headline", "default", fold, "5x", seed)
                if seed < 2:
                    yield Cell("stain_matched", "matched", fold, "2.5x", seed)


def main() -> None:
    """Measure the cells that are missing, or print the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and tools")
    p.add_argument("--work", type=Path, help="folder for slides, features and runs")
    p.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "real_tissue")
    p.add_argument("--only", nargs="*", default=(), help="parts of the names of the cells to measure")
    p.add_argument("--workers", type=int, default=2, help="cells at a time, each with one thread")
    p.add_argument("--table", action="store_true", help="only print the tables")
    p.add_argument("--write", type=Path, help="only put the tables into this page")
    args = p.parse_args()
    if args.write:
        write_tables(args.results, args.write)
        return
    if not args.table:
        if args.work is None:
            p.error("--work is needed, for slides, features and runs")
        measure(args)
    print_tables(args.results)


def measure(args: argparse.Namespace) -> None:
    """Measure the missing cells in parallel; a failed cell is reported and does not stop the others."""
    args.results.mkdir(parents=True, exist_ok=True)
    wanted = [c for c in cells() if not args.only or any(part in c.name for part in args.only)]
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


# ---------------------------------------------------------------- cohorts


def make_cohort(args: argparse.Namespace, cohort: str, fold: int) -> None:
    """Write the slides of a fold, or a table over the slides of another cohort."""
    folder = cohort_folder(args, cohort, fold)
    if (folder / "cohort.csv").exists() and (folder / ".whole").exists():
        return
    if cohort in SHARES:
        _paint(args, folder, cohort, fold)
    elif cohort == "third":
        _table(args, "default", fold, folder, _fewer)
    else:
        seed = int(cohort.removeprefix("permuted_"))
        _table(args, "default", fold, folder, lambda rows: _permuted(rows, seed))
    (folder / ".whole").touch()


def cohort_folder(args: argparse.Namespace, cohort: str, fold: int) -> Path:
    """Return the folder of the slides and the table of a cohort."""
    folder: Path = args.work / "cohorts" / cohort / f"fold_{fold}"
    return folder


def _paint(args: argparse.Namespace, folder: Path, cohort: str, fold: int) -> None:
    source = args.shared / "data" / "patches" / "glas"
    images = _matched(source, args.work / "images") if cohort == "matched" else source
    for split, patients in zip(SLIDES, FOLDS[fold], strict=True):
        call = [sys.executable, args.shared / "tools" / "make_tissue_cohort.py", "--images", images]
        call += ["--labels", source / "labels.csv", "--patients", patients, "--split", split, "--out", folder]
        call += ["--n", SLIDES[split], "--lesion-share", SHARES[cohort], "--workers", 1]
        subprocess.run([str(part) for part in call], check=True, stdout=subprocess.DEVNULL)


def _matched(source: Path, folder: Path) -> Path:
    """Return the folder of images normalised to equal mean and deviation of colour (Reinhard et al. 2001).

    Patients differ in colour. After normalisation, a network cannot recognise a patient by it.
    """
    import numpy as np
    from skimage.color import lab2rgb, rgb2lab
    from skimage.io import imread, imsave

    files = sorted(source.rglob("*.png"))
    if (folder / ".whole").exists():
        return folder
    moments = [(lab.mean((0, 1)), lab.std((0, 1))) for lab in (rgb2lab(imread(f)[..., :3]) for f in files)]
    mean, deviation = np.mean([m for m, _ in moments], axis=0), np.mean([d for _, d in moments], axis=0)
    for file, (own_mean, own_deviation) in zip(files, moments, strict=True):
        lab = (rgb2lab(imread(file)[..., :3]) - own_mean) / own_deviation * deviation + mean
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        imsave(target, np.round(np.clip(lab2rgb(lab), 0, 1) * 255).astype(np.uint8), check_contrast=False)
    (folder / ".whole").touch()
    return folder


def _table(args: argparse.Namespace, source: str, fold: int, folder: Path, change: Any) -> None:
    """Write a table over the slides of another cohort, with the rows that `change` returns."""
    import pandas as pd

    make_cohort(args, source, fold)
    source_folder = cohort_folder(args, source, fold)
    rows = change(pd.read_csv(source_folder / "cohort.csv", dtype=str))
    rows["slide"] = [os.path.relpath(source_folder / name, folder) for name in rows["slide"]]
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(folder / "cohort.csv", index=False)


def _fewer(rows: Any) -> Any:
    """Return the table with the first third of the training slides, half of each class; validation and test stay."""
    train = rows[rows["split"] == "train"]
    selected = train.groupby("label").head(THIRD // 2).index
    return rows[(rows["split"] != "train") | rows.index.isin(selected)].copy()


def _permuted(rows: Any, seed: int) -> Any:
    """Return the table with labels permuted within training and within validation; the test labels stay true."""
    import numpy as np

    rng = np.random.default_rng([seed, 77])
    changed = rows.copy()
    for split in ("train", "val"):
        side = changed.index[changed["split"] == split]
        changed.loc[side, "label"] = rng.permutation(changed.loc[side, "label"].to_numpy())
    return changed


# ---------------------------------------------------------------- cells


def measure_cell(args: argparse.Namespace, cell: Cell) -> None:
    """Train the networks of a cell and write its results."""
    import torch

    from lrmil_training.config import build_config
    from lrmil_training.runs.event_log import METRICS
    from lrmil_training.train import train

    torch.set_num_threads(1)
    began, wall = cpu_seconds(), time.perf_counter()
    make_cohort(args, cell.cohort, cell.fold)
    run: Path = args.work / "runs" / cell.name
    values = {
        **BASE,
        **RESOLUTIONS[cell.resolution],
        **cell.changes,
        "seed": cell.seed,
        "features": str(_features(args, cell)),
        "encoder": {"teacher": str(next((args.shared / "data" / "weights").glob("*.safetensors")))},
    }
    rates = chosen_rates(args.results, cell)
    if rates and values["stage3"]["epochs"]:
        values["stage3"] = {**values["stage3"], "lr": rates}
    _reuse_teacher(args, cell, run)
    figures: dict[str, dict[str, float]] = {}
    for event in train(cohort_folder(args, cell.cohort, cell.fold) / "cohort.csv", run, build_config(values), _cpu()):
        if type(event).__name__ == "Metric" and event.name.startswith("lr "):
            figures.setdefault(event.stage, {})[event.name[3:]] = event.value
    results = {
        "cell": {k: v for k, v in cell.__dict__.items() if k != "changes"},
        "rates": figures,
        "cpu_seconds": cpu_seconds() - began,  # of this attempt only, without interrupted ones
        "wall_seconds": time.perf_counter() - wall,
        "metrics": json.loads((run / METRICS).read_text()),
    }
    _write(args.results / f"{cell.name}.json", results)
    shutil.rmtree(
        run / "features", ignore_errors=True
    )  # LR features of every encoder: large, and computed again if needed


def _features(args: argparse.Namespace, cell: Cell) -> Path:
    """Return the folder of the HR features of a cell; tables over the same slides share it."""
    shared = cell.cohort if cell.cohort in SHARES else "default"
    folder: Path = args.work / "features" / shared / f"fold_{cell.fold}"
    return folder


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
    return Cell(cell.kind, cell.cohort, cell.fold, "2.5x", 0)


def _reuse_teacher(args: argparse.Namespace, cell: Cell, run: Path) -> None:
    """Copy the teacher of a finished cell with the same slides and seed; its folder name is a hash of both."""
    for other in (args.work / "runs").glob(f"*-fold{cell.fold}-seed{cell.seed}"):
        for folder in (other / "checkpoints").glob("teacher-*"):
            target = run / "checkpoints" / folder.name
            if not target.exists() and list(folder.glob("*.done")):
                shutil.copytree(folder, target)


if __name__ == "__main__":
    main()
