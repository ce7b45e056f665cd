"""Training through the encoder: bags of pixels, of which a part is drawn at each step (Method 2.6).

An LR bag has hundreds of patches, not tens of thousands, so that gradients can reach the encoder. Stage 2 uses the same
loop with a frozen encoder where its features are computed as it goes.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lrmil_training.config import Stage2Config, Stage3Config
from lrmil_training.data.bags import BagItem
from lrmil_training.data.cohort import CohortSlide
from lrmil_training.data.patch_pairs import SlideHandles, apply_dihedral
from lrmil_training.fitting.fit import EpochSampler, FitPlan, fit
from lrmil_training.stages.bag_fitting import Loss, SelectingModule
from lrmil_training.stages.patch_distillation import freeze_norms
from napari_lrmil.core.encoders import AlignedEncoder
from napari_lrmil.core.events import Event
from napari_lrmil.core.features.extraction import PatchSet, resize_patches
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.models.mil import GatedAttentionMIL

ENCODE_BATCH = 64  # patches encoded at once on validation


@dataclass(frozen=True)
class PixelBag:
    """A slide whose patches are read when they are needed.

    Attributes
    ----------
    row
        The slide.
    patches
        Its LR patches.
    item
        Target and what the teacher says; without instances.
    """

    row: CohortSlide
    patches: PatchSet
    item: BagItem

    def read(self, handles: SlideHandles, rows: Int64) -> Tensor:
        """Return (R, 3, p, p) uint8 pixels of some patches."""
        some = replace(self.patches, corners=self.patches.corners[rows])
        pixels = some.read(handles.of(self.row), slice(None))
        return torch.from_numpy(pixels).movedim(-1, -3)


@dataclass(frozen=True)
class DrawnBag:
    """Pixels of the patches drawn of one slide, with what is known of them."""

    pixels: Tensor
    item: BagItem

    def to(self, device: torch.device) -> DrawnBag:
        """Return the bag on another device, as Lightning asks for it."""
        return DrawnBag(self.pixels.to(device), self.item.to(device))


class DrawnBags(Dataset[Any]):
    """Bags of pixels; `most` patches are drawn of each, anew in every epoch. None takes all, as they are.

    Parameters
    ----------
    bags
        Slides of one side.
    handles
        Where slides are kept open.
    most
        Patches drawn of a slide; None for validation.
    augment
        Whether to mirror and turn every patch.
    seed
        With epoch and slide it fixes every draw.
    dropout
        Share of the patches that is left out at random.
    """

    def __init__(
        self,
        bags: Sequence[PixelBag],
        handles: SlideHandles,
        most: int | None,
        *,
        augment: bool,
        seed: int,
        dropout: float = 0.0,
    ) -> None:
        self.bags, self.handles, self.most, self.augment, self.seed = bags, handles, most, augment, seed
        self.dropout = dropout
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> DrawnBag:
        bag = self.bags[index]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        count = len(bag.patches)
        taken = count if self.most is None else min(self.most, count)
        rows = np.arange(count) if taken == count else np.sort(rng.permutation(count)[:taken])
        if self.dropout:
            kept = rows[rng.random(len(rows)) >= self.dropout]
            rows = kept if len(kept) else rows  # as in `bagfit.Bags`: a bag without patches says nothing
        pixels = bag.read(self.handles, rows)
        if self.augment:
            pixels = torch.stack([_turned(one, int(rng.integers(8))) for one in pixels])
        return DrawnBag(pixels, bag.item.taking(torch.from_numpy(rows)))


def _turned(pixels: Tensor, turn: int) -> Tensor:
    array = apply_dihedral(pixels.movedim(0, -1).numpy(), turn)
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 0)


class EndToEndModule(SelectingModule):
    """Encoder and MIL on bags of pixels.

    Parameters
    ----------
    student, mil
        The networks.
    loss
        Of a bag.
    config
        Stage 3's settings, or stage 2's for a frozen encoder.
    lr
        Learning rate.
    input_px
        Side to which patches are enlarged; None leaves them.
    chunk
        Patches encoded at once where no gradient goes through the encoder.
    """

    def __init__(
        self,
        student: AlignedEncoder,
        mil: GatedAttentionMIL,
        loss: Loss,
        config: Stage2Config | Stage3Config,
        lr: float,
        input_px: int | None,
        chunk: int = ENCODE_BATCH,
    ) -> None:
        super().__init__(config)
        self.student, self.mil, self.loss = student, mil, loss
        self.lr, self.input_px, self.chunk = lr, input_px, chunk

    def train(self, mode: bool = True) -> EndToEndModule:
        """Set training mode, but for batch norm, which keeps the statistics that the weights were made with."""
        super().train(mode)
        freeze_norms(self.student)
        return self

    def training_step(self, batch: Sequence[DrawnBag], index: int) -> Tensor:
        """Return the loss of some slides: one pass of the encoder over all their patches, a pool for each."""
        pixels = torch.cat([one.pixels for one in batch])
        embeddings = torch.split(self.embedded(pixels), [len(one.pixels) for one in batch])
        terms: dict[str, Tensor] = {}
        for one, instances in zip(batch, embeddings, strict=True):
            for name, value in self.loss(self.mil(instances), one.item).items():
                terms[name] = terms.get(name, torch.zeros_like(value)) + value / len(batch)
        return self.total(terms, index)

    def validation_step(self, batch: Sequence[DrawnBag], index: int) -> None:
        """Keep what the networks say of whole slides."""
        for one in batch:
            self.keep(self.mil(self.embedded(one.pixels)).logits, one.item.target)

    def embedded(self, pixels: Tensor) -> Tensor:
        """Return (N, D) embeddings of (N, 3, p, p) uint8 pixels; all at once only where gradients need it."""
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in self.student.parameters())
        if learning:
            found: Tensor = self.student(resize_patches(pixels, self.input_px)).embedding
            return found
        with torch.no_grad():
            parts = [
                self.student(resize_patches(part, self.input_px)).embedding for part in torch.split(pixels, self.chunk)
            ]
        return torch.cat(parts)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over what is not frozen."""
        learning = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(learning, lr=self.lr, weight_decay=self.config.weight_decay)


