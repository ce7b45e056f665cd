"""Steps between neighbouring patches: the side of patches that a file does not state, and the proof of one it does."""

from __future__ import annotations

import numpy as np

from napari_lrmil.core.geometry import Float

TOLERANCE = 1e-3  # of a coordinate: µm are stored in floats of 32 bits


def typical_step(coords: Float) -> float | None:
    """Return the most frequent distance of neighbours in a row or a column; None if there are no neighbours.

    The smallest distance would be wrong if each piece of tissue has a grid of its own, as CLAM's have.

    Parameters
    ----------
    coords
        (N, 2) x and y.
    """
    steps = np.concatenate([_steps(coords[:, 0], coords[:, 1]), _steps(coords[:, 1], coords[:, 0])])
    if not len(steps):
        return None
    values, counts = np.unique(np.round(steps, 2), return_counts=True)
    return float(values[np.argmax(counts)])


def _steps(along: Float, across: Float) -> Float:
    """Return the distances between consecutive places on each line."""
    order = np.lexsort((along, across))
    step, line = np.diff(along[order]), np.diff(across[order])
    return np.asarray(step[(np.abs(line) < TOLERANCE) & (step > TOLERANCE)])
