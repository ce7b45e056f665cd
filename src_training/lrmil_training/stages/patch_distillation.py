"""Stage 1: the student encoder learns, patch by patch, what the teacher saw in the children (Method 2.3)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

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
from napari_lrmil.core.encoders import AlignedEncoder, Encoder, NetworkEncoder, require_layers
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import Event
from napari_lrmil.core.features.extraction import resize_patches


@dataclass(frozen=True)
class FrozenTeacher:
    """The frozen teacher encoder, where targets are computed as training goes; no part of what is trained or stored."""

    encoder: NetworkEncoder
    standards: Mapping[str, FeatureStatistics]

    def to(self, device: torch.device) -> None:
        """Move the encoder to where the pixels are: in a process of its own it was loaded on the CPU."""
        self.encoder.to(device)

    def targets(self, hr_pixels: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return ``features`` and layer name -> (B, n², D) standardised embeddings of (B, n², 3, q, q) pixels."""
        batch, children = hr_pixels.shape[:2]
        with torch.no_grad():
            encoded = self.encoder(hr_pixels.flatten(0, 1), layers)
        found = {EMBEDDING: encoded.embedding, **{name: encoded.maps[name].mean(dim=(2, 3)) for name in layers}}
        return {
            name: self.standards[name].to(value.device).apply(value).reshape(batch, children, -1)
            for name, value in found.items()
        }


class StandardisedIdentity(nn.Module):
    """The identity projection: a student's block means in the units of the teacher's targets, and nothing learned."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, standard: FeatureStatistics) -> None:
        super().__init__()
        self.register_buffer("mean", standard.mean)
        self.register_buffer("deviation", standard.deviation)

    def forward(self, means: Tensor) -> Tensor:
        """Return (B, n², D) block means in units of the teacher's deviation."""
        return (means - self.mean) / self.deviation


