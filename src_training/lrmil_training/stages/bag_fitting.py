"""Fit of a MIL to bags, shared by the teacher, stage 2 and the labels-only baseline: bags, losses, selection.

The three differ only in their losses and instances. Stage 3 shares the losses and `SelectingModule`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from lrmil_training.config import Stage2Config, Stage3Config, TeacherConfig
from lrmil_training.data.bags import BagDataset, BagItem, Loadable, StoredBag
from lrmil_training.data.cohort import UNLABELLED, CohortSlide
from lrmil_training.data.patient_bags import join_stored
from lrmil_training.data.teacher_targets import TeacherTargets
from lrmil_training.evaluation.metrics import multiclass_auroc
from lrmil_training.fitting.fit import SELECT, EpochMeans, EpochSampler, FitPlan, all_gather_rows, fit, set_epoch
from lrmil_training.losses import (
    AttentionTransfer,
    attention_kl,
    bag_kl,
    hard_attention_loss,
    parent_scores,
    patch_cross_entropy,
)
from lrmil_training.stages.outputs import Student, TeacherOutputs
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.events import Event
from napari_lrmil.core.models.aggregators import build_aggregator
from napari_lrmil.core.models.card import GATED, OF_STUDENTS
from napari_lrmil.core.models.mil import MIL, MilOutput
from napari_lrmil.core.patching.grid import NestedGrid

BELOW_MIN_EPOCHS = -1.0  # selection figure before `min_epochs`; below that of any later epoch, where AUROC counts

_Bag = TypeVar("_Bag")
Loss = Callable[[MilOutput, BagItem], Mapping[str, Tensor]]  # term -> weighted value


# ---------------------------------------------------------------- losses


def label_loss(output: MilOutput, item: BagItem) -> Mapping[str, Tensor]:
    """Return the cross-entropy with the slide's label, the only term of the teacher and the labels-only baseline.

    It is weighted by the slide's class, so that a rare class counts as much as a common one.
    """
    target = torch.tensor(item.target, device=output.logits.device)
    if output.label_logits is not None:
        return {
            "ce": item.weight * functional.cross_entropy(output.label_logits, target.expand(len(output.label_logits)))
        }
    return {"ce": item.weight * functional.cross_entropy(output.logits, target)}


def distillation_loss(config: Stage2Config) -> Loss:
    """Return ``L_stage2 = λ_ce L_pre + λ_bag L_bag + λ_soft L_soft + λ_hard L_hard`` (Method 2.5)."""

    def loss(output: MilOutput, item: BagItem) -> Mapping[str, Tensor]:
        terms = {}  # a term with weight 0 is left out, so that logs show the terms that count
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


def patch_terms(mil: MIL, instances: Tensor, item: BagItem) -> Mapping[str, Tensor]:
    """Return ``λ_patch L_patch`` of (N, D) instances against the item's class shares; no term if the weight is 0."""
    if item.lambda_patch == 0:
        return {}
    # Slides that outlines say nothing of have a term of 0, because epoch means need the same terms in every step.
    return {"patch": item.lambda_patch * patch_cross_entropy(mil.patch_logits(instances), item.patch_targets)}


# ---------------------------------------------------------------- bags


def by_side(
    context: RunContext, make_bag: Callable[[CohortSlide], _Bag], join: Callable[[Sequence[_Bag]], _Bag]
) -> dict[str, list[_Bag]]:
    """Return the bags of training and validation, of slides or of patients (`TrainConfig.bag`).

    Parameters
    ----------
    context
        The run.
    make_bag
        Returns the bag of a slide.
    join
        Returns the bag of a patient from the bags of its slides.
    """
    return {side: [join([make_bag(s) for s in slides]) for slides in context.bags(side)] for side in ("train", "val")}


def labelled_item(context: RunContext, slide: CohortSlide) -> BagItem:
    """Return the label of a slide and the weight of its class, without instances."""
    target = context.cohort.target(slide)
    return BagItem(torch.empty(0), target, weight=context.class_weights[target])


def distilled_item(context: RunContext, targets: TeacherTargets, transfer: AttentionTransfer) -> BagItem:
    """Return the label of a slide with the teacher's logits and its (N,) scores on LR patches, without instances."""
    target, grid = context.cohort.target(targets.row), targets.grid
    scores = parent_scores(targets.scores, torch.from_numpy(grid.parent), len(grid.lr_index), transfer)
    return BagItem(torch.empty(0), target, targets.taught_logits, scores, context.class_weights[target])


def student_item(
    context: RunContext, targets: TeacherTargets, transfer: AttentionTransfer | None, lambda_patch: float
) -> BagItem:
    """Return `distilled_item`, or `labelled_item` for a method without a teacher (`transfer` None), with outlines."""
    item = labelled_item(context, targets.row) if transfer is None else distilled_item(context, targets, transfer)
    return with_outlines(context, item, targets.row, targets.grid, lambda_patch)


