"""Ways to show attention and evidence: what the colours mean, and between which limits. Never smoothed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from napari_lrmil.core.bag import Features
from napari_lrmil.core.overlay import LEGEND

Mode = Literal["raw", "percentile", "log"]
MODES: dict[Mode, str] = {
    "raw": "as it is",
    "percentile": "rank among the patches",
    "log": "powers of ten",
}
LEGENDS: dict[Mode, str] = {
    "raw": LEGEND,
    "percentile": "attention, percentile among the slide's patches",
    "log": "attention, power of ten of times the slide's average",
}
FAINTEST = 1e-3  # of the average: what is below looks like this on the logarithmic scale


def attention_values(attention: Features, mode: Mode) -> Features:
    """Return (N,) what is shown for (N,) attention that sums to 1.

    ``raw`` is the multiple of the average; ``percentile`` the share of patches with less, 0 to 100, ties at their mean;
    ``log`` the power of ten of the multiple.
    """
    relative = attention * len(attention)
    if mode == "raw":
        return np.asarray(relative, dtype=np.float32)
    if mode == "log":
        return np.asarray(np.log10(np.maximum(relative, FAINTEST)), dtype=np.float32)
    from scipy.stats import rankdata

    return np.asarray(100 * (rankdata(attention) - 0.5) / len(attention), dtype=np.float32)


def attention_limits(shown: Sequence[Features], mode: Mode) -> tuple[float, float]:
    """Return the colour limits that maps side by side share; see `overlay.limits` for those of ``raw``."""
    if mode == "percentile":
        return 0.0, 100.0
    if mode == "log":
        low, high = (f([float(np.percentile(v, q)) for v in shown]) for f, q in ((min, 1), (max, 99)))
        return float(low), float(max(high, low + 0.3))
    return 0.0, max(2.0, min(float(np.percentile(values, 99)) for values in shown))


def evidence_limits(evidence: Features) -> tuple[float, float]:
    """Return limits round 0, in which all but the most extreme hundredth of (N,) evidence lies."""
    top = float(np.percentile(np.abs(evidence), 99)) or 1e-6
    return -top, top