def scale_step(slides: int, most: int | None, scale: float) -> tuple[int, int | None]:
    """Return slides a step and patches a slide for a share of the memory: fewer slides first, then fewer patches."""
    together = max(1, int(slides * scale))
    if most is None:
        return together, None
    return together, max(1, int(most * min(1.0, scale * slides / together)))


def fit_end_to_end(
    networks: tuple[AlignedEncoder, GatedAttentionMIL],
    loss: Loss,
    bags: Mapping[str, Sequence[PixelBag]],
    config: Stage2Config | Stage3Config,
    plan: FitPlan,
    lr: float,
    input_px: int | None,
) -> Generator[Event, None, tuple[AlignedEncoder, GatedAttentionMIL]]:
    """Fit through the encoder and return both networks in their best state on validation, frozen.

    With stage 2's settings the encoder stays as it is, and every patch of a slide is encoded anew in each epoch.
    """
    student, mil = networks
    tuned = isinstance(config, Stage3Config)
    most = config.patches_per_slide if isinstance(config, Stage3Config) else None
    slides = config.slides_per_step if isinstance(config, Stage3Config) else 1
    augment = config.augment if isinstance(config, Stage3Config) else True
    dropout = config.patch_dropout if isinstance(config, Stage2Config) else 0.0
    handles = SlideHandles()

    def make(scale: float = 1.0) -> tuple[EndToEndModule, DataLoader[Any], DataLoader[Any]]:
        together, drawn = scale_step(slides, most, scale)
        data = DrawnBags(bags["train"], handles, drawn, augment=augment, seed=plan.seed, dropout=dropout)
        order, whole = EpochSampler(len(data), plan.seed), len(data) >= together
        train: DataLoader[Any] = DataLoader(data, together, sampler=order, collate_fn=list, drop_last=whole)
        val = DrawnBags(bags["val"], handles, None, augment=False, seed=plan.seed)
        chunk = max(1, int(ENCODE_BATCH * scale))
        module = EndToEndModule(
            student.requires_grad_(tuned), mil.requires_grad_(True), loss, config, lr, input_px, chunk
        )
        each = EpochSampler(len(val), plan.seed, shuffle=False)
        return module, train, DataLoader(val, 1, sampler=each, collate_fn=list)

    try:
        state = yield from fit(make, plan)
    finally:
        handles.close()
    for prefix, network in (("student.", student), ("mil.", mil)):
        network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        network.cpu().eval().requires_grad_(False)
    return student, mil
