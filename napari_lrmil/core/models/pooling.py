"""MIL over a whole bag in NumPy, so that a prediction does without torch.

The network and its training are in `core.models.mil`, whose `pool_bag` is the same computation in torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.features.bag import Features

CHUNK_ROWS = 16_384  # instances at a time: 84 MB at 1,280 dimensions


class Rows(Protocol):
    """(N, D) features that can be read in slices of rows: an array, a memory map or an HDF5 dataset."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True)
class BagOutput:
    """Output for one bag: (C,) logits, (N,) attention and scores, (N, C) evidence.

    The evidence is NaN if the network has none that adds up to its logits.
    """

    logits: NDArray[np.float32]
    attention: Features
    scores: Features
    evidence: Features


@dataclass(frozen=True)
class MilWeights:
    """Weights of a `GatedAttentionMIL` as float32 arrays, with D dimensions, H hidden units and C classes.

    Attributes
    ----------
    mean, deviation
        (D,) statistics of the training set by which instances are standardised.
    V, U
        (H, D) weights of the gate, with their (H,) biases `V_bias` and `U_bias`.
    w
        (H,) weights of the attention score.
    classifier, bias
        (C, D) weights and (C,) bias of the classes.
    projection, projection_bias
        (W, D) weights and (W,) bias of a projection with ReLU; W then takes the place of D in gate and classifier.
        None: instances are not projected.
    """

    mean: Features
    deviation: Features
    V: Features
    V_bias: Features
    U: Features
    U_bias: Features
    w: Features
    classifier: Features
    bias: Features
    projection: Features | None = None
    projection_bias: Features | None = None

    def standardise(self, rows: Features) -> Features:
        """Return (N, W) standardised instances of (N, D) embeddings, projected if there is a projection."""
        t: Features = (rows - self.mean) / self.deviation
        if self.projection is None or self.projection_bias is None:
            return t
        projected: Features = np.maximum(t @ self.projection.T + self.projection_bias, np.float32(0))
        return projected

    def score(self, t: Features) -> Features:
        """Return (N,) attention scores of (N, D) standardised instances."""
        gate = np.tanh(t @ self.V.T + self.V_bias)
        gate *= _sigmoid(t @ self.U.T + self.U_bias)
        scores: Features = gate @ self.w
        return scores

    def class_shares(self, t: Features) -> Features:
        """Return (N, C) evidence of (N, D) standardised instances, before weighting by attention."""
        shares: Features = t @ (self.classifier - self.classifier.mean(axis=0)).T
        return shares


@dataclass(frozen=True)
class LinearTopkWeights:
    """Weights of a `LinearTopkMIL` as float32 arrays, with D dimensions and C classes.

    Attributes
    ----------
    mean, deviation
        (D,) statistics of the training set by which instances are standardised.
    classifier, bias
        (C, D) weights and (C,) bias of the classes.
    top_share
        Share of the instances whose mean score is the class's logit, 0 to 1.
    """

    mean: Features
    deviation: Features
    classifier: Features
    bias: Features
    top_share: float


class WholeBagNetwork(Protocol):
    """A MIL in torch that pools a bag as a whole."""

    def pool_whole(self, features: Rows) -> BagOutput: ...  # noqa: D102
    def score_patches(self, features: Rows) -> Features | None: ...  # noqa: D102


@dataclass(frozen=True)
class NetworkWeights:
    """An aggregator without a NumPy form: its network, which runs in torch on the CPU."""

    network: WholeBagNetwork


ArrayWeights = MilWeights | LinearTopkWeights
AggregatorWeights = ArrayWeights | NetworkWeights


def top_count(share: float, count: int) -> int:
    """Return how many of `count` instances a share is, at least one."""
    return max(1, round(share * count))


_TENSORS = {  # field -> tensor of a bundle's file
    "mean": "mean",
    "deviation": "deviation",
    "V": "V.weight",
    "V_bias": "V.bias",
    "U": "U.weight",
    "U_bias": "U.bias",
    "w": "w.weight",
    "classifier": "classifier.weight",
    "bias": "classifier.bias",
}


_PROJECTION = {"projection": "projection.weight", "projection_bias": "projection.bias"}  # of a gated MIL that has one
_LINEAR_FIELDS = ("mean", "deviation", "classifier", "bias")


