"""Bags for MIL training: one slide's instances with its label and, for distillation, the teacher's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lrmil_training.data.feature_store import JoinedRows, StoredRows
from napari_lrmil.core.geometry import Int64


@dataclass(frozen=True)
class BagItem:
    """Training sample of a MIL: one slide, or all slides of a patient.

    Attributes
    ----------
    instances
        (N, D) float32 embeddings.
    target
        Index of the class.
    teacher_logits
        (C,) logits of the teacher; empty without a teacher.
    teacher_scores
        (N,) attention scores of the teacher, transferred to these instances; empty without a teacher.
    weight
        Weight of the slide's class in the label term.
    patch_targets
        (N, C) class shares of the instances; empty if no outlines speak for the slide.
    lambda_patch
        Weight of the patch term; 0 leaves it out.
    """

    instances: Tensor
    target: int
    teacher_logits: Tensor = field(default_factory=lambda: torch.empty(0))
    teacher_scores: Tensor = field(default_factory=lambda: torch.empty(0))
    weight: float = 1.0
    patch_targets: Tensor = field(default_factory=lambda: torch.empty(0))
    lambda_patch: float = 0.0

    def to(self, device: torch.device) -> BagItem:
        """Return the item on another device; Lightning calls this."""
        return replace(
            self,
            instances=self.instances.to(device),
            teacher_logits=self.teacher_logits.to(device),
            teacher_scores=self.teacher_scores.to(device),
            patch_targets=self.patch_targets.to(device),
        )

    def load(self) -> BagItem:
        """Return the item itself, which is in memory already."""
        return self

    def subset(self, rows: Tensor) -> BagItem:
        """Return the item with the (R,) instances `rows` only."""
        scores = self.teacher_scores[rows] if len(self.teacher_scores) else self.teacher_scores
        instances = self.instances[rows] if len(self.instances) else self.instances
        shares = self.patch_targets[rows] if len(self.patch_targets) else self.patch_targets
        return replace(self, instances=instances, teacher_scores=scores, patch_targets=shares)


@dataclass(frozen=True)
class StoredBag:
    """`BagItem` whose instances stay on disk until they are needed.

    Attributes
    ----------
    rows
        The stored (N, D) embeddings, of one slide or of all of a patient.
    item
        The bag without instances.
    """

    rows: StoredRows | JoinedRows
    item: BagItem

    def load(self) -> BagItem:
        """Return the item with its instances."""
        return replace(self.item, instances=torch.from_numpy(self.rows()))


class Loadable(Protocol):
    """Bag in memory or on disk."""

    def load(self) -> BagItem:
        """Return the bag with its instances."""
        ...


def class_weights(targets: Sequence[int], classes: int, mode: str, draws: Sequence[float] | None = None) -> list[float]:
    """Return the weight of each class in the label term.

    Parameters
    ----------
    targets
        Class of each training slide.
    classes
        Number of classes.
    mode
        ``none``: 1 each. ``balanced``: inverse to the class's share, so that the mean over samples is 1.
    draws
        Expected draws of each slide in an epoch, if they differ. None: each slide is drawn once.
    """
    counts = np.bincount(targets, weights=draws, minlength=classes)
    if mode == "none":
        return [1.0] * classes
    # 1 only avoids a division by zero: a class without training slides is refused before.
    return [float(len(targets) / (classes * (count or 1))) for count in counts]


class BagDataset(Dataset[BagItem]):
    """Bags of one side, loaded one at a time.

    Parameters
    ----------
    bags
        The bags.
    dropout
        Share of the instances that is left out at random, anew in every epoch.
    seed
        Together with epoch and index it determines the draw.
    max_patches
        Instances drawn of a slide, before `dropout`. None takes all.
    """

    def __init__(
        self, bags: Sequence[Loadable], dropout: float = 0.0, seed: int = 0, max_patches: int | None = None
    ) -> None:
        self.bags, self.dropout, self.seed, self.max_patches = bags, dropout, seed, max_patches
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> BagItem:
        item = self.bags[index].load()
        if self.dropout == 0 and self.max_patches is None:
            return item
        # Independent of earlier draws: see `epochs`. A slide that comes twice in an epoch has the same draw twice.
        rng = np.random.default_rng([self.seed, self.epoch, index])
        rows = draw_rows(rng, len(item.instances), self.max_patches, self.dropout)
        return item.subset(torch.from_numpy(rows))


def draw_rows(rng: np.random.Generator, count: int, max_patches: int | None, dropout: float) -> Int64:
    """Return the sorted rows of a bag of `count` patches that one step uses, at least one.

    Parameters
    ----------
    rng
        Source of the draw. Nothing is drawn for settings that keep all.
    count
        Patches of the slide.
    max_patches
        Patches drawn of the slide. None takes all.
    dropout
        Share of the drawn patches that is left out.
    """
    size = count if max_patches is None else min(max_patches, count)
    # Sorted rows read neighbouring tiles one after another, which the tile cache serves.
    rows = np.arange(count) if size == count else np.sort(rng.permutation(count)[:size])
    if dropout:
        remaining = rows[rng.random(len(rows)) >= dropout]
        rows = remaining if len(remaining) else rows  # an empty bag has no output
    return rows
