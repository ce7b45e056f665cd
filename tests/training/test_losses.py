"""Losses against values computed by hand, with gradient checks."""

from __future__ import annotations

import math

import pytest
import torch

from lrmil_training import losses
from lrmil_training.config import Stage2Config
from lrmil_training.data.bags import BagItem
from lrmil_training.stages.bag_fitting import distillation_loss, label_loss
from napari_lrmil.core.models.mil import MilOutput


def test_children_weights_by_hand_leave_the_absent_child_out() -> None:
    """Scores log 1, log 3 and an absent one of any size: weights 1/4 and 3/4, whatever the third holds."""
    scores = torch.tensor([[0.0, math.log(3.0), 50.0]])
    weights = losses.children_weights(scores, torch.tensor([[True, True, False]]))
    assert weights.tolist()[0] == pytest.approx([0.25, 0.75, 0.0])


def test_a_negative_score_is_a_weight_all_the_same() -> None:
    """Scores of -log 4 and 0: 1/5 and 4/5; raw scores as weights would be negative (Method 4)."""
    scores = torch.tensor([[-math.log(4.0), 0.0]])
    assert losses.children_weights(scores, scores > -9).tolist()[0] == pytest.approx([0.2, 0.8])


def test_attention_weighted_term_by_hand() -> None:
    """Weights 0.25 and 0.75; squared distances per dimension 1 and 4: 0.25 * 1 + 0.75 * 4 = 3.25."""
    embedding = torch.tensor([[1.0, 1.0]])
    targets = torch.tensor([[[0.0, 2.0], [3.0, -1.0]]])
    assert losses.attention_weighted_loss(embedding, targets, torch.tensor([[0.25, 0.75]])).item() == pytest.approx(
        3.25
    )


def test_layer_term_by_hand_leaves_absent_children_out() -> None:
    """Two of four children exist, mean squares 1 and 9: their mean is 5 whatever stands in the empty places."""
    projected = torch.tensor([[[1.0], [7.0], [3.0], [7.0]]])
    targets = torch.zeros(1, 4, 1)
    present = torch.tensor([[True, False, True, False]])
    assert losses.layer_loss(projected, targets, present).item() == pytest.approx(5.0)


def test_both_stage_1_terms_are_means_over_the_batch() -> None:
    """Two LR patches, D = 2, terms 3.25 (above) and ((3 - 1)² + (0 - 0)²) / 2 = 2: their mean is 2.625."""
    embedding = torch.tensor([[1.0, 1.0], [3.0, 0.0]])
    targets = torch.tensor([[[0.0, 2.0], [3.0, -1.0]], [[1.0, 0.0], [9.0, 9.0]]])
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert losses.attention_weighted_loss(embedding, targets, weights).item() == pytest.approx(2.625)
    # children of patch 0: (1 + 4) / 2; of patch 1: its one child, 2; their mean is 2.25
    near = losses.layer_loss(embedding[:, None].expand(2, 2, 2), targets, weights > 0)
    assert near.item() == pytest.approx(2.25)


def test_blocks_average_the_tokens_of_each_child() -> None:
    """A 4 x 4 map and n = 2: four means of 2 x 2 blocks, row by row."""
    tokens = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert losses.child_blocks(tokens, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_blocks_of_a_map_that_is_just_fine_enough_along_one_side_are_means_too() -> None:
    """2 x 6 tokens and n = 2: each child has three tokens of a row, all of which count, not the middle one alone."""
    tokens = torch.tensor([[[[0.0, 1.0, 5.0, 3.0, 3.0, 9.0], [6.0, 0.0, 0.0, -3.0, 0.0, 9.0]]]])
    assert losses.child_blocks(tokens, 2).flatten().tolist() == pytest.approx([2.0, 5.0, 2.0, 2.0])
    assert losses.child_blocks(tokens.transpose(2, 3), 2).flatten().tolist() == pytest.approx([2.0, 2.0, 5.0, 2.0])


def test_a_map_too_coarse_is_resampled_to_the_cells() -> None:
    """A 2 x 2 map and n = 4: sixteen cells, corners equal to the map's."""
    tokens = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    cells = losses.child_blocks(tokens, 4).reshape(4, 4)
    assert cells.shape == (4, 4)
    assert [cells[0, 0].item(), cells[0, 3].item(), cells[3, 0].item(), cells[3, 3].item()] == [0.0, 1.0, 2.0, 3.0]
    # centres of four cells on two tokens lie at -0.25, 0.25, 0.75, 1.25; outside, the border token stands
    assert cells[0].tolist() == pytest.approx([0.0, 0.25, 0.75, 1.0])
    assert cells[:, 0].tolist() == pytest.approx([0.0, 0.5, 1.5, 2.0])


def test_bag_kl_by_hand() -> None:
    """Two classes, temperature 2: T² Σ p log(p / q)."""
    p, q = 1 / (1 + math.exp(-1.0)), 0.5  # teacher's logits differ by 2, the student's not at all
    wanted = 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / q))
    assert losses.bag_kl(torch.zeros(2), torch.tensor([2.0, 0.0]), 2.0).item() == pytest.approx(wanted, rel=1e-5)


