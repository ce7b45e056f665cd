"""Each fault of the published research code (Method 4) as a check that the faulty variant fails."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lrmil_training import losses
from lrmil_training.data.cohort import read_cohort
from lrmil_training.evaluation.metrics import Resampler, ScoredSlides, auroc_with_interval, multiclass_auroc
from lrmil_training.fitting.fit import SELECT, FitPlan, fit
from napari_lrmil.core.geometry import Bounds, Mpp, PatchPlan
from napari_lrmil.core.metrics.agreement import pool_to_lr_grid
from napari_lrmil.core.models.mil import GatedAttentionMIL, MilOutput
from napari_lrmil.core.patching.grid import build_nested_grid


def test_attention_and_bag_are_not_swapped() -> None:
    """The research code stores the pooled bag as attention: with 7 instances of width 5 the shapes alone tell."""
    torch.manual_seed(0)
    mil = GatedAttentionMIL(5, 2, hidden=4)
    out = mil(torch.randn(7, 5))
    swapped = MilOutput(out.logits, bag=out.attention, attention=out.bag, scores=out.scores)

    def holds(o: MilOutput) -> bool:
        return o.attention.shape == (7,) and bool(torch.isclose(o.attention.sum(), torch.tensor(1.0)))

    assert holds(out)
    assert not holds(swapped)
    assert torch.allclose(mil.classifier(out.bag), out.logits)


def test_attention_kl_does_not_fade_on_large_slides() -> None:
    """A slide four times as large with the same disagreement keeps its loss; ``batchmean`` divides it by 4."""
    teacher, student = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.0, 1.0, 0.5])

    def faulty(s: Tensor, t: Tensor, temperature: float) -> Tensor:
        given, target = torch.log_softmax(s / temperature, 0), torch.softmax(t / temperature, 0)
        return temperature**2 * functional.kl_div(given, target, reduction="batchmean")

    def keeps(loss: losses.AttentionTransfer | object) -> bool:
        small, large = (loss(student.repeat(k), teacher.repeat(k), 2.0) for k in (1, 4))  # type: ignore[operator]
        return bool(torch.isclose(small, large, rtol=1e-5))

    assert keeps(losses.attention_kl)
    assert not keeps(faulty)


def test_stage1_weights_are_probabilities_even_for_negative_scores() -> None:
    """Raw scores can be negative, then the research code turns to uniform weights; softmax of scores never does."""
    scores, present = torch.tensor([[-5.0, -1.0, -3.0, 9.0]]), torch.tensor([[True, True, True, False]])

    def faulty(s: Tensor, p: Tensor) -> Tensor:
        raw = s.masked_fill(~p, 0.0)
        return raw / raw.sum(-1, keepdim=True) if bool((raw >= 0).all()) else p / p.sum(-1, keepdim=True)

    def right(weigh: object) -> bool:
        w = weigh(scores, present)  # type: ignore[operator]
        return bool(w[0, 1] > w[0, 2] > w[0, 0] > 0 and w[0, 3] == 0 and torch.isclose(w.sum(), torch.tensor(1.0)))

    assert right(losses.children_weights)
    assert not right(faulty)


def test_stage1_weights_survive_underflow() -> None:
    """Probabilities of -200 and -201 underflow in float32 beside 0; their ratio within the parent is still e."""
    scores = torch.tensor([[-200.0, -201.0]])
    weights = losses.children_weights(scores, torch.ones(1, 2, dtype=torch.bool))
    assert weights[0, 0] / weights[0, 1] == pytest.approx(np.e, rel=1e-4)
    underflown = torch.softmax(torch.tensor([0.0, -200.0, -201.0]), 0)[1:]
    assert underflown.sum() == 0  # what a ratio of probabilities would have had to divide by


class _Overfits(L.LightningModule):
    """Training loss falls for ever; validation is best in the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = 10.0 - self.epoch
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log(SELECT, -(self.epoch - 2.0).square())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)  # one step an epoch: the weight counts epochs


def test_selection_is_by_validation_not_by_training_loss(tmp_path: Path) -> None:
    """The lowest training loss is in the last of five epochs; the state returned is that of the second."""
    data = DataLoader(torch.zeros(1, 1))
    plan = FitPlan("toy", 5, 5, 0, tmp_path, torch.device("cpu"))
    stream = fit(lambda: (_Overfits(), data, data), plan)
    events = []
    while True:
        try:
            events.append(next(stream))
        except StopIteration as end:
            state = end.value
            break
    assert state["epoch"] == 2.0
    assert len([e for e in events if type(e).__name__ == "Progress"]) == 5


