"""Class scores of single patches: the logits of a bag that holds one patch alone."""

from __future__ import annotations

import numpy as np

from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.models.pooling import CHUNK_ROWS, AggregatorWeights, MilWeights, NetworkWeights, Rows


def patch_class_logits(mil: AggregatorWeights, features: Rows, chunk_rows: int = CHUNK_ROWS) -> Features | None:
    """Return (N, C) raw class scores of each of (N, D) patches, see `MIL.patch_logits`; None if there are none.

    They do not depend on the other patches, on attention or on the calibration, which holds for whole slides.
    """
    if isinstance(mil, NetworkWeights):
        return mil.network.score_patches(features)
    logits = np.empty((features.shape[0], len(mil.bias)), np.float32)
    is_projected = isinstance(mil, MilWeights) and mil.projection is not None
    # Without a projection, standardisation becomes part of the weights: no standardised copy of the features is made.
    weights = mil.classifier if is_projected else mil.classifier / mil.deviation
    shift = 0.0 if is_projected else weights.astype(np.float64) @ mil.mean.astype(np.float64)
    for start in range(0, len(logits), chunk_rows):
        rows = np.asarray(features[start : start + chunk_rows], np.float32)
        t = mil.standardise(rows) if isinstance(mil, MilWeights) and is_projected else rows
        logits[start : start + chunk_rows] = t @ weights.T + (mil.bias - shift)
    return logits
