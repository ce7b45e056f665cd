"""A bag part by part: the same answer as at once, whatever the parts; no more on the device than asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL, pool_bag
from napari_lrmil.core.models.pooling import CHUNK_ROWS, BagOutput, pool_instances

CPU = torch.device("cpu")
Pool = Callable[[GatedAttentionMIL, Any, int], BagOutput]


def by_torch(mil: GatedAttentionMIL, features: Any, chunk_rows: int = CHUNK_ROWS) -> BagOutput:
    return pool_bag(mil, features, CPU, chunk_rows)


def by_arrays(mil: GatedAttentionMIL, features: Any, chunk_rows: int = CHUNK_ROWS) -> BagOutput:
    return pool_instances(mil.weights(), features, chunk_rows)


both = pytest.mark.parametrize("pool", [by_torch, by_arrays])


def seeded(seed: int, sharpness: float = 5.0) -> GatedAttentionMIL:
    torch.manual_seed(seed)
    mil = GatedAttentionMIL(6, 3, 5)
    mil.set_standard(torch.randn(6), torch.rand(6) + 0.5)
    with torch.no_grad():
        mil.w.weight.mul_(sharpness)
    return mil.eval()


def some(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).normal(0, 2, (count, 6)).astype(np.float32)


@both
@given(seed=st.integers(0, 1000), count=st.integers(1, 90), chunk_rows=st.integers(1, 100), sharpness=st.floats(0, 200))
@settings(max_examples=60, deadline=None)
def test_part_by_part_is_the_whole(pool: Pool, seed: int, count: int, chunk_rows: int, sharpness: float) -> None:
    """Against the network itself on all instances, in double precision: also where one instance has all attention."""
    mil, features = seeded(seed, sharpness), some(seed, count)
    found = pool(mil, features, chunk_rows)
    whole = mil.double()
    instances = torch.from_numpy(features).double()
    with torch.inference_mode():
        out = whole(instances)
        evidence = whole.evidence(instances, out.attention)
    np.testing.assert_allclose(found.logits, out.logits, atol=1e-4 + 1e-6 * sharpness)
    np.testing.assert_allclose(found.attention, out.attention, atol=2e-6 * (1 + sharpness))
    np.testing.assert_allclose(found.scores, out.scores, rtol=1e-4, atol=1e-5 * (1 + sharpness))
    np.testing.assert_allclose(found.evidence, evidence, atol=2e-5 * (1 + sharpness))
    assert found.attention.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)


@both
@pytest.mark.parametrize("greatest_first", [True, False])
def test_a_greatest_score_that_comes_first_or_last(pool: Pool, greatest_first: bool) -> None:
    """What was summed before shrinks to nothing, and what comes after adds nothing: no overflow either way."""
    mil = seeded(3, 400.0)
    features = some(3, 50)
    order = np.argsort(pool(mil, features, CHUNK_ROWS).scores)
    features = features[order[::-1] if greatest_first else order]
    found, whole = pool(mil, features, 7), pool(mil, features, CHUNK_ROWS)
    np.testing.assert_allclose(found.logits, whole.logits, atol=1e-5)
    np.testing.assert_allclose(found.attention, whole.attention, atol=1e-6)
    assert found.attention.argmax() == (0 if greatest_first else 49)


def test_a_million_instances_pass_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty thousand are known by hand: the million is fifty copies, each with a fiftieth of the attention."""
    mil, once = seeded(1), some(1, 20_000)
    sizes: list[int] = []
    standardise = GatedAttentionMIL.standardise

    def counted(self: GatedAttentionMIL, instances: torch.Tensor) -> torch.Tensor:
        sizes.append(len(instances))
        return standardise(self, instances)

    monkeypatch.setattr(GatedAttentionMIL, "standardise", counted)
    many = np.broadcast_to(once, (50, *once.shape)).reshape(-1, 6)
    found = pool_bag(mil, many, CPU)
    assert max(sizes) == CHUNK_ROWS and sum(sizes) == 1_000_000
    alone = pool_bag(mil, once, CPU)
    np.testing.assert_allclose(found.logits, alone.logits, atol=1e-5)
    np.testing.assert_allclose(found.attention[:20_000] * 50, alone.attention, rtol=1e-4)
    np.testing.assert_allclose(found.evidence.sum(0, dtype=np.float64), alone.evidence.sum(0), atol=1e-4)


@both
def test_rows_come_straight_from_a_file(pool: Pool, tmp_path: Path) -> None:
    """A dataset that is never in memory as a whole."""
    features = some(2, 40)
    with h5py.File(tmp_path / "bag.h5", "w") as file:
        stored = file.create_dataset("features", data=features.astype(np.float16))
        found = pool(seeded(2), stored, 9)
    whole = pool(seeded(2), features.astype(np.float16), CHUNK_ROWS)
    np.testing.assert_allclose(found.attention, whole.attention, atol=1e-6)


def test_arrays_give_what_torch_gives() -> None:
    """A prediction pools in NumPy, training in torch: wide instances, as those of an encoder."""
    torch.manual_seed(4)
    mil = GatedAttentionMIL(1280, 2).eval()
    features = np.random.default_rng(4).normal(0, 1, (700, 1280)).astype(np.float32)
    expected, pooled = by_torch(mil, features), by_arrays(mil, features)
    for name in ("logits", "attention", "scores", "evidence"):
        np.testing.assert_allclose(getattr(pooled, name), getattr(expected, name), rtol=1e-5, atol=1e-6)


def test_the_weights_of_a_bundle_are_those_of_its_network() -> None:
    bundle = Bundle("demo")
    for stored, network in ((bundle.student_mil, bundle.student), (bundle.teacher_mil, bundle.teacher)):
        for field, values in vars(network.mil.weights()).items():
            np.testing.assert_array_equal(getattr(stored, field), values)
