"""Training in two processes against training in one: validation AUROC must be equal within the spread of seeds.

    python benchmarks/two_processes.py --out FOLDER [--seeds 3]

Phantom slides, gloo on the CPU. A step of two processes sees twice the batch, so the runs differ as runs with another
batch size do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from lrmil_training.config import build_config
from lrmil_training.train import train
from napari_lrmil.core.phantom import make_cohort

SETTINGS = {
    "hr_patch_px": 128,
    "lr_patch_px": 128,
    "bootstrap": 100,
    "stage1": {"epochs": 4},
    "stage3": {"epochs": 4, "min_epochs": 1, "lr": [1e-4]},
    "baselines": ["labels_only"],
}


def main() -> None:
    """Train with every seed and number of processes, and print validation AUROC by method."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder for the cohort and the runs")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument(
        "--slides", type=lambda t: [int(n) for n in t.split(",")], default=[24, 40, 4], help="train,val,test"
    )
    args = p.parse_args()
    cohort = args.out / "cohort"
    for (split, seed), count in zip((("train", 1), ("val", 2), ("test", 3)), args.slides, strict=True):
        if not list(cohort.glob(f"{split}*.tif")):
            list(make_cohort(cohort, count, (1536, 1280), seed, split=split))
    aurocs: dict[str, dict[int, list[float]]] = {}
    for seed in range(args.seeds):
        for devices in (1, 2):
            run = args.out / f"seed{seed}_devices{devices}"
            config = build_config(SETTINGS | {"seed": seed, "devices": devices, "features": str(args.out / "features")})
            for _ in train(cohort / "cohort.csv", run, config, torch.device("cpu")):
                pass
            for method, splits in json.loads((run / "metrics.json").read_text()).items():
                aurocs.setdefault(method, {}).setdefault(devices, []).append(splits["val"]["auroc"]["value"])
    print(f"| method | one process, {args.seeds} seeds | two processes | mean difference |\n|---|---|---|---|")
    for method, by in aurocs.items():
        single, double = (", ".join(f"{v:.3f}" for v in by[n]) for n in (1, 2))
        print(f"| {method} | {single} | {double} | {np.mean(by[2]) - np.mean(by[1]):+.3f} |")


if __name__ == "__main__":
    main()
