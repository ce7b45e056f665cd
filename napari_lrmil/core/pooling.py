"""From the patches of a slide to its answer: MIL over a bag of any size, in bounded memory and exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from napari_lrmil.core.bag import Features
from napari_lrmil.core.mil import GatedAttentionMil

AT_ONCE = 16_384  # instances on the device: 84 MB of 1,280 dimensions


class Rows(Protocol):
    """(N, D) features that give some of their rows: an array, a memory map, a dataset of an HDF5 file."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True)
class Pooled:
    """One bag after its MIL: (C,) logits, (N,) attention and scores, (N, C) evidence."""

    logits: NDArray[np.float32]
    attention: Features
    scores: Features
    evidence: Features


def pool(mil: GatedAttentionMil, features: Rows, device: torch.device, at_once: int = AT_ONCE) -> Pooled:
    """Run a MIL over (N, D) features without gradients, reading each row once and `at_once` rows at a time.

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
    return Pooled(logits, attention, scores, evidence)
