"""A bag part by part: the same answer as at once, whatever the parts; no more on the device than asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lrmil.core.models.mil import GatedAttentionMIL, pool_bag
from napari_lrmil.core.models.pooling import CHUNK_ROWS

CPU = torch.device("cpu")


def seeded(seed: int, sharpness: float = 5.0) -> GatedAttentionMIL:
    torch.manual_seed(seed)
    mil = GatedAttentionMIL(6, 3, 5)
    mil.set_standard(torch.randn(6), torch.rand(6) + 0.5)
    with torch.no_grad():
        mil.w.weight.mul_(sharpness)
    return mil.eval()


def some(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).normal(0, 2, (count, 6)).astype(np.float32)


@given(seed=st.integers(0, 1000), count=st.integers(1, 90), chunk_rows=st.integers(1, 100), sharpness=st.floats(0, 200))
@settings(max_examples=60, deadline=None)
def test_part_by_part_is_the_whole(seed: int, count: int, chunk_rows: int, sharpness: float) -> None:
    """Against the network itself on all instances, in double precision: also where one instance has all attention."""
    mil, features = seeded(seed, sharpness), some(seed, count)
    found = pool_bag(mil, features, CPU, chunk_rows)
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


@pytest.mark.parametrize("greatest_first", [True, False])
def test_a_greatest_score_that_comes_first_or_last(greatest_first: bool) -> None:
    """What was summed before shrinks to nothing, and what comes after adds nothing: no overflow either way."""
    mil = seeded(3, 400.0)
    features = some(3, 50)
    order = np.argsort(pool_bag(mil, features, CPU).scores)
    features = features[order[::-1] if greatest_first else order]
    found, whole = pool_bag(mil, features, CPU, 7), pool_bag(mil, features, CPU)
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


def test_rows_come_straight_from_a_file(tmp_path: Path) -> None:
    """A dataset that is never in memory as a whole."""
    features = some(2, 40)
    with h5py.File(tmp_path / "bag.h5", "w") as file:
        stored = file.create_dataset("features", data=features.astype(np.float16))
        found = pool_bag(seeded(2), stored, CPU, 9)
    whole = pool_bag(seeded(2), features.astype(np.float16), CPU)
    np.testing.assert_allclose(found.attention, whole.attention, atol=1e-6)
