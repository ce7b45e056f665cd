"""A small HR encoder for the demo, pretrained on what phantom slides are made of; it never sees a lesion."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lrmil_training.fitting import SELECT, FitPlan, fit, set_epoch
from lrmil_training.pairs import turned
from napari_lrmil.core.encoders import EncoderSpec, MobileNetV2Encoder, round_to_half, save_encoder
from napari_lrmil.core.events import Event, Progress
from napari_lrmil.core.phantom import COMPOSITION_CELL, NORMAL, PhantomSlide, paint


@dataclass(frozen=True)
class PretrainConfig:
    """How the demo's HR encoder is made.

    Attributes
    ----------
    slides, val_slides
        Normal phantom slides to learn from and to select on.
    size
        Their width and height in px.
    patch_px
        Side of a patch; a whole number of the generator's cells.
    patches_per_slide
        Patches drawn from each slide.
    epochs, lr, batch_size
        Of AdamW with a one-cycle schedule.
    colour_sd
        Deviation of the random gain of each colour channel, so that stain does not stand in for structure.
    seed
        Fixes slides, patches and weights.
    """

    slides: int = 16
    val_slides: int = 4
    size: tuple[int, int] = (2560, 2048)
    patch_px: int = 128
    patches_per_slide: int = 128
    epochs: int = 10
    lr: float = 2e-3
    batch_size: int = 64
    colour_sd: float = 0.06
    seed: int = 90_000


@dataclass(frozen=True)
class Tissue:
    """Patches (P, p, p, 3) uint8 and what each is made of (P, M) float32."""

    pixels: NDArray[np.uint8]
    made_of: NDArray[np.float32]


class _Patches(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, tissue: Tissue, config: PretrainConfig, *, augment: bool) -> None:
        self.tissue, self.config, self.augment = tissue, config, augment
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.tissue.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = self.tissue.pixels[index]
        if self.augment:
            rng = np.random.default_rng([self.config.seed, self.epoch, index])
            gain = 1 + rng.normal(0, self.config.colour_sd, 3)
            pixels = turned((255 - (255 - pixels) * gain).clip(0, 255).astype(np.uint8), int(rng.integers(8)))
        picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        return picture, torch.from_numpy(self.tissue.made_of[index])


class Pretraining(L.LightningModule):
    """Regression of standardised tissue composition on the pooled embedding, by mean squared error."""

    def __init__(self, encoder: MobileNetV2Encoder, constituents: int, config: PretrainConfig) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, config
        self.head = nn.Linear(encoder.dim, constituents)

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, made_of = batch
        return nn.functional.mse_loss(self.head(self.encoder(pixels).embedding), made_of)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self._loss(batch)
        self.log("train/mse", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the loss on other slides, and the selection figure."""
        loss = self._loss(batch)
        self.log_dict({"val/mse": loss, SELECT: -loss})

    def on_train_epoch_start(self) -> None:
        """Tell the data which epoch it is."""
        set_epoch(self.trainer.train_dataloader, self.current_epoch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a one-cycle schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.settings.lr, weight_decay=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.settings.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def pretrain(
    out: Path, spec: EncoderSpec, config: PretrainConfig, device: torch.device
) -> Generator[Event, None, Path]:
    """Pretrain an HR encoder on normal phantom slides and write it to ``out/<name>.safetensors``; return that path."""
    sides = []
    for first, count in ((0, config.slides), (config.slides, config.val_slides)):
        slides = [
            PhantomSlide(f"pretrain_{i}", NORMAL, config.seed + i, config.size) for i in range(first, first + count)
        ]
        sides.append((yield from _draw(slides, config)))
    scale = sides[0].made_of.mean(axis=0), sides[0].made_of.std(axis=0) + 1e-6
    train, val = (Tissue(s.pixels, ((s.made_of - scale[0]) / scale[1]).astype(np.float32)) for s in sides)
    plan = FitPlan("pretraining", config.epochs, config.epochs, config.seed, out / "checkpoints", device)

    def make() -> tuple[Pretraining, DataLoader[tuple[Tensor, Tensor]], DataLoader[tuple[Tensor, Tensor]]]:
        order = torch.Generator().manual_seed(config.seed)
        data = _Patches(train, config, augment=True)
        loader = DataLoader(data, config.batch_size, shuffle=True, generator=order, drop_last=True)
        module = Pretraining(MobileNetV2Encoder(spec), train.made_of.shape[1], config)
        return module, loader, DataLoader(_Patches(val, config, augment=False), config.batch_size)

    state = yield from fit(make, plan)
    encoder = MobileNetV2Encoder(spec)
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    round_to_half(encoder)
    path = out / f"{spec.name}.safetensors"
    save_encoder(path, encoder)
    return path


def _draw(slides: Sequence[PhantomSlide], config: PretrainConfig) -> Generator[Event, None, Tissue]:
    pixels, made_of = [], []
    for done, slide in enumerate(slides):
        yield Progress("painting", done, len(slides), "slides")
        phantom = paint(slide)
        rng = np.random.default_rng(slide.seed)
        step = config.patch_px // COMPOSITION_CELL
        for _ in range(config.patches_per_slide):
            row, column = (int(rng.integers(size - step + 1)) for size in phantom.composition.shape[:2])
            y, x = row * COMPOSITION_CELL, column * COMPOSITION_CELL
            pixels.append(phantom.pixels[y : y + config.patch_px, x : x + config.patch_px])
            made_of.append(np.log1p(phantom.composition[row : row + step, column : column + step].sum(axis=(0, 1))))
    return Tissue(np.stack(pixels), np.stack(made_of).astype(np.float32))
