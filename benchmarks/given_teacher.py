"""Distillation without labels from a teacher in another program's file, on phantoms that the student has not seen.

    python benchmarks/given_teacher.py --out FOLDER

The teacher is that of the shipped demo: its MIL is written as torchmil's ABMIL saves itself, and read back with
``train --teacher-mil`` on a phantom cohort without labels. Prints agreement on test slides (docs, Teachers of other
programs).
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from lrmil_training.config import load_config
from lrmil_training.runs.event_log import METRICS
from lrmil_training.train import train
from napari_lrmil.cli.console import show_progress
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.phantom import make_cohort
from napari_lrmil.core.threads import leave_core_free

SIZE = (3072, 2560)
SEEDS = {"train": 21_000, "val": 22_000, "test": 23_000}  # none of them of the demo's own slides


def main() -> None:
    """Run the missing steps."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", type=Path, required=True, help="folder for cohort, head and run")
    p.add_argument("--slides", type=lambda t: tuple(map(int, t.split(","))), default=(24, 8, 24), help="train,val,test")
    p.add_argument("--set", action="append", default=[], help="configuration key=value")
    args = p.parse_args()
    leave_core_free()
    began = time.process_time()
    head = save_as_torchmil(Bundle("demo").teacher.mil, args.out)
    table = unlabelled_cohort(args.out / "cohort", args.slides)
    settings = [f"teacher.mil={head}", "baselines=stage1_only", *args.set]
    config = load_config("demo", settings)
    show_progress(train(table, args.out / "run", config, "cpu"), "train", quiet=False)
    print(result_table(json.loads((args.out / "run" / METRICS).read_text())))
    print(f"CPU-seconds of this process: {time.process_time() - began:.0f}")


def save_as_torchmil(mil: object, folder: Path) -> Path:
    """Write a teacher of two classes as torchmil's ABMIL saves itself, on raw features; return the file."""
    assert isinstance(mil, GatedAttentionMIL) and mil.classes == 2
    mean, deviation = mil.mean.double(), mil.deviation.double()

    def on_raw(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        raw = weight.double() / deviation
        return raw.float(), (bias.double() - raw @ mean).float()

    w, b = mil.classifier.weight, mil.classifier.bias
    layers = {
        "pool.fc1.module": on_raw(mil.V.weight, mil.V.bias),
        "pool.fc_gated.module": on_raw(mil.U.weight, mil.U.bias),
        "classifier.module": on_raw(w[1:] - w[:1], b[1:] - b[:1]),  # torchmil has the logit of the second class alone
    }
    weights = {f"{name}.weight": pair[0] for name, pair in layers.items()}
    weights |= {f"{name}.bias": pair[1] for name, pair in layers.items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights | {"pool.fc2.weight": mil.w.weight.clone()}, folder / "abmil.pt")
    return folder / "abmil.pt"


def unlabelled_cohort(folder: Path, counts: tuple[int, ...]) -> Path:
    """Paint the phantoms that are missing, and return a table of them without labels."""
    for (split, seed), count in zip(SEEDS.items(), counts, strict=True):
        if not (folder / f".{split}.done").exists():
            show_progress(make_cohort(folder, count, SIZE, seed, split=split, workers=1), split)
            (folder / f".{split}.done").touch()
    with (folder / "cohort.csv").open(newline="") as file:
        rows = [{key: row[key] for key in ("slide", "patient", "split")} for row in csv.DictReader(file)]
    with (folder / "unlabelled.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ("slide", "patient", "split"))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "unlabelled.csv"


def result_table(metrics: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Return a line per method with its agreement on test slides."""
    lines = ["| method | ρ | top 10 % | divergence | teacher's class |", "|---|---|---|---|---|"]
    for method, splits in metrics.items():
        figures = splits["test"]
        if agreement := figures["agreement"]:
            values = [f"{agreement[key]:.3f}" for key in ("spearman", "jaccard_top10", "js_divergence")]
            lines.append(f"| {method} | {' | '.join(values)} | {figures['same_class']:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
