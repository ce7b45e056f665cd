"""Checkpoints of a stage: the best state of a finished one, the last two epoch ends of an unfinished one.

Files are written atomically. The last state but one is the fallback if the last cannot be read.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lrmil_training.fitting.plan import FitPlan
from napari_lrmil.core.atomic_files import atomic_write, raise_if_full
from napari_lrmil.core.errors import LrmilError

KEY, SCALE = "lrmil_key", "lrmil_scale"  # our entries of an unfinished stage's checkpoint, next to Lightning's
SCORE = "lrmil_score"  # our entry of a finished stage's best state


@dataclass(frozen=True)
class ResumePoint:
    """Checkpoint from which a stage is resumed.

    Attributes
    ----------
    path
        The file.
    epoch
        Number of complete epochs.
    scale
        Share of the batch size that they used.
    """

    path: Path
    epoch: int
    scale: float


def last_files(plan: FitPlan) -> tuple[Path, Path]:
    """Return the files of the state at the last epoch end and at the one before it."""
    return plan.folder / f"{plan.stage}.last.ckpt", plan.folder / f"{plan.stage}.prev.ckpt"


def find_checkpoint(plan: FitPlan) -> ResumePoint | None:
    """Return the newest checkpoint that can be read and has the plan's key, or None."""
    for path in last_files(plan) if plan.key else ():
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if checkpoint[KEY] == plan.key:
                return ResumePoint(path, int(checkpoint["epoch"]), float(checkpoint[SCALE]))
        except Exception:  # missing, half-written or foreign: torch raises many types of errors for a broken file
            continue
    return None


def discard_checkpoints(plan: FitPlan) -> None:
    """Delete the states of an unfinished stage, and the partial files of a killed process."""
    partials = [*plan.folder.glob(f".{plan.stage}.*.partial"), *plan.folder.glob(f"{temporary_prefix(plan)}*")]
    for path in [*last_files(plan), *partials]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_prefix(plan: FitPlan) -> str:
    """Return the name prefix of temporary folders that hand a stage to its processes."""
    return f".{plan.stage}.ranks."


def write_best(plan: FitPlan, state: dict[str, torch.Tensor], score: float) -> None:
    """Write the best state of a finished stage with its selection figure."""
    with atomic_write(plan.checkpoint) as partial:
        torch.save({"state_dict": state, SCORE: score}, partial)


def read_best(plan: FitPlan) -> dict[str, torch.Tensor]:
    """Return the best state of a finished stage."""
    state: dict[str, torch.Tensor] = torch.load(plan.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return state


def read_score(plan: FitPlan) -> float:
    """Return the selection figure of the best state, over all epochs of the attempt that ended.

    Raises
    ------
    LrmilError
        If an earlier version wrote the file, without the figure.
    """
    checkpoint = torch.load(plan.checkpoint, map_location="cpu", weights_only=True, mmap=True)
    if SCORE not in checkpoint:
        raise LrmilError(
            f"{plan.checkpoint}: an earlier version wrote this stage without its selection figure; "
            f"delete {plan.folder} to fit the stage again"
        )
    return float(checkpoint[SCORE])


class SaveLastState(Callback):
    """Callback that writes the state at every epoch end atomically.

    It writes when the next epoch begins, because schedulers step after the hooks of the epoch end. From Lightning's
    loops it keeps two counts. The loops' own state would resume within the epoch that has ended, with the sample order
    of the first epoch.

    Parameters
    ----------
    plan
        Source of folder and key.
    scale
        Share of the batch size in use.
    resumed
        Complete epochs when the fit began.
    """

    def __init__(self, plan: FitPlan, scale: float, resumed: int) -> None:
        self.plan, self.scale, self.written = plan, scale, resumed

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add key and batch-size share, and drop the loops' state (see the class)."""
        checkpoint[KEY], checkpoint[SCALE] = self.plan.key, self.scale
        del checkpoint["loops"]  # see the class

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Start with the epoch after the stored one."""
        epochs, steps = trainer.fit_loop.epoch_progress, trainer.fit_loop.epoch_loop.automatic_optimization
        epochs.increment_by(checkpoint["epoch"])
        steps.optim_progress.optimizer.step.increment_by(checkpoint["global_step"])

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the state at the end of the previous epoch."""
        if not self.plan.key or trainer.current_epoch == self.written:
            return
        last, previous = last_files(self.plan)
        partial = _partial_path(last)
        try:
            # Last becomes previous only after the new state is complete, so one readable state always exists.
            trainer.save_checkpoint(partial)  # called in all processes; the first one writes
            if trainer.is_global_zero:
                if last.exists():
                    os.replace(last, previous)
                os.replace(partial, last)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise_if_full(last, error)
            raise
        finally:
            if trainer.is_global_zero:
                partial.unlink(missing_ok=True)
        self.written = trainer.current_epoch


def _partial_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")  # without PID: all processes of a stage use the same file
