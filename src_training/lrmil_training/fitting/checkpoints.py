"""The state of an unfinished stage, written whole at every epoch end; the last but one stays as a fallback."""

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

KEY, SCALE = "lrmil_key", "lrmil_scale"  # entries of a checkpoint beside Lightning's own
SCORE = "lrmil_score"  # entry of a stage's best state


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to go on from.

    Attributes
    ----------
    path
        The file.
    epoch
        How many epochs have ended.
    scale
        Share of the batch size that they were fitted with.
    """

    path: Path
    epoch: int
    scale: float


def last_files(plan: FitPlan) -> tuple[Path, Path]:
    """Return where the state at the last epoch end and at the one before it lie."""
    return plan.folder / f"{plan.stage}.last.ckpt", plan.folder / f"{plan.stage}.prev.ckpt"


def find_checkpoint(plan: FitPlan) -> ResumePoint | None:
    """Return the newest checkpoint that can be read and was made under the plan's key."""
    for path in last_files(plan) if plan.key else ():
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if found[KEY] == plan.key:
                return ResumePoint(path, int(found["epoch"]), float(found[SCALE]))
        except Exception:  # absent, half-written or foreign: torch has many errors for a broken file
            continue
    return None


def discard_checkpoints(plan: FitPlan) -> None:
    """Remove the states of an unfinished stage, and what a killed process left half-written."""
    left = [*plan.folder.glob(f".{plan.stage}.*.partial"), *plan.folder.glob(f"{temporary_prefix(plan)}*")]
    for path in [*last_files(plan), *left]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_prefix(plan: FitPlan) -> str:
    """Return how folders begin that carry a stage to processes of its own."""
    return f".{plan.stage}.ranks."


def write_best(plan: FitPlan, state: dict[str, torch.Tensor], score: float) -> None:
    """Write the best state of a stage that has ended, and the selection figure that made it the best."""
    with atomic_write(plan.checkpoint) as partial:
        torch.save({"state_dict": state, SCORE: score}, partial)


def read_best(plan: FitPlan) -> dict[str, torch.Tensor]:
    """Return the best state of a stage that has ended."""
    state: dict[str, torch.Tensor] = torch.load(plan.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return state


def read_score(plan: FitPlan) -> float:
    """Return the selection figure of the best state, over all epochs of the attempt that ended.

    Raises
    ------
    LrmilError
        Where an earlier version wrote the file, without the figure.
    """
    found = torch.load(plan.checkpoint, map_location="cpu", weights_only=True, mmap=True)
    if SCORE not in found:
        raise LrmilError(
            f"{plan.checkpoint}: an earlier version wrote this stage without its selection figure; "
            f"delete {plan.folder} to fit the stage again"
        )
    return float(found[SCORE])


class SaveLastState(Callback):
    """Write everything that is needed to go on, whole or not at all.

    It does so as the next epoch begins: only then have the schedulers made their step. Of Lightning's loops it keeps
    two counts and not their own state, which at this point resumes within the epoch that has ended, and with the
    sample order of the first one.

    Parameters
    ----------
    plan
        Whose folder and key are used.
    scale
        Share of the batch size in use.
    resumed
        Epochs that had ended when fitting began.
    """

    def __init__(self, plan: FitPlan, scale: float, resumed: int) -> None:
        self.plan, self.scale, self.written = plan, scale, resumed

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add under which key and with which batch size the state was reached."""
        checkpoint[KEY], checkpoint[SCALE] = self.plan.key, self.scale
        del checkpoint["loops"]

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Begin with the next epoch."""
        epochs, steps = trainer.fit_loop.epoch_progress, trainer.fit_loop.epoch_loop.automatic_optimization
        epochs.increment_by(checkpoint["epoch"])
        steps.optim_progress.optimizer.step.increment_by(checkpoint["global_step"])

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the state at the end of the epoch before."""
        if not self.plan.key or trainer.current_epoch == self.written:
            return
        last, previous = last_files(self.plan)
        partial = _partial_path(last)
        try:
            trainer.save_checkpoint(partial)  # all processes take part, the first one writes
            if trainer.is_global_zero:
                if last.exists():
                    os.replace(last, previous)
                os.replace(partial, last)
        except (OSError, RuntimeError) as error:
            raise_if_full(last, error)
            raise
        finally:
            if trainer.is_global_zero:
                partial.unlink(missing_ok=True)
        self.written = trainer.current_epoch


def _partial_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")  # no pid: all processes of a stage name the same file
