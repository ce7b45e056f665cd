"""Draws of patches in stage 3, as a function of seed, epoch and slide."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from lrmil_training.config import Stage2Config
from lrmil_training.data.bags import BagItem
from lrmil_training.data.patch_pairs import SlideHandles
from lrmil_training.stages import end_to_end as stage3
from lrmil_training.stages.bag_fitting import label_loss
from lrmil_training.stages.end_to_end import DrawnBags, PixelBag, fit_end_to_end
from napari_lrmil.core.geometry import Int64


class Numbered:
    """A slide whose patches show their own number."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.item = BagItem(torch.empty(0), 0, torch.zeros(2), torch.arange(float(count)))

    def __len__(self) -> int:
        return self.count

    def read(self, handles: SlideHandles, rows: Int64) -> Tensor:
        return torch.from_numpy(rows).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def drawn(count: int, epoch: int = 0, **settings: Any) -> list[int]:
    """Return the numbers of the patches that are drawn, after checking that the teacher's scores go with them."""
    arguments: dict[str, Any] = {"max_patches": None, "augment": False, "seed": 3} | settings
    data = DrawnBags([cast(PixelBag, Numbered(count))], SlideHandles(), **arguments)
    data.epoch = epoch
    bag = data[0]
    numbers: list[int] = bag.pixels[:, 0, 0, 0].tolist()
    assert bag.item.teacher_scores.tolist() == numbers
    return numbers


def test_patch_dropout_leaves_out_a_share_anew_in_every_epoch() -> None:
    """All patches without it; the same draw for the same epoch; never an empty bag."""
    assert drawn(200) == list(range(200))
    draws = [drawn(200, epoch, dropout=0.4) for epoch in (0, 1)]
    assert all(90 < len(draw) < 150 for draw in draws)
    assert draws[0] != draws[1]
    assert draws[0] == drawn(200, 0, dropout=0.4)
    assert all(drawn(1, epoch, dropout=0.9) == [0] for epoch in range(9))


def test_patch_dropout_joins_the_draw_of_some() -> None:
    """A share of what was drawn."""
    assert len(drawn(200, max_patches=50)) == 50
    assert 15 < len(drawn(200, max_patches=50, dropout=0.5)) < 35


def test_stage_2_on_the_fly_heeds_its_patch_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training patches are left out, validation slides stay whole."""
    seen: dict[str, DrawnBags] = {}

    def fit(make: Any, plan: Any) -> Any:
        _, train, val = make()
        seen.update(train=train.dataset, val=val.dataset)
        raise InterruptedError
        yield

    monkeypatch.setattr(stage3, "fit", fit)
    bags = [cast(PixelBag, Numbered(5))]
    network = cast(Any, torch.nn.Linear(1, 1))
    plan = cast(Any, type("Plan", (), {"seed": 0, "patients": ()}))
    config = Stage2Config(features="on_the_fly", patch_dropout=0.3)
    stream = fit_end_to_end(
        (network, network), label_loss, {"train": bags, "val": bags}, config, plan, lr=1e-3, input_px=None
    )
    with pytest.raises(InterruptedError):
        next(stream)
    assert (seen["train"].dropout, seen["val"].dropout) == (0.3, 0.0)
    assert np.isclose(seen["train"].seed, 0)
