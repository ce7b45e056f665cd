"""EMBEDDING, SMALLEST_DEVIATION, Standard of `lrmil_training.data.teacher_targets`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lrmil_training.data.cohort import CohortSlide
from lrmil_training.data.feature_store import StoredRows
from napari_lrmil.core.features.bag import BagOrigin, Features
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.patching.grid import NestedGrid, nested_grid_from_cells

EMBEDDING = "features"  # the name of the final embedding among the stored arrays


MIN_DEVIATION = 1e-4  # a dimension that never varies is left as it is, not blown up


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and deviation per dimension over the teacher's training instances."""

    mean: Tensor
    deviation: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """Return (…, D) features in units of the deviation."""
        return (features - self.mean) / self.deviation

    def to(self, device: torch.device) -> FeatureStatistics:
        """Return the statistics on another device."""
        return FeatureStatistics(self.mean.to(device), self.deviation.to(device))


def feature_statistics(arrays: Sequence[Callable[[], Features]]) -> FeatureStatistics:
    """Return the statistics over the rows of all arrays; one array is in memory at a time.

    Two passes, since the difference of large sums loses what a small deviation has.
    """
    count, total = 0, np.float64(0.0)
    for array in arrays:
        rows = array()
        count, total = count + len(rows), total + rows.sum(axis=0, dtype=np.float64)
    mean = total / count
    variance = np.sum([np.square(array() - mean).sum(axis=0) for array in arrays], axis=0) / count
    deviation = np.sqrt(variance)
    deviation[deviation < MIN_DEVIATION] = 1.0
    return FeatureStatistics(torch.tensor(mean, dtype=torch.float32), torch.tensor(deviation, dtype=torch.float32))


@dataclass(frozen=True)
class TeacherTargets:
    """What the frozen teacher says of a slide.

    Attributes
    ----------
    row
        The slide.
    grid
        Its nested grids, rebuilt from the stored HR coordinates.
    arrays
        ``features`` and layer name -> stored HR embeddings, (K, D) and (K, D_l).
    standards
        The same names -> the teacher's training statistics.
    scores
        (K,) attention scores.
    logits
        (C,) class scores.
    """

    row: CohortSlide
    grid: NestedGrid
    arrays: Mapping[str, StoredRows]
    standards: Mapping[str, FeatureStatistics]
    scores: Tensor
    logits: Tensor

    @property
    def layers(self) -> dict[str, int]:
        """Names of the stored layers, with the widths of their embeddings."""
        return {name: array.shape[1] for name, array in self.arrays.items() if name != EMBEDDING}

    def standardised(self, name: str, rows: Tensor) -> Tensor:
        """Return (R, D) standardised embeddings of some HR patches, zero where the row is -1."""
        there = rows >= 0
        found = torch.zeros(len(rows), self.arrays[name].shape[1])
        if there.any():
            found[there] = self.standards[name].apply(torch.from_numpy(self.arrays[name](rows[there].numpy())))
        return found

    @cached_property
    def _children(self) -> Int64:
        """(N, n²): for each LR patch the rows of its children, -1 where there is none."""
        table = np.full((len(self.grid.lr_index), self.grid.lattice.n**2), -1, dtype=np.int64)
        table[self.grid.parent, self.grid.child] = np.arange(len(self.grid.parent))
        return table

    def children_of(self, r: int) -> Int64:
        """Return (n²,) rows of the children of LR patch `r`, -1 where there is none."""
        rows: Int64 = self._children[r]
        return rows


def grid_from_coords(origin: BagOrigin, coords: Int64, n: int) -> NestedGrid:
    """Return the nested grids behind the stored coordinates of HR features."""
    lattice = origin.lattice(n)
    index = (coords - np.asarray(lattice.origin)) // np.asarray(lattice.cell)
    return nested_grid_from_cells(lattice, index)
