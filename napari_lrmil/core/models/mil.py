"""Gated attention MIL (Ilse et al. 2018) with named results, and the exact evidence of every patch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_lrmil.core.features.bag import Features


@dataclass(frozen=True)
class MilOutput:
    """What the network says of one bag of N instances.

    Attributes
    ----------
    logits
        (C,) raw class scores.
    bag
        (D,) attention-pooled embedding ``Z``, in standardised units.
    attention
        (N,) softmax of the scores; sums to 1.
    scores
        (N,) attention scores ``s`` before the softmax.
    """

    logits: Tensor
    bag: Tensor
    attention: Tensor
    scores: Tensor


class GatedAttentionMIL(nn.Module):
    """Gated attention MIL, Method 2.2: ``s_k = w·(tanh(V t_k) ⊙ σ(U t_k))``, ``Z = Σ a_k t_k``, ``WZ + b``.

    Parameters
    ----------
    dim
        Width D of an instance.
    classes
        Number of classes C.
    hidden
        Width of the gate.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.dim, self.classes, self.hidden = dim, classes, hidden
        self.V = nn.Linear(dim, hidden)
        self.U = nn.Linear(dim, hidden)
        self.w = nn.Linear(hidden, 1, bias=False)  # a constant added to all scores changes nothing
        self.classifier = nn.Linear(dim, classes)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def set_standard(self, mean: Tensor, deviation: Tensor) -> None:
        """Standardise instances by these per-dimension statistics of the training set from now on."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def standardise(self, instances: Tensor) -> Tensor:
        """Return (N, D) instances in units of the training set's deviation."""
        return (instances - self.mean) / self.deviation

    def forward(self, instances: Tensor) -> MilOutput:
        """Pool (N, D) instances of one bag."""
        t = self.standardise(instances)  # (N, D)
        scores = self.score(t)
        attention = torch.softmax(scores, dim=0)  # (N,)
        bag = attention @ t  # (D,)
        return MilOutput(self.classifier(bag), bag, attention, scores)

    def evidence(self, instances: Tensor, attention: Tensor) -> Tensor:
        """Return (N, C): how much each instance adds to each class's centred logit (Method 3).

        ``e_{r,c} = a_r (w_c − w̄)·z_r``; summed over r and with ``b_c − b̄`` added it is the centred logit exactly.
        """
        return attention[:, None] * self.class_shares(self.standardise(instances))

    def score(self, t: Tensor) -> Tensor:
        """Return (N,) attention scores of (N, D) standardised instances."""
        scores: Tensor = self.w(torch.tanh(self.V(t)) * torch.sigmoid(self.U(t))).squeeze(-1)
        return scores

    def class_shares(self, t: Tensor) -> Tensor:
        """Return (N, C) ``(w_c − w̄)·t_r`` of (N, D) standardised instances: evidence before its share of attention."""
        weight = self.classifier.weight  # (C, D)
        return t @ (weight - weight.mean(dim=0)).T

    @property
    def centred_bias(self) -> Tensor:
        """(C,) what the centred logit would be without any evidence."""
        return self.classifier.bias - self.classifier.bias.mean()


AT_ONCE = 16_384  # instances on the device: 84 MB of 1,280 dimensions


class Rows(Protocol):
    """(N, D) features that give some of their rows: an array, a memory map, a dataset of an HDF5 file."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True)
class BagOutput:
    """One bag after its MIL: (C,) logits, (N,) attention and scores, (N, C) evidence."""

    logits: NDArray[np.float32]
    attention: Features
    scores: Features
    evidence: Features


def pool_bag(mil: GatedAttentionMIL, features: Rows, device: torch.device, at_once: int = AT_ONCE) -> BagOutput:
    """Run a MIL over (N, D) features without gradients, reading each row once and `default_batch_size` rows at a time.

    The softmax over all instances is kept up to date from part to part: a new greatest score rescales what was summed
    (online softmax, Milakov and Gimelshein 2018, arXiv 1805.02867). So the result is that of the whole bag at once, but
    for rounding, and what grows with the bag is only what is returned.
    """
    count = features.shape[0]
    scores = np.empty(count, np.float32)
    evidence = np.empty((count, mil.classes), np.float32)  # first without its share of attention, which comes last
    greatest, total = -math.inf, 0.0
    bag = torch.zeros(mil.dim, dtype=torch.float64)  # on the CPU, for not every device has doubles
    with torch.inference_mode():
        for start in range(0, count, at_once):
            rows = slice(start, start + at_once)
            t = mil.standardise(torch.from_numpy(np.asarray(features[rows], np.float32)).to(device))
            found = mil.score(t)
            scores[rows] = found.float().cpu().numpy()
            evidence[rows] = mil.class_shares(t).float().cpu().numpy()
            before, greatest = greatest, max(greatest, float(found.max()))
            weights = torch.exp(found - greatest)
            shrink = math.exp(before - greatest)
            bag = bag * shrink + (weights @ t).cpu().double()
            total = total * shrink + float(weights.cpu().double().sum())
        logits = mil.classifier((bag / total).float().to(device)).float().cpu().numpy()
    attention = (np.exp(scores.astype(np.float64) - greatest) / total).astype(np.float32)
    evidence *= attention[:, None]
    return BagOutput(logits, attention, scores, evidence)