def with_outlines(
    context: RunContext, item: BagItem, row: CohortSlide, grid: NestedGrid, lambda_patch: float, *, high: bool = False
) -> BagItem:
    """Return the item with class shares of its patches, of HR if `high`; itself if `lambda_patch` is 0."""
    if lambda_patch == 0:
        return item
    shares = context.lesions.of(row, grid, high=high)
    return replace(item, patch_targets=shares, lambda_patch=lambda_patch)


def stored_bags(
    context: RunContext,
    teacher: TeacherOutputs,
    student: Student,
    transfer: AttentionTransfer | None,
    lambda_patch: float,
) -> dict[str, list[StoredBag]]:
    """Return bags of the student's stored LR features; `transfer` None leaves the teacher out."""
    features = student.require_features()

    def make_bag(slide: CohortSlide) -> StoredBag:
        targets = teacher.slides[slide.name]
        item = student_item(context, targets, transfer, lambda_patch)
        return StoredBag(features[slide.name], item)

    return by_side(context, make_bag, join_stored)


# ---------------------------------------------------------------- selection


def rank_agreement(scores: Tensor, teacher_scores: Tensor) -> float:
    """Return Spearman's correlation of (N,) scores with the teacher's, or 0 if all scores of one side are equal."""
    sides = scores, teacher_scores.to(scores.device)
    if any(bool((side == side[0]).all()) for side in sides):
        return 0.0
    ranks = [side.float().argsort(stable=True).argsort().float() for side in sides]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def selection_figure(auroc: float, ce: float) -> float:
    """Return the figure that chooses an epoch: AUROC, with ties broken by cross-entropy.

    On few slides AUROC has few values. Capped, the cross-entropy changes the figure by 0.01 at most. Without labels the
    agreement with the teacher takes the place of AUROC, and the divergence from its classes that of cross-entropy.
    """
    return auroc - 1e-3 * min(ce, 10.0)


class SelectingModule(L.LightningModule):
    """Base of the modules on whole slides: selection by validation AUROC, ties by cross-entropy.

    Parameters
    ----------
    config
        Stage settings: ``epochs``, ``min_epochs``.
    """

    def __init__(self, config: TeacherConfig | Stage2Config | Stage3Config) -> None:
        super().__init__()
        self.config = config
        self._logits: list[tuple[Tensor, int]] = []  # of validation slides, each with its target
        self._agreements: list[float] = []
        self._divergences: list[float] = []  # of class probabilities from the teacher's, of slides without labels
        self._means = EpochMeans("train")

    def record_logits(self, logits: Tensor, target: int) -> None:
        """Record the (C,) logits of one validation slide."""
        self._logits.append((logits.detach().float().cpu(), target))

    def record_agreement(self, scores: Tensor, item: BagItem) -> None:
        """Record `rank_agreement` on one validation slide if the bag has the teacher's scores."""
        if len(item.teacher_scores) == len(scores) > 1:
            self._agreements.append(rank_agreement(scores.detach(), item.teacher_scores))

    def record_unlabelled(self, output: MilOutput, item: BagItem) -> None:
        """Record how far one validation slide without a label is from the teacher, in attention and classes."""
        self._divergences.append(float(bag_kl(output.logits.detach().float(), item.teacher_logits.float(), 1.0)))
        self.record_agreement(output.scores, item)

    def total(self, terms: Mapping[str, Tensor], index: int) -> Tensor:
        """Record the loss terms of one step and return their sum."""
        self._means.add(terms, 1, index)
        return torch.stack(list(terms.values())).sum()

    def on_train_epoch_end(self) -> None:
        """Log the mean of every loss term."""
        self.log_dict(self._means.take(), batch_size=1)

    def on_validation_epoch_end(self) -> None:
        """Log AUROC, cross-entropy and the selection figure; without labels the agreement with the teacher selects."""
        agreements, divergences = all_gather_rows(self._agreements), all_gather_rows(self._divergences)
        self._agreements.clear()
        self._divergences.clear()
        agreement = float(np.mean(agreements)) if agreements else 0.0
        if divergences:
            kl = float(np.mean(divergences))
            figures, select = {"val/kl": kl}, selection_figure(agreement, kl)
        else:
            auroc, ce = self._label_figures()
            figures, select = {"val/auroc": auroc, "val/ce": ce}, selection_figure(auroc, ce)
        is_ready = self.current_epoch + 1 >= min(self.config.min_epochs, self.config.epochs)
        lowest = BELOW_MIN_EPOCHS - 2 * bool(divergences)  # agreement ends at -1, not at 0
        waiting = lowest + 1e-4 * self.current_epoch  # rises, so that patience starts with selection
        self.log_dict({**figures, SELECT: select if is_ready else waiting}, batch_size=1)
        if agreements:  # the teacher itself and labels-only fits have none
            self.log("val/agreement", agreement, batch_size=1)

    def _label_figures(self) -> tuple[float, float]:
        """Return AUROC and cross-entropy of the recorded logits, which are then forgotten."""
        rows = all_gather_rows(self._logits)
        self._logits.clear()
        logits, targets = torch.stack([row for row, _ in rows]), torch.tensor([target for _, target in rows])
        ce = float(functional.cross_entropy(logits, targets))
        value = multiclass_auroc(torch.softmax(logits, dim=1).numpy(), targets.numpy())
        return float("nan") if value is None else value, ce  # cohorts with a class missing were refused before

    def on_train_epoch_start(self) -> None:
        """Pass the epoch to the data set: every draw is a function of seed, epoch and slide."""
        set_epoch(self.trainer.train_dataloader, self.current_epoch)


