"""BagItem, StoredBag, Loadable of `lrmil_training.data.bags`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lrmil_training.data.feature_store import StoredRows


@dataclass(frozen=True)
class BagItem:
    """One slide as a MIL sees it in training.

    Attributes
    ----------
    instances
        (N, D) float32.
    target
        Index of the class.
    teacher_logits
        (C,) where the teacher teaches.
    teacher_scores
        (N,) its scores carried to these instances.
    weight
        Of the slide's class in the label term.
    """

    instances: Tensor
    target: int
    teacher_logits: Tensor = field(default_factory=lambda: torch.empty(0))
    teacher_scores: Tensor = field(default_factory=lambda: torch.empty(0))

    weight: float = 1.0

    def to(self, device: torch.device) -> BagItem:
        """Return the item on another device, as Lightning asks for it."""
        taught = self.teacher_logits.to(device), self.teacher_scores.to(device)
        return BagItem(self.instances.to(device), self.target, *taught, self.weight)

    def load(self) -> BagItem:
        """Return the item: it is in memory already."""
        return self

    def subset(self, rows: Tensor) -> BagItem:
        """Return the item with some of its instances only."""
        scores = self.teacher_scores[rows] if len(self.teacher_scores) else self.teacher_scores
        instances = self.instances[rows] if len(self.instances) else self.instances
        return replace(self, instances=instances, teacher_scores=scores)


@dataclass(frozen=True)
class StoredBag:
    """A `BagItem` whose instances are on disk until they are needed."""

    rows: StoredRows
    item: BagItem

    def load(self) -> BagItem:
        """Return the item with its instances."""
        return replace(self.item, instances=torch.from_numpy(self.rows()))


class Loadable(Protocol):
    """A bag in memory or on disk."""

    def load(self) -> BagItem:
        """Return the bag with its instances."""
        ...


def class_weights(targets: Sequence[int], classes: int, mode: str) -> list[float]:
    """Return the weight of each class: inverse to its share where `mode` is balanced, so that they average to 1."""
    counts = np.bincount(targets, minlength=classes)
    if mode == "none":
        return [1.0] * classes
    return [float(len(targets) / (classes * max(1, count))) for count in counts]


class BagDataset(Dataset[BagItem]):
    """Bags of one side, loaded one at a time; `dropout` leaves out a share of each, anew in every epoch."""

    def __init__(self, bags: Sequence[Loadable], dropout: float = 0.0, seed: int = 0) -> None:
        self.bags, self.dropout, self.seed = bags, dropout, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> BagItem:
        item = self.bags[index].load()
        if self.dropout == 0:
            return item
        rng = np.random.default_rng([self.seed, self.epoch, index])
        kept = np.flatnonzero(rng.random(len(item.instances)) >= self.dropout)
        return item.subset(torch.from_numpy(kept)) if len(kept) else item
