"""Stage 3: end-to-end fine-tuning of encoder and MIL on bags of pixels, a few patches of each at every step.

An LR bag has hundreds of patches, not tens of thousands, so gradients can reach the encoder (Method 2.6). Stage 2 uses
the same loop with a frozen encoder if its features are computed on the fly.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lrmil_training.config import Stage2Config, Stage3Config
from lrmil_training.data.bags import BagItem, draw_rows
from lrmil_training.data.cohort import UNLABELLED, CohortSlide
from lrmil_training.data.features import lr_patches
from lrmil_training.data.patch_pairs import SlideHandles, apply_dihedral
from lrmil_training.data.patient_bags import join_items
from lrmil_training.fitting.checkpoints import read_score
from lrmil_training.fitting.fit import EpochSampler, FitPlan, fit
from lrmil_training.losses import AttentionTransfer
from lrmil_training.stages.bag_fitting import (
    Loss,
    SelectingModule,
    by_side,
    distillation_loss,
    drop_features,
    label_loss,
    patch_terms,
    student_item,
)
from lrmil_training.stages.outputs import Student, TeacherOutputs
from lrmil_training.stages.patch_distillation import freeze_norms
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.encoders import AlignedEncoder, round_to_half
from napari_lrmil.core.events import Event, Metric
from napari_lrmil.core.features.extraction import PatchSet
from napari_lrmil.core.features.torch_encoding import resize_patches
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.models.mil import MIL

ENCODE_BATCH = 64  # patches encoded at once on validation

Networks = tuple[AlignedEncoder, MIL]


@dataclass(frozen=True)
class EndToEnd:
    """Specification of stage 3.

    Attributes
    ----------
    settings
        Learning rates, patches per step and optimisation.
    stage2
        Loss weights of stage 2, if the method learns from the teacher. None: labels alone.
    depends
        Values that the result depends on in addition; part of the checkpoint key.
    name
        Name of the fit in events and file names.
    lambda_patch
        Weight of the patch term.
    """

    settings: Stage3Config
    stage2: Stage2Config | None
    depends: tuple[Any, ...] = ()
    name: str = "stage3"
    lambda_patch: float = 0.0

    @property
    def loss(self) -> Loss:
        """Stage 2's loss if stage 3 keeps its terms, otherwise the label term alone."""
        if self.stage2 is None or not self.settings.keep_stage2_terms:
            return label_loss
        return distillation_loss(self.stage2)

    def run(self, context: RunContext, teacher: TeacherOutputs, student: Student) -> Generator[Event, None, Student]:
        """Fine-tune with each learning rate and return the networks that are best on validation, without features."""
        fits: list[tuple[float, Networks]] = []
        transfer = None if self.stage2 is None else self.stage2.attention_transfer
        bags = pixel_bags(context, teacher, transfer, self.lambda_patch)
        for lr in self.settings.lr:  # each from the same start, hence the copies
            plan = context.fit_plan(self.name, self.settings, [*self.depends, lr])
            networks = yield from fit_end_to_end(
                (copy.deepcopy(student.encoder), copy.deepcopy(student.require_mil())),
                self.loss,
                bags,
                self.settings,
                plan,
                lr=lr,
                input_px=context.config.student_input_px,
            )
            score = read_score(plan)  # over all attempts; events have the figures of this attempt only
            yield Metric(self.name, f"lr {lr:g}", score)
            fits.append((score, networks))
        encoder, mil = max(fits, key=lambda pair: pair[0])[1]
        round_to_half(encoder)
        round_to_half(mil)
        return Student(encoder, mil)


# ---------------------------------------------------------------- bags of pixels


@dataclass(frozen=True)
class PixelBag:
    """Slide whose patches are read from the file at every step.

    Attributes
    ----------
    row
        The slide.
    patches
        Its LR patches.
    item
        Target and the teacher's outputs, without instances.
    """

    row: CohortSlide
    patches: PatchSet
    item: BagItem

    def __len__(self) -> int:
        return len(self.patches)

    def read(self, handles: SlideHandles, rows: Int64) -> Tensor:
        """Return (R, 3, p, p) uint8 pixels of the (R,) patches `rows`."""
        selected = replace(self.patches, corners=self.patches.corners[rows])
        pixels = selected.read(handles.of(self.row), slice(None))
        return torch.from_numpy(pixels).movedim(-1, -3)


@dataclass(frozen=True)
class PatientPixels:
    """Bag of all slides of a patient, whose patches come slide by slide.

    Attributes
    ----------
    parts
        Bags of the slides.
    item
        Target and the teacher's outputs for the patches of all slides.
    """

    parts: tuple[PixelBag, ...]
    item: BagItem

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, handles: SlideHandles, rows: Int64) -> Tensor:
        """Return (R, 3, p, p) uint8 pixels of the (R,) sorted patches `rows`."""
        ends = np.cumsum([len(part) for part in self.parts])
        # Sorted rows: the patches of a slide follow each other, so each slide is read once and the order is kept.
        by_slide = np.split(rows, np.searchsorted(rows, ends[:-1]))
        starts = [0, *ends[:-1].tolist()]
        return torch.cat(
            [
                part.read(handles, drawn - start)
                for part, drawn, start in zip(self.parts, by_slide, starts, strict=True)
                if len(drawn)
            ]
        )


