"""Gated attention MIL (Ilse et al., ICML 2018, arXiv 1802.04712), evidence per patch, and pooling of large bags."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.models.pooling import CHUNK_ROWS, BagOutput, MilWeights, Rows


@dataclass(frozen=True)
class MilOutput:
    """Output of the network for one bag of N instances.

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
    """Gated attention MIL (Ilse et al. 2018; docs/explanation/method.md 2.2).

    ``s_k = w·(tanh(V t_k) ⊙ σ(U t_k))``, ``a = softmax(s)``, ``Z = Σ a_k t_k``, logits ``WZ + b``.

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
        self.w = nn.Linear(hidden, 1, bias=False)  # the softmax over instances cancels a constant, so no bias
        self.classifier = nn.Linear(dim, classes)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def set_standard(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the (D,) mean and deviation of the training set by which instances are standardised."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def standardise(self, instances: Tensor) -> Tensor:
        """Return (N, D) instances less the mean, divided by the deviation of the training set."""
        return (instances - self.mean) / self.deviation

    def forward(self, instances: Tensor) -> MilOutput:
        """Classify one bag of (N, D) instances."""
        t = self.standardise(instances)  # (N, D)
        scores = self.score(t)
        attention = torch.softmax(scores, dim=0)  # (N,)
        bag = attention @ t  # (D,)
        return MilOutput(self.classifier(bag), bag, attention, scores)

    def evidence(self, instances: Tensor, attention: Tensor) -> Tensor:
        """Return (N, C) contributions of each instance to each class's centred logit (docs/explanation/method.md 3).

        ``e_{r,c} = a_r (w_c − w̄)·z_r``. The sum over r plus ``b_c − b̄`` is exactly the centred logit.
        """
        return attention[:, None] * self.class_shares(self.standardise(instances))

    def score(self, t: Tensor) -> Tensor:
        """Return (N,) attention scores of (N, D) standardised instances."""
        scores: Tensor = self.w(torch.tanh(self.V(t)) * torch.sigmoid(self.U(t))).squeeze(-1)
        return scores

    def class_shares(self, t: Tensor) -> Tensor:
        """Return (N, C) ``(w_c − w̄)·t_r`` of (N, D) standardised instances: evidence before weighting by attention."""
        weight = self.classifier.weight  # (C, D)
        return t @ (weight - weight.mean(dim=0)).T

    def weights(self) -> MilWeights:
        """Return the weights as arrays, for `pool_instances`."""

        def array(tensor: Tensor) -> Features:
            values: Features = tensor.detach().float().cpu().numpy()
            return values

        return MilWeights(
            mean=array(self.mean),
            deviation=array(self.deviation),
            V=array(self.V.weight),
            V_bias=array(self.V.bias),
            U=array(self.U.weight),
            U_bias=array(self.U.bias),
            w=array(self.w.weight[0]),
            classifier=array(self.classifier.weight),
            bias=array(self.classifier.bias),
        )

    @property
    def centred_bias(self) -> Tensor:
        """(C,) centred logit without any evidence."""
        return self.classifier.bias - self.classifier.bias.mean()


def pool_bag(mil: GatedAttentionMIL, features: Rows, device: torch.device, chunk_rows: int = CHUNK_ROWS) -> BagOutput:
    """Run a MIL over (N, D) features without gradients, in chunks of rows, reading each row once.

    The softmax over all instances is updated from chunk to chunk: a new maximum rescales the sums so far (online
    softmax, Milakov and Gimelshein 2018, arXiv 1805.02867). The result equals that of the whole bag up to rounding.
    Memory grows with the bag only by what is returned.

    Parameters
    ----------
    mil
        The network.
    features
        (N, D) instances.
    device
        Where to compute.
    chunk_rows
        Instances per chunk.
    """
    count = features.shape[0]
    scores = np.empty(count, np.float32)
    evidence = np.empty((count, mil.classes), np.float32)  # weighted by attention at the end
    greatest, total = -math.inf, 0.0
    bag = torch.zeros(mil.dim, dtype=torch.float64)  # on the CPU, as not every device supports doubles
    with torch.inference_mode():
        for start in range(0, count, chunk_rows):
            rows = slice(start, start + chunk_rows)
            t = mil.standardise(torch.from_numpy(np.asarray(features[rows], np.float32)).to(device))
            chunk_scores = mil.score(t)
            scores[rows] = chunk_scores.float().cpu().numpy()
            evidence[rows] = mil.class_shares(t).float().cpu().numpy()
            before, greatest = greatest, max(greatest, float(chunk_scores.max()))
            weights = torch.exp(chunk_scores - greatest)
            shrink = math.exp(before - greatest)
            bag = bag * shrink + (weights @ t).cpu().double()
            total = total * shrink + float(weights.cpu().double().sum())
        logits = mil.classifier((bag / total).float().to(device)).float().cpu().numpy()
    attention = (np.exp(scores.astype(np.float64) - greatest) / total).astype(np.float32)
    evidence *= attention[:, None]
    return BagOutput(logits, attention, scores, evidence)
