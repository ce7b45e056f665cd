"""Losses against values computed by hand, with gradient checks."""

from __future__ import annotations

import math

import pytest
import torch

from lrmil_training import losses
from lrmil_training.bagfit import BagItem, distillation_loss
from lrmil_training.config import Stage2Config
from napari_lrmil.core.mil import MilOutput


def test_attention_weighted_term_by_hand() -> None:
    """Weights 0.25 and 0.75; squared distances per dimension 1 and 4: 0.25 * 1 + 0.75 * 4 = 3.25."""
    embedding = torch.tensor([[1.0, 1.0]])
    targets = torch.tensor([[[0.0, 2.0], [3.0, -1.0]]])
    assert losses.attention_weighted(embedding, targets, torch.tensor([[0.25, 0.75]])).item() == pytest.approx(3.25)


def test_layer_term_by_hand_leaves_absent_children_out() -> None:
    """Two of four children exist, mean squares 1 and 9: their mean is 5 whatever stands in the empty places."""
    projected = torch.tensor([[[1.0], [7.0], [3.0], [7.0]]])
    targets = torch.zeros(1, 4, 1)
    present = torch.tensor([[True, False, True, False]])
    assert losses.layer(projected, targets, present).item() == pytest.approx(5.0)


def test_blocks_average_the_tokens_of_each_child() -> None:
    """A 4 x 4 map and n = 2: four means of 2 x 2 blocks, row by row."""
    tokens = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert losses.blocks(tokens, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_a_map_too_coarse_is_resampled_to_the_cells() -> None:
    """A 2 x 2 map and n = 4: sixteen cells, corners equal to the map's."""
    tokens = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    cells = losses.blocks(tokens, 4).reshape(4, 4)
    assert cells.shape == (4, 4)
    assert [cells[0, 0].item(), cells[0, 3].item(), cells[3, 0].item(), cells[3, 3].item()] == [0.0, 1.0, 2.0, 3.0]


def test_bag_kl_by_hand() -> None:
    """Two classes, temperature 2: T² Σ p log(p / q)."""
    p, q = 1 / (1 + math.exp(-1.0)), 0.5  # teacher's logits differ by 2, the student's not at all
    wanted = 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / q))
    assert losses.bag_kl(torch.zeros(2), torch.tensor([2.0, 0.0]), 2.0).item() == pytest.approx(wanted, rel=1e-5)


def test_attention_kl_is_zero_only_for_equal_attention() -> None:
    """A constant added to the scores changes nothing; anything else costs."""
    scores = torch.tensor([1.0, -2.0, 0.5])
    assert losses.attention_kl(scores + 3.0, scores, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.attention_kl(-scores, scores, 2.0).item() > 0.1


@pytest.mark.parametrize(("how", "wanted"), [("mean", [0.0, 5.0]), ("max", [1.0, 5.0])])
def test_other_ways_to_carry_scores(how: losses.Transfer, wanted: list[float]) -> None:
    """The research code's two choices are options."""
    found = losses.parent_scores(torch.tensor([1.0, -1.0, 5.0]), torch.tensor([0, 0, 1]), 2, how)
    assert found.tolist() == wanted


def test_hard_term_by_hand() -> None:
    """Centred scores 1, 0, -1; top and bottom one: -log σ(1) on both sides."""
    found = losses.hard_attention(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([9.0, 5.0, 1.0]), 1)
    assert found.item() == pytest.approx(-math.log(1 / (1 + math.exp(-1.0))), rel=1e-5)


def test_hard_term_of_a_single_patch_is_nothing() -> None:
    """One patch has no bottom to stand against."""
    assert losses.hard_attention(torch.tensor([2.0]), torch.tensor([9.0]), 4).item() == 0.0


def _differentiable(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rand = {"a": (3, 4), "b": (3, 5, 4), "s": (6,), "t": (6,), "l": (3,)}
    return {k: torch.randn(*size, generator=draw, dtype=torch.float64, requires_grad=True) for k, size in rand.items()}


def test_gradients_are_those_of_the_formula() -> None:
    """Finite differences agree for every term."""
    x = _differentiable()
    weights = torch.full((3, 5), 0.2, dtype=torch.float64)
    teacher = x["t"].detach()
    parent = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda a: losses.attention_weighted(a, x["b"].detach(), weights), x["a"])
    assert torch.autograd.gradcheck(lambda b: losses.layer(b, torch.zeros_like(b), weights > 0), x["b"])
    assert torch.autograd.gradcheck(lambda s: losses.attention_kl(s, teacher, 2.0), x["s"])
    assert torch.autograd.gradcheck(lambda v: losses.bag_kl(v, teacher[:3], 2.0), x["l"])
    assert torch.autograd.gradcheck(lambda s: losses.parent_scores(s, parent, 3), x["s"])
    assert torch.autograd.gradcheck(lambda s: losses.hard_attention(s, teacher, 2), x["s"])


def test_stage2_adds_up_its_weighted_terms() -> None:
    """Each λ multiplies its own term; a term of weight 0 is not computed at all."""
    scores = torch.tensor([0.3, -0.2, 0.9, 0.0])
    output = MilOutput(torch.tensor([0.2, -0.1]), torch.zeros(3), torch.softmax(scores, 0), scores)
    item = BagItem(torch.zeros(4, 3), 1, torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    one = distillation_loss(Stage2Config(lambda_ce=1, lambda_bag=1, lambda_soft=1, lambda_hard=1))(output, item)
    more = distillation_loss(Stage2Config(lambda_ce=2, lambda_bag=3, lambda_soft=5, lambda_hard=0))(output, item)
    assert set(one) == {"ce", "bag", "soft", "hard"}
    assert set(more) == {"ce", "bag", "soft"}
    assert [more[k].item() / one[k].item() for k in ("ce", "bag", "soft")] == pytest.approx([2, 3, 5], rel=1e-5)
