"""One bag of all slides of a patient, pooled from what each slide gives alone.

Gated attention is a softmax over all patches, and logits are linear in the pooled embedding. So the logits of a bag of
several slides are a mean of the slides' logits, each weighted by the slide's share of the attention: no patch is needed
twice. It does not hold for ``linear_topk``, whose top patches depend on the bag.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ONE_BAG = "one bag of all slides"


def attention_mass(scores: NDArray[np.floating[Any]]) -> float:
    """Return the logarithm of the summed exponentials of (N,) attention scores: the slide's weight in a bag."""
    values = scores.astype(np.float64)
    greatest = float(values.max())
    return greatest + math.log(float(np.exp(values - greatest).sum()))


def attention_shares(masses: Sequence[float]) -> NDArray[np.float64]:
    """Return (S,) shares of the slides of a bag in its attention, from their `attention_mass`. They sum to 1."""
    weights = np.exp(np.asarray(masses, np.float64) - max(masses))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def bag_logits(logits: NDArray[np.floating[Any]], masses: Sequence[float]) -> NDArray[np.float64]:
    """Return the (C,) logits of the bag of several slides.

    Parameters
    ----------
    logits
        (S, C) logits of each slide alone.
    masses
        (S,) `attention_mass` of each slide.
    """
    return np.asarray(attention_shares(masses) @ logits.astype(np.float64), dtype=np.float64)
