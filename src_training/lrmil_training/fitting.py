"""One loop for every stage: Lightning fits in a thread, its figures come out as a stream of typed events."""

from __future__ import annotations

import logging
import queue
import threading
import time
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Metric, Progress, StageDone
from napari_lrmil.core.files import write_text

SELECT = "select"  # the figure that modules log for selection on validation; higher is better


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
        Hash of all that the result depends on; a stage that ended under the same key is not fitted again.
    """

    stage: str
    epochs: int
    patience: int
    seed: int
    folder: Path
    device: torch.device
    ema: float = 0.0
    key: str = ""

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


class _CancelledError(Exception):
    """The consumer closed the stream of events."""


class _Report(Callback):
    """Turn what Lightning knows into events, and a closed stream into an end after the batch."""

    def __init__(self, plan: FitPlan, emit: Callable[[Event], None], cancel: threading.Event) -> None:
        self.plan, self.emit, self.cancel = plan, emit, cancel

    def on_train_batch_start(self, *_: Any) -> None:
        if self.cancel.is_set():
            raise _CancelledError

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        for name, value in trainer.callback_metrics.items():
            self.emit(Metric(self.plan.stage, name, float(value), trainer.current_epoch))
        self.emit(Progress(self.plan.stage, trainer.current_epoch + 1, self.plan.epochs, "epochs"))


def fit(
    make: Callable[[], tuple[L.LightningModule, Any, Any]], plan: FitPlan
) -> Generator[Event, None, dict[str, torch.Tensor]]:
    """Fit a stage and return the state of its best epoch on validation.

    Parameters
    ----------
    make
        Returns module, training loader and validation loader; called with the stage's seed set.
    plan
        How to fit.

    Raises
    ------
    LrmilError
        Where the loss is not finite.
    """
    if plan.is_done:
        yield StageDone(plan.stage, 0.0)
        return _best(plan)
    began = time.perf_counter()
    plan.mark.unlink(missing_ok=True)
    events: queue.Queue[Event | BaseException | None] = queue.Queue()
    cancel = threading.Event()
    thread = threading.Thread(target=_work, args=(make, plan, events, cancel), name=plan.stage, daemon=True)
    thread.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        cancel.set()
        thread.join()
    write_text(plan.mark, plan.key)
    yield StageDone(plan.stage, time.perf_counter() - began)
    return _best(plan)


def _best(plan: FitPlan) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(plan.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return state


def _work(make: Callable[..., Any], plan: FitPlan, events: queue.Queue[Any], cancel: threading.Event) -> None:
    try:
        L.seed_everything(plan.seed, verbose=False)
        module, train, val = make()
        _quiet()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")  # advice on workers and loggers, not for users here
            _trainer(plan, events, cancel).fit(module, train, val)
    except _CancelledError:
        pass
    except BaseException as error:  # handed over: the consumer's thread raises it
        events.put(error)
    finally:
        events.put(None)


def _quiet() -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _trainer(plan: FitPlan, events: queue.Queue[Any], cancel: threading.Event) -> L.Trainer:
    plan.checkpoint.unlink(missing_ok=True)  # Lightning would number a second one
    best = ModelCheckpoint(plan.folder, plan.stage, monitor=SELECT, mode="max", enable_version_counter=False)
    stop = EarlyStopping(SELECT, mode="max", patience=plan.patience, check_finite=True)
    average = [EMAWeightAveraging(decay=plan.ema)] if plan.ema else []
    return L.Trainer(
        accelerator={"cuda": "gpu"}.get(plan.device.type, plan.device.type),
        devices=1,
        max_epochs=plan.epochs,
        callbacks=[best, stop, *average, _Report(plan, events.put, cancel)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def require_finite(term: str, value: torch.Tensor, batch: int) -> None:
    """Raise `LrmilError` where a loss term is not finite: it says which, and the last good checkpoint stays."""
    if not torch.isfinite(value):
        raise LrmilError(
            f"the loss term '{term}' is {float(value)} at batch {batch}; lower the learning rate and start again"
        )


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell a loader's data which epoch it is, so that augmentation is a function of seed, epoch and index."""
    loader.dataset.epoch = epoch