def test_attention_kl_by_hand_is_a_sum_over_patches() -> None:
    """Temperature 2, p = (1/2, 1/4, 1/4), q = (1/3, 1/3, 1/3): 4 (1/2 log 3/2 + 2 · 1/4 log 3/4) = 4 · 0.058892."""
    teacher = 2 * torch.log(torch.tensor([2.0, 1.0, 1.0])) + 5.0
    kl = losses.attention_kl(torch.full((3,), -1.0), teacher, 2.0).item()
    assert kl == pytest.approx(4 * (0.5 * math.log(1.5) + 0.5 * math.log(0.75)), rel=1e-5)
    assert kl == pytest.approx(4 * 0.058892, rel=1e-4)


def test_attention_kl_is_zero_only_for_equal_attention() -> None:
    """A constant added to the scores changes nothing; anything else costs."""
    scores = torch.tensor([1.0, -2.0, 0.5])
    assert losses.attention_kl(scores + 3.0, scores, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.attention_kl(-scores, scores, 2.0).item() > 0.1


def test_logsumexp_carries_scores_by_hand() -> None:
    """Children of patch 0 have e^s of 1 and 3, the one of patch 1 has 4: S = log 4 and log 4, attention half each."""
    scores = torch.tensor([0.0, math.log(4.0), math.log(3.0)])
    carried = losses.parent_scores(scores, torch.tensor([0, 1, 0]), 2)
    assert carried.tolist() == pytest.approx([math.log(4.0), math.log(4.0)])
    assert torch.softmax(carried, 0).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(("how", "wanted"), [("mean", [0.0, 5.0]), ("max", [1.0, 5.0])])
def test_other_ways_to_carry_scores(how: losses.AttentionTransfer, wanted: list[float]) -> None:
    """The research code's two choices are options."""
    carried = losses.parent_scores(torch.tensor([1.0, -1.0, 5.0]), torch.tensor([0, 0, 1]), 2, how)
    assert carried.tolist() == wanted


@pytest.mark.parametrize("how", ["logsumexp", "mean", "max"])
def test_a_patch_without_children_has_no_share_in_any_way_to_carry_scores(how: losses.AttentionTransfer) -> None:
    """Its score is minus infinity, not 0, which among negative scores would be most of the attention."""
    carried = losses.parent_scores(torch.tensor([-5.0, -6.0]), torch.tensor([0, 2]), 3, how)
    assert carried.tolist() == [-5.0, -math.inf, -6.0]
    assert torch.softmax(carried, 0)[1].item() == 0.0


def test_hard_term_by_hand() -> None:
    """Centred scores 1, 0, -1; top and bottom one: -log σ(1) on both sides."""
    term = losses.hard_attention_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([9.0, 5.0, 1.0]), 1)
    assert term.item() == pytest.approx(-math.log(1 / (1 + math.exp(-1.0))), rel=1e-5)


def test_hard_term_takes_the_teacher_order_and_leaves_the_middle_out() -> None:
    """Student 4, 0, -1, 1, 1 less its mean 1: 3, -1, -2, 0, 0. Teacher's top two are patches 1, 3, its bottom two 0, 2.

    Top: softplus(1) and softplus(0); bottom: softplus(3) and softplus(-2); the mean of the four.
    """

    def softplus(x: float) -> float:
        return math.log(1 + math.exp(x))

    student, teacher = torch.tensor([4.0, 0.0, -1.0, 1.0, 1.0]), torch.tensor([1.0, 9.0, 0.0, 8.0, 5.0])
    wanted = (softplus(1) + softplus(0) + softplus(3) + softplus(-2)) / 4
    assert losses.hard_attention_loss(student, teacher, 2).item() == pytest.approx(wanted, rel=1e-5)
    assert losses.hard_attention_loss(student, teacher, 99).item() == pytest.approx(wanted, rel=1e-5), (
        "k is at most half"
    )


def test_label_term_by_hand() -> None:
    """Logits log 3 and 0: the probability of class 1 is 1/4, its cross-entropy log 4."""
    out = MilOutput(torch.tensor([math.log(3.0), 0.0]), torch.zeros(2), torch.ones(1), torch.zeros(1))
    assert label_loss(out, BagItem(torch.zeros(1, 2), 1))["ce"].item() == pytest.approx(math.log(4.0))