def join_pixels(bags: Sequence[PixelBag | PatientPixels]) -> PixelBag | PatientPixels:
    """Return the bag of all slides of a patient; the bag itself if there is one slide."""
    parts = tuple(bag for bag in bags if isinstance(bag, PixelBag))
    if len(parts) == 1:
        return parts[0]
    return PatientPixels(parts, join_items([part.item for part in parts], [len(part) for part in parts]))


def pixel_bags(
    context: RunContext, teacher: TeacherOutputs, transfer: AttentionTransfer | None, lambda_patch: float
) -> dict[str, list[PixelBag | PatientPixels]]:
    """Return bags of pixels of the training and validation slides; `transfer` None leaves the teacher's outputs out."""

    def make_bag(slide: CohortSlide) -> PixelBag | PatientPixels:
        targets = teacher.slides[slide.name]
        patches = lr_patches(targets.grid, context.config.plan, context.config.student_input_px)
        item = student_item(context, targets, transfer, lambda_patch)
        return PixelBag(slide, replace(patches, stain=slide.stain), item)

    return by_side(context, make_bag, join_pixels)


@dataclass(frozen=True)
class DrawnBag:
    """Pixels of the patches drawn of one slide.

    Attributes
    ----------
    pixels
        (R, 3, p, p) uint8.
    item
        Target, and the teacher's outputs for the same patches.
    """

    pixels: Tensor
    item: BagItem

    def to(self, device: torch.device) -> DrawnBag:
        """Return the bag on another device; Lightning calls this."""
        return DrawnBag(self.pixels.to(device), self.item.to(device))


class DrawnBags(Dataset[Any]):
    """Bags of pixels, drawn anew in every epoch.

    Parameters
    ----------
    bags
        Slides of one side.
    handles
        Open slides.
    max_patches
        Patches drawn of a slide. None takes all patches, for validation.
    augment
        Mirror and turn every patch.
    seed
        Together with epoch and slide it determines every draw.
    dropout
        Share of the drawn patches that is left out at random.
    """

    def __init__(
        self,
        bags: Sequence[PixelBag | PatientPixels],
        handles: SlideHandles,
        max_patches: int | None,
        *,
        augment: bool,
        seed: int,
        dropout: float = 0.0,
    ) -> None:
        self.bags, self.handles, self.max_patches = bags, handles, max_patches
        self.augment, self.seed, self.dropout = augment, seed, dropout
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> DrawnBag:
        bag = self.bags[index]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        rows = draw_rows(rng, len(bag), self.max_patches, self.dropout)
        pixels = bag.read(self.handles, rows)
        if self.augment:
            pixels = torch.stack([_apply_dihedral(patch, int(rng.integers(8))) for patch in pixels])
        return DrawnBag(pixels, bag.item.subset(torch.from_numpy(rows)))


def _apply_dihedral(pixels: Tensor, turn: int) -> Tensor:
    """Return a mirrored or turned (3, p, p) patch; see `apply_dihedral`."""
    array = apply_dihedral(pixels.movedim(0, -1).numpy(), turn)
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 0)


# ---------------------------------------------------------------- the module