class PatchDistillationModule(L.LightningModule):
    """``L_stage1 = λ_layer L_layer + λ_attn L_attn``; selection by the same loss on held-out patients.

    Parameters
    ----------
    student
        The encoder that learns.
    standards
        Layer name -> the teacher's training statistics of its pooled embedding there.
    config
        The run's configuration.
    watched
        The teacher's encoder, where targets are computed of the augmented HR pixels.

    Raises
    ------
    ConfigError
        Where an identity projection is asked for and the widths differ.
    """

    def __init__(
        self,
        student: AlignedEncoder,
        standards: Mapping[str, FeatureStatistics],
        config: TrainConfig,
        watched: FrozenTeacher | None = None,
    ) -> None:
        super().__init__()
        self.twins = {name: student_layer(name, config.stage1.layers) for name in standards}
        require_layers(student.encoder, tuple(self.twins.values()))
        self.student, self.settings = student, config
        self._means = {side: EpochMeans(side) for side in ("train", "val")}
        self._watched = (watched,)  # in a tuple: not a submodule, whose weights every checkpoint would hold
        learned = config.stage1.projection == "learned"
        own = {name: student.layers[twin] for name, twin in self.twins.items()}
        self.projections = nn.ModuleDict(
            {name: _make_projection(name, own[name], standard, learned) for name, standard in standards.items()}
        )

    def on_fit_start(self) -> None:
        """Bring the teacher's encoder along, which as no submodule does not move with this module."""
        if self._watched[0] is not None:
            self._watched[0].to(self.device)

    def train(self, mode: bool = True) -> PatchDistillationModule:
        """Set training mode, but for batch norm, which keeps the statistics that the weights were made with."""
        super().train(mode)
        freeze_norms(self.student)
        return self

    def terms(self, batch: PatchPair) -> dict[str, Tensor]:
        """Return the weighted loss terms of a batch."""
        stage, n = self.settings.stage1, self.settings.plan.n
        names = tuple(self.projections)
        encoded = self.student(resize_patches(batch.pixels, self.settings.student_input_px), tuple(self.twins.values()))
        watched = self._watched[0]
        fresh = watched.targets(batch.hr_pixels, names) if watched and batch.hr_pixels.numel() else {}
        targets = {EMBEDDING: batch.targets, **batch.layers} | fresh
        scores = batch.scores if stage.attention == "teacher" else torch.zeros_like(batch.scores)
        found = {}
        if stage.lambda_attn > 0:
            weights = losses.children_weights(scores, batch.present)
            term = losses.attention_weighted_loss(encoded.embedding, targets[EMBEDDING], weights)
            found["attn"] = stage.lambda_attn * term
        for name, projection in self.projections.items():
            projected = projection(losses.child_blocks(encoded.maps[self.twins[name]], n))
            term = losses.layer_loss(projected, targets[name], batch.present)
            found[f"layer_{name}"] = stage.lambda_layer * term / len(self.projections)
        return found

    def training_step(self, batch: PatchPair, index: int) -> Tensor:
        """Return the loss of a batch."""
        return self._noted("train", batch, index)

    def validation_step(self, batch: PatchPair, index: int) -> None:
        """Note the loss on held-out patients, per layer."""
        self._noted("val", batch, index)

    def _noted(self, side: str, batch: PatchPair, index: int) -> Tensor:
        terms = self.terms(batch)
        self._means[side].add(terms, len(batch.pixels), index)
        return torch.stack(list(terms.values())).sum()

    def on_train_epoch_end(self) -> None:
        """Log the mean of every loss term."""
        self.log_dict(self._means["train"].take(), batch_size=1)

    def on_validation_epoch_end(self) -> None:
        """Log the same for held-out patients, and its sum for selection."""
        terms = self._means["val"].take()
        self.log_dict(terms | {SELECT: -sum(terms.values())}, batch_size=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a one-cycle schedule."""
        stage = self.settings.stage1
        optimizer = torch.optim.AdamW(self.parameters(), lr=stage.lr, weight_decay=stage.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.lr, total_steps=max(2, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Tell the data which epoch it is: every turn is a function of seed, epoch and index."""
        set_epoch(self.trainer.train_dataloader, self.current_epoch)


def teacher_layers(config: TrainConfig) -> tuple[str, ...]:
    """Return the teacher's layers that the layer term needs; none where it is off."""
    stage = config.stage1
    return tuple(name.partition(":")[0] for name in stage.layers) if stage.lambda_layer > 0 and stage.epochs else ()


def student_layer(teacher_layer: str, layers: Sequence[str]) -> str:
    """Return the student's layer for one of the teacher's: its own name, or what follows the colon in ``a:b``."""
    twins = {one: other or one for one, _, other in (name.partition(":") for name in layers)}
    return twins[teacher_layer]


def require_matching_encoders(student: Encoder, teacher: Encoder, config: TrainConfig) -> None:
    """Check that the layer term finds what it compares.

    Raises
    ------
    EncoderError
        Where teacher or student lacks a layer; it lists those that there are.
    ConfigError
        Where an identity projection is asked for and the widths differ.
    """
    names = teacher_layers(config)
    require_layers(teacher, names)
    twins = {name: student_layer(name, config.stage1.layers) for name in names}
    require_layers(student, tuple(twins.values()))
    if config.stage1.projection == "identity":
        for name, twin in twins.items():
            _require_width(name, student.layers[twin], teacher.layers[name])


def _require_width(name: str, own: int, wanted: int) -> None:
    if own != wanted:
        raise ConfigError(
            f"stage1.projection=identity: layer {name} has {own} channels in the student and {wanted} in the teacher; "
            "use learned, or a student of the teacher's architecture"
        )


def _make_projection(name: str, own: int, standard: FeatureStatistics, learned: bool) -> nn.Module:
    wanted = len(standard.mean)
    if learned:
        return nn.Linear(own, wanted)
    _require_width(name, own, wanted)
    return StandardisedIdentity(standard)


def freeze_norms(module: nn.Module) -> None:
    """Let batch norms use their stored statistics: those of small batches of one stain would undo what is learned."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def pair_datasets(
    taught: Mapping[str, Sequence[TeacherTargets]], config: TrainConfig, seed: int
) -> dict[str, PatchPairDataset]:
    """Return training pairs, augmented as configured, and validation pairs as they are."""
    stage = config.stage1
    return {
        "train": PatchPairDataset(
            taught["train"],
            config.plan,
            augmentation=Augmentation(stage.augment, stage.stain_sd),
            seed=seed,
            per_slide=stage.patches_per_slide,
            with_hr_pixels=stage.targets == "on_the_fly",
        ),
        "val": PatchPairDataset(
            taught["val"], config.plan, augmentation=None, seed=seed, per_slide=stage.patches_per_slide
        ),
    }


def fit_stage1(
    student: AlignedEncoder,
    taught: Mapping[str, Sequence[TeacherTargets]],
    config: TrainConfig,
    plan: FitPlan,
    teacher: NetworkEncoder,
) -> Generator[Event, None, AlignedEncoder]:
    """Distil into `student` and return it in its best state on validation, frozen."""
    data = pair_datasets(taught, config, plan.seed)
    standards = taught["train"][0].standards
    layers = {name: standards[name] for name in taught["train"][0].layers}
    watched = FrozenTeacher(teacher, standards) if config.stage1.targets == "on_the_fly" else None

    def make(scale: float = 1.0) -> tuple[PatchDistillationModule, DataLoader[PatchPair], DataLoader[PatchPair]]:
        size = max(1, int(scale * min(config.stage1.batch_size, len(data["train"]))))
        order = {side: EpochSampler(len(one), plan.seed, shuffle=side == "train") for side, one in data.items()}
        train = DataLoader(data["train"], size, sampler=order["train"], collate_fn=collate_pairs, drop_last=True)
        module = PatchDistillationModule(student.requires_grad_(True), layers, config, watched)
        return module, train, DataLoader(data["val"], size, sampler=order["val"], collate_fn=collate_pairs)

    try:
        state = yield from fit(make, plan)
    finally:
        for one in data.values():
            one.close()
    prefix = "student."
    student.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return student.cpu().eval().requires_grad_(False)
