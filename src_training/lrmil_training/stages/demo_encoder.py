"""Pretraining of the demo's small HR encoder on normal phantom tissue, without lesions and without labels.

The encoder regresses the composition of a patch, which the generator knows, and its texture: the energy of haematoxylin
and eosin in four bands of scale, over the patch and within its nuclei. The targets are whitened, so that no direction
of them dominates the embedding. With composition alone, five directions held 94 % of the variance, and a student that
regresses the embedding lost the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lrmil_training.data.patch_pairs import apply_dihedral
from lrmil_training.fitting.fit import SELECT, FitPlan, fit, set_epoch
from napari_lrmil.core.encoders import EncoderSpec, MobileNetV2Encoder, round_to_half, save_encoder
from napari_lrmil.core.events import Event, Progress
from napari_lrmil.core.phantom import COMPOSITION_CELL, NORMAL, PhantomSlide, paint

BANDS_PX = (0.7, 1.4, 2.8, 5.6)  # Gaussians between which energy is measured, px at 20x: chromatin to whole nuclei
NUCLEUS_SIGMA_PX = 3.0  # Gaussian that turns haematoxylin into a map of nuclei
MIN_VARIANCE_SHARE = 0.02  # of a standardised target's variance; directions below it are noise and stay small


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of the pretraining.

    Attributes
    ----------
    slides, val_slides
        Number of normal phantom slides for training and for selection.
    size
        Width and height of a slide in px.
    patch_px
        Side of a patch; a whole number of the generator's cells.
    patches_per_slide
        Patches drawn from each slide.
    epochs, lr, batch_size
        Settings of AdamW with a one-cycle schedule.
    colour_sd
        Deviation of the random gain of each colour channel, so that stain cannot replace structure.
    seed
        Seed of slides, patches and weights.
    """

    slides: int = 16
    val_slides: int = 4
    size: tuple[int, int] = (2560, 2048)
    patch_px: int = 128
    patches_per_slide: int = 128
    epochs: int = 14
    lr: float = 2e-3
    batch_size: int = 32
    colour_sd: float = 0.04
    seed: int = 90_000


@dataclass(frozen=True)
class TissuePatches:
    """Patches with their regression targets.

    Attributes
    ----------
    pixels
        (P, p, p, 3) uint8.
    targets
        (P, M) float32: composition, then texture.
    """

    pixels: NDArray[np.uint8]
    targets: NDArray[np.float32]


class _PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, tissue: TissuePatches, config: PretrainConfig, *, augment: bool) -> None:
        self.tissue, self.config, self.augment = tissue, config, augment
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.tissue.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = self.tissue.pixels[index]
        if self.augment:
            rng = np.random.default_rng([self.config.seed, self.epoch, index])
            # Gain acts on absorbed light (255 - pixels), as a thicker or darker stain does.
            gain = 1 + rng.normal(0, self.config.colour_sd, 3)
            pixels = apply_dihedral((255 - (255 - pixels) * gain).clip(0, 255).astype(np.uint8), int(rng.integers(8)))
        picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        return picture, torch.from_numpy(self.tissue.targets[index])


class Pretraining(L.LightningModule):
    """Regression of whitened composition and texture on the pooled embedding, by mean squared error."""

    def __init__(self, encoder: MobileNetV2Encoder, targets: int, config: PretrainConfig) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, config
        self.head = nn.Linear(encoder.dim, targets)

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, values = batch
        return nn.functional.mse_loss(self.head(self.encoder(pixels).embedding), values)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self._loss(batch)
        self.log("train/mse", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the loss on validation slides, and the selection figure."""
        loss = self._loss(batch)
        self.log_dict({"val/mse": loss, SELECT: -loss})

    def on_train_epoch_start(self) -> None:
        """Pass the epoch to the data set, which seeds its augmentation with it."""
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
        sides.append((yield from _draw_patches(slides, config)))
    whiten = _whitening(sides[0].targets)  # fitted on training slides alone
    train, val = (TissuePatches(s.pixels, whiten(s.targets)) for s in sides)
    plan = FitPlan("pretraining", config.epochs, config.epochs, config.seed, out / "checkpoints", device)

    def make() -> tuple[Pretraining, DataLoader[tuple[Tensor, Tensor]], DataLoader[tuple[Tensor, Tensor]]]:
        order = torch.Generator().manual_seed(config.seed)
        data = _PatchDataset(train, config, augment=True)
        loader = DataLoader(data, config.batch_size, shuffle=True, generator=order, drop_last=True)
        module = Pretraining(MobileNetV2Encoder(spec), train.targets.shape[1], config)
        return module, loader, DataLoader(_PatchDataset(val, config, augment=False), config.batch_size)

    state = yield from fit(make, plan)
    encoder = MobileNetV2Encoder(spec)
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    round_to_half(encoder)
    path = out / f"{spec.name}.safetensors"
    save_encoder(path, encoder)
    return path


def _draw_patches(slides: Sequence[PhantomSlide], config: PretrainConfig) -> Generator[Event, None, TissuePatches]:
    pixels, targets = [], []
    for count, slide in enumerate(slides):
        yield Progress("painting", count, len(slides), "slides")
        phantom = paint(slide)
        rng = np.random.default_rng(slide.seed)  # patches depend on their slide alone, not on the number of slides
        step = config.patch_px // COMPOSITION_CELL
        for _ in range(config.patches_per_slide):
            row, column = (int(rng.integers(size - step + 1)) for size in phantom.composition.shape[:2])
            y, x = row * COMPOSITION_CELL, column * COMPOSITION_CELL
            patch = phantom.pixels[y : y + config.patch_px, x : x + config.patch_px]
            composition = np.log1p(phantom.composition[row : row + step, column : column + step].sum(axis=(0, 1)))
            pixels.append(patch)
            targets.append(np.concatenate([composition, texture(patch)]))
    return TissuePatches(np.stack(pixels), np.stack(targets).astype(np.float32))


def texture(patch: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return log energies of both stains in bands of scale, over the patch and within nuclei, with mean and deviation.

    Parameters
    ----------
    patch
        (p, p, 3) uint8.

    Returns
    -------
    (2 * (2 * bands + 2),) values.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.color import rgb2hed

    stains = np.asarray(rgb2hed(patch), dtype=np.float64)[..., :2]
    # Weights of pixels: blurred haematoxylin is high within nuclei. Never 0, because weights must not sum to 0.
    nuclei = np.clip(gaussian_filter(stains[..., 0], NUCLEUS_SIGMA_PX), 0, None) + 1e-6
    energies: list[float] = []
    for stain in np.moveaxis(stains, -1, 0):
        smooth = [stain, *(gaussian_filter(stain, s) for s in BANDS_PX)]
        for fine, coarse in itertools.pairwise(smooth):
            energy = np.square(fine - coarse)
            energies += [np.log(energy.mean() + 1e-9), np.log(np.average(energy, weights=nuclei**2) + 1e-9)]
        energies += [stain.mean(), stain.std()]
    return np.array(energies)


def _whitening(targets: NDArray[np.float32]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return the function that gives every direction of the (P, M) targets the same variance, down to a floor.

    Directions with less than `MIN_VARIANCE_SHARE` of the variance are noise, which full whitening would amplify.
    """
    mean, deviation = targets.mean(axis=0), targets.std(axis=0) + 1e-6
    values, vectors = np.linalg.eigh(np.cov((targets - mean).T / deviation[:, None]))
    whiten = vectors / np.sqrt(np.maximum(values, MIN_VARIANCE_SHARE))
    return lambda t: (((t - mean) / deviation) @ whiten).astype(np.float32)
