"""Features as they lie on disk: rows are read when they are asked for, so that memory does not grow with the cohort."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_lrmil.core.features.bag import Features, array_location
from napari_lrmil.core.geometry import Int64


@dataclass(frozen=True)
class StoredRows:
    """One array of a feature file.

    Attributes
    ----------
    path
        The file.
    name
        The array in it, such as ``features`` or ``layers/block_12``.
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
        """Return the rows asked for, (R, D) float32, in memory of their own."""
        array = np.memmap(self.path, np.float32, "r", self._offset, self.shape)
        return np.array(array[rows])
