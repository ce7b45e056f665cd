"""Products of a sparse matrix with rows of pixels, by SciPy's compiled routine without the package ``scipy.sparse``.

Importing the package takes 0.1 CPU-seconds, a twentieth of a short run, nearly all of it for parts of NumPy that
nothing here needs. The routine alone loads in 1 ms, and SciPy itself in 10. The routine is private to SciPy. Therefore
a small product is checked first, and the package is used if the routine is missing or its result differs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

_EXTENSION, _ROUTINE = "_sparsetools", "csr_matvecs"


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Sparse (n_out, n_in) matrix, row by row.

    Attributes
    ----------
    starts
        (n_out + 1,) int32, where the entries of each row begin; the last is the number of entries.
    columns, values
        (E,) int32 and float32, the entries.
    n_in
        Number of columns.
    """

    starts: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: Float32
    n_in: int

    @classmethod
    def from_spans(cls, first: NDArray[np.int64], values: Float32, n_in: int) -> SparseRows:
        """Return the matrix whose row i has `values[i]`, (n_out, reach), from column `first[i]` on.

        Values past the last column are added to it: rounding can leave some. Zeros are left out.
        """
        columns = first[:, None] + np.arange(values.shape[1])
        values = values.copy()
        for j in range(values.shape[1] - 1, 0, -1):
            is_past = columns[:, j] >= n_in
            values[is_past, j - 1] += values[is_past, j]
            values[is_past, j] = 0
        is_entry = values != 0
        starts = np.concatenate([[0], np.cumsum(is_entry.sum(axis=1))])
        return cls(starts.astype(np.int32), columns[is_entry].astype(np.int32), values[is_entry], n_in)

    def multiply(self, rows: Float32) -> Float32:
        """Return the (n_out, M) product with (n_in, M) rows. Products are added in the order of columns."""
        out = np.zeros((len(self.starts) - 1, rows.shape[1]), np.float32)
        multiply = _load_checked_routine() or _multiply_with_package
        multiply(
            len(out), self.n_in, out.shape[1], self.starts, self.columns, self.values, rows.reshape(-1), out.reshape(-1)
        )
        return out


Routine = Callable[
    [int, int, int, NDArray[np.int32], NDArray[np.int32], Float32, Float32, Float32], None
]  # n_out, n_in, M, starts, columns, values, rows, out; the product is added to `out`


@lru_cache(maxsize=1)
def _load_checked_routine() -> Routine | None:
    """Return SciPy's routine, or None if it cannot be loaded or gives another result than a product of two matrices."""
    try:
        routine = _load_routine()
        return routine if routine is not None and _is_product(routine) else None
    except (ImportError, OSError, AttributeError, TypeError, ValueError):  # another version of SciPy
        return None


def _load_routine() -> Routine | None:
    scipy = importlib.import_module("scipy")  # light; on Windows it makes SciPy's libraries known
    folder = Path(scipy.__path__[0]) / "sparse"
    for suffix in EXTENSION_SUFFIXES:
        file = folder / f"{_EXTENSION}{suffix}"
        if file.is_file():
            name = f"scipy.sparse.{_EXTENSION}"
            loader = ExtensionFileLoader(name, str(file))
            spec = spec_from_file_location(name, file, loader=loader)
            if spec is None:
                return None
            module = module_from_spec(spec)
            loader.exec_module(module)
            routine: Routine = getattr(module, _ROUTINE)
            return routine
    return None


def _is_product(routine: Routine) -> bool:
    matrix = np.array([[0.5, 0, 0.25], [0, 0, 0], [0, 2, 1]], np.float32)
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    out = np.zeros((3, 2), np.float32)
    starts, columns = np.array([0, 2, 2, 4], np.int32), np.array([0, 2, 1, 2], np.int32)
    routine(3, 3, 2, starts, columns, matrix[matrix != 0], rows.reshape(-1), out.reshape(-1))
    return np.array_equal(out, matrix @ rows)


def _multiply_with_package(
    n_out: int,
    n_in: int,
    width: int,
    starts: NDArray[np.int32],
    columns: NDArray[np.int32],
    values: Float32,
    rows: Float32,
    out: Float32,
) -> None:
    """Stand in for the routine by SciPy's public classes."""
    from scipy.sparse import csr_array

    matrix = csr_array((values, columns, starts), shape=(n_out, n_in))
    out += np.asarray(matrix @ rows.reshape(n_in, width)).reshape(-1)
