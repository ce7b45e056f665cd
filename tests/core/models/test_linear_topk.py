"""Linear top-k aggregator: by hand, the same in torch and NumPy, exact evidence, and through a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lrmil.core.encoders import AlignedEncoder, round_to_half
from napari_lrmil.core.errors import BundleError, EncoderError
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import CARD, README
from napari_lrmil.core.models.mil import LinearTopkMIL, build_mil, pool_bag
from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork, write_bundle
from napari_lrmil.core.models.pooling import LinearTopkWeights, pool_instances, top_count
from support.fake_slides import lively
from support.networks import untrained_encoder

CPU = torch.device("cpu")


def seeded(seed: int, top_share: float, dim: int = 6, classes: int = 3) -> LinearTopkMIL:
    torch.manual_seed(seed)
    mil = LinearTopkMIL(dim, classes, top_share)
    mil.set_standard(torch.randn(dim), torch.rand(dim) + 0.5)
    return mil.eval()


def test_a_tiny_bag_by_hand() -> None:
    """Four instances of one number, two classes, the top half: means of the two greatest scores of each class."""
    mil = LinearTopkMIL(1, 2, 0.5)
    with torch.no_grad():
        mil.classifier.weight.copy_(torch.tensor([[-1.0], [2.0]]))
        mil.classifier.bias.copy_(torch.tensor([0.5, 0.0]))
    out = mil(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    assert out.logits.tolist() == pytest.approx([(0 - 1) / 2 + 0.5, (4 + 6) / 2])
    p = 1 / (1 + np.exp(-5.0))  # of the second class
    scores = [r * (2 * p - (1 - p)) for r in range(4)]
    assert out.scores.tolist() == pytest.approx(scores, abs=1e-5)
    assert out.attention.tolist() == pytest.approx((np.exp(scores) / np.exp(scores).sum()).tolist(), abs=1e-6)
    evidence = mil.evidence(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), out.attention)
    raw = np.array([[0, 0], [-0.5, 0], [0, 2.0], [0, 3.0]])
    np.testing.assert_allclose(evidence.detach(), raw - raw.mean(1, keepdims=True), atol=1e-6)


@given(seed=st.integers(0, 999), count=st.integers(1, 60), share=st.floats(0.01, 1.0), chunk_rows=st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_arrays_in_parts_give_what_torch_gives_at_once(seed: int, count: int, share: float, chunk_rows: int) -> None:
    """Logits, attention, scores and evidence, and the evidence adds up to the centred logits."""
    mil, features = seeded(seed, share), np.random.default_rng(seed).normal(0, 2, (count, 6)).astype(np.float32)
    pooled = pool_instances(mil.weights(), features, chunk_rows)
    with torch.inference_mode():
        out = mil(torch.from_numpy(features))
        evidence = mil.evidence(torch.from_numpy(features), out.attention)
    for name in ("logits", "attention", "scores"):
        np.testing.assert_allclose(getattr(pooled, name), getattr(out, name), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled.evidence, evidence, rtol=1e-4, atol=1e-5)
    centred = pooled.logits - pooled.logits.mean()
    np.testing.assert_allclose(pooled.evidence.sum(0) + mil.centred_bias.detach().numpy(), centred, atol=1e-4)
    again = pool_bag(mil, features, CPU, chunk_rows)
    np.testing.assert_array_equal(again.evidence, pooled.evidence)
    assert int((pooled.evidence != 0).any(axis=1).sum()) <= 3 * top_count(share, count)


def test_every_weight_learns() -> None:
    mil, instances = seeded(1, 0.2), torch.randn(30, 6)
    torch.nn.functional.cross_entropy(mil(instances).logits, torch.tensor(1)).backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in mil.parameters())


def test_features_that_are_not_finite_are_refused() -> None:
    """A NaN would be sorted last, so that the top would hide it."""
    features = np.zeros((9, 6), np.float32)
    features[4, 2] = np.nan
    with pytest.raises(EncoderError, match="NaN or infinite"):
        pool_instances(seeded(1, 0.2).weights(), features)


def written(folder: Path) -> Bundle:
    encoder = lively(untrained_encoder())
    student = StudentNetwork(AlignedEncoder(encoder, 5), build_mil(5, 3, 64, 0.2))
    teacher = TeacherNetwork(lively(untrained_encoder(), 1), build_mil(encoder.dim, 3, 64, 0.3))
    for network in (student, teacher):
        round_to_half(network.eval())
    card: dict[str, Any] = {"name": "t", "classes": ("a", "b", "c"), "hr_mpp": 0.5, "lr_mpp": 2.0}
    return write_bundle(folder, card | {"hr_patch_px": 64, "lr_patch_px": 64}, student, teacher)


def test_a_bundle_keeps_the_aggregator(tmp_path: Path) -> None:
    """The same outputs by torch and without it; the card names the share for readers."""
    bundle = Bundle(written(tmp_path).path)
    for network, stored, share in (
        (bundle.student, bundle.student_mil, 0.2),
        (bundle.teacher, bundle.teacher_mil, 0.3),
    ):
        assert isinstance(network.mil, LinearTopkMIL) and isinstance(stored, LinearTopkWeights)
        assert network.mil.top_share == stored.top_share == share
        for field, values in vars(network.mil.weights()).items():
            np.testing.assert_array_equal(getattr(stored, field), values)
    assert "top 20% of the patches" in (tmp_path / README).read_text()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"top_share": None}, "linear_topk with top_share None"),
        ({"top_share": 1.5}, "top_share"),
        ({"aggregator": "gated_attention"}, "gated_attention with top_share"),
        ({"aggregator": "transmil"}, "aggregator"),
        ({"aggregator": "gated_attention", "top_share": None}, r"mil\.V\.weight is missing"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    written(tmp_path)
    content = json.loads((tmp_path / CARD).read_text())
    content["student"] |= change
    (tmp_path / CARD).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=match):
        _ = Bundle(tmp_path).student_mil