def test_hard_loss_reaches_the_mil() -> None:
    """The research code's hard loss trains a classifier of its own; ours moves the weights that inference uses."""
    torch.manual_seed(0)
    mil, own = GatedAttentionMIL(5, 2, hidden=4), nn.Linear(5, 1)
    instances, teacher = torch.randn(9, 5), torch.randn(9)

    def moves(loss: Tensor) -> bool:
        mil.zero_grad()
        loss.backward()
        return mil.V.weight.grad is not None and bool(mil.V.weight.grad.abs().sum() > 0)

    assert moves(losses.hard_attention_loss(mil(instances).scores, teacher, 2))
    assert not moves(losses.hard_attention_loss(own(instances).squeeze(-1), teacher, 2))


def test_parent_scores_carry_probability_not_averaged_logits() -> None:
    """softmax(S) is the teacher's attention summed over children; mean logits with zeros for absent ones are not."""
    scores, parent = torch.tensor([3.0, -4.0, -4.0, 1.0]), torch.tensor([0, 0, 1, 1])
    wanted = torch.zeros(2).index_add(0, parent, torch.softmax(scores, 0))

    def faulty(s: Tensor, p: Tensor, parents: int) -> Tensor:
        return torch.zeros(parents).index_add(0, p, s) / 16  # as if all 16 cells of a parent held a patch

    def right(carry: object) -> bool:
        return bool(torch.allclose(torch.softmax(carry(scores, parent, 2), 0), wanted, atol=1e-6))  # type: ignore[operator]

    assert right(losses.parent_scores)
    assert not right(faulty)


@pytest.mark.parametrize(("mpp", "cell"), [(0.5, 256), (0.25, 512), (0.2649, 483)])
def test_links_hold_on_40x_slides(mpp: float, cell: int) -> None:
    """Geometry that assumes a 20x level 0 breaks every link on a 40x slide."""
    lattice = PatchPlan().lattice(Bounds(0, 0, 9 * cell, 6 * cell), Mpp(mpp, mpp))
    grid = build_nested_grid(lattice, np.ones((lattice.rows, lattice.columns), np.float32), 0.5)
    at_parent = grid.lr_corners[grid.parent]
    inside = (grid.hr_corners >= at_parent).all(1) & (grid.hr_corners + cell <= at_parent + 4 * cell).all(1)
    assert lattice.cell == (cell, cell)
    assert inside.all()
    assumed_20x = grid.hr_corners // (4 * 256) * (4 * 256)
    assert (mpp == 0.5) == bool((assumed_20x == at_parent).all())


def test_parents_are_arithmetic_not_a_search() -> None:
    """A million HR patches are linked without ever forming the 60-billion pairs that a search looks at."""
    lattice = PatchPlan().lattice(Bounds(0, 0, 1000 * 256, 1000 * 256), Mpp(0.5, 0.5))
    grid = build_nested_grid(lattice, np.ones((lattice.rows, lattice.columns), np.float32), 0.5)
    assert len(grid.hr_index) == 1_000_000
    assert len(grid.lr_index) == 62_500
    assert pool_to_lr_grid(grid, np.ones(1_000_000)).tolist() == [16.0] * 62_500


def test_undefined_metric_is_undefined_and_says_why() -> None:
    """One class only: the AUROC is None with a reason, never 0.0."""
    scored = ScoredSlides(np.array([[0.2, 0.8], [0.4, 0.6]]), np.array([1, 1]), ("a", "b"))
    auroc = auroc_with_interval(scored, Resampler(scored.targets, scored.patients, 100))
    assert multiclass_auroc(scored.probabilities, scored.targets) is None
    assert auroc["value"] is None
    assert "class is missing" in auroc["reason"]


def test_splits_go_by_patient_not_by_name(tmp_path: Path) -> None:
    """Six slides of three patients, names unrelated to them: dealt splits never part a patient."""
    rows = [(f"{'xyz'[i % 3]}{i}.tif", f"p{i // 4}", "ab"[i // 4 % 2]) for i in range(40)]
    table = tmp_path / "cohort.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("slide", "patient", "label"), *rows])
    for name, *_ in rows:
        (tmp_path / name).touch()
    sides: dict[str, set[str]] = {}
    for slide in read_cohort(table).slides:
        sides.setdefault(slide.patient, set()).add(slide.split)
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"train", "val", "test"}
    by_prefix = [{r[1] for r in rows if r[0][0] == prefix} for prefix in "xy"]
    assert by_prefix[0] & by_prefix[1]  # the research code's way puts patients on both sides