def read_mil_weights(path: Path, top_share: float | None = None) -> ArrayWeights:
    """Read the weights of the MIL from a bundle's file. The encoder's weights in the same file are not read.

    Parameters
    ----------
    path
        The file.
    top_share
        The card's pooled share if its aggregator is ``linear_topk``, ``mean`` or ``max``; None for gated attention.
    """
    from safetensors import safe_open

    fields = _TENSORS if top_share is None else {name: _TENSORS[name] for name in _LINEAR_FIELDS}
    with safe_open(path, framework="numpy") as file:
        if top_share is None and f"mil.{_PROJECTION['projection']}" in file.keys():  # noqa: SIM118 (not a dict)
            fields = fields | _PROJECTION
        arrays = {field: file.get_tensor(f"mil.{tensor}").astype(np.float32) for field, tensor in fields.items()}
    if top_share is not None:
        return LinearTopkWeights(**arrays, top_share=top_share)
    return MilWeights(**(arrays | {"w": arrays["w"].ravel()}))


def _sigmoid(x: Features) -> Features:
    # By tanh, which cannot overflow.
    return np.asarray(0.5 * np.tanh(0.5 * x) + 0.5, dtype=np.float32)


def pool_instances(mil: AggregatorWeights, features: Rows, chunk_rows: int = CHUNK_ROWS) -> BagOutput:
    """Run a MIL over (N, D) features, in chunks of rows, reading each row once.

    Memory grows with the bag only by what is returned. Aggregators that need torch (`NetworkWeights`) read all rows at
    once.

    Parameters
    ----------
    mil
        Weights of the network.
    features
        (N, D) instances.
    chunk_rows
        Instances per chunk.

    Raises
    ------
    EncoderError
        If the output is not finite: the features are not, or the network multiplies them beyond all numbers.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is an error
        if isinstance(mil, NetworkWeights):
            pooled = mil.network.pool_whole(features)
            _require_finite(pooled.logits)
            _require_finite(pooled.scores)
            return pooled
        if isinstance(mil, LinearTopkWeights):
            return _pool_linear(mil, features, chunk_rows)
        return _pool_gated(mil, features, chunk_rows)


def _require_finite(logits: Features) -> None:
    if not np.isfinite(logits).all():  # one instance that is not finite makes all of them NaN
        raise EncoderError(
            "the network's output is NaN or infinite, so there is no probability; "
            "the features or the weights are damaged: run without cached features, or train the model again"
        )


def _pool_linear(mil: LinearTopkWeights, features: Rows, chunk_rows: int) -> BagOutput:
    """Pool by the mean of each class's top scores; see `LinearTopkMIL` for the formulas."""
    count, classes = features.shape[0], len(mil.bias)
    shares = np.empty((count, classes), np.float32)
    for start in range(0, count, chunk_rows):
        rows = slice(start, start + chunk_rows)
        shares[rows] = ((np.asarray(features[rows], np.float32) - mil.mean) / mil.deviation) @ mil.classifier.T
    _require_finite(shares)  # before sorting: a NaN would be the last in order and go unseen
    k = top_count(mil.top_share, count)
    evidence = np.zeros_like(shares)
    for c in range(classes):
        top = np.argsort(-shares[:, c], kind="stable")[:k]
        evidence[top, c] = shares[top, c] / k
    logits = (evidence.sum(axis=0, dtype=np.float64) + mil.bias).astype(np.float32)
    _require_finite(logits)
    scores = shares @ _softmax(logits)
    evidence -= evidence.mean(axis=1, keepdims=True)
    return BagOutput(logits, _softmax(scores), scores, evidence)


def _softmax(values: Features) -> Features:
    weights = np.exp(values.astype(np.float64) - values.max())
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def _pool_gated(mil: MilWeights, features: Rows, chunk_rows: int) -> BagOutput:
    """Pool by gated attention.

    The softmax over all instances is updated from chunk to chunk: a new maximum rescales the sums so far (online
    softmax, Milakov and Gimelshein 2018, arXiv 1805.02867). The result equals that of the whole bag up to rounding.
    """
    count = features.shape[0]
    scores = np.empty(count, np.float32)
    evidence = np.empty((count, len(mil.bias)), np.float32)  # weighted by attention at the end
    greatest, total = -math.inf, 0.0
    bag = np.zeros(mil.classifier.shape[1], np.float64)
    for start in range(0, count, chunk_rows):
        rows = slice(start, start + chunk_rows)
        t = mil.standardise(np.asarray(features[rows], np.float32))
        scores[rows] = chunk_scores = mil.score(t)
        evidence[rows] = mil.class_shares(t)
        before, greatest = greatest, max(greatest, float(chunk_scores.max()))
        weights = np.exp(chunk_scores - np.float32(greatest))
        shrink = math.exp(before - greatest)
        bag = bag * shrink + weights @ t
        total = total * shrink + float(weights.sum(dtype=np.float64))
    logits = mil.classifier @ (bag / total).astype(np.float32) + mil.bias
    _require_finite(logits)
    attention = (np.exp(scores.astype(np.float64) - greatest) / total).astype(np.float32)
    evidence *= attention[:, None]
    return BagOutput(logits, attention, scores, evidence)
