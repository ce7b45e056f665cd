"""Estimate of a training run from the checked slides of a table, and the speeds that later estimates use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrmil_training.config import TrainConfig
from lrmil_training.estimate import TrainingEstimate, WorkloadEstimate, estimate_run, throughput_keys
from lrmil_training.runs.event_log import SLIDES
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.train.cohort_table import CohortTable
from napari_lrmil.plugin.train.run_monitor import RunLogState


def estimate_workload(table: CohortTable) -> WorkloadEstimate | None:
    """Return the patches of a cohort; unchecked slides count with the mean of the others. None without any check."""
    checked = table.usable
    total = len(table.rows) - table.broken
    if not checked or not total:
        return None
    scale = total / len(checked)
    train = [check for row, check in checked if row.split == "train"]
    lr = _sum_patches(check.lr_patches for _, check in checked) * scale
    lr_train = _sum_patches(check.lr_patches for check in train) * scale if train else 0.6 * lr
    return WorkloadEstimate(
        _sum_patches(check.hr_patches for _, check in checked) * scale, lr, lr_train, total, len(checked)
    )


def _sum_patches(values: Any) -> float:
    return float(sum(values))


def estimate_training(
    table: CohortTable, config: TrainConfig, device: str, settings: SettingsStore
) -> TrainingEstimate | None:
    """Return the estimate for a run on `device`; None before any slide is checked."""
    workload = estimate_workload(table)
    return None if workload is None else estimate_run(workload, config, device, settings)


def remember_throughput(
    folder: Path, log: RunLogState, config: TrainConfig, device: str, settings: SettingsStore
) -> str:
    """Store the speed of a finished run; return a sentence if the settings file cannot be written, else ''."""
    reading, learning = throughput_keys(config, device)
    try:
        if "HR features" in log.done:
            settings.remember_pace(reading, log.done["HR features"], log.patches)
        patches = _count_training_patches(folder)
        if log.done.get("stage1", 0.0) > 0 and config.stage1.patches_per_slide is None:
            settings.remember_pace(learning, log.done["stage1"], patches * config.stage1.epochs)
    except LrmilError as error:
        return str(error)
    return ""


def _count_training_patches(folder: Path) -> int:
    try:
        slides: Sequence[dict[str, Any]] = json.loads((folder / SLIDES).read_text(encoding="utf-8"))["slides"]
        return sum(int(s["n_patches"]) for s in slides if s["split"] == "train")
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # `remember_pace` ignores runs without patches
