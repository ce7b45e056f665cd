"""Stored feature arrays, read row by row on demand, so that memory does not grow with the cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from napari_lrmil.core.features.bag import Features, array_location
from napari_lrmil.core.geometry import Int64


@dataclass(frozen=True)
class StoredRows:
    """Array of a feature file.

    Attributes
    ----------
    path
        The file.
    name
        Array in the file, such as ``features`` or ``layers/block_12``.
    shape
        (K, D).
    """

    path: Path
    name: str
    shape: tuple[int, int]
    _offset: int

    @classmethod
    def of(cls, path: Path, name: str = "features") -> StoredRows:
        """Return the array `name` of a file that `write_bag` wrote."""
        offset, shape = array_location(path, name)
        return cls(path, name, shape, offset)

    def __call__(self, rows: Int64 | slice = slice(None)) -> Features:
        """Return a copy of the selected rows, (R, D) float32."""
        # Mapped anew at each call: an open map per slide would keep as many files open as the cohort has slides.
        array = np.memmap(self.path, np.float32, "r", self._offset, self.shape)
        return np.array(array[rows])  # a copy, so that the map is released


@dataclass(frozen=True)
class JoinedRows:
    """Stored arrays of several slides, one after another."""

    parts: tuple[StoredRows, ...]

    def __call__(self) -> Features:
        """Return a copy of all rows, (N, D) float32."""
        rows: Features = np.concatenate([part() for part in self.parts])
        return rows


@dataclass(frozen=True, eq=False)
class ColumnRows(StoredRows):
    """Some columns of an array of a feature file, which holds the layers of several candidates side by side.

    Attributes
    ----------
    source
        The stored array.
    columns
        (k,) numbers of the columns.
    """

    source: StoredRows
    columns: Int64

    @classmethod
    def of_columns(cls, source: StoredRows, columns: Int64) -> ColumnRows:
        """Return stored rows with these columns alone."""
        return cls(source.path, source.name, (source.shape[0], len(columns)), source._offset, source, columns)

    def __call__(self, rows: Int64 | slice = slice(None)) -> Features:
        """Return the columns of the selected rows, (R, k) float32."""
        chosen: Features = np.ascontiguousarray(self.source(rows)[:, self.columns])
        return chosen


@dataclass(frozen=True, eq=False)
class ReducedRows(StoredRows):
    """Array of a feature file, reduced as it is read: the file keeps all dimensions, for other reductions.

    Attributes
    ----------
    source
        The stored array.
    reduction
        ``mean`` (D,) and ``components`` (k, D); see `Reduction`.
    """

    source: StoredRows
    reduction: Mapping[str, Tensor]

    @classmethod
    def of_rows(cls, source: StoredRows, reduction: Mapping[str, Tensor]) -> ReducedRows:
        """Return stored rows with a reduction."""
        shape = (source.shape[0], len(reduction["components"]))
        return cls(source.path, source.name, shape, source._offset, source, reduction)

    def __call__(self, rows: Int64 | slice = slice(None)) -> Features:
        """Return the selected rows, (R, k) float32."""
        mean, components = self.reduction["mean"].numpy(), self.reduction["components"].numpy()
        reduced: Features = (self.source(rows) - mean) @ components.T
        return reduced
