"""A small stage that needs all of what a checkpoint holds, for tests here and in processes that are killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lrmil_training.evaluation.metrics import multiclass_auroc
from lrmil_training.fitting.fit import SELECT, EpochMeans, EpochSampler, FitPlan, all_gather_rows, fit
from napari_lrmil.core.events import Event, Metric, Progress

CPU = torch.device("cpu")
Made = tuple["Toy", "DataLoader[Any]", "DataLoader[Any]"]


def samples(count: int, seed: int, dim: int = 6) -> TensorDataset:
    """Return two classes that a line parts, with noise."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dim, generator=rng)
    y = (x[:, 0] - x[:, 1] + 0.7 * torch.randn(count, generator=rng) > 0).long()
    return TensorDataset(x, y)


class Toy(L.LightningModule):
    """Dropout, batch norm, a schedule by steps and one by epochs, and a selection figure that goes up and down."""

    def __init__(self, lr: float = 0.02, bad_batch: int = -1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 2))
        self.lr, self.bad_batch = lr, bad_batch
        self.means = EpochMeans("train")
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        if self.current_epoch * 100 + index == self.bad_batch:
            loss = loss * float("nan")
        self.means.add({"ce": loss}, len(batch[0]), index)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.means.take())

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.seen.append((self.net(batch[0]).float().cpu(), batch[1].cpu()))

    def on_validation_epoch_end(self) -> None:
        seen = all_gather_rows(self.seen)
        self.seen.clear()
        logits, y = torch.cat([s for s, _ in seen]), torch.cat([t for _, t in seen])
        auroc = multiclass_auroc(torch.softmax(logits, 1).numpy(), y.numpy())
        ce = functional.cross_entropy(logits, y)
        self.log_dict({"val/auroc": float(auroc or 0), "val/n": float(len(y)), SELECT: -ce})

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class Stepped(Toy):
    """The same with a schedule by epochs."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.6)}


def maker(seed: int, kind: type[Toy] = Toy, **settings: Any) -> Callable[..., Made]:
    """Return a `make` for `fit`, with a batch size that can be halved."""
    train, val = samples(96, 1), samples(47, 2)

    def make(scale: float = 1.0) -> Made:
        order, as_is = EpochSampler(len(train), seed), EpochSampler(len(val), seed, shuffle=False)
        return kind(**settings), DataLoader(train, int(16 * scale), sampler=order), DataLoader(val, 8, sampler=as_is)

    return make


def plan(folder: Path, **settings: Any) -> FitPlan:
    """Return a plan with everything that has a state."""
    told: dict[str, Any] = {"stage": "toy", "epochs": 9, "patience": 4, "seed": 5, "ema": 0.9, "key": "k"}
    return FitPlan(**(told | {"folder": folder, "device": CPU} | settings))


def drained(stream: Generator[Event, None, dict[str, Tensor]]) -> tuple[list[Event], dict[str, Tensor]]:
    """Return the events of a fit and its result."""
    events = []
    while True:
        try:
            events.append(next(stream))
        except StopIteration as end:
            return events, end.value


def figures(events: list[Event]) -> dict[tuple[str, int], float]:
    """Return (name, epoch) -> value."""
    return {(e.name, e.step): e.value for e in events if isinstance(e, Metric)}


def tell(folder: Path, kind: type[Toy], pipe: Connection) -> None:
    """Fit and tell of every epoch; the parent kills this process meanwhile."""
    torch.set_num_threads(1)
    for event in fit(maker(5, kind), plan(folder)):
        if isinstance(event, (Metric, Progress)):
            pipe.send(event)
        if isinstance(event, Progress):
            time.sleep(0.01)
    pipe.close()
