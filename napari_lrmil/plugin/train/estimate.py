"""What a run would take, before it begins: time and room on the disk, and what that rests on."""

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

READ_S_PER_PIXEL = 0.6e-6  # CPU seconds to read and embed a pixel with the demo's encoder (MobileNetV2, width 0.35)
TRAIN_S_PER_PIXEL = 0.9e-6  # and to train on one, docs/explanation/decisions.md: 12 ms for 128 x 128 px
MIL_S_PER_SLIDE = 0.02  # seconds for a slide and epoch of a MIL, whose bags are small
STARTUP_S = 20.0  # loading the program
FLOAT_BYTES = 4
EMBEDDING_WIDTH = 1280  # of an embedding where the encoder does not say: MobileNetV2's
DOCUMENTED_SPEED = "pace as measured with the demo's encoder on one core (docs/explanation/decisions.md)"


@dataclass(frozen=True)
class TrainingEstimate:
    """What a run should take.

    Attributes
    ----------
    seconds
        None where neither this machine nor the documentation tells a pace.
    size
        Bytes.
    basis
        A sentence on what both rest on.
    """

    seconds: float | None
    size: float
    basis: str

    @property
    def text(self) -> str:
        """One line for the time and the disk, one for the basis."""
        time = "time not known before a first run" if self.seconds is None else f"about {format_duration(self.seconds)}"
        return f"{time} · about {format_size(self.size)} on the disk\n{self.basis}"


@dataclass(frozen=True)
class WorkloadEstimate:
    """Patches that a run reads: of the teacher, of the student, and of the student's training slides."""

    hr: float
    lr: float
    lr_train: float
    slides: int
    checked: int


def estimate_workload(table: CohortTable) -> WorkloadEstimate | None:
    """Return how many patches the cohort holds; slides that were not looked at yet count as the others' mean."""
    known = table.usable
    total = len(table.rows) - table.broken
    if not known or not total:
        return None
    more = total / len(known)
    train = [check for row, check in known if row.split == "train"]
    lr = _sum_patches(check.lr_patches for _, check in known) * more
    lr_train = _sum_patches(check.lr_patches for check in train) * more if train else 0.6 * lr
    return WorkloadEstimate(
        _sum_patches(check.hr_patches for _, check in known) * more, lr, lr_train, total, len(known)
    )


def _sum_patches(values: Any) -> float:
    return float(sum(values))


def throughput_keys(config: TrainConfig, device: str) -> tuple[ThroughputKey, ThroughputKey]:
    """Return under what the pace of reading HR patches and of learning from LR patches is remembered."""
    name = f"train:{config.encoder.teacher}>{config.encoder.student}"
    return (
        ThroughputKey(f"{name}@{config.hr_patch_px}px".replace(" ", "_"), device, "teacher"),
        ThroughputKey(f"{name}@{config.lr_patch_px}px".replace(" ", "_"), device, "student"),
    )


def estimate_training(
    table: CohortTable, config: TrainConfig, device: str, remembered: SettingsStore
) -> TrainingEstimate | None:
    """Return what a run should take; None before any slide was looked at."""
    found = estimate_workload(table)
    if found is None:
        return None
    reading, learning = throughput_keys(config, device)
    hr = remembered.expected_seconds(reading, 1000)
    lr = remembered.expected_seconds(learning, 1000)
    learnt = hr is not None
    if hr is None and device == "cpu" and config.encoder.teacher == "demo":
        hr = 1000 * READ_S_PER_PIXEL * config.hr_patch_px**2
    if lr is None and hr is not None:
        lr = (
            1000 * TRAIN_S_PER_PIXEL * config.lr_patch_px**2
            if not learnt
            else hr * TRAIN_S_PER_PIXEL / READ_S_PER_PIXEL
        )
    seconds = None
    if hr is not None and lr is not None:
        seconds = STARTUP_S + found.hr * hr / 1000 + _fit_seconds(found, config, lr / 1000)
    counted = f"{found.hr:,.0f} HR and {found.lr:,.0f} LR patches, counted on {found.checked} of {found.slides} slides"
    pace = (
        "pace of earlier runs on this machine"
        if learnt
        else DOCUMENTED_SPEED
        if seconds is not None
        else "no pace known here"
    )
    return TrainingEstimate(seconds, _disk_bytes(found, config), f"Basis: {counted}; {pace}.")


def _fit_seconds(found: WorkloadEstimate, config: TrainConfig, per_patch: float) -> float:
    """Return seconds of everything that folds and seeds repeat."""
    runs = config.seeds * max(1, config.folds)
    per_slide = config.stage1.patches_per_slide
    pairs = min(found.lr_train, per_slide * found.slides * 0.6) if per_slide else found.lr_train
    students = 1 + len(config.baselines)
    stage3 = config.stage3.epochs * len(config.stage3.lr) * config.stage3.patches_per_slide * found.slides * 0.6
    patches = config.stage1.epochs * pairs + stage3 + students * found.lr * READ_S_PER_PIXEL / TRAIN_S_PER_PIXEL
    epochs = config.teacher.epochs + students * config.stage2.epochs
    return runs * (patches * per_patch + epochs * found.slides * MIL_S_PER_SLIDE)


def _disk_bytes(found: WorkloadEstimate, config: TrainConfig) -> float:
    runs = config.seeds * max(1, config.folds)
    layers = len(config.stage1.layers) * 128  # means of intermediate maps are narrow
    lr = (1 + len(config.baselines)) * runs * found.lr * EMBEDDING_WIDTH
    return FLOAT_BYTES * (found.hr * (EMBEDDING_WIDTH + layers) + lr) + runs * 40e6  # checkpoints, bundle, report


def remember_throughput(
    folder: Path, story: RunLogState, config: TrainConfig, device: str, remembered: SettingsStore
) -> str:
    """Remember what a finished run took, and return a sentence on what kept that from being written."""
    reading, learning = throughput_keys(config, device)
    try:
        if "HR features" in story.done:
            remembered.remember_pace(reading, story.done["HR features"], story.patches)
        patches = _count_training_patches(folder)
        if story.done.get("stage1", 0.0) > 0 and config.stage1.patches_per_slide is None:
            remembered.remember_pace(learning, story.done["stage1"], patches * config.stage1.epochs)
    except LrmilError as error:
        return str(error)
    return ""


def _count_training_patches(folder: Path) -> int:
    try:
        slides: Sequence[dict[str, Any]] = json.loads((folder / SLIDES).read_text(encoding="utf-8"))["slides"]
        return sum(int(s["n_patches"]) for s in slides if s["split"] == "train")
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # of which `remember_pace` learns nothing
