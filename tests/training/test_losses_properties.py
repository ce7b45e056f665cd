"""Properties of the losses: invariance to padding, order, constants and number of patches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrmil_training import losses
from lrmil_training.config import Stage2Config
from lrmil_training.data.bags import BagItem
from lrmil_training.stages.bag_fitting import distillation_loss
from napari_lrmil.core.models.mil import GatedAttentionMIL, MilOutput

seeds = st.integers(0, 2**31 - 1)
few = settings(deadline=None, max_examples=25)
KL = [losses.bag_kl, losses.attention_kl]
Kl = Callable[[Tensor, Tensor, float], Tensor]
temperatures = st.floats(0.5, 8)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


class Draw:
    """Float64 numbers that are a function of a seed."""

    def __init__(self, seed: int) -> None:
        self.source = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self.source, dtype=torch.float64)

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.source)

    def present(self, rows: int, children: int) -> Tensor:
        """Return (B, n²) with at least one true per row."""
        mask = torch.rand(rows, children, generator=self.source) < 0.5
        mask[torch.arange(rows), torch.randint(children, (rows,), generator=self.source)] = True
        return mask

    def parents(self, children: int, parents: int) -> Tensor:
        """Return (K,) parent of each child, in any order, none without a child."""
        extra = torch.randint(parents, (children - parents,), generator=self.source)
        return torch.cat([torch.arange(parents), extra])[self.order(children)]


def weighted(embedding: Tensor, targets: Tensor, scores: Tensor, present: Tensor) -> Tensor:
    """Return the attention term as stage 1 puts it together."""
    return losses.attention_weighted_loss(embedding, targets, losses.children_weights(scores, present))


# ---------------------------------------------------------------- children of an LR patch


@few
@given(seeds, st.integers(1, 4), st.integers(1, 16))
def test_children_that_there_are_share_one_and_the_others_have_nothing(seed: int, rows: int, children: int) -> None:
    draw = Draw(seed)
    scores, present = draw.normal(rows, children, scale=5), draw.present(rows, children)
    weights = losses.children_weights(scores, present)
    assert (weights[~present] == 0).all() and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(rows, dtype=torch.float64), **CLOSE)
    for row, mask in enumerate(present):
        torch.testing.assert_close(weights[row, mask], torch.softmax(scores[row, mask], 0), **CLOSE)


@few
@given(seeds, st.integers(1, 4), st.integers(1, 9), st.integers(1, 7), st.floats(-1e6, 1e6))
def test_places_without_a_child_change_nothing_in_stage_1(
    seed: int, rows: int, children: int, padding: int, rubbish: float
) -> None:
    """Two patches of a batch differ in children: what fills the gap may be any number, scores even NaN."""
    draw = Draw(seed)
    embedding, scores = draw.normal(rows, 3), draw.normal(rows, children)
    targets, projected = draw.normal(rows, children, 3), draw.normal(rows, children, 3)
    present = draw.present(rows, children)

    def padded(x: Tensor, value: float) -> Tensor:
        return torch.cat([x, torch.full((rows, padding, *x.shape[2:]), value, dtype=x.dtype)], dim=1)

    more = padded(present.double(), 0) > 0
    torch.testing.assert_close(
        weighted(embedding, padded(targets, rubbish), padded(scores, float("nan")), more),
        weighted(embedding, targets, scores, present),
        **CLOSE,
    )
    torch.testing.assert_close(
        losses.layer_loss(padded(projected, -rubbish), padded(targets, rubbish), more),
        losses.layer_loss(projected, targets, present),
        **CLOSE,
    )


@few
@given(seeds, st.integers(1, 4), st.integers(1, 16))
def test_the_order_of_children_and_of_patches_changes_no_stage_1_term(seed: int, rows: int, children: int) -> None:
    draw = Draw(seed)
    embedding, scores, present = draw.normal(rows, 3), draw.normal(rows, children), draw.present(rows, children)
    targets, projected = draw.normal(rows, children, 3), draw.normal(rows, children, 3)
    for pick in ((torch.arange(rows), draw.order(children)), (draw.order(rows), torch.arange(children))):
        r, c = pick[0], pick[1]
        torch.testing.assert_close(
            weighted(embedding[r], targets[r][:, c], scores[r][:, c], present[r][:, c]),
            weighted(embedding, targets, scores, present),
            **CLOSE,
        )
        torch.testing.assert_close(
            losses.layer_loss(projected[r][:, c], targets[r][:, c], present[r][:, c]),
            losses.layer_loss(projected, targets, present),
            **CLOSE,
        )


@few
@given(seeds, st.floats(-100, 100))
def test_a_constant_added_to_the_scores_of_a_patch_leaves_its_weights(seed: int, constant: float) -> None:
    draw = Draw(seed)
    scores, present = draw.normal(3, 9), draw.present(3, 9)
    torch.testing.assert_close(
        losses.children_weights(scores + constant, present), losses.children_weights(scores, present), **CLOSE
    )


@few
@given(seeds, st.integers(2, 6))
def test_equal_scores_make_the_attention_term_the_plain_mean(seed: int, children: int) -> None:
    """The control with uniform weights is this term with scores of 0."""
    draw = Draw(seed)
    embedding, targets, present = draw.normal(2, 4), draw.normal(2, children, 4), draw.present(2, children)
    uniform = weighted(embedding, targets, torch.zeros(2, children, dtype=torch.float64), present)
    broadcast = embedding[:, None].expand_as(targets)
    torch.testing.assert_close(uniform, losses.layer_loss(broadcast, targets, present), **CLOSE)


@few
@given(seeds, st.sampled_from([(2, 8, 8), (4, 16, 16), (4, 4, 4), (8, 16, 16), (2, 6, 4), (2, 2, 6), (4, 12, 4)]))
def test_block_means_keep_the_mean_of_the_map_and_the_place(seed: int, sizes: tuple[int, int, int]) -> None:
    """Child (i, j) sees its own block alone: rows go down and columns to the right, as the grid counts them."""
    n, height, width = sizes
    tokens = Draw(seed).normal(2, 3, height, width)
    cells = losses.child_blocks(tokens, n)
    assert cells.shape == (2, n * n, 3)
    torch.testing.assert_close(cells.mean(dim=1), tokens.mean(dim=(2, 3)), **CLOSE)
    bh, bw = height // n, width // n
    for i in range(n):
        for j in range(n):
            block = tokens[:, :, i * bh : (i + 1) * bh, j * bw : (j + 1) * bw]
            torch.testing.assert_close(cells[:, i * n + j], block.mean(dim=(2, 3)), **CLOSE)


# ---------------------------------------------------------------- teacher's scores carried to LR patches


@few
@given(seeds, st.integers(1, 12), st.integers(0, 60), st.floats(0.1, 30))
def test_logsumexp_carries_the_teacher_attention_exactly(seed: int, parents: int, extra: int, scale: float) -> None:
    """The softmax of S is the sum of the softmax over the children, patch for patch."""
    draw = Draw(seed)
    scores, parent = draw.normal(parents + extra, scale=scale), draw.parents(parents + extra, parents)
    carried = torch.softmax(losses.parent_scores(scores, parent, parents), 0)
    summed = torch.zeros(parents, dtype=torch.float64).index_add(0, parent, torch.softmax(scores, 0))
    torch.testing.assert_close(carried, summed, rtol=1e-9, atol=1e-12)


@few
@given(seeds, st.integers(1, 8), st.integers(0, 30), st.sampled_from(["logsumexp", "mean", "max"]))
def test_carried_scores_follow_order_and_constant(
    seed: int, parents: int, extra: int, transfer: losses.AttentionTransfer
) -> None:
    """Children in another order: the same; patches renamed: renamed; a constant on all of them comes through."""
    draw = Draw(seed)
    count = parents + extra
    scores, parent, names = draw.normal(count), draw.parents(count, parents), draw.order(parents)
    plain = losses.parent_scores(scores, parent, parents, transfer)
    order = draw.order(count)
    shuffled = losses.parent_scores(scores[order] + 7.0, names[parent[order]], parents, transfer)
    torch.testing.assert_close(shuffled[names], plain + 7.0, **CLOSE)


@few
@given(seeds, st.integers(1, 8), st.integers(0, 30))
def test_the_three_ways_to_carry_scores_are_bounds_of_each_other(seed: int, parents: int, extra: int) -> None:
    """Mean ≤ max ≤ logsumexp ≤ max + log of the number of children."""
    draw = Draw(seed)
    scores, parent = draw.normal(parents + extra), draw.parents(parents + extra, parents)
    mean, top, total = (losses.parent_scores(scores, parent, parents, how) for how in ("mean", "max", "logsumexp"))
    children = torch.bincount(parent, minlength=parents)
    assert (mean <= top + 1e-12).all() and (top <= total + 1e-12).all()
    assert (total <= top + torch.log(children) + 1e-12).all()


# ---------------------------------------------------------------- divergences of a slide


@pytest.mark.parametrize("term", KL)
@few
@given(seeds, st.integers(1, 50), temperatures)
def test_divergence_is_never_negative_and_zero_at_equality(term: Kl, seed: int, count: int, t: float) -> None:
    draw = Draw(seed)
    student, teacher = draw.normal(count, scale=3), draw.normal(count, scale=3)
    assert term(student, teacher, t).item() >= -1e-12 * t**2
    assert term(teacher.clone(), teacher, t).item() == pytest.approx(0, abs=1e-12 * t**2)


@pytest.mark.parametrize("term", KL)
@few
@given(seeds, st.integers(2, 50), temperatures)
def test_divergence_is_the_sum_written_out(term: Kl, seed: int, count: int, t: float) -> None:
    """T² Σ p (log p − log q), with both sides at the same temperature and no division by the number of patches."""
    draw = Draw(seed)
    student, teacher = draw.normal(count), draw.normal(count)
    p, q = torch.softmax(teacher / t, 0), torch.softmax(student / t, 0)
    torch.testing.assert_close(term(student, teacher, t), t**2 * (p * (p / q).log()).sum(), **CLOSE)


@pytest.mark.parametrize("term", KL)
@few
@given(seeds, st.integers(1, 30), temperatures, st.floats(-50, 50), st.floats(-50, 50))
def test_constants_and_order_change_no_divergence(
    term: Kl, seed: int, count: int, t: float, shift: float, teacher_shift: float
) -> None:
    draw = Draw(seed)
    student, teacher, order = draw.normal(count), draw.normal(count), draw.order(count)
    torch.testing.assert_close(
        term(student[order] + shift, teacher[order] + teacher_shift, t),
        term(student, teacher, t),
        rtol=1e-7,
        atol=1e-10,
    )


@few
@given(seeds, st.integers(2, 30), st.integers(2, 20))
def test_the_attention_term_does_not_fade_on_a_larger_slide(seed: int, count: int, times: int) -> None:
    """Every patch `times` over: attention is spread, its disagreement stays; a mean over patches would divide it."""
    draw = Draw(seed)
    student, teacher = draw.normal(count), draw.normal(count)
    torch.testing.assert_close(
        losses.attention_kl(student.repeat(times), teacher.repeat(times), 2.0),
        losses.attention_kl(student, teacher, 2.0),
        **CLOSE,
    )


@few
@given(seeds, st.integers(2, 20), st.integers(1, 200))
def test_patches_that_neither_side_attends_to_change_nothing(seed: int, count: int, more: int) -> None:
    draw = Draw(seed)
    student, teacher, nothing = draw.normal(count), draw.normal(count), torch.full((more,), -1e4, dtype=torch.float64)
    torch.testing.assert_close(
        losses.attention_kl(torch.cat([student, nothing]), torch.cat([teacher, nothing]), 2.0),
        losses.attention_kl(student, teacher, 2.0),
        **CLOSE,
    )


@few
@given(seeds, st.integers(2, 20), st.sampled_from(["logsumexp", "mean", "max"]))
def test_an_lr_patch_without_a_child_has_no_attention(
    seed: int, parents: int, transfer: losses.AttentionTransfer
) -> None:
    """Its score is minus infinity, its share 0: the term is that of the other patches, plus what the student wastes."""
    draw = Draw(seed)
    student, scores, parent = draw.normal(parents + 1), draw.normal(parents + 5), draw.parents(parents + 5, parents)
    teacher = losses.parent_scores(scores, parent, parents + 1, transfer)
    assert torch.isneginf(teacher[-1]) and torch.isfinite(teacher[:-1]).all()
    student.requires_grad_()
    value = losses.attention_kl(student, teacher, 2.0)
    p, log_q = torch.softmax(teacher[:-1] / 2, 0), torch.log_softmax(student / 2, 0)[:-1]
    torch.testing.assert_close(value, 4 * (p * (p.log() - log_q)).sum(), **CLOSE)
    value.backward()
    assert student.grad is not None and torch.isfinite(student.grad).all() and student.grad[-1] > 0


@few
@given(seeds, st.integers(2, 30))
def test_the_soft_gradient_is_the_difference_of_the_two_attentions(seed: int, count: int) -> None:
    """It is T (q − p) for each patch: T² keeps its size when the temperature is raised."""
    draw = Draw(seed)
    student, teacher = draw.normal(count).requires_grad_(), draw.normal(count)
    losses.attention_kl(student, teacher, 2.0).backward()
    wanted = 2.0 * (torch.softmax(student.detach() / 2, 0) - torch.softmax(teacher / 2, 0))
    torch.testing.assert_close(student.grad, wanted, **CLOSE)


# ---------------------------------------------------------------- hard term


@few
@given(seeds, st.integers(2, 40), st.integers(1, 10), st.floats(-50, 50))
def test_the_hard_term_sees_neither_order_nor_constant(seed: int, count: int, k: int, constant: float) -> None:
    draw = Draw(seed)
    student, teacher, order = draw.normal(count), draw.normal(count), draw.order(count)
    torch.testing.assert_close(
        losses.hard_attention_loss(student[order] + constant, 3 * teacher[order] - 1, k),
        losses.hard_attention_loss(student, teacher, k),
        **CLOSE,
    )


@few
@given(seeds, st.integers(2, 40), st.integers(1, 50))
def test_the_hard_term_pulls_the_top_up_and_the_bottom_down(seed: int, count: int, k: int) -> None:
    """Its gradient, less its mean, is negative on the teacher's top k and positive on its bottom k; it sums to 0."""
    draw = Draw(seed)
    student, teacher = draw.normal(count).requires_grad_(), draw.normal(count)
    losses.hard_attention_loss(student, teacher, k).backward()
    assert student.grad is not None
    assert student.grad.sum().item() == pytest.approx(0, abs=1e-12)
    used, order = min(k, count // 2), torch.argsort(teacher, descending=True)
    centre = student.grad[order[used]].item() if 2 * used < count else 0.0
    if 2 * used < count:
        assert (student.grad[order[:used]] < centre).all() and (student.grad[order[-used:]] > centre).all()
        torch.testing.assert_close(
            student.grad[order[used:-used]], torch.full((count - 2 * used,), centre, dtype=torch.float64), **CLOSE
        )
    else:
        assert student.grad[order[:used]].mean() < student.grad[order[-used:]].mean()


@few
@given(seeds, st.integers(2, 20), st.integers(2, 20))
def test_the_hard_term_has_no_part_for_the_size_of_the_slide(seed: int, count: int, times: int) -> None:
    """Every patch `times` over and k times as many of them: the same value."""
    draw = Draw(seed)
    student, teacher = draw.normal(count), draw.normal(count)
    k = max(1, count // 3)
    torch.testing.assert_close(
        losses.hard_attention_loss(student.repeat(times), teacher.repeat(times), k * times),
        losses.hard_attention_loss(student, teacher, k),
        **CLOSE,
    )


# ---------------------------------------------------------------- extremes


def _every_term(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Return all that is computed from (8,) scores, as numbers that have a gradient."""
    parent, present = torch.arange(8) // 2, (torch.arange(8) % 3 > 0)[None]
    targets = torch.arange(16.0).reshape(1, 8, 2)
    ways: tuple[losses.AttentionTransfer, ...] = ("logsumexp", "mean", "max")
    return {
        "soft": losses.attention_kl(student, teacher, 2.0),
        "bag": losses.bag_kl(student[:3], teacher[:3], 2.0),
        "hard": losses.hard_attention_loss(student, teacher, 2),
        "children": weighted(torch.ones(1, 2), targets, student[None], present),
        **{how: losses.parent_scores(student, parent, 4, how).sum() for how in ways},
    }


@pytest.mark.parametrize("size", [1.0, 1e4])
@few
@given(seeds, st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=16, max_size=16))
def test_large_float32_scores_give_finite_values_and_gradients(size: float, seed: int, sides: list[float]) -> None:
    """Scores of ±10,000 are far beyond what an exponential bears in float32."""
    scores = size * torch.tensor(sides).reshape(2, 8) + Draw(seed).normal(2, 8).float()
    student, teacher = scores[0].clone().requires_grad_(), scores[1]
    for name, value in _every_term(student, teacher).items():
        assert torch.isfinite(value), name
        (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
        assert torch.isfinite(gradient).all(), name


def test_far_scores_cost_their_distance() -> None:
    """Teacher all on the first patch, student all on the second, 10,000 apart: T² * 10,000 / T at temperature 2."""
    teacher, student = torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4])
    assert losses.attention_kl(student, teacher, 2.0).item() == pytest.approx(2e4)
    assert losses.attention_kl(teacher, teacher, 2.0).item() == 0.0
    assert losses.hard_attention_loss(student, teacher, 1).item() == pytest.approx(5e3)


# ---------------------------------------------------------------- what reaches the MIL


def _mil_and_item(seed: int, count: int = 9) -> tuple[GatedAttentionMIL, BagItem]:
    torch.manual_seed(seed)
    mil = GatedAttentionMIL(5, 3, 4)
    draw = Draw(seed)
    scores, logits = draw.normal(count).float(), draw.normal(3).float()
    return mil, BagItem(2 * draw.normal(count, 5).float(), 1, logits, scores)


REACHED = {
    "ce": {"V.weight", "U.weight", "w.weight", "classifier.weight"},
    "bag": {"V.weight", "U.weight", "w.weight", "classifier.weight"},
    "soft": {"V.weight", "U.weight", "w.weight"},
    "hard": {"V.weight", "U.weight", "w.weight"},
}


@pytest.mark.parametrize("name", REACHED)
@few
@given(seeds)
def test_each_term_alone_is_there_alone_and_reaches_its_weights(name: str, seed: int) -> None:
    """The published hard loss trained a classifier of its own and changed nothing that inference uses; ours does."""
    mil, item = _mil_and_item(seed)
    off = {"lambda_ce": 0.0, "lambda_bag": 0.0, "lambda_soft": 0.0, "lambda_hard": 0.0}
    terms = distillation_loss(Stage2Config(**off | {f"lambda_{name}": 1.0}))(mil(item.instances), item)
    assert set(terms) == {name}
    terms[name].backward()
    moved = {key for key, p in mil.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {key for key in moved if key.endswith("weight")} == REACHED[name]


@few
@given(seeds, *[st.sampled_from([0.0, 0.5, 1.0, 3.0])] * 4)
def test_the_composition_is_the_weighted_sum_of_the_terms(
    seed: int, ce: float, bag: float, soft: float, hard: float
) -> None:
    """λ multiplies its own term, at that term's temperature; 0 leaves it out, and with it what it would need."""
    given_weights = {"ce": ce, "bag": bag, "soft": soft, "hard": hard}
    assume(any(given_weights.values()))  # nothing to learn from is refused
    mil, item = _mil_and_item(seed)
    config = Stage2Config(
        **{f"lambda_{k}": v for k, v in given_weights.items()}, temperature_bag=1.5, temperature_attn=3.0, topk=2
    )
    with torch.no_grad():
        out = mil(item.instances)
        terms = distillation_loss(config)(out, item)
    wanted = {
        "ce": -torch.log_softmax(out.logits, 0)[item.target],
        "bag": losses.bag_kl(out.logits, item.teacher_logits, 1.5),
        "soft": losses.attention_kl(out.scores, item.teacher_scores, 3.0),
        "hard": losses.hard_attention_loss(out.scores, item.teacher_scores, 2),
    }
    assert set(terms) == {k for k, v in given_weights.items() if v > 0}
    for k, value in terms.items():
        torch.testing.assert_close(value, given_weights[k] * wanted[k], rtol=1e-5, atol=1e-6)


def test_labels_alone_need_no_teacher() -> None:
    """With every term of the teacher off, a slide without a teacher will do."""
    out = MilOutput(torch.tensor([0.0, 0.0]), torch.zeros(2), torch.ones(1), torch.zeros(1))
    only = Stage2Config(lambda_ce=1, lambda_bag=0, lambda_soft=0, lambda_hard=0)
    terms = distillation_loss(only)(out, BagItem(torch.zeros(1, 2), 0))
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({"ce": 0.6931472})
