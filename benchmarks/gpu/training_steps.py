"""Steps that train all three stages on phantom slides: CPU against device, float32 against bfloat16."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from machine_steps import cohort_table
from steps import Context

from lrmil_training.config import build_config
from napari_lrmil.api import train
from napari_lrmil.core.events import Event, Metric, Notice

SETTINGS: dict[str, Any] = {"hr_patch_px": 64, "lr_patch_px": 64, "bootstrap": 100, "baselines": []}
SMALL: dict[str, Any] = {
    "teacher": {"epochs": 2, "min_epochs": 1},
    "stage1": {"epochs": 1},
    "stage2": {"epochs": 2, "min_epochs": 1},
    "stage3": {"epochs": 1, "min_epochs": 1, "lr": [1e-4]},
}
FULL: dict[str, Any] = {
    "teacher": {"epochs": 20, "min_epochs": 5},
    "stage1": {"epochs": 4},
    "stage2": {"epochs": 20, "min_epochs": 5},
    "stage3": {"epochs": 4, "min_epochs": 1, "lr": [1e-4]},
}


def train_on_cpu(context: Context) -> dict[str, Any]:
    """Train on the CPU: the reference."""
    return _figures(train_once(context, "cpu", "cpu", {}))


def train_other_seed(context: Context) -> dict[str, Any]:
    """Train on the CPU with another seed: two devices may differ as much as two seeds."""
    return _figures(train_once(context, "cpu-seed1", "cpu", {"seed": 1}))


def train_in_float32(context: Context) -> dict[str, Any]:
    """Train on the GPU in float32, with the seed of the reference."""
    return _figures(train_once(context, "cuda-float32", "cuda", {"precision": "32"}))


def train_in_bfloat16(context: Context) -> dict[str, Any]:
    """Train on the GPU in bfloat16, with the seed of the reference."""
    return _figures(train_once(context, "cuda-bfloat16", "cuda", {"precision": "bf16"}))


def run_folder(context: Context, name: str) -> Path:
    """Return the folder of a training run."""
    return context.work / "runs" / name


def train_once(
    context: Context,
    name: str,
    device: str,
    settings: dict[str, Any],
    *,
    table: Path | None = None,
    sizes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a run from nothing and return its seconds, last figures of each stage, metrics and notices.

    Parameters
    ----------
    context
        Settings of all steps.
    name
        Folder of the run below the work folder.
    device
        ``cpu`` or ``cuda``.
    settings
        Configuration that is laid over the sizes.
    table
        Cohort; None for that of `cohort_table`.
    sizes
        Settings of the stages; None for `SMALL` or `FULL`, as the context has it.
    """
    out = run_folder(context, name)
    shutil.rmtree(out, ignore_errors=True)
    sizes = context.pick(SMALL, FULL) if sizes is None else sizes
    stages = {key: sizes[key] | settings.get(key, {}) for key in sizes}
    config = build_config(SETTINGS | settings | stages)
    figures: dict[str, float] = {}
    notices: list[str] = []

    def collect(event: Event) -> None:
        if isinstance(event, Metric) and ("train/" in event.name or "val/" in event.name):
            figures[f"{event.stage} {event.name}"] = event.value  # the last epoch stays
        elif isinstance(event, Notice):
            notices.append(event.message)

    began = time.perf_counter()
    result = train(table or cohort_table(context), out, config, device=device, on_event=collect)
    return {
        "seconds": time.perf_counter() - began,
        "figures": figures,
        "metrics": result.metrics,
        "notices": notices,
    }


def _figures(run: dict[str, Any]) -> dict[str, Any]:
    """Return figures by name: AUROC per method and split, and the loss terms of each stage's last epoch."""
    aurocs = {
        f"AUROC {method}, {split}": values["auroc"]["value"]
        for method, splits in run["metrics"].items()
        for split, values in splits.items()
    }
    return {"seconds": run["seconds"], **aurocs, **run["figures"]}
