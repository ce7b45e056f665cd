"""Synthetic run folders: metrics are those of the real evaluation on random logits and small grids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.evaluation.evaluate import (
    SlideResult,
    build_slide_table,
    describe_protocol,
    evaluate_methods,
)
from lrmil_training.evaluation.summary import summarise_runs
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.geometry import Lattice, Mpp
from napari_lrmil.core.patching.grid import NestedGrid, nested_grid_from_cells

CLASSES = ("normal", "lesion")
SIGNAL = {"teacher": 2.2, "student": 1.9, "labels_only": 0.9, "stage2_only": 1.4}


def synthetic_cohort(
    folder: Path, counts: Mapping[str, int], classes: Sequence[str] = CLASSES, *, alone: bool = False
) -> Cohort:
    """Return a cohort of slides without files: two slides of every third patient, or one of each if `alone`."""
    slides = []
    for split, count in counts.items():
        for i in range(count):
            patient = f"{split}{i - 1 if i % 4 == 1 and not alone else i}"
            label = classes[(i // 2) % len(classes)]
            slides.append(CohortSlide(folder / f"{split}_{i:02}.tif", patient, label, split))
    return Cohort(folder / "cohort.csv", tuple(slides), tuple(classes))


def synthetic_grid(size: tuple[int, int] = (12, 8), seed: int = 0) -> NestedGrid:
    """Return nested grids of `size` HR columns and rows, with L-shaped tissue and a few holes."""
    lattice = Lattice((0, 0), (256, 256), size[0], size[1], 4, Mpp(0.5, 0.5, "test"))
    cells = [(x, y) for y in range(size[1]) for x in range(size[0]) if x < size[0] // 2 or y < size[1] // 2]
    rng = np.random.default_rng(seed)
    return nested_grid_from_cells(lattice, np.array([c for c in cells if rng.random() < 0.9], dtype=np.int64))


def synthetic_results(
    cohort: Cohort, methods: Mapping[str, float] = SIGNAL, seed: int = 5
) -> dict[str, list[SlideResult]]:
    """Return results of each method: attention peaks at a random centre, and is less noisy for a larger signal."""
    results: dict[str, list[SlideResult]] = {method: [] for method in methods}
    for number, row in enumerate(cohort.slides):
        rng = np.random.default_rng([seed, number])
        grid, hidden = synthetic_grid((24, 16), number), rng.standard_normal(len(cohort.classes))
        truth = np.eye(len(cohort.classes))[cohort.target(row)]
        centre = rng.random(2) * (10, 7)
        for method, signal in methods.items():
            index = grid.hr_index if method == "teacher" else grid.lr_index * 4 + 1.5
            near = -np.square((index - centre) / 4).sum(1) + 1.5 / signal * rng.standard_normal(len(index))
            attention = np.exp(near) / np.exp(near).sum()
            logits = signal * truth + 0.7 * hidden + 0.8 * rng.standard_normal(len(truth))
            high = method == "teacher"
            pixels = 256 * 256 * len(index)
            results[method].append(
                SlideResult(
                    row, grid, logits.astype(np.float32), attention.astype(np.float32), high, pixels, len(index) / 40
                )
            )
    return results


def write_events(folder: Path, stages: Sequence[str] = ("teacher", "stage1", "stage2", "labels_only")) -> None:
    """Write a log of two attempts: the first stops in the second stage, and the last line is incomplete."""
    rng = np.random.default_rng(1)
    lines: list[dict[str, Any]] = []

    def put(attempt: int, **event: Any) -> None:
        lines.append({"seq": len(lines), "attempt": attempt, "time": 1.7e9 + 40 * len(lines), **event})

    def fit(attempt: int, stage: str, steps: range) -> None:
        for step in steps:
            fall = float(np.exp(-step / 5))
            terms = {"layer": 0.9, "attn": 0.4} if stage == "stage1" else {"ce": 0.7, "bag": 0.3, "soft": 1.8}
            terms = {"ce": 0.7} if stage in ("teacher", "labels_only") else terms
            figures = {f"train/{name}": top * fall + 0.05 + 0.01 * rng.random() for name, top in terms.items()}
            figures |= {f"val/{name}": top * fall + 0.12 + 0.03 * rng.random() for name, top in terms.items()}
            auroc = 0.92 - 0.35 * fall + 0.02 * float(rng.standard_normal())
            figures |= {"val/auroc": auroc, "select": auroc} if stage != "stage1" else {"select": -figures["val/attn"]}
            for name, value in figures.items():
                put(attempt, event="Metric", stage=stage, name=name, value=value, step=step)
            put(attempt, event="Progress", stage=stage, done=step + 1, total=20, unit="epochs")

    fit(0, stages[0], range(20))
    put(0, event="StageDone", stage=stages[0], seconds=12.0)
    fit(0, stages[1], range(4))
    for i, stage in enumerate(stages):
        if i:
            fit(1, stage, range(3 if i == 1 else 0, 20))
        put(1, event="StageDone", stage=stage, seconds=12.0)
    put(1, event="Finished", result="run")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "events.jsonl").write_text(text + '{"seq": 99999, "attempt": 1, "ti')


def write_run(
    folder: Path, counts: Mapping[str, int], classes: Sequence[str] = CLASSES, *, alone: bool = False
) -> Path:
    """Write a complete run folder without pictures, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    cohort = synthetic_cohort(folder, counts, classes, alone=alone)
    results = synthetic_results(cohort)
    write_json(folder / "metrics.json", {"protocol": describe_protocol(0, 1), **evaluate_methods(cohort, results, 300)})
    write_json(folder / "slides.json", {"slides": build_slide_table(cohort, results)})
    (folder / "config.yaml").write_text(
        "name: made up\nseed: 0\nclass_weights: balanced\nstage1:\n  epochs: 20\n  lambda_attn: 1.0\n"
    )
    write_events(folder)
    return folder


def write_series(folder: Path, counts: Mapping[str, int], folds: int, seeds: int = 1) -> Path:
    """Write the folder of a series of folds, or of seeds if `folds` is 0, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    cohort = synthetic_cohort(folder, counts)
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        for fold in range(folds) if folds else [None]:
            results = synthetic_results(cohort, seed=10 * seed + (fold or 0))
            runs.append({"fold": fold, "seed": seed, "metrics": evaluate_methods(cohort, results, 100)})
    flat = [{"fold": run["fold"], "seed": run["seed"], **run["metrics"]} for run in runs]
    write_json(
        folder / "metrics.json",
        {"protocol": describe_protocol(folds, seeds), "runs": flat, "summary": summarise_runs(runs)},
    )
    (folder / "config.yaml").write_text(f"name: made up\nfolds: {folds}\nclass_weights: none\n")
    return folder