class EndToEndModule(SelectingModule):
    """Lightning module of encoder and MIL on bags of pixels.

    Parameters
    ----------
    student, mil
        The networks.
    loss
        Loss of a bag.
    config
        Settings of stage 3, or of stage 2 for a frozen encoder.
    lr
        Learning rate.
    input_px
        Side in pixels to which patches are enlarged; None leaves them as read.
    chunk
        Patches encoded at once if no gradient goes through the encoder.
    """

    def __init__(
        self,
        student: AlignedEncoder,
        mil: MIL,
        loss: Loss,
        config: Stage2Config | Stage3Config,
        *,
        lr: float,
        input_px: int | None,
        chunk: int = ENCODE_BATCH,
    ) -> None:
        super().__init__(config)
        self.student, self.mil, self.loss = student, mil, loss
        self.lr, self.input_px, self.chunk = lr, input_px, chunk

    def train(self, mode: bool = True) -> EndToEndModule:
        """Set training mode except for batch norm, which keeps the statistics that the weights were made with."""
        super().train(mode)
        freeze_norms(self.student)
        return self

    def training_step(self, batch: Sequence[DrawnBag], index: int) -> Tensor:
        """Return the loss of a few slides: the encoder runs once over all their patches, the MIL once per slide."""
        # One pass over all slides of the step uses a GPU better than small passes; the MIL needs slides apart.
        pixels = torch.cat([bag.pixels for bag in batch])
        embeddings = torch.split(self.encode(pixels), [len(bag.pixels) for bag in batch])
        terms: dict[str, Tensor] = {}
        for bag, instances in zip(batch, embeddings, strict=True):
            inputs = drop_features(self.mil, instances, self.config.feature_dropout)
            values = {**self.loss(self.mil(inputs), bag.item), **patch_terms(self.mil, inputs, bag.item)}
            for name, value in values.items():
                terms[name] = terms.get(name, torch.zeros_like(value)) + value / len(batch)
        return self.total(terms, index)

    def validation_step(self, batch: Sequence[DrawnBag], index: int) -> None:
        """Record the logits of whole slides; without labels how they agree with the teacher."""
        for bag in batch:
            output = self.mil(self.encode(bag.pixels))
            if bag.item.target == UNLABELLED:
                self.record_unlabelled(output, bag.item)
            else:
                self.record_logits(output.logits, bag.item.target)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return (N, D) embeddings of (N, 3, p, p) uint8 pixels, in chunks unless gradients need all at once."""
        needs_gradient = torch.is_grad_enabled() and any(p.requires_grad for p in self.student.parameters())
        if needs_gradient:
            embedding: Tensor = self.student(resize_patches(pixels, self.input_px)).embedding
            return embedding
        with torch.no_grad():  # chunks bound the memory: a whole slide can have thousands of patches
            parts = [
                self.student(resize_patches(part, self.input_px)).embedding for part in torch.split(pixels, self.chunk)
            ]
        return torch.cat(parts)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over all weights that are not frozen."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=self.lr, weight_decay=self.config.weight_decay)


# ---------------------------------------------------------------- the fit


def scale_step(slides: int, patches: int | None, scale: float) -> tuple[int, int | None]:
    """Return slides per step and patches per slide for a share of the memory: fewer slides first, then fewer patches.

    Parameters
    ----------
    slides, patches
        Configured numbers; patches None means all.
    scale
        Share of the configured step, in (0, 1].
    """
    fewer_slides = max(1, int(slides * scale))
    if patches is None:
        return fewer_slides, None
    return fewer_slides, max(1, int(patches * min(1.0, scale * slides / fewer_slides)))


@dataclass(frozen=True)
class _StepSettings:
    """Differences between stage 3 and stage 2 with a frozen encoder in how a step is drawn."""

    tunes_encoder: bool
    slides: int
    patches: int | None
    augment: bool
    dropout: float


def _step_settings(config: Stage2Config | Stage3Config) -> _StepSettings:
    if isinstance(config, Stage3Config):
        slides, patches = config.slides_per_step, config.patches_per_slide
        return _StepSettings(tunes_encoder=True, slides=slides, patches=patches, augment=config.augment, dropout=0.0)
    drawn, dropout = config.patches_per_slide, config.patch_dropout
    return _StepSettings(tunes_encoder=False, slides=1, patches=drawn, augment=True, dropout=dropout)


def fit_end_to_end(
    networks: Networks,
    loss: Loss,
    bags: Mapping[str, Sequence[PixelBag | PatientPixels]],
    config: Stage2Config | Stage3Config,
    plan: FitPlan,
    *,
    lr: float,
    input_px: int | None,
) -> Generator[Event, None, Networks]:
    """Fit through the encoder and return both networks in their best state on validation, frozen.

    With stage 2's settings the encoder stays as it is, and every patch of a slide is encoded anew in each epoch.
    """
    student, mil = networks
    step = _step_settings(config)
    handles = SlideHandles()

    def make(scale: float = 1.0) -> tuple[EndToEndModule, DataLoader[Any], DataLoader[Any]]:
        slides, patches = scale_step(step.slides, step.patches, scale)
        data = DrawnBags(bags["train"], handles, patches, augment=step.augment, seed=plan.seed, dropout=step.dropout)
        # An incomplete last step is dropped, unless it is the only one.
        order, has_full_step = EpochSampler(len(data), plan.seed, patients=plan.patients), len(data) >= slides
        train: DataLoader[Any] = DataLoader(data, slides, sampler=order, collate_fn=list, drop_last=has_full_step)
        val = DrawnBags(bags["val"], handles, None, augment=False, seed=plan.seed)
        student.requires_grad_(step.tunes_encoder)
        mil.requires_grad_(True)
        chunk = max(1, int(ENCODE_BATCH * scale))
        module = EndToEndModule(student, mil, loss, config, lr=lr, input_px=input_px, chunk=chunk)
        val_order = EpochSampler(len(val), plan.seed, shuffle=False)
        return module, train, DataLoader(val, 1, sampler=val_order, collate_fn=list)

    try:
        state = yield from fit(make, plan)
    finally:
        handles.close()  # also if the consumer closes the stream
    for prefix, network in (("student.", student), ("mil.", mil)):
        network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        network.cpu().eval().requires_grad_(False)
    return student, mil
