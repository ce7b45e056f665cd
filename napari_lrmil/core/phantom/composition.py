"""Composition of each cell of a slide: shares of tissue and counts of nuclei, computed without painting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.phantom.layout import PLAN_UM, Plan
from napari_lrmil.core.phantom.look import Field
from napari_lrmil.core.phantom.nuclei import Nuclei

COMPOSITION = ("glass", "stroma", "epithelium", "lumen", "epithelial_nuclei", "fibroblasts", "lymphocytes")
COMPOSITION_CELL = 64  # level-0 pixels of 0.5 µm along a side of one cell of the composition
CELL_UM = COMPOSITION_CELL * 0.5  # the same in µm, at any resolution


def measure_composition(plan: Plan, nuclei: Mapping[str, Nuclei]) -> Field:
    """Return shares of glass, stroma, epithelium and lumen, and counts of nuclei, per cell of a piece of tissue."""
    inside, gland, lumen = (np.clip(f / 2 + 0.5, 0, 1) for f in (plan.tissue, plan.gland, plan.lumen))
    gland, lumen = np.minimum(gland, inside), np.minimum(lumen, inside)
    shares = [_cell_means(f) for f in (1 - inside, inside - gland, gland - lumen, lumen)]
    rows, cols = shares[0].shape
    counts = []
    for name in COMPOSITION[len(shares) :]:
        x, y = (nuclei[name].xy / CELL_UM).T
        counts.append(np.histogram2d(y, x, bins=(rows, cols), range=((0, rows), (0, cols)))[0])
    return np.stack([*shares, *counts], axis=-1).astype(np.float32)


def _cell_means(field: NDArray[Any]) -> NDArray[Any]:
    """Return means over cells; a cell cut by the slide's edge is averaged over its remaining part."""
    side = round(CELL_UM / PLAN_UM)
    starts = [np.arange(0, n, side) for n in field.shape]
    sums = np.add.reduceat(np.add.reduceat(field, starts[0], axis=0), starts[1], axis=1)
    sizes = [np.diff([*s, n]) for s, n in zip(starts, field.shape, strict=True)]
    return np.asarray(sums / np.outer(*sizes))


def compose(shape: tuple[int, int], parts: Sequence[tuple[tuple[int, int], Field]]) -> Field:
    """Return the (rows, cols, len(COMPOSITION)) composition of a slide: its pieces on glass, each at its (row, col)."""
    composition = np.zeros((*shape, len(COMPOSITION)), dtype=np.float32)
    composition[..., 0] = 1  # glass
    for (row, col), part in parts:
        composition[row : row + part.shape[0], col : col + part.shape[1]] = part
    return composition
