"""Fitting a MIL on bags: teacher, stage 2 and the labels-only baseline differ in their losses alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from lrmil_training.config import Stage2Config, TeacherConfig
from lrmil_training.fitting import SELECT, FitPlan, fit, require_finite
from lrmil_training.losses import attention_kl, bag_kl, hard_attention
from lrmil_training.metrics import ranking_auroc
from napari_lrmil.core.events import Event
from napari_lrmil.core.mil import GatedAttentionMil, MilOutput

NOT_YET = -1.0  # selection figure of epochs before the least number of them; below any that counts


@dataclass(frozen=True)
class BagItem:
    """One slide as a MIL sees it in training.

    Attributes
    ----------
    instances
        (N, D) float32.
    target
        Index of the class.
    teacher_logits
        (C,) where the teacher teaches.
    teacher_scores
        (N,) its scores carried to these instances.
    """

    instances: Tensor
    target: int
    teacher_logits: Tensor = field(default_factory=lambda: torch.empty(0))
    teacher_scores: Tensor = field(default_factory=lambda: torch.empty(0))

    def to(self, device: torch.device) -> BagItem:
        """Return the item on another device, as Lightning asks for it."""
        taught = self.teacher_logits.to(device), self.teacher_scores.to(device)
        return BagItem(self.instances.to(device), self.target, *taught)


Loss = Callable[[MilOutput, BagItem], Mapping[str, Tensor]]  # term -> weighted value


def label_loss(output: MilOutput, item: BagItem) -> Mapping[str, Tensor]:
    """Return cross-entropy with the slide's label: all that the teacher and the labels-only baseline learn from."""
    return {"ce": functional.cross_entropy(output.logits, torch.tensor(item.target, device=output.logits.device))}


def distillation_loss(config: Stage2Config) -> Loss:
    """Return ``L_stage2 = λ_ce L_pre + λ_bag L_bag + λ_soft L_soft + λ_hard L_hard`` (docs/method.md 2.5)."""

    def loss(output: MilOutput, item: BagItem) -> Mapping[str, Tensor]:
        terms = {}
        if config.lambda_ce > 0:
            terms["ce"] = config.lambda_ce * label_loss(output, item)["ce"]
        if config.lambda_bag > 0:
            terms["bag"] = config.lambda_bag * bag_kl(output.logits, item.teacher_logits, config.temperature_bag)
        if config.lambda_soft > 0:
            kl = attention_kl(output.scores, item.teacher_scores, config.temperature_attn)
            terms["soft"] = config.lambda_soft * kl
        if config.lambda_hard > 0:
            terms["hard"] = config.lambda_hard * hard_attention(output.scores, item.teacher_scores, config.topk)
        return terms

    return loss


class _Items(Dataset[BagItem]):
    def __init__(self, items: Sequence[BagItem]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> BagItem:
        return self.items[index]


class BagFitting(L.LightningModule):
    """Lightning's view of a MIL: one bag a step, selection by validation AUROC, ties by cross-entropy."""

    def __init__(self, mil: GatedAttentionMil, loss: Loss, config: TeacherConfig | Stage2Config) -> None:
        super().__init__()
        self.mil, self.loss, self.config = mil, loss, config
        self._seen: list[tuple[Tensor, int]] = []

    def training_step(self, item: BagItem, index: int) -> Tensor:
        """Return the weighted sum of the loss terms of one bag."""
        terms = self.loss(self.mil(item.instances), item)
        for name, value in terms.items():
            require_finite(name, value, index)
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, batch_size=1)
        return torch.stack(list(terms.values())).sum()

    def validation_step(self, item: BagItem, index: int) -> None:
        """Keep what the MIL says of one bag."""
        self._seen.append((self.mil(item.instances).logits, item.target))

    def on_validation_epoch_end(self) -> None:
        """Log AUROC, cross-entropy and the selection figure."""
        logits = torch.stack([seen for seen, _ in self._seen]).float().cpu()
        targets = torch.tensor([target for _, target in self._seen])
        self._seen.clear()
        ce = float(functional.cross_entropy(logits, targets))
        value = ranking_auroc(torch.softmax(logits, dim=1).numpy(), targets.numpy())
        auroc = float("nan") if value is None else value  # cohorts with a class missing were refused before
        ready = self.current_epoch + 1 >= min(self.config.min_epochs, self.config.epochs)
        waiting = NOT_YET + 1e-4 * self.current_epoch  # rises, so that patience starts when selection does
        select = auroc - 1e-3 * min(ce, 10.0) if ready else waiting
        self.log_dict({"val/auroc": auroc, "val/ce": ce, SELECT: select}, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over what is not frozen."""
        return torch.optim.Adam(self.mil.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay)


def fit_mil(
    mil: GatedAttentionMil,
    loss: Loss,
    items: Mapping[str, Sequence[BagItem]],
    config: TeacherConfig | Stage2Config,
    plan: FitPlan,
) -> Generator[Event, None, GatedAttentionMil]:
    """Fit `mil` on ``items["train"]``, select on ``items["val"]``, and return it in its best state, frozen."""

    def make() -> tuple[BagFitting, DataLoader[BagItem], DataLoader[BagItem]]:
        order = torch.Generator().manual_seed(plan.seed)
        train = DataLoader(_Items(items["train"]), batch_size=None, shuffle=True, generator=order)
        return BagFitting(mil, loss, config), train, DataLoader(_Items(items["val"]), batch_size=None)

    state = yield from fit(make, plan)
    mil.load_state_dict({name.removeprefix("mil."): value for name, value in state.items()})
    return mil.cpu().eval().requires_grad_(False)


def seeded_mil(dim: int, classes: int, hidden: int, seed: int) -> GatedAttentionMil:
    """Return a MIL whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GatedAttentionMil(dim, classes, hidden)


def stage_seed(seed: int, stage: str) -> int:
    """Return a seed that depends on the run's seed and the stage's name alone."""
    return int(np.random.default_rng([seed, *stage.encode()]).integers(2**31))
