"""Our gated attention MIL against torchmil's, written by others from the same paper, with the same weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmil.models import ABMIL
from torchmil.nn import masked_softmax

from napari_lrmil.core.models.mil import GatedAttentionMIL

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
seeds = st.integers(0, 2**31 - 1)
counts = st.integers(1, 60)


def ours(seed: int, dim: int, classes: int, hidden: int) -> GatedAttentionMIL:
    """Return our MIL with statistics that are not trivial and attention that is not flat."""
    torch.manual_seed(seed)
    mil = GatedAttentionMIL(dim, classes, hidden)
    mil.set_standard(torch.randn(dim), torch.rand(dim) + 0.5)
    with torch.no_grad():
        mil.w.weight.mul_(4)
    return mil.eval()


def theirs(mil: GatedAttentionMIL) -> ABMIL:
    """Return torchmil's with the weights of ours; its head of one output gives way to one of as many as ours has."""
    witness = ABMIL(in_shape=(mil.dim,), att_dim=mil.hidden, att_act="tanh", gated=True)
    witness.classifier = nn.Linear(mil.dim, mil.classes)
    pairs = [
        (witness.pool.fc1.module, mil.V),
        (witness.pool.fc_gated.module, mil.U),
        (witness.pool.fc2, mil.w),
        (witness.classifier, mil.classifier),
    ]
    for to, source in pairs:
        to.load_state_dict(source.state_dict())
    return witness.eval()


def bag(seed: int, count: int, dim: int) -> Tensor:
    return 2 * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_every_weight_of_the_witness_is_one_of_ours() -> None:
    """No weight stays as it was drawn: the two hold the same numbers."""
    mil = ours(0, 6, 3, 5)
    same = {
        "pool.fc1.module": "V",
        "pool.fc_gated.module": "U",
        "pool.fc2": "w",
        "classifier": "classifier",
    }
    found, wanted = theirs(mil).state_dict(), mil.state_dict()
    assert len(found) == len(wanted) - 2, "all but mean and deviation"
    for name, value in found.items():
        layer, _, kind = name.rpartition(".")
        assert torch.equal(value, wanted[f"{same[layer]}.{kind}"]), name


@settings(deadline=None, max_examples=50)
@given(seeds, counts, st.integers(1, 24), st.integers(2, 6), st.integers(1, 16))
@torch.no_grad()
def test_scores_attention_bag_and_logits_agree(seed: int, count: int, dim: int, classes: int, hidden: int) -> None:
    mil, x = ours(seed, dim, classes, hidden), bag(seed, count, dim)
    out, witness = mil(x), theirs(mil)
    standardised = mil.standardise(x)[None]  # (1, N, D)
    logits, scores = witness(standardised, return_att=True)
    torch.testing.assert_close(out.scores, scores[0], **CLOSE)
    torch.testing.assert_close(out.attention, masked_softmax(scores)[0], **CLOSE)
    torch.testing.assert_close(out.bag, witness.pool(standardised)[0], **CLOSE)
    torch.testing.assert_close(out.logits, logits.reshape(classes), **CLOSE)


@settings(deadline=None, max_examples=30)
@given(seeds, st.lists(counts, min_size=2, max_size=5))
@torch.no_grad()
def test_bag_by_bag_is_the_witness_on_a_padded_batch(seed: int, sizes: list[int]) -> None:
    """We pool one bag at a time, torchmil a batch filled up with rubbish and masked: the same to each bag."""
    mil = ours(seed, 7, 3, 5)
    witness, bags = theirs(mil), [bag(seed + i, n, 7) for i, n in enumerate(sizes)]
    batch, mask = torch.full((len(sizes), max(sizes), 7), 1e3), torch.zeros(len(sizes), max(sizes))
    for row, x in enumerate(bags):
        batch[row, : len(x)], mask[row, : len(x)] = mil.standardise(x), 1
    logits, scores = witness(batch, mask, return_att=True)
    attention = masked_softmax(scores, mask)
    for row, x in enumerate(bags):
        out = mil(x)
        torch.testing.assert_close(out.logits, logits[row], **CLOSE)
        torch.testing.assert_close(out.attention, attention[row, : len(x)], **CLOSE)


@settings(deadline=None, max_examples=30)
@given(seeds, counts)
@torch.no_grad()
def test_two_classes_are_the_witness_with_its_own_single_output(seed: int, count: int) -> None:
    """The witness's own head has one logit: that of class 1 less that of class 0."""
    mil, x = ours(seed, 6, 2, 5), bag(seed, count, 6)
    witness = theirs(mil)
    witness.classifier = nn.Linear(6, 1)
    witness.classifier.weight.copy_(mil.classifier.weight[1:] - mil.classifier.weight[:1])
    witness.classifier.bias.copy_(mil.classifier.bias[1:] - mil.classifier.bias[:1])
    logit = witness(mil.standardise(x)[None])
    positive = torch.softmax(mil(x).logits, dim=0)[1]
    torch.testing.assert_close(positive, torch.sigmoid(logit)[0], **CLOSE)


def test_gradients_agree() -> None:
    """Training sees the same function: every weight gets the same gradient from the same label."""
    mil, x = ours(3, 6, 3, 5), bag(4, 20, 6)
    witness, label = theirs(mil), torch.tensor([2])
    nn.functional.cross_entropy(mil(x).logits[None], label).backward()
    nn.functional.cross_entropy(witness(mil.standardise(x)[None]), label).backward()
    pairs = [
        (mil.V.weight, witness.pool.fc1.module.weight),
        (mil.U.bias, witness.pool.fc_gated.module.bias),
        (mil.w.weight, witness.pool.fc2.weight),
        (mil.classifier.weight, witness.classifier.weight),
    ]
    for one, other in pairs:
        assert one.grad is not None and one.grad.abs().sum() > 0
        torch.testing.assert_close(one.grad, other.grad, **CLOSE)


@pytest.mark.parametrize("swapped", [("V", "U"), ("U", "V")])
def test_the_witness_would_notice_a_swapped_gate(swapped: tuple[str, str]) -> None:
    """Tanh of U and sigmoid of V is another function: what agrees above is not agreement of anything with anything."""
    mil, x = ours(5, 6, 3, 5), bag(6, 20, 6)
    witness = theirs(mil)
    getattr(mil, swapped[0]).load_state_dict({k: v.clone() for k, v in getattr(mil, swapped[1]).state_dict().items()})
    scores = witness(mil.standardise(x)[None], return_att=True)[1][0]
    assert (mil(x).scores - scores).abs().max() > 1e-2