def test_hard_term_of_a_single_patch_is_nothing() -> None:
    """One patch has no bottom to stand against."""
    assert losses.hard_attention_loss(torch.tensor([2.0]), torch.tensor([9.0]), 4).item() == 0.0


def _differentiable(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rand = {"a": (3, 4), "b": (3, 5, 4), "c": (3, 5), "m": (1, 2, 4, 4), "s": (6,), "t": (6,), "l": (3,)}
    return {k: torch.randn(*size, generator=draw, dtype=torch.float64, requires_grad=True) for k, size in rand.items()}


def test_gradients_are_those_of_the_formula() -> None:
    """Finite differences agree for every term."""
    x = _differentiable()
    weights = torch.full((3, 5), 0.2, dtype=torch.float64)
    teacher = x["t"].detach()
    parent = torch.tensor([0, 0, 1, 1, 2, 2])
    present = torch.tensor([[True, False, True, True, False]]).expand(3, 5)
    assert torch.autograd.gradcheck(lambda a: losses.attention_weighted_loss(a, x["b"].detach(), weights), x["a"])
    assert torch.autograd.gradcheck(lambda b: losses.layer_loss(b, torch.zeros_like(b), present), x["b"])
    assert torch.autograd.gradcheck(lambda c: losses.children_weights(c, present), x["c"])
    assert torch.autograd.gradcheck(lambda m: losses.child_blocks(m, 2), x["m"])
    assert torch.autograd.gradcheck(lambda m: losses.child_blocks(m, 6), x["m"])
    assert torch.autograd.gradcheck(lambda s: losses.attention_kl(s, teacher, 2.0), x["s"])
    assert torch.autograd.gradcheck(lambda v: losses.bag_kl(v, teacher[:3], 2.0), x["l"])
    for how in ("logsumexp", "mean", "max"):
        assert torch.autograd.gradcheck(lambda s, how=how: losses.parent_scores(s, parent, 3, how), x["s"])
    assert torch.autograd.gradcheck(lambda s: losses.hard_attention_loss(s, teacher, 2), x["s"])


def test_stage2_adds_up_its_weighted_terms() -> None:
    """Each λ multiplies its own term; a term of weight 0 is not computed at all."""
    scores = torch.tensor([0.3, -0.2, 0.9, 0.0])
    output = MilOutput(torch.tensor([0.2, -0.1]), torch.zeros(3), torch.softmax(scores, 0), scores)
    item = BagItem(torch.zeros(4, 3), 1, torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    terms = distillation_loss(Stage2Config(lambda_ce=1, lambda_bag=1, lambda_soft=1, lambda_hard=1))(output, item)
    weighted = distillation_loss(Stage2Config(lambda_ce=2, lambda_bag=3, lambda_soft=5, lambda_hard=0))(output, item)
    assert set(terms) == {"ce", "bag", "soft", "hard"}
    assert set(weighted) == {"ce", "bag", "soft"}
    assert [weighted[k].item() / terms[k].item() for k in ("ce", "bag", "soft")] == pytest.approx([2, 3, 5], rel=1e-5)


def test_gradients_of_the_whole_stage_2_loss_are_those_of_its_formula() -> None:
    """Logits and scores together, every term with a weight and a temperature of its own."""
    x = _differentiable(1)
    config = Stage2Config(lambda_ce=0.7, lambda_bag=1.3, lambda_soft=0.4, lambda_hard=2.0, topk=2)
    item = BagItem(torch.zeros(6, 2), 2, torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64), x["t"].detach())

    def whole(logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        out = MilOutput(logits, torch.zeros(2), torch.softmax(scores, 0), scores)
        return torch.stack(list(distillation_loss(config)(out, item).values())).sum()

    assert torch.autograd.gradcheck(whole, (x["l"], x["s"]))


def test_the_whole_stage_2_loss_by_hand() -> None:
    """Two classes, two patches, temperatures 1: log 2 + 2 KL + 3 KL + 4 softplus(0), KL of (3/4, 1/4) to (½, ½)."""
    config = Stage2Config(
        lambda_ce=1, lambda_bag=2, lambda_soft=3, lambda_hard=4, temperature_bag=1, temperature_attn=1, topk=1
    )
    taught = torch.tensor([math.log(3.0), 0.0])
    out = MilOutput(torch.zeros(2), torch.zeros(1), torch.full((2,), 0.5), torch.zeros(2))
    terms = distillation_loss(config)(out, BagItem(torch.zeros(2, 1), 0, taught, taught))
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    wanted = math.log(2) + 2 * kl + 3 * kl + 4 * math.log(2)
    assert sum(v.item() for v in terms.values()) == pytest.approx(wanted, rel=1e-5)
