"""MIL networks: gated attention (Ilse et al., ICML 2018, arXiv 1802.04712) and linear top-k; pooling of large bags."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.models.card import GATED, LINEAR, Aggregator
from napari_lrmil.core.models.pooling import (
    CHUNK_ROWS,
    AggregatorWeights,
    BagOutput,
    LinearTopkWeights,
    MilWeights,
    Rows,
    pool_instances,
    top_count,
)


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
    label_logits
        (S, C) raw class scores of each of S streams, if the label term is the mean over them; otherwise None.
    embedded
        (N, E) instances as the network embeds them, if a term of its own needs them; otherwise None.
    """

    logits: Tensor
    bag: Tensor
    attention: Tensor
    scores: Tensor
    label_logits: Tensor | None = None
    embedded: Tensor | None = None


class MIL(nn.Module, ABC):
    """Base of the aggregators: standardisation of instances, and what training and inference ask of each.

    Parameters
    ----------
    dim
        Width D of an instance.
    classes
        Number of classes C.
    hidden
        Width of the gate.
    """

    aggregator: ClassVar[Aggregator]  # its name in configurations and cards
    mean: Tensor
    deviation: Tensor
    classifier: nn.Linear

    def __init__(self, dim: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.classes, self.hidden = dim, classes, hidden
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def set_standard(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the (D,) mean and deviation of the training set by which instances are standardised."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def standardise(self, instances: Tensor) -> Tensor:
        """Return (N, D) instances less the mean, divided by the deviation of the training set."""
        return (instances - self.mean) / self.deviation

    @abstractmethod
    def forward(self, instances: Tensor) -> MilOutput:
        """Classify one bag of (N, D) instances."""

    @abstractmethod
    def evidence(self, instances: Tensor, attention: Tensor) -> Tensor:
        """Return (N, C) contributions of each instance of a bag to each class's centred logit.

        The sum over the instances plus `centred_bias` is exactly the centred logit.
        """

    def patch_logits(self, instances: Tensor) -> Tensor:
        """Return (N, C) raw class scores of each of (N, D) instances: the logits of a bag that holds it alone."""
        logits: Tensor = self.classifier(self.standardise(instances))
        return logits

    def own_terms(self, output: MilOutput, target: int) -> Mapping[str, Tensor]:
        """Return the loss terms that belong to the aggregator, beyond the label term; none for most.

        Parameters
        ----------
        output
            Output for a bag.
        target
            Class of the bag.
        """
        return {}

    @abstractmethod
    def weights(self) -> AggregatorWeights:
        """Return the weights as arrays, for `pool_instances`."""

    @property
    def centred_bias(self) -> Tensor:
        """(C,) centred logit without any evidence."""
        return self.classifier.bias - self.classifier.bias.mean()


def _array(tensor: Tensor) -> Features:
    values: Features = tensor.detach().float().cpu().numpy()
    return values


class GatedAttentionMIL(MIL):
    """Gated attention MIL (Ilse et al. 2018; docs/explanation/method.md 2.2).

    ``s_k = w·(tanh(V t_k) ⊙ σ(U t_k))``, ``a = softmax(s)``, ``Z = Σ a_k t_k``, logits ``WZ + b``.
    With a projection, ``relu(P t_k + p)`` takes the place of ``t_k`` in all of them, as in CLAM (Lu et al. 2021).

    Parameters
    ----------
    dim
        Width D of an instance.
    classes
        Number of classes C.
    hidden
        Width of the gate.
    projection
        Width of the projection; None: instances are not projected.
    """

    aggregator = GATED

    def __init__(self, dim: int, classes: int, hidden: int = 64, projection: int | None = None) -> None:
        super().__init__(dim, classes, hidden)
        width = dim if projection is None else projection
        self.projection = None if projection is None else nn.Linear(dim, projection)
        self.V = nn.Linear(width, hidden)
        self.U = nn.Linear(width, hidden)
        self.w = nn.Linear(hidden, 1, bias=False)  # the softmax over instances cancels a constant, so no bias
        self.classifier = nn.Linear(width, classes)

    def standardise(self, instances: Tensor) -> Tensor:
        """Return (N, W) standardised instances, projected if the network has a projection."""
        t = super().standardise(instances)
        return t if self.projection is None else torch.relu(self.projection(t))

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
        return MilWeights(
            mean=_array(self.mean),
            deviation=_array(self.deviation),
            V=_array(self.V.weight),
            V_bias=_array(self.V.bias),
            U=_array(self.U.weight),
            U_bias=_array(self.U.bias),
            w=_array(self.w.weight[0]),
            classifier=_array(self.classifier.weight),
            bias=_array(self.classifier.bias),
            **self._projection_weights(),
        )

    def _projection_weights(self) -> dict[str, Features]:
        if self.projection is None:
            return {}
        return {"projection": _array(self.projection.weight), "projection_bias": _array(self.projection.bias)}


class LinearTopkMIL(MIL):
    """Linear scores per class and the mean of each class's top share (docs/explanation/method.md 2.2).

    ``l_{r,c} = w_c·t_r``, logit ``c`` the mean of the ``k`` greatest ``l_{r,c}`` plus ``b_c``; attention scores
    ``s_r = Σ_c p_c l_{r,c}`` with the slide's probabilities ``p``, attention ``softmax(s)``.

    It has far fewer weights than gated attention, and a logit depends on the top instances alone. Attention is the
    softmax of the scores and not what the instances were weighted by: the exact contributions are the evidence.

    Parameters
    ----------
    dim
        Width D of an instance.
    classes
        Number of classes C.
    top_share
        Share of the instances whose mean score is the logit, above 0 and up to 1.
    """

    aggregator = LINEAR

    def __init__(self, dim: int, classes: int, top_share: float) -> None:
        super().__init__(dim, classes, 1)  # there is no gate; a card needs a width
        self.top_share = top_share
        self.classifier = nn.Linear(dim, classes)

    def forward(self, instances: Tensor) -> MilOutput:
        """Classify one bag of (N, D) instances."""
        t = self.standardise(instances)
        shares = self.class_shares(t)  # (N, C)
        logits = torch.topk(shares, self._top_count(t), dim=0).values.mean(dim=0) + self.classifier.bias
        # Detached: attention shows the decision, and a loss of attention must not change which class wins.
        scores = shares @ torch.softmax(logits, dim=0).detach().to(shares.dtype)  # (N,)
        attention = torch.softmax(scores, dim=0)
        return MilOutput(logits, attention @ t, attention, scores)

    def evidence(self, instances: Tensor, attention: Tensor) -> Tensor:
        """Return (N, C) contributions; those outside the top of every class are 0. They do not need the attention."""
        shares = self.class_shares(self.standardise(instances))
        top = torch.topk(shares, self._top_count(shares), dim=0)
        contributions = torch.zeros_like(shares).scatter(0, top.indices, top.values / len(top.values))
        return contributions - contributions.mean(dim=1, keepdim=True)

    def class_shares(self, t: Tensor) -> Tensor:
        """Return (N, C) scores ``w_c·t_r`` of (N, D) standardised instances."""
        return t @ self.classifier.weight.T

    def weights(self) -> LinearTopkWeights:
        """Return the weights as arrays, for `pool_instances`."""
        return LinearTopkWeights(
            mean=_array(self.mean),
            deviation=_array(self.deviation),
            classifier=_array(self.classifier.weight),
            bias=_array(self.classifier.bias),
            top_share=self.top_share,
        )

    def _top_count(self, instances: Tensor) -> int:
        return top_count(self.top_share, len(instances))


def build_mil(dim: int, classes: int, hidden: int, top_share: float | None, projection: int | None = None) -> MIL:
    """Return an untrained MIL: `LinearTopkMIL` if a top share is given, otherwise `GatedAttentionMIL`."""
    if top_share is not None:
        return LinearTopkMIL(dim, classes, top_share)
    return GatedAttentionMIL(dim, classes, hidden, projection)


def pool_bag(mil: MIL, features: Rows, device: torch.device, chunk_rows: int = CHUNK_ROWS) -> BagOutput:
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
    if not isinstance(mil, GatedAttentionMIL):  # small beside the encoder: little for a device to gain
        return pool_instances(mil.weights(), features, chunk_rows)
    count = features.shape[0]
    scores = np.empty(count, np.float32)
    evidence = np.empty((count, mil.classes), np.float32)  # weighted by attention at the end
    greatest, total = -math.inf, 0.0
    bag = torch.zeros(
        mil.classifier.in_features, dtype=torch.float64
    )  # on the CPU, as not every device supports doubles
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
