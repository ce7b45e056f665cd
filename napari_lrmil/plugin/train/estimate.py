"""Estimate of time and disk space of a training run, with its basis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrmil_training.config import TrainConfig
from lrmil_training.runs.event_log import SLIDES
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.formatting import format_duration, format_size
from napari_lrmil.core.user_settings import SettingsStore, ThroughputKey
from napari_lrmil.plugin.train.cohort_table import CohortTable
from napari_lrmil.plugin.train.run_monitor import RunLogState

READ_S_PER_PIXEL = 0.6e-6  # CPU time to read and embed a pixel with the demo's encoder (MobileNetV2, width 0.35)
TRAIN_S_PER_PIXEL = 0.9e-6  # CPU time to train on a pixel; docs/explanation/decisions.md: 12 ms for 128 x 128 px
MIL_S_PER_SLIDE = 0.02  # per slide and epoch of a MIL, whose bags are small
STARTUP_S = 20.0  # time to load the program
FLOAT_BYTES = 4
EMBEDDING_WIDTH = 1280  # assumed for every encoder: that of MobileNetV2
DOCUMENTED_SPEED = "speed measured with the demo's encoder on one core (docs/explanation/decisions.md)"


@dataclass(frozen=True)
class TrainingEstimate:
    """Estimated time and disk space of a run.

    Attributes
    ----------
    seconds
        None if neither this machine nor the documentation has a speed.
    size
        Bytes.
    basis
        Sentence on the basis of both.
    """

    seconds: float | None
    size: float
    basis: str

    @property
    def text(self) -> str:
        """Two lines: time and disk space, and the basis."""
        time = "time unknown before a first run" if self.seconds is None else f"about {format_duration(self.seconds)}"
        return f"{time} · about {format_size(self.size)} on the disk\n{self.basis}"


@dataclass(frozen=True)
class WorkloadEstimate:
    """Patches that a run reads.

    Attributes
    ----------
    hr, lr
        HR and LR patches of all slides.
    lr_train
        LR patches of the training slides.
    slides, checked
        Number of slides, and of those whose patches were counted.
    """

    hr: float
    lr: float
    lr_train: float
    slides: int
    checked: int


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


def throughput_keys(config: TrainConfig, device: str) -> tuple[ThroughputKey, ThroughputKey]:
    """Return the keys of the stored speeds: reading HR patches, and training on LR patches."""
    name = f"train:{config.encoder.teacher}>{config.encoder.student}"
    return (
        ThroughputKey(f"{name}@{config.hr_patch_px}px".replace(" ", "_"), device, "teacher"),
        ThroughputKey(f"{name}@{config.lr_patch_px}px".replace(" ", "_"), device, "student"),
    )


def estimate_training(
    table: CohortTable, config: TrainConfig, device: str, settings: SettingsStore
) -> TrainingEstimate | None:
    """Return the estimate for a run on `device`; None before any slide is checked.

    Stored speeds of earlier runs on this machine are preferred to the documented ones.
    """
    workload = estimate_workload(table)
    if workload is None:
        return None
    reading, learning = throughput_keys(config, device)
    hr = settings.expected_seconds(reading, 1000)
    lr = settings.expected_seconds(learning, 1000)
    is_measured = hr is not None
    if hr is None and device == "cpu" and config.encoder.teacher == "demo":
        hr = 1000 * READ_S_PER_PIXEL * config.hr_patch_px**2
    if lr is None and hr is not None:
        lr = (
            1000 * TRAIN_S_PER_PIXEL * config.lr_patch_px**2
            if not is_measured
            else hr * TRAIN_S_PER_PIXEL / READ_S_PER_PIXEL
        )
    seconds = None
    if hr is not None and lr is not None:
        seconds = STARTUP_S + workload.hr * hr / 1000 + _fit_seconds(workload, config, lr / 1000)
    patches = f"{workload.hr:,.0f} HR and {workload.lr:,.0f} LR patches"
    counted = f"{patches}, counted on {workload.checked} of {workload.slides} slides"
    pace = (
        "speed of earlier runs on this machine"
        if is_measured
        else DOCUMENTED_SPEED
        if seconds is not None
        else "no speed known for this device"
    )
    return TrainingEstimate(seconds, _disk_bytes(workload, config), f"Basis: {counted}; {pace}.")


def _fit_seconds(workload: WorkloadEstimate, config: TrainConfig, per_patch: float) -> float:
    """Return seconds of all fits, which every fold and seed repeats."""
    runs = config.seeds * max(1, config.folds)
    per_slide = config.stage1.patches_per_slide
    pairs = min(workload.lr_train, per_slide * workload.slides * 0.6) if per_slide else workload.lr_train
    students = 1 + len(config.baselines)
    stage3 = config.stage3.epochs * len(config.stage3.lr) * config.stage3.patches_per_slide * workload.slides * 0.6
    patches = config.stage1.epochs * pairs + stage3 + students * workload.lr * READ_S_PER_PIXEL / TRAIN_S_PER_PIXEL
    epochs = config.teacher.epochs + students * config.stage2.epochs
    return runs * (patches * per_patch + epochs * workload.slides * MIL_S_PER_SLIDE)


def _disk_bytes(workload: WorkloadEstimate, config: TrainConfig) -> float:
    runs = config.seeds * max(1, config.folds)
    layers = len(config.stage1.layers) * 128  # means of intermediate maps are narrow
    lr = (1 + len(config.baselines)) * runs * workload.lr * EMBEDDING_WIDTH
    return FLOAT_BYTES * (workload.hr * (EMBEDDING_WIDTH + layers) + lr) + runs * 40e6  # checkpoints, bundle, report


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
