"""Fitting a MIL on bags: teacher, stage 2 and the labels-only baseline differ in their losses alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from lrmil_training.config import Stage2Config, Stage3Config, TeacherConfig
from lrmil_training.data.bags import BagDataset, BagItem, Loadable
from lrmil_training.evaluation.metrics import ranking_auroc
from lrmil_training.fitting.fit import SELECT, EpochMeans, EpochSampler, FitPlan, all_gather_rows, fit, set_epoch
from lrmil_training.losses import attention_kl, bag_kl, hard_attention_loss
from napari_lrmil.core.events import Event
from napari_lrmil.core.models.mil import GatedAttentionMIL, MilOutput

BELOW_MIN_EPOCHS = -1.0  # selection figure of epochs before the least number of them; below any that counts


Loss = Callable[[MilOutput, BagItem], Mapping[str, Tensor]]  # term -> weighted value


def label_loss(output: MilOutput, item: BagItem) -> Mapping[str, Tensor]:
    """Return cross-entropy with the slide's label: all that the teacher and the labels-only baseline learn from.

    Weighted by the slide's class, so that a rare class counts as much as a common one.
    """
    target = torch.tensor(item.target, device=output.logits.device)
    return {"ce": item.weight * functional.cross_entropy(output.logits, target)}


def distillation_loss(config: Stage2Config) -> Loss:
    """Return ``L_stage2 = λ_ce L_pre + λ_bag L_bag + λ_soft L_soft + λ_hard L_hard`` (Method 2.5)."""

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
            terms["hard"] = config.lambda_hard * hard_attention_loss(output.scores, item.teacher_scores, config.topk)
        return terms

    return loss


def rank_agreement(scores: Tensor, teacher_scores: Tensor) -> float:
    """Return Spearman's correlation of (N,) scores with the teacher's; 0 where one side has no order."""
    ranks = [one.float().argsort(stable=True).argsort().float() for one in (scores, teacher_scores.to(scores.device))]
    flat = any(bool((one == one[0]).all()) for one in (scores, teacher_scores))
    return 0.0 if flat else float(torch.corrcoef(torch.stack(ranks))[0, 1])


class SelectingModule(L.LightningModule):
    """What every module on whole slides shares: selection by validation AUROC, ties by cross-entropy.

    Parameters
    ----------
    config
        Stage settings: ``epochs``, ``min_epochs``.
    """

    def __init__(self, config: TeacherConfig | Stage2Config | Stage3Config) -> None:
        super().__init__()
        self.config = config
        self._seen: list[tuple[Tensor, int]] = []
        self._agreements: list[float] = []
        self._means = EpochMeans("train")

    def keep(self, logits: Tensor, target: int) -> None:
        """Note what the network says of one validation slide."""
        self._seen.append((logits.detach().float().cpu(), target))

    def keep_attention(self, scores: Tensor, item: BagItem) -> None:
        """Note how far attention on one validation slide agrees with the teacher's, where there is a teacher."""
        if len(item.teacher_scores) == len(scores) > 1:
            self._agreements.append(rank_agreement(scores.detach(), item.teacher_scores))

    def total(self, terms: Mapping[str, Tensor], index: int) -> Tensor:
        """Note the loss terms of one step and return their sum."""
        self._means.add(terms, 1, index)
        return torch.stack(list(terms.values())).sum()

    def on_train_epoch_end(self) -> None:
        """Log the mean of every loss term."""
        self.log_dict(self._means.take(), batch_size=1)

    def on_validation_epoch_end(self) -> None:
        """Log AUROC, cross-entropy and the selection figure."""
        seen = all_gather_rows(self._seen)
        self._seen.clear()
        logits, targets = torch.stack([one for one, _ in seen]), torch.tensor([target for _, target in seen])
        ce = float(functional.cross_entropy(logits, targets))
        value = ranking_auroc(torch.softmax(logits, dim=1).numpy(), targets.numpy())
        auroc = float("nan") if value is None else value  # cohorts with a class missing were refused before
        ready = self.current_epoch + 1 >= min(self.config.min_epochs, self.config.epochs)
        waiting = BELOW_MIN_EPOCHS + 1e-4 * self.current_epoch  # rises, so that patience starts when selection does
        select = auroc - 1e-3 * min(ce, 10.0) if ready else waiting
        self.log_dict({"val/auroc": auroc, "val/ce": ce, SELECT: select}, batch_size=1)
        agreements = all_gather_rows(self._agreements)
        self._agreements.clear()
        if agreements:
            self.log("val/agreement", float(np.mean(agreements)), batch_size=1)

    def on_train_epoch_start(self) -> None:
        """Tell the data which epoch it is: every draw is a function of seed, epoch and slide."""
        set_epoch(self.trainer.train_dataloader, self.current_epoch)


class BagModule(SelectingModule):
    """Lightning's view of a MIL: one bag a step."""

    def __init__(self, mil: GatedAttentionMIL, loss: Loss, config: TeacherConfig | Stage2Config) -> None:
        super().__init__(config)
        self.mil, self.loss = mil, loss
        self.settings = config

    def training_step(self, item: BagItem, index: int) -> Tensor:
        """Return the weighted sum of the loss terms of one bag."""
        return self.total(self.loss(self.mil(item.instances), item), index)

    def validation_step(self, item: BagItem, index: int) -> None:
        """Keep what the MIL says of one bag."""
        output = self.mil(item.instances)
        self.keep(output.logits, item.target)
        self.keep_attention(output.scores, item)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over what is not frozen."""
        return torch.optim.Adam(self.mil.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay)


def fit_mil(
    mil: GatedAttentionMIL,
    loss: Loss,
    bags: Mapping[str, Sequence[Loadable]],
    config: TeacherConfig | Stage2Config,
    plan: FitPlan,
) -> Generator[Event, None, GatedAttentionMIL]:
    """Fit `mil` on ``bags["train"]``, select on ``bags["val"]``, and return it in its best state, frozen."""

    def make() -> tuple[BagModule, DataLoader[BagItem], DataLoader[BagItem]]:
        data, held_out = BagDataset(bags["train"], config.patch_dropout, plan.seed), BagDataset(bags["val"])
        train = DataLoader(data, batch_size=None, sampler=EpochSampler(len(data), plan.seed))
        val = DataLoader(held_out, batch_size=None, sampler=EpochSampler(len(held_out), plan.seed, shuffle=False))
        return BagModule(mil, loss, config), train, val

    state = yield from fit(make, plan)
    mil.load_state_dict({name.removeprefix("mil."): value for name, value in state.items()})
    return mil.cpu().eval().requires_grad_(False)


def seeded_mil(dim: int, classes: int, hidden: int, seed: int) -> GatedAttentionMIL:
    """Return a MIL whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GatedAttentionMIL(dim, classes, hidden)


def stage_seed(seed: int, stage: str) -> int:
    """Return a seed that depends on the run's seed and the stage's name alone."""
    return int(np.random.default_rng([seed, *stage.encode()]).integers(2**31))
