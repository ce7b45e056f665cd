"""Lightning trainer of a stage, with callbacks for selection, averaging, seeds and events."""

from __future__ import annotations

import inspect
import logging
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lrmil_training.fitting.checkpoints import SaveLastState, find_checkpoint, write_best
from lrmil_training.fitting.epochs import EpochSampler, average_buffers, epoch_seed, rank_and_world_size
from lrmil_training.fitting.plan import RESUME_ADVICE, SELECT, DivergedError, FitPlan, StoppedError
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Metric, Progress

STOP_CHECK_INTERVAL_S = 0.2  # on a network drive a check for the stop file takes longer than the step of a small bag

FitFactory = Callable[..., tuple[L.LightningModule, Any, Any]]
StateDict = dict[str, torch.Tensor]


class CancelledError(Exception):
    """The consumer closed the stream of events."""


class _Average(WeightAveraging):
    """Exponential moving average of all weights in one pass; Lightning's default is slower, tensor by tensor."""

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Lightning moves the module later. An average on the CPU would wait for a copy of all weights after every step.
        pl_module.to(trainer.strategy.root_device)
        super().setup(trainer, pl_module, stage)

    @property
    def state_key(self) -> str:
        return "_Average"  # key in checkpoints, by default the class name: a renamed class would not find its state

    def weights(self) -> StateDict:
        """Return the averaged weights."""
        assert self._average_model is not None
        state: StateDict = self._average_model.module.state_dict()
        return state


class _Selection(Callback):
    """Selection of the best epoch on validation, with early stopping.

    Lightning's own callbacks keep the best state in a second file and the path of that file in the checkpoint. A kill
    between the two leaves them inconsistent, and a moved run folder loses its best state.
    """

    def __init__(self, patience: int, average: _Average | None) -> None:
        self.patience, self.average = patience, average
        self.score, self.waited = -math.inf, 0
        self.best: StateDict = {}

    @property
    def state_key(self) -> str:
        return "_Selection"  # as above

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "waited": self.waited, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.waited, self.best = state_dict["score"], state_dict["waited"], state_dict["best"]

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        score = float(
            trainer.strategy.broadcast(float(trainer.callback_metrics[SELECT]))
        )  # all processes must decide alike
        if not math.isfinite(score):
            raise DivergedError(
                f"the validation figure is {score} in epoch {trainer.current_epoch + 1}; "
                "lower the learning rate and start again"
            )
        if score > self.score:
            weights = self.average.weights() if self.average else module.state_dict()
            self.best = {name: value.detach().cpu().clone() for name, value in weights.items()}
            self.score, self.waited = score, 0
        else:
            self.waited += 1
            trainer.should_stop = trainer.should_stop or self.waited >= self.patience


class _Reseed(Callback):
    """Seed of every epoch, and the same running statistics for all processes."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        average_buffers(module)
        L.seed_everything(epoch_seed(self.seed, trainer.current_epoch, rank_and_world_size()[0]), verbose=False)

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        average_buffers(module)  # runs after the weight average, so these are the averaged ones


class _Report(Callback):
    """Events from Lightning's metrics; ends the fit after a batch if the stream is closed or the stop file exists."""

    def __init__(self, plan: FitPlan, emit: Callable[[Event], None], cancelled: Callable[[], bool]) -> None:
        self.plan, self.emit, self.cancelled = plan, emit, cancelled
        self._ended: int | None = None  # epoch that has ended and is not reported yet
        self._checked = 0.0  # time of the last check for the stop file

    def on_train_batch_start(self, *_: Any) -> None:
        self._raise_if_stopped()

    def on_validation_batch_start(self, *_: Any) -> None:
        self._raise_if_stopped()

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._ended = trainer.current_epoch  # not reported yet: the module logs the means of the epoch after this

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._report(trainer)  # now the checkpoint is on disk, so a reported epoch is not repeated

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._report(trainer)

    def _report(self, trainer: L.Trainer) -> None:
        if self._ended is None:
            return
        for name, value in trainer.callback_metrics.items():
            self.emit(Metric(self.plan.stage, name, float(value), self._ended))
        self.emit(Progress(self.plan.stage, self._ended + 1, self.plan.epochs, "epochs"))
        self._ended = None

    def _raise_if_stopped(self) -> None:
        if self.cancelled():
            raise CancelledError
        now = time.monotonic()
        if self.plan.stop is not None and now - self._checked > STOP_CHECK_INTERVAL_S:
            self._checked = now
            if self.plan.stop.exists():
                raise StoppedError(
                    f"{self.plan.stage} was stopped because the file {self.plan.stop} is there; {RESUME_ADVICE}"
                )


