"""Pairs for stage 1: an LR patch with what the teacher knows of its n² children. Also what stage 2 reads of a slide."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lrmil_training.cohort import CohortSlide
from napari_lrmil.core.bag import Bag, Features
from napari_lrmil.core.embed import PatchSet
from napari_lrmil.core.geometry import Int64, PatchPlan
from napari_lrmil.core.grid import NestedGrid, nest_cells
from napari_lrmil.core.slide import Slide

_Scalar = TypeVar("_Scalar", bound=np.generic)

OPEN_SLIDES = 32  # handles kept open while stage 1 reads patches in random order
SMALLEST_DEVIATION = 1e-4  # a dimension that never varies is left as it is, not blown up


@dataclass(frozen=True)
class Standard:
    """Mean and deviation per dimension over the teacher's training instances."""

    mean: Tensor
    deviation: Tensor

    def apply(self, features: Features) -> Tensor:
        """Return (K, D) features in units of the deviation."""
        return (torch.from_numpy(features) - self.mean) / self.deviation


def standard_of(arrays: Sequence[Features]) -> Standard:
    """Return the statistics over the rows of all arrays, summed up slide by slide."""
    count = sum(len(a) for a in arrays)
    mean = np.sum([a.sum(axis=0, dtype=np.float64) for a in arrays], axis=0) / count
    variance = np.sum([np.square(a - mean).sum(axis=0) for a in arrays], axis=0) / count
    deviation = np.sqrt(variance)
    deviation[deviation < SMALLEST_DEVIATION] = 1.0
    return Standard(torch.tensor(mean, dtype=torch.float32), torch.tensor(deviation, dtype=torch.float32))


@dataclass(frozen=True)
class TaughtSlide:
    """What the frozen teacher says of a slide.

    Attributes
    ----------
    row
        The slide.
    grid
        Its nested grids, rebuilt from the stored HR coordinates.
    targets
        (K, D) standardised HR embeddings.
    layers
        Layer name -> (K, D_l) standardised pooled embeddings.
    scores
        (K,) attention scores.
    logits
        (C,) class scores.
    """

    row: CohortSlide
    grid: NestedGrid
    targets: Tensor
    layers: Mapping[str, Tensor]
    scores: Tensor
    logits: Tensor

    def children(self) -> Int64:
        """Return (N, n²): for each LR patch the rows of its children, -1 where there is none."""
        table = np.full((len(self.grid.lr_index), self.grid.lattice.n**2), -1, dtype=np.int64)
        table[self.grid.parent, self.grid.child] = np.arange(len(self.grid.parent))
        return table


def grid_from_bag(bag: Bag, n: int) -> NestedGrid:
    """Return the nested grids behind a bag of HR features."""
    lattice = bag.origin.lattice(n)
    index = (bag.coords - np.asarray(lattice.origin)) // np.asarray(lattice.cell)
    return nest_cells(lattice, index)


@dataclass(frozen=True)
class Pair:
    """One LR patch and its children; a batch of them has a leading axis B.

    Attributes
    ----------
    pixels
        (3, p, p) uint8.
    targets
        (n², D) standardised HR embeddings, zero where there is no child.
    layers
        Layer name -> (n², D_l).
    scores
        (n²,) teacher's attention scores.
    present
        (n²,) bool.
    """

    pixels: Tensor
    targets: Tensor
    layers: dict[str, Tensor]
    scores: Tensor
    present: Tensor

    def to(self, device: torch.device) -> Pair:
        """Return the pair on another device, as Lightning asks for it."""
        return Pair(
            self.pixels.to(device),
            self.targets.to(device),
            {name: values.to(device) for name, values in self.layers.items()},
            self.scores.to(device),
            self.present.to(device),
        )


def collate(pairs: Sequence[Pair]) -> Pair:
    """Return a batch."""
    return Pair(
        pixels=torch.stack([p.pixels for p in pairs]),
        targets=torch.stack([p.targets for p in pairs]),
        layers={name: torch.stack([p.layers[name] for p in pairs]) for name in pairs[0].layers},
        scores=torch.stack([p.scores for p in pairs]),
        present=torch.stack([p.present for p in pairs]),
    )


class PairDataset(Dataset[Pair]):
    """Pairs of a list of slides; pixels are read from the slides as they are asked for.

    Parameters
    ----------
    slides
        Taught slides.
    plan
        The two resolutions.
    augment
        Whether to mirror and turn an LR patch together with the order of its children.
    seed
        With the epoch and the index it fixes every turn.
    """

    def __init__(self, slides: Sequence[TaughtSlide], plan: PatchPlan, *, augment: bool, seed: int) -> None:
        self.slides, self.plan, self.augment, self.seed = slides, plan, augment, seed
        self.epoch = 0
        self._children = [s.children() for s in slides]
        self._where = [(i, r) for i, s in enumerate(slides) for r in range(len(s.grid.lr_index))]
        self._open: OrderedDict[int, Slide] = OrderedDict()

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> Pair:
        i, r = self._where[index]
        taught, n = self.slides[i], self.plan.n
        pixels, rows = self._pixels(i, r), self._children[i][r].reshape(n, n)
        if self.augment:
            turn = int(np.random.default_rng([self.seed, self.epoch, index]).integers(8))
            pixels, rows = turned(pixels, turn), turned(rows, turn)
        flat = torch.from_numpy(np.ascontiguousarray(rows).reshape(-1))
        present = flat >= 0
        return Pair(
            pixels=torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1),
            targets=_picked(taught.targets, flat),
            layers={name: _picked(values, flat) for name, values in taught.layers.items()},
            scores=taught.scores[flat.clamp(min=0)],
            present=present,
        )

    def _pixels(self, i: int, r: int) -> NDArray[np.uint8]:
        grid = self.slides[i].grid
        patches = PatchSet(grid.lr_corners[r : r + 1], grid.lattice.lr_cell, self.plan.lr_patch_px)
        pixels: NDArray[np.uint8] = patches.read(self._slide(i), slice(0, 1))[0]
        return pixels

    def _slide(self, i: int) -> Slide:
        if i not in self._open:
            if len(self._open) >= OPEN_SLIDES:
                self._open.popitem(last=False)[1].close()
            self._open[i] = self.slides[i].row.open()
        self._open.move_to_end(i)
        return self._open[i]

    def close(self) -> None:
        """Give all slides back."""
        while self._open:
            self._open.popitem()[1].close()


def turned(array: NDArray[_Scalar], turn: int) -> NDArray[_Scalar]:
    """Return one of the eight mirrors and quarter turns of the first two axes."""
    array = array.swapaxes(0, 1) if turn & 4 else array
    return array[:: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1]


def _picked(values: Tensor, rows: Tensor) -> Tensor:
    """Return (n², D) rows, zero where the row is -1."""
    return values[rows.clamp(min=0)] * (rows >= 0)[:, None]
