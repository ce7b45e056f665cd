"""Teacher targets: what the student learns from the frozen HR teacher, slide by slide, and their statistics."""

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

EMBEDDING = "features"  # name of the final embedding among the stored arrays
MIN_DEVIATION = 1e-4  # below it a dimension counts as constant and is not scaled: noise would be blown up


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of the teacher's training instances.

    Attributes
    ----------
    mean, deviation
        (D,) per dimension.
    """

    mean: Tensor
    deviation: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """Return (…, D) features in units of the deviation."""
        return (features - self.mean) / self.deviation

    def to(self, device: torch.device) -> FeatureStatistics:
        """Return the statistics on another device."""
        return FeatureStatistics(self.mean.to(device), self.deviation.to(device))


def feature_statistics(arrays: Sequence[Callable[[], Features]]) -> FeatureStatistics:
    """Return the statistics over the rows of all arrays, with one array in memory at a time.

    It takes two passes: in a single pass a small deviation would be lost in the difference of two large sums.

    Parameters
    ----------
    arrays
        Functions that return (K, D) features.
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
    """Outputs of the frozen teacher for a slide; of a run without a teacher, its grid alone.

    Attributes
    ----------
    row
        The slide.
    grid
        Nested HR and LR grids, rebuilt from the stored HR coordinates; without a teacher from those of LR.
    arrays
        ``features`` and layer name -> stored HR embeddings, (K, D) and (K, D_l).
    statistics
        The same names -> statistics over the training slides.
    scores
        (K,) attention scores of HR patches, before the softmax.
    logits
        (C,) logits of the slide.
    patient_logits
        (C,) logits of the bag of all slides of the patient, if that is what has a label; otherwise None.
    """

    row: CohortSlide
    grid: NestedGrid
    arrays: Mapping[str, StoredRows]
    statistics: Mapping[str, FeatureStatistics]
    scores: Tensor
    logits: Tensor
    patient_logits: Tensor | None = None

    @property
    def taught_logits(self) -> Tensor:
        """(C,) logits of the bag that the student learns from: of the slide, or of all slides of its patient."""
        return self.logits if self.patient_logits is None else self.patient_logits

    @classmethod
    def without_teacher(cls, row: CohortSlide, grid: NestedGrid) -> TeacherTargets:
        """Return a slide of a run without a teacher: its grid, no arrays, and empty scores and logits."""
        return cls(row, grid, {}, {}, torch.empty(0), torch.empty(0))

    @property
    def layers(self) -> dict[str, int]:
        """Name of each stored layer -> width of its embedding."""
        return {name: array.shape[1] for name, array in self.arrays.items() if name != EMBEDDING}

    def standardised(self, name: str, rows: Tensor) -> Tensor:
        """Return the (R, D) standardised embeddings of the HR patches `rows`, zero for rows of -1."""
        exists = rows >= 0
        embeddings = torch.zeros(len(rows), self.arrays[name].shape[1])
        if exists.any():  # an empty index would still read the file
            stored = torch.from_numpy(self.arrays[name](rows[exists].numpy()))
            embeddings[exists] = self.statistics[name].apply(stored)
        return embeddings

    @cached_property
    def _children(self) -> Int64:
        """(N, n²) HR row of every child of each LR patch, -1 for a child without tissue; n² are `NestedGrid.slots`."""
        table = np.full((len(self.grid.lr_index), self.grid.slots), -1, dtype=np.int64)
        table[self.grid.parent, self.grid.child] = np.arange(len(self.grid.parent))
        return table

    def children_of(self, r: int) -> Int64:
        """Return the (n²,) HR rows of the children of LR patch `r`, -1 for a child without tissue."""
        rows: Int64 = self._children[r]
        return rows


def grid_from_coords(origin: BagOrigin, coords: Int64, n: int) -> NestedGrid:
    """Return the nested grids of stored (K, 2) HR coordinates with ratio `n`."""
    lattice = origin.lattice(n)
    index = (coords - np.asarray(lattice.origin)) // np.asarray(lattice.cell)
    return nested_grid_from_cells(lattice, index)