def run_stage(
    make: FitFactory,
    plan: FitPlan,
    scale: float,
    initial: StateDict,
    emit: Callable[[Event], None],
    cancelled: Callable[[], bool],
) -> None:
    """Fit a stage to its end and write its best state.

    Parameters
    ----------
    make, plan
        See `fitting.fit`.
    scale
        Share of the batch size.
    initial
        Initial weights, which a later attempt with a smaller batch starts from. Filled in if empty.
    emit
        Receives the events.
    cancelled
        Returns True to end the fit after the current batch.
    """
    L.seed_everything(plan.seed, verbose=False)
    module, train, val = make(scale=scale) if can_scale(make) else make()
    if initial:
        module.load_state_dict(initial)
    elif can_scale(make):  # `make` returns the same network again, with the weights of the failed attempt
        initial |= {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    _require_shared(plan, train, val)
    if len(train) == 0:
        raise LrmilError(f"{plan.stage}: there is not one whole batch to learn from; use a smaller batch size")
    _quiet_lightning()
    resume = find_checkpoint(plan)  # here and not in the caller: every rank must load it
    selection, trainer = _trainer(plan, scale, resume.epoch if resume else 0, emit, cancelled)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # advice for programmers about workers and loggers
        trainer.fit(module, train, val, ckpt_path=resume.path if resume else None, weights_only=True)
    if trainer.is_global_zero:
        write_best(plan, selection.best, selection.score)


def can_scale(make: FitFactory) -> bool:
    """Return whether `make` accepts a share of the batch size."""
    return "scale" in inspect.signature(make).parameters


def _require_shared(plan: FitPlan, *loaders: Any) -> None:
    for loader in loaders:
        if plan.devices > 1 and not isinstance(loader.sampler, EpochSampler):
            # Any other sampler would give all processes the same samples.
            raise TypeError(f"{plan.stage}: loaders for several devices need an EpochSampler, found {loader.sampler}")


def _quiet_lightning() -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _trainer(
    plan: FitPlan, scale: float, resumed: int, emit: Callable[[Event], None], cancelled: Callable[[], bool]
) -> tuple[_Selection, L.Trainer]:
    average = _Average(plan.ema) if plan.ema else None
    selection = _Selection(plan.patience, average)
    last = SaveLastState(plan, scale, resumed)
    # The order matters: validation uses the average before `_Reseed` acts on it, and the state is on disk before its
    # epoch is reported.
    callbacks = [*([average] if average else []), _Reseed(plan.seed), selection, last, _Report(plan, emit, cancelled)]
    trainer = L.Trainer(
        accelerator={"cuda": "gpu"}.get(plan.device.type, plan.device.type),
        max_epochs=plan.epochs,
        callbacks=callbacks,
        precision=_precision(plan),
        plugins=[LightningEnvironment()],  # or Lightning would take its ranks from the variables of Slurm
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,  # would call our validation hooks before the first epoch
        use_distributed_sampler=False,  # `EpochSampler` divides the samples itself
        **_device_arguments(plan),
    )
    return selection, trainer


def _device_arguments(plan: FitPlan) -> dict[str, Any]:
    if not plan.in_processes:
        device = [plan.device.index] if plan.device.type == "cuda" and plan.device.index else 1
        return {"devices": device}
    strategy = DDPStrategy(
        process_group_backend="nccl" if plan.device.type == "cuda" else "gloo",
        find_unused_parameters=True,  # without the label term the classifier has no gradient
        broadcast_buffers=False,  # would run in validation too, where processes have different numbers of batches
    )
    return {"devices": plan.devices, "strategy": strategy}


def _precision(plan: FitPlan) -> Any:
    if plan.precision == "auto":
        native = plan.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "32-true"
    return {"bf16": "bf16-mixed", "32": "32-true"}[plan.precision]
