"""Estimate of time and disk space of a training run, with its basis."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lrmil_training.config import TrainConfig
from lrmil_training.recipes import list_recipes
from napari_lrmil.core.formatting import format_count, format_duration, format_size
from napari_lrmil.core.user_settings import SettingsStore, ThroughputKey

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


def throughput_keys(config: TrainConfig, device: str) -> tuple[ThroughputKey, ThroughputKey]:
    """Return the keys of the stored speeds: reading HR patches, and training on LR patches."""
    name = f"train:{config.encoder.teacher}>{config.encoder.student}"
    return (
        ThroughputKey(f"{name}@{config.hr_patch_px}px".replace(" ", "_"), device, "teacher"),
        ThroughputKey(f"{name}@{config.lr_patch_px}px".replace(" ", "_"), device, "student"),
    )


def estimate_run(
    workload: WorkloadEstimate, config: TrainConfig, device: str, settings: SettingsStore
) -> TrainingEstimate:
    """Return the estimate for a run on `device`.

    Stored speeds of earlier runs on this machine are preferred to the documented ones.
    """
    if not config.distil:  # no HR patch is read
        workload = replace(workload, hr=0.0)
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
        encoded = workload.hr if config.hr_features is None else config.hr_check * workload.slides
        seconds = STARTUP_S + encoded * hr / 1000 + _fit_seconds(workload, config, lr / 1000)
    high = f"{workload.hr:,.0f} HR and " if config.distil else ""
    patches = f"{high}{workload.lr:,.0f} LR patches"
    counted = f"{patches}, counted on {workload.checked} of {format_count(workload.slides, 'slide')}"
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
    own = None if config.teacher.mil is not None else config.teacher.aggregator
    others = sum(name != own for name in config.compare)
    distilled = ((own is not None) + others) * config.teacher.epochs + students * config.stage2.epochs
    distilled += config.selection.inner_folds * len(list_recipes(config)) * config.teacher.epochs
    epochs = distilled if config.distil else len(config.baselines) * config.teacher.epochs
    if not config.distil:
        pairs = 0.0  # no stage 1
    stage3 = config.stage3.epochs * len(config.stage3.lr) * config.stage3.patches_per_slide * workload.slides * 0.6
    patches = config.stage1.epochs * pairs + stage3 + students * workload.lr * READ_S_PER_PIXEL / TRAIN_S_PER_PIXEL
    return runs * (patches * per_patch + epochs * workload.slides * MIL_S_PER_SLIDE)


def _disk_bytes(workload: WorkloadEstimate, config: TrainConfig) -> float:
    runs = config.seeds * max(1, config.folds)
    layers = len(config.stage1.layers) * 128  # means of intermediate maps are narrow
    lr = (1 + len(config.baselines)) * runs * workload.lr * EMBEDDING_WIDTH
    return FLOAT_BYTES * (workload.hr * (EMBEDDING_WIDTH + layers) + lr) + runs * 40e6  # checkpoints, bundle, report
