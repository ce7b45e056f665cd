"""Learning curves over training patients, on phantoms whose patients differ in stain, morphology and scanner.

    python benchmarks/phantom_patients.py --work WORK [--results FOLDER] [--draws N] [--patients N…] [--workers N]

Teacher, student of three stages, and both labels-only students learn from 5, 10, 20 and 40 patients and are tested on
60 others. Each draw has training patients of its own, and a smaller cohort is the beginning of a larger one. Slides,
features and runs go to `WORK` and may be deleted. The results go to `FOLDER`, a JSON file per cell. An existing cell is
not measured again, so the command goes on where it stopped. ``--plot PICTURE`` and ``--write PAGE`` show what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from phantom_patients_table import draw_curves, print_curves
from real_tissue import cpu_seconds
from real_tissue_table import put_between

from napari_lrmil.core.atomic_files import write_json

TRAINING_PATIENTS = (5, 10, 20, 40)
VALIDATION_PATIENTS, TEST_PATIENTS = 10, 60
DRAWS = 3
SIZE = (1792, 1408)  # px of 0.5 µm
SEED = 16  # of validation and test; draw i of the training patients has the seed SEED + i
CONFIG: dict[str, Any] = {  # 5x, so that an LR patch of 128 µm fits into the foci
    "hr_patch_px": 128,
    "lr_patch_px": 64,
    "bootstrap": 1000,
    "baselines": ["labels_only", "labels_only_finetuned"],
    "stage3": {"epochs": 15, "lr": [1e-4, 3e-4], "patches_per_slide": 16},  # so that 40 patients take minutes
}
BEGIN, END = "<!-- written by benchmarks/phantom_patients.py --write -->", "<!-- end of what it writes -->"


@dataclass(frozen=True)
class Cell:
    """One run: a number of training patients, a draw of them, and a recipe."""

    patients: int
    draw: int
    recipe: str = "default"  # or the name of the file with other settings

    @property
    def name(self) -> str:
        """File name of its results."""
        return f"{self.recipe}-patients{self.patients:02d}-draw{self.draw}"


def main() -> None:
    """Measure the cells that are missing; or draw, or write, what is there."""
    args = parse_arguments()
    if args.plot:
        draw_curves(args.results, args.plot)
    if args.write:
        with redirect_stdout(StringIO()) as output:
            print_curves(args.results, len(list(cells(args))))
        put_between(args.write, BEGIN, END, f"\n{output.getvalue()}\n")
    if not args.plot and not args.write:
        measure(args)
        print_curves(args.results, len(list(cells(args))))


def parse_arguments() -> argparse.Namespace:
    """Return the checked arguments."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, help="folder for slides, features and runs")
    p.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "phantom_patients")
    p.add_argument("--draws", type=int, default=DRAWS, help="draws of training patients")
    p.add_argument("--patients", type=int, nargs="*", default=TRAINING_PATIENTS, help="numbers of training patients")
    p.add_argument("--encoder", default="demo", help="HR encoder, as encoder.teacher of the configuration")
    p.add_argument("--recipe", type=Path, help="YAML file with other settings; its name is part of the cells' names")
    p.add_argument("--workers", type=int, default=1, help="draws at a time, each with one thread")
    p.add_argument("--plot", type=Path, help="only draw the curves")
    p.add_argument("--write", type=Path, help="only put the tables into this page")
    args = p.parse_args()
    if not all(2 <= n <= max(TRAINING_PATIENTS) for n in args.patients) or args.draws < 1:
        p.error(f"--patients takes numbers from 2 to {max(TRAINING_PATIENTS)}, and --draws a positive number")
    if args.work is None and not (args.plot or args.write):
        p.error("--work is needed, for slides, features and runs")
    return args


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells, the cheap ones first."""
    recipe = args.recipe.stem if args.recipe else "default"
    for draw in range(args.draws):
        for patients in args.patients:
            yield Cell(patients, draw, recipe)


def measure(args: argparse.Namespace) -> None:
    """Measure the missing cells; a failed draw does not stop the others, and ends the command with status 1."""
    args.results.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the worker processes: two threads on shared cores are slower than one
    missing = [cell for cell in cells(args) if not (args.results / f"{cell.name}.json").exists()]
    print(f"{len(missing)} cells not measured yet", flush=True)
    by_draw = {cell.draw: [c for c in missing if c.draw == cell.draw] for cell in missing}
    with ProcessPoolExecutor(args.workers, initializer=os.nice, initargs=(10,)) as pool:
        if missing:
            pool.submit(paint, args.work / "shared", ("val", VALIDATION_PATIENTS), ("test", TEST_PATIENTS)).result()
        # Cells of a draw share a folder of features, which has one writer at a time: they follow each other.
        jobs = {pool.submit(measure_draw, args, own): draw for draw, own in by_draw.items()}
        for job in as_completed(jobs):
            error = job.exception()
            print(f"draw {jobs[job]}: {'done' if error is None else repr(error)}", flush=True)
    if any(job.exception() for job in jobs):
        raise SystemExit(1)


def measure_draw(args: argparse.Namespace, missing: list[Cell]) -> None:
    """Measure cells of one draw of training patients, one after the other."""
    for cell in missing:
        measure_cell(args, cell)


def paint(folder: Path, *splits: tuple[str, int], seed: int = SEED) -> None:
    """Write phantoms of a number of patients for each split, unless they are there."""
    from napari_lrmil.core.phantom import make_cohort

    for split, patients in splits:
        done = folder / f".{split}-{patients}"
        if not done.exists():
            for _ in make_cohort(folder, None, SIZE, seed, split=split, patients=patients):
                pass
            done.touch()


def write_table(work: Path, cell: Cell, painted: int) -> Path:
    """Write the cohort table of a cell: the first training patients of its draw, all of validation and test.

    `painted` training patients of the draw are painted at once, because repainting would change the files' dates.
    """
    import pandas as pd

    folder = work / f"draw_{cell.draw}"
    paint(folder, ("train", painted), seed=SEED + cell.draw)
    tables = []
    for source in (folder, work / "shared"):
        rows = pd.read_csv(source / "cohort.csv", dtype=str)
        rows["slide"] = [os.path.relpath(source / name, folder) for name in rows["slide"]]
        tables.append(rows)
    train = tables[0]  # of larger cells too; patients are numbered in their order
    names = sorted(train["patient"].unique())[: cell.patients]
    path = folder / f"patients_{cell.patients:02d}.csv"
    pd.concat([train[train["patient"].isin(names)], tables[1]]).to_csv(path, index=False)
    return path


def measure_cell(args: argparse.Namespace, cell: Cell) -> None:
    """Train the networks of a cell and write its results."""
    import torch

    from lrmil_training.config import build_config
    from lrmil_training.runs.event_log import METRICS, SLIDES
    from lrmil_training.train import train

    torch.set_num_threads(1)
    began, wall = cpu_seconds(), time.perf_counter()
    table, run = write_table(args.work, cell, max(args.patients)), args.work / "runs" / cell.name
    painted = cpu_seconds() - began
    features = str(args.work / "features" / f"draw_{cell.draw}")
    values = {**CONFIG, "encoder": {"teacher": args.encoder}, **read_recipe(args.recipe)}
    config = build_config({**values, "seed": cell.draw, "features": features})
    for _ in train(table, run, config, torch.device("cpu")):
        pass
    results = {
        "cell": asdict(cell),
        "cpu_seconds": cpu_seconds() - began,  # of this attempt only, without interrupted ones
        "painting_cpu_seconds": painted,
        "wall_seconds": time.perf_counter() - wall,
        "metrics": json.loads((run / METRICS).read_text()),
        "slides": list(test_slides(json.loads((run / SLIDES).read_text())["slides"])),
    }
    write_json(args.results / f"{cell.name}.json", results)
    shutil.rmtree(run / "features", ignore_errors=True)  # LR features: large, and computed again if needed


def read_recipe(path: Path | None) -> dict[str, Any]:
    """Return the settings of a YAML file, which replace those of `CONFIG` key by key; none without a file."""
    import yaml

    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    if not isinstance(values, dict):
        raise SystemExit(f"{path} is no table of settings")
    return values


def test_slides(slides: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the test slides with the probability of a lesion by each method."""
    for slide in slides:
        if slide["split"] == "test":
            probabilities = {name: result["probabilities"]["lesion"] for name, result in slide["methods"].items()}
            row = {key: slide[key] for key in ("slide", "patient", "label")}
            yield {**row, "probabilities": probabilities}


if __name__ == "__main__":
    main()
