"""Sparse products of rows: the same bits from SciPy's routine and from its package, whichever is there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core.slides import sparse_rows
from napari_lrmil.core.slides.sparse_rows import SparseRows


@pytest.fixture(autouse=True)
def forget_the_routine() -> Iterator[None]:
    sparse_rows._load_checked_routine.cache_clear()
    yield
    sparse_rows._load_checked_routine.cache_clear()


def spans(seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return first columns 0, 2, …, 18 and three values each, one of them zero; the last reach past column 19."""
    values = np.random.default_rng(seed).random((10, 3)).astype(np.float32)
    values[4, 1] = 0
    return np.arange(0, 20, 2), values


def test_a_product_is_that_of_matrices_and_what_lies_past_the_end_counts_for_the_last_column() -> None:
    first, values = spans()
    dense = np.zeros((10, 20))
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            dense[i, min(first[i] + j, 19)] += value
    rows = np.random.default_rng(1).random((20, 7), dtype=np.float32)
    matrix = SparseRows.from_spans(first, values, 20)
    assert len(matrix.values) == 28  # 30 without the zero and the one past the end
    np.testing.assert_allclose(matrix.multiply(rows), dense @ rows, rtol=1e-6)


def test_the_package_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, rows = SparseRows.from_spans(*spans(), 20), np.random.default_rng(1).random((20, 70), dtype=np.float32)
    assert sparse_rows._load_checked_routine() is not None
    fast = matrix.multiply(rows)
    monkeypatch.setattr(sparse_rows, "_ROUTINE", "another_name")
    sparse_rows._load_checked_routine.cache_clear()
    assert sparse_rows._load_checked_routine() is None
    np.testing.assert_array_equal(matrix.multiply(rows), fast)


def test_no_file_of_the_routine_means_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_rows, "_EXTENSION", "_another_file")
    assert sparse_rows._load_checked_routine() is None


@pytest.mark.parametrize("fault", ["nothing", "twice", "signature"])
def test_a_routine_that_does_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right = sparse_rows._load_routine()
    assert right is not None

    def wrong(*args: Any) -> None:
        if fault == "signature":
            raise ValueError("unexpected arguments")
        for _ in range(2 if fault == "twice" else 0):
            right(*args)

    monkeypatch.setattr(sparse_rows, "_load_routine", lambda: wrong)
    assert sparse_rows._load_checked_routine() is None


def test_scipys_package_still_works_afterwards() -> None:
    code = (
        "import numpy as np\n"
        "from napari_lrmil.core.slides import sparse_rows\n"
        "assert sparse_rows._load_checked_routine() is not None\n"
        "import scipy.sparse.csgraph, scipy.stats\n"
        "print((scipy.sparse.csr_array(np.eye(3)) @ np.full((3, 2), 2.0)).sum())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "12.0", done.stderr
