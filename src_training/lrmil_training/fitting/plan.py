"""How a stage is fitted, and how it ends before its time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.loggers import Logger

from napari_lrmil.core.errors import LrmilError

SELECT = "select"  # the figure that modules log for selection on validation; higher is better


class StoppedError(LrmilError):
    """A stage was asked to end; the same command goes on from its last whole epoch."""

    exit_code = 130


@dataclass(frozen=True)
class FitPlan:
    """How a stage is fitted.

    Attributes
    ----------
    stage
        Name in events and file names.
    epochs, patience
        Upper bound, and epochs without a better `SELECT` before stopping.
    seed
        Of weights, order and dropout.
    folder
        Where checkpoints go.
    device
        ``cpu``, ``cuda`` or ``mps``.
    ema
        Decay of the weight average that validation sees; 0 leaves it out.
    key
        Hash of all that the result depends on. A stage that ended under the same key is not fitted again, one that
        was broken off is continued; without a key neither.
    devices
        How many fit together, each in a process of its own. Gradients are averaged, so a step sees `devices` times
        the batch, and an epoch has that many fewer steps: raise the learning rate or the epochs accordingly.
    strategy
        ``auto`` fits in this process where there is one device; ``ddp`` always starts processes.
    precision
        ``auto`` is bf16 on a GPU that computes in it and 32 bits elsewhere.
    stop
        A file; once it is there, fitting ends after the batch.
    loggers
        Also get the figures of every epoch; `loggers.make_loggers` makes them.
    """

    stage: str
    epochs: int
    patience: int
    seed: int
    folder: Path
    device: torch.device
    ema: float = 0.0
    key: str = ""
    devices: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["auto", "bf16", "32"] = "auto"
    stop: Path | None = None
    loggers: tuple[Logger, ...] = ()

    @property
    def checkpoint(self) -> Path:
        """Where the best state lies after fitting."""
        return self.folder / f"{self.stage}.ckpt"

    @property
    def mark(self) -> Path:
        """Where it is written that the stage has ended, and under which key."""
        return self.folder / f"{self.stage}.done"

    @property
    def is_done(self) -> bool:
        """Whether this very stage has ended before."""
        there = self.mark.exists() and self.checkpoint.exists()
        return bool(self.key) and there and self.mark.read_text(encoding="utf-8") == self.key

    @property
    def in_processes(self) -> bool:
        """Whether the stage is fitted in processes of its own."""
        return self.devices > 1 or self.strategy == "ddp"
