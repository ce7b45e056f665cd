"""Least recently used arrays, bounded by their bytes."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_lrmil.core.slides.byte_lru import ByteLru

Bytes = NDArray[np.uint8]
ACTIONS = st.tuples(st.sampled_from(["put", "get", "has", "clear"]), st.integers(0, 4), st.integers(0, 12))


def array(n_bytes: int) -> Bytes:
    return np.zeros(n_bytes, np.uint8)


@given(st.lists(ACTIONS, max_size=40))
def test_it_keeps_what_a_plain_list_in_order_of_use_would_keep(actions: list[tuple[str, int, int]]) -> None:
    lru, model = ByteLru[int, Bytes](20), OrderedDict[int, int]()
    for action, key, n_bytes in actions:
        if action == "put":
            lru.put(key, array(n_bytes))
            model.pop(key, None)
            model[key] = n_bytes
            while sum(model.values()) > 20:
                model.popitem(last=False)
        elif action == "get":
            kept = lru.get(key)
            assert (None if kept is None else kept.nbytes) == model.get(key)
            if key in model:
                model.move_to_end(key)
        elif action == "clear":
            lru.clear()
            model.clear()
        assert lru.has(range(5)) == [number in model for number in range(5)], "looking is no use"
        assert (lru.bytes, len(lru)) == (sum(model.values()), len(model))


def test_many_are_used_in_the_order_in_which_they_are_named() -> None:
    lru = ByteLru[str, Bytes](30)
    lru.put_many([(name, array(10)) for name in "abc"])
    assert [kept is not None for kept in lru.get_many("bxa")] == [True, False, True]
    lru.put("d", array(10))
    assert lru.has("abcd") == [True, True, False, True]
    lru.put("e", array(10))
    assert lru.has("abcde") == [True, False, False, True, True]


def test_an_array_above_the_bound_is_not_kept() -> None:
    lru = ByteLru[str, Bytes](10)
    lru.put("a", array(11))
    assert lru.get("a") is None and lru.bytes == len(lru) == 0


@pytest.mark.parametrize("bound", [64, 1000])
def test_threads_do_not_lose_count(bound: int) -> None:
    lru = ByteLru[int, Bytes](bound)

    def use(seed: int) -> None:
        for key, n_bytes in np.random.default_rng(seed).integers(0, 12, (500, 2)).tolist():
            lru.put(key, array(n_bytes))
            lru.get_many([key, key + 1])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert lru.bytes == sum(kept.nbytes for kept in lru.get_many(range(12)) if kept is not None) <= bound
