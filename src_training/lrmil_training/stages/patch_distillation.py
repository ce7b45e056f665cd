"""Stage 1: the student's encoder learns, patch by patch, the teacher's embeddings of the children.

Formulas: Method 2.3, and `lrmil_training.losses`.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lrmil_training import losses
from lrmil_training.config import TrainConfig
from lrmil_training.data.patch_pairs import Augmentation, PatchPair, PatchPairDataset, collate_pairs
from lrmil_training.data.teacher_targets import EMBEDDING, FeatureStatistics, TeacherTargets
from lrmil_training.fitting.fit import SELECT, EpochMeans, EpochSampler, FitPlan, fit, set_epoch
from lrmil_training.stages.outputs import Student, TeacherOutputs
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.encoders import AlignedEncoder, Encoder, NetworkEncoder, require_layers, round_to_half
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import Event
from napari_lrmil.core.features.torch_encoding import resize_patches
from napari_lrmil.core.models.mil import MIL, GatedAttentionMIL


@dataclass(frozen=True)
class PatchDistillation:
    """Specification of stage 1.

    Attributes
    ----------
    config
        Configuration of the method.
    depends
        Values that the result depends on in addition; part of the checkpoint key.
    name
        Name of the fit in events and file names.
    """

    config: TrainConfig
    depends: tuple[Any, ...] = ()
    name: str = "stage1"

    def run(self, context: RunContext, teacher: TeacherOutputs, student: Student) -> Generator[Event, None, Student]:
        """Distil into the encoder and round it to half precision, so that what is measured is what is shared."""
        targets = {side: [teacher.slides[s.name] for s in context.cohort.of(side)] for side in ("train", "val")}
        plan = context.fit_plan(self.name, self.config.stage1, self.depends)
        evidence = None
        if self.config.lambda_patch:
            shares = {side: [context.lesions.of(t.row, t.grid, high=False) for t in targets[side]] for side in targets}
            evidence = PatchEvidence(_patch_head(teacher.require_mil()), shares)
        network = context.encoder.encoder
        fitting = fit_patch_distillation(student.encoder, targets, self.config, plan, network, evidence)
        encoder = yield from fitting
        round_to_half(encoder)
        return replace(student, encoder=encoder)


def _patch_head(mil: MIL) -> nn.Module:
    """Return what gives standardised embeddings their class scores: a copy, as it moves to the device of the fit."""
    projection = mil.projection if isinstance(mil, GatedAttentionMIL) else None
    layers = [] if projection is None else [projection, nn.ReLU()]
    return copy.deepcopy(nn.Sequential(*layers, mil.classifier))


# ---------------------------------------------------------------- targets


@dataclass(frozen=True)
class FrozenTeacher:
    """The frozen HR encoder, for targets that are computed in every step. It is neither trained nor stored.

    Attributes
    ----------
    encoder
        The network.
    statistics
        ``features`` and layer name -> statistics that standardise its embeddings.
    """

    encoder: NetworkEncoder
    statistics: Mapping[str, FeatureStatistics]

    def to(self, device: torch.device) -> None:
        """Move the encoder to the device of the pixels. A process of several loads it on the CPU."""
        self.encoder.to(device)

    def targets(self, hr_pixels: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return ``features`` and layer name -> (B, n², D) standardised embeddings of (B, n², 3, q, q) pixels."""
        batch, children = hr_pixels.shape[:2]
        with torch.no_grad():  # targets: no gradient reaches the teacher
            encoded = self.encoder(hr_pixels.flatten(0, 1), layers)
        embeddings = {EMBEDDING: encoded.embedding, **{name: encoded.maps[name].mean(dim=(2, 3)) for name in layers}}
        return {
            name: self.statistics[name].to(value.device).apply(value).reshape(batch, children, -1)
            for name, value in embeddings.items()
        }


@dataclass(frozen=True)
class PatchEvidence:
    """The patch term of stage 1, which has no labels and no head of its own: the teacher's frozen head judges patches.

    The student's embedding is in the teacher's standardised space, in which the head gives a patch its class scores.

    Attributes
    ----------
    head
        The teacher's classifier of standardised embeddings, D to C. It is neither trained nor stored.
    shares
        ``train`` and ``val`` -> class shares of the LR patches of each slide; see `PatchPairDataset`.
    """

    head: nn.Module
    shares: Mapping[str, Sequence[Tensor]]

    def loss(self, embedding: Tensor, classes: Tensor) -> Tensor:
        """Return `patch_cross_entropy` of (B, D) embeddings against (B, C) shares; rows of zeros count as 0."""
        return losses.patch_cross_entropy(self.head.to(embedding.device)(embedding), classes)


class StandardisedIdentity(nn.Module):
    """Identity projection: the student's block means in units of the teacher's deviation, with nothing learned."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, statistics: FeatureStatistics) -> None:
        super().__init__()
        self.register_buffer("mean", statistics.mean)
        self.register_buffer("deviation", statistics.deviation)

    def forward(self, means: Tensor) -> Tensor:
        """Return (B, n², D) block means in units of the teacher's deviation."""
        return (means - self.mean) / self.deviation