# ---------------------------------------------------------------- the fit


class BagModule(SelectingModule):
    """Lightning module of a MIL: one bag per step."""

    def __init__(self, mil: MIL, loss: Loss, config: TeacherConfig | Stage2Config) -> None:
        super().__init__(config)
        self.mil, self.loss = mil, loss
        self.settings = config

    def training_step(self, item: BagItem, index: int) -> Tensor:
        """Return the weighted sum of the loss terms of one bag."""
        instances = drop_features(self.mil, item.instances, self.settings.feature_dropout)
        output = self.mil(instances)
        own = {name: item.weight * term for name, term in self.mil.own_terms(output, item.target).items()}
        terms = {**self.loss(output, item), **own, **patch_terms(self.mil, instances, item)}
        return self.total(terms, index)

    def validation_step(self, item: BagItem, index: int) -> None:
        """Record the MIL's outputs for one bag."""
        output = self.mil(item.instances)
        if item.target == UNLABELLED:
            self.record_unlabelled(output, item)
            return
        self.record_logits(output.logits, item.target)
        self.record_agreement(output.scores, item)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over all weights of the MIL."""
        return torch.optim.Adam(self.mil.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay)


def fit_mil(
    mil: MIL,
    loss: Loss,
    bags: Mapping[str, Sequence[Loadable]],
    config: TeacherConfig | Stage2Config,
    plan: FitPlan,
) -> Generator[Event, None, MIL]:
    """Fit `mil` to ``bags["train"]``, select on ``bags["val"]``, and return it in its best state, frozen."""

    # batch_size None: bags differ in length, and a step is one bag.
    def make() -> tuple[BagModule, DataLoader[BagItem], DataLoader[BagItem]]:
        data = BagDataset(bags["train"], config.patch_dropout, plan.seed, config.patches_per_slide)
        held_out = BagDataset(bags["val"])
        order = EpochSampler(len(data), plan.seed, patients=plan.patients)
        train = DataLoader(data, batch_size=None, sampler=order)
        val = DataLoader(held_out, batch_size=None, sampler=EpochSampler(len(held_out), plan.seed, shuffle=False))
        return BagModule(mil, loss, config), train, val

    state = yield from fit(make, plan)
    mil.load_state_dict({name.removeprefix("mil."): value for name, value in state.items()})
    return mil.cpu().eval().requires_grad_(False)


def drop_features(mil: MIL, instances: Tensor, share: float) -> Tensor:
    """Return (N, D) instances with a random `share` of the dimensions neutral: equal to the training mean.

    The dimensions are drawn anew in each step and are the same for all instances, because independent draws would
    cancel in the mean over a bag. The others are enlarged by ``1 / (1 - share)``, as in any dropout.

    Parameters
    ----------
    mil
        The network that standardises the instances.
    instances
        (N, D) embeddings.
    share
        Probability of each dimension; 0 returns the instances and draws nothing.
    """
    if share == 0:
        return instances
    factors = (torch.rand(instances.shape[-1], device=instances.device) >= share) / (1 - share)  # (D,)
    return mil.mean + (instances - mil.mean) * factors


def seeded_mil(dim: int, classes: int, settings: TeacherConfig, seed: int, *, of_student: bool = False) -> MIL:
    """Return a MIL with the teacher's aggregator, or that of its student, which has gated attention for most of them.

    Its weights depend on `seed` alone, whatever was drawn before.
    """
    aggregator = GATED if of_student and settings.aggregator not in OF_STUDENTS else settings.aggregator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_aggregator(aggregator, dim, classes, settings.hidden, settings.top_share)
