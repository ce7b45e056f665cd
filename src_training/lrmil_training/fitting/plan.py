"""Plan of a fit: epochs, seed, device, checkpoint folder and key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.loggers import Logger

from napari_lrmil.core.errors import LrmilError

SELECT = "select"  # metric that modules log for selection on validation; higher is better
# Last part of the message of a run that was stopped, by the stop file or by Ctrl-C.
RESUME_ADVICE = (
    "start the same command again to go on from the last complete epoch; slides that are done are not read again"
)


class StoppedError(LrmilError):
    """The stop file ended a stage. The same command resumes it after its last complete epoch."""

    exit_code = 130


class DivergedError(LrmilError):
    """A loss term or the validation figure of a fit is not finite."""


@dataclass(frozen=True)
class FitPlan:
    """Plan of the fit of one stage.

    Attributes
    ----------
    stage
        Name in events and file names.
    epochs, patience
        Upper bound of epochs, and epochs without a better `SELECTION_METRIC` before early stopping.
    seed
        Seed of weights, sample order and dropout.
    folder
        Folder of the checkpoints.
    device
        ``cpu``, ``cuda`` or ``mps``.
    ema
        Decay of the exponential moving average of the weights, which validation uses. 0: no average.
    key
        Hash of everything that the result depends on. A stage that ended under the same key is not fitted again, and an
        unfinished one is resumed. Without a key, neither happens.
    devices
        Number of devices, each with its own process. Gradients are averaged, so a step uses `devices` times the batch,
        and an epoch has that many fewer steps: raise the learning rate or the epochs accordingly.
    strategy
        ``auto`` fits one device in this process; ``ddp`` always starts processes.
    precision
        ``auto`` is bf16 on a GPU with native bf16, otherwise 32 bits.
    stop
        The fit ends after the batch in which this file appears.
    patients
        Numbers of the training samples of each patient, if patients are drawn evenly. Empty: each sample once an epoch.
    loggers
        Receive the metrics of every epoch; see `loggers.make_loggers`.
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
    patients: tuple[tuple[int, ...], ...] = ()
    loggers: tuple[Logger, ...] = ()

    @property
    def checkpoint(self) -> Path:
        """File of the best state after fitting."""
        return self.folder / f"{self.stage}.ckpt"

    @property
    def mark(self) -> Path:
        """File that marks a finished stage; its text is the key."""
        return self.folder / f"{self.stage}.done"

    @property
    def is_done(self) -> bool:
        """True if the stage has ended before under the same key."""
        has_files = self.mark.exists() and self.checkpoint.exists()
        # The folder name has only the first digits of the key, so the whole key is compared.
        return bool(self.key) and has_files and self.mark.read_text(encoding="utf-8") == self.key

    @property
    def in_processes(self) -> bool:
        """True if the stage is fitted in separate processes."""
        return self.devices > 1 or self.strategy == "ddp"