# ---------------------------------------------------------------- the module


class PatchDistillationModule(L.LightningModule):
    """``L_stage1 = λ_layer L_layer + λ_attn L_attn + λ_patch L_patch``, also the selection, on held-out patients.

    Parameters
    ----------
    student
        The encoder that learns.
    statistics
        Layer name -> the teacher's training statistics of its pooled embedding at that layer.
    config
        Configuration of the method.
    teacher
        The HR encoder, if targets are computed from augmented HR pixels. None: stored targets.
    evidence
        The patch term; None without.

    Raises
    ------
    ConfigError
        If the projection is the identity and the widths differ.
    """

    def __init__(
        self,
        student: AlignedEncoder,
        statistics: Mapping[str, FeatureStatistics],
        config: TrainConfig,
        teacher: FrozenTeacher | None = None,
        evidence: PatchEvidence | None = None,
    ) -> None:
        super().__init__()
        self.student_layers = {name: student_layer(name, config.stage1.layers) for name in statistics}
        require_layers(student.encoder, tuple(self.student_layers.values()))
        self.student, self.settings = student, config
        self._means = {side: EpochMeans(side) for side in ("train", "val")}
        self._teacher = (teacher,)  # in a tuple: as a submodule its weights would be in every checkpoint
        self._evidence = evidence  # a dataclass, so its head is no submodule either
        is_learned = config.stage1.projection == "learned"
        widths = {name: student.layers[layer] for name, layer in self.student_layers.items()}
        self.projections = nn.ModuleDict(
            {name: _make_projection(name, widths[name], values, is_learned) for name, values in statistics.items()}
        )

    def on_fit_start(self) -> None:
        """Move the teacher's encoder, which as no submodule does not move with this module."""
        if self._teacher[0] is not None:
            self._teacher[0].to(self.device)

    def train(self, mode: bool = True) -> PatchDistillationModule:
        """Set training mode except for batch norm, which keeps the statistics that the weights were made with."""
        super().train(mode)
        freeze_norms(self.student)
        return self

    def terms(self, batch: PatchPair) -> dict[str, Tensor]:
        """Return the weighted loss terms of a batch."""
        stage, n = self.settings.stage1, self.settings.plan.n
        layers = tuple(self.student_layers.values())
        encoded = self.student(resize_patches(batch.pixels, self.settings.student_input_px), layers)
        targets = self._targets(batch)
        scores = batch.scores if stage.attention == "teacher" else torch.zeros_like(batch.scores)
        terms = {}
        if stage.lambda_attn > 0:
            weights = losses.children_weights(scores, batch.present)
            term = losses.attention_weighted_loss(encoded.embedding, targets[EMBEDDING], weights)
            terms["attn"] = stage.lambda_attn * term
        for name, projection in self.projections.items():
            projected = projection(losses.child_blocks(encoded.maps[self.student_layers[name]], n))
            term = losses.layer_loss(projected, targets[name], batch.present)
            # The mean over layers: the weight of the term does not depend on how many layers it compares.
            terms[f"layer_{name}"] = stage.lambda_layer * term / len(self.projections)
        if self._evidence is not None:
            terms["patch"] = self.settings.lambda_patch * self._evidence.loss(encoded.embedding, batch.classes)
        return terms

    def _targets(self, batch: PatchPair) -> dict[str, Tensor]:
        """Return stored targets, replaced by those of the augmented HR pixels if the batch has such pixels."""
        teacher = self._teacher[0]
        stored = {EMBEDDING: batch.targets, **batch.layers}
        if teacher is None or not batch.hr_pixels.numel():  # validation pairs are not augmented and have no HR pixels
            return stored
        return stored | teacher.targets(batch.hr_pixels, tuple(self.projections))

    def training_step(self, batch: PatchPair, index: int) -> Tensor:
        """Return the loss of a batch."""
        return self._record_loss("train", batch, index)

    def validation_step(self, batch: PatchPair, index: int) -> None:
        """Record the loss on held-out patients, per layer."""
        self._record_loss("val", batch, index)

    def _record_loss(self, side: str, batch: PatchPair, index: int) -> Tensor:
        terms = self.terms(batch)
        self._means[side].add(terms, len(batch.pixels), index)
        return torch.stack(list(terms.values())).sum()

    def on_train_epoch_end(self) -> None:
        """Log the mean of every loss term."""
        self.log_dict(self._means["train"].take(), batch_size=1)

    def on_validation_epoch_end(self) -> None:
        """Log the same for held-out patients, and its negative sum for selection."""
        terms = self._means["val"].take()
        self.log_dict(terms | {SELECT: -sum(terms.values())}, batch_size=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a one-cycle schedule."""
        stage = self.settings.stage1
        optimizer = torch.optim.AdamW(self.parameters(), lr=stage.lr, weight_decay=stage.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        # OneCycleLR needs two steps; a fit of one batch and one epoch has one.
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.lr, total_steps=max(2, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Pass the epoch to the data set: every augmentation is a function of seed, epoch and index."""
        set_epoch(self.trainer.train_dataloader, self.current_epoch)


def freeze_norms(module: nn.Module) -> None:
    """Make batch norms use their stored statistics: those of small batches of one stain would undo the training."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


# ---------------------------------------------------------------- layers


def student_layer(teacher_layer: str, layers: Sequence[str]) -> str:
    """Return the student's layer for one of the teacher's: the same name, or what follows the colon in ``a:b``."""
    pairs = (name.partition(":") for name in layers)
    return {teacher: student or teacher for teacher, _, student in pairs}[teacher_layer]


def require_matching_encoders(student: Encoder, teacher: Encoder, config: TrainConfig) -> None:
    """Check that both encoders have the layers of the layer term.

    Raises
    ------
    EncoderError
        If teacher or student lacks a layer; it lists the layers that exist.
    ConfigError
        If the projection is the identity and the widths differ.
    """
    names = config.compared_layers
    require_layers(teacher, names)
    student_layers = {name: student_layer(name, config.stage1.layers) for name in names}
    require_layers(student, tuple(student_layers.values()))
    if config.stage1.projection == "identity":
        for name, layer in student_layers.items():
            _require_width(name, student.layers[layer], teacher.layers[name])


def _require_width(name: str, student_width: int, teacher_width: int) -> None:
    if student_width != teacher_width:
        raise ConfigError(
            f"stage1.projection=identity: layer {name} has {student_width} channels in the student and {teacher_width} "
            "in the teacher; use learned, or a student of the teacher's architecture"
        )


def _make_projection(name: str, width: int, statistics: FeatureStatistics, is_learned: bool) -> nn.Module:
    """Return the map from (…, `width`) block means to the teacher's width at that layer."""
    teacher_width = len(statistics.mean)
    if is_learned:
        return nn.Linear(width, teacher_width)
    _require_width(name, width, teacher_width)
    return StandardisedIdentity(statistics)


# ---------------------------------------------------------------- the fit


def make_pair_datasets(
    targets: Mapping[str, Sequence[TeacherTargets]],
    config: TrainConfig,
    seed: int,
    shares: Mapping[str, Sequence[Tensor]] | None = None,
) -> dict[str, PatchPairDataset]:
    """Return training pairs, augmented as configured, and validation pairs without augmentation."""
    stage = config.stage1
    train = PatchPairDataset(
        targets["train"],
        config.plan,
        augmentation=Augmentation(stage.augment, stage.stain_sd),
        seed=seed,
        per_slide=stage.patches_per_slide,
        with_hr_pixels=stage.targets == "on_the_fly",
        shares=shares["train"] if shares else None,
    )
    val = PatchPairDataset(
        targets["val"],
        config.plan,
        augmentation=None,
        seed=seed,
        per_slide=stage.patches_per_slide,
        shares=shares["val"] if shares else None,
    )
    return {"train": train, "val": val}


def fit_patch_distillation(
    student: AlignedEncoder,
    targets: Mapping[str, Sequence[TeacherTargets]],
    config: TrainConfig,
    plan: FitPlan,
    teacher: NetworkEncoder,
    evidence: PatchEvidence | None = None,
) -> Generator[Event, None, AlignedEncoder]:
    """Distil into `student` and return it in its best state on validation, frozen.

    Parameters
    ----------
    student, teacher
        The encoder to fit, and the HR encoder, which is used if targets are computed on the fly.
    targets
        ``train`` and ``val`` -> the teacher's targets for the slides of that side.
    config, plan
        Configuration of the method, and plan of the fit.
    evidence
        The patch term; None without.
    """
    data = make_pair_datasets(targets, config, plan.seed, evidence.shares if evidence else None)
    first = targets["train"][0]
    layers = {name: first.statistics[name] for name in first.layers}
    frozen = FrozenTeacher(teacher, first.statistics) if config.stage1.targets == "on_the_fly" else None

    def make(
        scale: float = 1.0,
    ) -> tuple[PatchDistillationModule, DataLoader[PatchPair], DataLoader[PatchPair]]:
        # Smaller than the batch size on tiny cohorts, or `drop_last` would drop the only batch.
        size = max(1, int(scale * min(config.stage1.batch_size, len(data["train"]))))
        order = {side: EpochSampler(len(pairs), plan.seed, shuffle=side == "train") for side, pairs in data.items()}
        train = DataLoader(data["train"], size, sampler=order["train"], collate_fn=collate_pairs, drop_last=True)
        module = PatchDistillationModule(student.requires_grad_(True), layers, config, frozen, evidence)
        return module, train, DataLoader(data["val"], size, sampler=order["val"], collate_fn=collate_pairs)

    try:
        state = yield from fit(make, plan)
    finally:
        for pairs in data.values():
            pairs.close()
    prefix = "student."  # the projections serve the fit alone
    student.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return student.cpu().eval().requires_grad_(False)
