"""Gated attention MIL: the published equation by hand, exact centred evidence, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lrmil.core.models.mil import GatedAttentionMIL

seeds = st.integers(0, 10_000)


def seeded(seed: int, dim: int = 6, classes: int = 3, hidden: int = 5) -> GatedAttentionMIL:
    torch.manual_seed(seed)
    mil = GatedAttentionMIL(dim, classes, hidden)
    mil.set_standard(torch.randn(dim), torch.rand(dim) + 0.5)
    with torch.no_grad():
        mil.w.weight.mul_(5)  # attention that differs from patch to patch
    return mil.eval()


def instances(seed: int, count: int, dim: int = 6) -> torch.Tensor:
    return 2 * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_the_published_equation_on_a_tiny_bag_by_hand() -> None:
    """Two instances of two numbers, one gate unit: s_k = w·(tanh(V t_k) ⊙ σ(U t_k)), Z = Σ a_k t_k, WZ + b."""
    mil = GatedAttentionMIL(2, 2, 1)
    with torch.no_grad():
        mil.V.weight.copy_(torch.tensor([[1.0, -1.0]]))
        mil.V.bias.fill_(0.5)
        mil.U.weight.copy_(torch.tensor([[0.0, 2.0]]))
        mil.U.bias.fill_(-1.0)
        mil.w.weight.fill_(3.0)
        mil.classifier.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, -1.0]]))
        mil.classifier.bias.copy_(torch.tensor([0.1, -0.2]))
    mil.set_standard(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]))
    out = mil(torch.tensor([[3.0, 1.0], [1.0, -1.0]]))  # standardised: (1, 1) and (0, -1)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    s = [3 * math.tanh(1 - 1 + 0.5) * sigmoid(2 - 1), 3 * math.tanh(0 + 1 + 0.5) * sigmoid(-2 - 1)]
    a0 = math.exp(s[0]) / (math.exp(s[0]) + math.exp(s[1]))
    z = [a0 * 1 + (1 - a0) * 0, a0 * 1 + (1 - a0) * -1]
    assert out.scores.tolist() == pytest.approx(s, abs=1e-6)
    assert out.attention.tolist() == pytest.approx([a0, 1 - a0], abs=1e-6)
    assert out.bag.tolist() == pytest.approx(z, abs=1e-6)
    assert out.logits.tolist() == pytest.approx([z[0] + 0.1, 2 * z[0] - z[1] - 0.2], abs=1e-6)
    evidence = mil.evidence(torch.tensor([[3.0, 1.0], [1.0, -1.0]]), out.attention)
    centred = [[-0.5, 0.5], [0.5, -0.5]]  # w_c minus the mean (1.5, -0.5)
    by_hand = [[a * (w[0] * t[0] + w[1] * t[1]) for w in centred] for a, t in ((a0, (1, 1)), (1 - a0, (0, -1)))]
    np.testing.assert_allclose(evidence.detach().numpy(), by_hand, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_results_have_their_shapes_and_attention_sums_to_one(count: int) -> None:
    out = seeded(0)(instances(1, count))
    assert (out.logits.shape, out.bag.shape, out.attention.shape, out.scores.shape) == ((3,), (6,), (count,), (count,))
    assert out.attention.sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(out.attention, torch.softmax(out.scores, 0))


def test_scores_are_scores_and_attention_is_attention_not_the_bag() -> None:
    """The published code unpacks them in the wrong order; here they have names, and the bag is their weighted mean."""
    mil, x = seeded(1), instances(2, 7)
    out = mil(x)
    assert torch.allclose(out.bag, (out.attention[:, None] * mil.standardise(x)).sum(0), atol=1e-5)
    assert torch.allclose(out.logits, mil.classifier(out.bag))


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 40))
def test_the_order_of_patches_changes_nothing_but_the_order(seed: int, count: int) -> None:
    mil, x = seeded(seed), instances(seed + 1, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        straight, mixed = mil(x), mil(x[order])
        assert torch.allclose(mixed.attention, straight.attention[order], atol=1e-5)
        assert torch.allclose(mixed.logits, straight.logits, atol=1e-4)
        assert torch.allclose(
            mil.evidence(x[order], mixed.attention), mil.evidence(x, straight.attention)[order], atol=1e-4
        )


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 40), st.integers(2, 5))
def test_every_patch_several_times_over_shares_its_attention(seed: int, count: int, times: int) -> None:
    """The bag is a mean by attention: it does not grow with the number of patches."""
    mil, x = seeded(seed), instances(seed + 1, count)
    with torch.no_grad():
        once, often = mil(x), mil(x.repeat(times, 1))
    assert torch.allclose(often.attention, once.attention.repeat(times) / times, atol=1e-6)
    assert torch.allclose(often.scores, once.scores.repeat(times), atol=1e-5)
    assert torch.allclose(often.logits, once.logits, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 40), st.integers(1, 60), st.booleans())
def test_patches_without_attention_change_nothing(seed: int, count: int, padding: int, first: bool) -> None:
    """Dimension 0 opens one gate unit that takes 300 from the score: such rows fill a bag and leave the rest alone."""
    mil, x = seeded(seed), instances(seed + 1, count)
    mil.set_standard(torch.zeros(6), torch.ones(6))
    with torch.no_grad():
        for gate in (mil.V, mil.U):
            gate.weight[0] = torch.tensor([100.0, 0, 0, 0, 0, 0])
            gate.bias[0] = 0
        mil.w.weight[0, 0] = -300
        x[:, 0] = 0
        filler = instances(seed + 2, padding)
        filler[:, 0] = 1
        plain = mil(x)
        padded = mil(torch.cat([filler, x] if first else [x, filler]))
        kept = torch.arange(count) + (padding if first else 0)
        assert padded.attention.count_nonzero() == padded.attention[kept].count_nonzero() == count
        assert torch.allclose(padded.attention[kept], plain.attention, atol=1e-6)
        assert torch.allclose(padded.logits, plain.logits, atol=1e-5)
        assert torch.allclose(padded.bag, plain.bag, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 300))
def test_evidence_and_centred_bias_add_up_to_the_centred_logit(seed: int, count: int) -> None:
    mil, x = seeded(seed), instances(seed + 1, count)
    with torch.no_grad():
        out = mil(x)
        total = mil.evidence(x, out.attention).sum(0) + mil.centred_bias
    assert torch.allclose(total, out.logits - out.logits.mean(), atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(-20, 20))
def test_a_constant_added_to_all_logits_leaves_the_evidence(seed: int, constant: float) -> None:
    """Softmax does not see it, so neither may the evidence: added to every class's weights, or to every bias."""
    mil, x = seeded(seed), instances(seed + 1, 12)
    with torch.no_grad():
        out = mil(x)
        before, bias = mil.evidence(x, out.attention), mil.centred_bias.clone()
        mil.classifier.weight.add_(constant)
        mil.classifier.bias.add_(constant)
        assert torch.allclose(mil.evidence(x, out.attention), before, atol=1e-3)
        assert torch.allclose(mil.centred_bias, bias, atol=1e-4)
        shifted = mil(x)
        assert torch.allclose(torch.softmax(shifted.logits, 0), torch.softmax(out.logits, 0), atol=1e-3)


