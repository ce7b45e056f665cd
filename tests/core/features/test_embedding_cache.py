"""Embeddings that were made before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_lrmil.core.features.embedding_cache import CacheKey, EmbeddingCache

KEY = CacheKey("slide", (10, 20), (256, 240), 2.0, 64, None, "model student")
INDEX = np.array([[0, 0], [3, 1], [2, 5]])
FEATURES = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def cache() -> EmbeddingCache:
    filled = EmbeddingCache()
    filled.put(KEY, INDEX, FEATURES)
    return filled


def test_what_was_put_comes_back_in_the_order_asked(cache: EmbeddingCache) -> None:
    found = cache.get(KEY, np.array([[2, 5], [9, 9], [0, 0]]))
    assert found.rows.tolist() == [True, False, True]
    np.testing.assert_array_equal(found.features, FEATURES[[2, 0]])
    assert cache.has(KEY, np.array([[3, 1], [1, 3]])).tolist() == [True, False]


@pytest.mark.parametrize(
    "other",
    [
        {"slide_fingerprint": "another"},
        {"origin_level0": (10, 21)},
        {"cell_level0": (256, 256)},
        {"target_mpp": 4.0},
        {"patch_px": 128},
        {"input_px": 128},
        {"network": "model teacher"},
        {"precision": "bfloat16"},
    ],
)
def test_nothing_that_an_embedding_depends_on_is_mixed_up(cache: EmbeddingCache, other: dict[str, object]) -> None:
    assert not cache.has(replace(KEY, **other), INDEX).any()  # type: ignore[arg-type]  # a field of its own type each


def test_the_longest_unused_goes_first_and_bytes_are_bounded() -> None:
    cache = EmbeddingCache(max_bytes=3 * 16)
    cache.put(KEY, INDEX, FEATURES)
    cache.get(KEY, INDEX[:1])  # used again
    cache.put(KEY, np.array([[7, 7]]), FEATURES[:1])
    assert cache.has(KEY, INDEX).tolist() == [True, False, True]
    assert cache.bytes == 3 * 16 and len(cache) == 3


def test_a_patch_put_twice_counts_once_and_nothing_keeps_the_batch_alive(cache: EmbeddingCache) -> None:
    batch = FEATURES.copy()
    cache.put(KEY, INDEX, batch)
    batch[:] = -1
    assert cache.bytes == FEATURES.nbytes
    np.testing.assert_array_equal(cache.get(KEY, INDEX).features, FEATURES)
    cache.clear()
    assert cache.bytes == len(cache) == 0
