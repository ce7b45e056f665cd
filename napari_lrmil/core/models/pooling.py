"""Gated attention MIL over a whole bag in NumPy, so that a prediction does without torch.

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
    """Output for one bag: (C,) logits, (N,) attention and scores, (N, C) evidence."""

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


def read_mil_weights(path: Path) -> MilWeights:
    """Read the weights of the MIL from a bundle's file. The encoder's weights in the same file are not read."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        arrays = {field: file.get_tensor(f"mil.{name}").astype(np.float32) for field, name in _TENSORS.items()}
    return MilWeights(**(arrays | {"w": arrays["w"].ravel()}))


def _sigmoid(x: Features) -> Features:
    # By tanh, which cannot overflow.
    return np.asarray(0.5 * np.tanh(0.5 * x) + 0.5, dtype=np.float32)


@np.errstate(invalid="ignore", over="ignore")  # what is not finite is an error at the end
def pool_instances(mil: MilWeights, features: Rows, chunk_rows: int = CHUNK_ROWS) -> BagOutput:
    """Run a MIL over (N, D) features, in chunks of rows, reading each row once.

    The softmax over all instances is updated from chunk to chunk: a new maximum rescales the sums so far (online
    softmax, Milakov and Gimelshein 2018, arXiv 1805.02867). The result equals that of the whole bag up to rounding.
    Memory grows with the bag only by what is returned.

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
    count = features.shape[0]
    scores = np.empty(count, np.float32)
    evidence = np.empty((count, len(mil.bias)), np.float32)  # weighted by attention at the end
    greatest, total = -math.inf, 0.0
    bag = np.zeros(len(mil.mean), np.float64)
    for start in range(0, count, chunk_rows):
        rows = slice(start, start + chunk_rows)
        t = (np.asarray(features[rows], np.float32) - mil.mean) / mil.deviation
        scores[rows] = chunk_scores = mil.score(t)
        evidence[rows] = mil.class_shares(t)
        before, greatest = greatest, max(greatest, float(chunk_scores.max()))
        weights = np.exp(chunk_scores - np.float32(greatest))
        shrink = math.exp(before - greatest)
        bag = bag * shrink + weights @ t
        total = total * shrink + float(weights.sum(dtype=np.float64))
    logits = mil.classifier @ (bag / total).astype(np.float32) + mil.bias
    if not np.isfinite(logits).all():  # one instance that is not finite makes all of them NaN
        raise EncoderError(
            "the network's output is NaN or infinite, so there is no probability; "
            "the features or the weights are damaged: run without cached features, or train the model again"
        )
    attention = (np.exp(scores.astype(np.float64) - greatest) / total).astype(np.float32)
    evidence *= attention[:, None]
    return BagOutput(logits, attention, scores, evidence)