def test_evidence_is_centred_over_classes() -> None:
    mil, x = seeded(3), instances(4, 9)
    evidence = mil.evidence(x, mil(x).attention)
    assert torch.allclose(evidence.sum(dim=1), torch.zeros(9), atol=1e-5)


def test_instances_are_standardised_inside_and_the_statistics_travel() -> None:
    mil, x = seeded(5), instances(6, 4)
    plain = GatedAttentionMIL(6, 3, 5)
    plain.load_state_dict(mil.state_dict())
    assert torch.equal(plain(x).logits, mil(x).logits), "mean and deviation are part of the weights"
    plain.set_standard(torch.zeros(6), torch.ones(6))
    assert torch.allclose(plain((x - mil.mean) / mil.deviation).logits, mil(x).logits)


def test_gradients_reach_every_weight_from_the_logits() -> None:
    """A term whose gradient does not reach the MIL changes nothing at inference (Method 4)."""
    mil = seeded(7).train()
    mil(instances(8, 6)).logits[0].backward()
    for name, parameter in mil.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_large_scores_do_not_overflow() -> None:
    mil = seeded(9)
    with torch.no_grad():
        mil.w.weight.mul_(1e4)
    out = mil(instances(10, 50))
    assert torch.isfinite(out.attention).all() and out.attention.sum().item() == pytest.approx(1, abs=1e-5)
