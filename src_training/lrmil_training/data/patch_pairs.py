"""Patch pairs for stage 1: an LR patch with the teacher's embeddings of its n² children.

Also the open slides and the augmentations that stage 3 shares.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lrmil_training.data.cohort import CohortSlide
from lrmil_training.data.teacher_targets import EMBEDDING, TeacherTargets
from napari_lrmil.core.features.extraction import PatchSet
from napari_lrmil.core.geometry import Int64, PatchPlan
from napari_lrmil.core.patching.grid import PlacedGrid
from napari_lrmil.core.slides.slide import Slide

MAX_OPEN_SLIDES = 64  # each holds an open file and its tile tables in memory


class SlideHandles:
    """Open slides, least recently used closed first. They are not pickled: a worker process opens its own.

    Parameters
    ----------
    max_open
        Slides that are open at the same time.
    """

    def __init__(self, max_open: int = MAX_OPEN_SLIDES) -> None:
        self.max_open = max_open
        self._open: OrderedDict[str, Slide] = OrderedDict()

    def of(self, row: CohortSlide) -> Slide:
        """Return the opened slide of a row."""
        if row.name not in self._open:
            if len(self._open) >= self.max_open:
                self._open.popitem(last=False)[1].close()
            self._open[row.name] = row.open()
        self._open.move_to_end(row.name)
        return self._open[row.name]

    def close(self) -> None:
        """Close all slides."""
        while self._open:
            self._open.popitem()[1].close()

    def __getstate__(self) -> dict[str, int]:
        return {"max_open": self.max_open}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["max_open"])  # type: ignore[misc]  # no slide is open in the new process


_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class PatchPair:
    """LR patch and its children. In a batch all arrays have a leading axis B.

    Attributes
    ----------
    pixels
        (3, p, p) uint8.
    targets
        (n², D) standardised HR embeddings, zero for a child without tissue.
    layers
        Layer name -> (n², D_l) standardised embeddings at that layer.
    scores
        (n²,) teacher's attention scores.
    present
        (n²,) bool: the child has tissue.
    hr_pixels
        (n², 3, q, q) uint8 of the children, augmented like the patch; empty if targets are stored.
    classes
        (C,) class shares of the LR patch by the outlines beside its slide; zero if they say nothing of it, empty
        without the patch term.
    """

    pixels: Tensor
    targets: Tensor
    layers: dict[str, Tensor]
    scores: Tensor
    present: Tensor
    hr_pixels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    classes: Tensor = field(default_factory=lambda: torch.empty(0))

    def to(self, device: torch.device) -> PatchPair:
        """Return the pair on another device; Lightning calls this."""
        return PatchPair(
            self.pixels.to(device),
            self.targets.to(device),
            {name: values.to(device) for name, values in self.layers.items()},
            self.scores.to(device),
            self.present.to(device),
            self.hr_pixels.to(device),
            self.classes.to(device),
        )


def collate_pairs(pairs: Sequence[PatchPair]) -> PatchPair:
    """Return a batch of pairs."""
    return PatchPair(
        pixels=torch.stack([p.pixels for p in pairs]),
        targets=torch.stack([p.targets for p in pairs]),
        layers={name: torch.stack([p.layers[name] for p in pairs]) for name in pairs[0].layers},
        scores=torch.stack([p.scores for p in pairs]),
        present=torch.stack([p.present for p in pairs]),
        hr_pixels=torch.stack([p.hr_pixels for p in pairs]),
        classes=torch.stack([p.classes for p in pairs]),
    )


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of pairs, a function of (seed, epoch, slide, patch), so that a resumed run equals an unbroken one.

    Attributes
    ----------
    turn
        Mirror and turn an LR patch together with the order of its children.
    stain_sd
        Relative change of each stain, the same in the LR patch and its children.
    """

    turn: bool = True
    stain_sd: float = 0.0


class PatchPairDataset(Dataset[PatchPair]):
    """Pairs of a list of slides; pixels and targets are read on demand.

    Parameters
    ----------
    slides
        Slides with their teacher targets.
    plan
        The two resolutions.
    augmentation
        None leaves every patch as it is.
    seed
        Together with epoch, slide and patch it determines every draw.
    per_slide
        Patches drawn of a slide in each epoch; None takes all.
    with_hr_pixels
        Read the children's pixels too, for targets that are computed on the fly.
    shares
        (N, C) class shares of the LR patches of each slide, or (0, C) for a slide of which outlines say nothing. None
        without the patch term.
    """

    def __init__(
        self,
        slides: Sequence[TeacherTargets],
        plan: PatchPlan,
        *,
        augmentation: Augmentation | None,
        seed: int,
        per_slide: int | None = None,
        with_hr_pixels: bool = False,
        shares: Sequence[Tensor] | None = None,
    ) -> None:
        self.slides, self.plan, self.augmentation, self.seed = slides, plan, augmentation, seed
        self.with_hr_pixels, self.shares = with_hr_pixels, shares
        self.epoch = 0
        counts = [len(s.grid.lr_index) for s in slides]
        sizes = [count if per_slide is None else min(per_slide, count) for count in counts]
        self._ends = np.cumsum(sizes)  # index of the first pair after each slide
        self._slots = max((s.grid.slots for s in slides), default=0)  # the same in all pairs, which make a batch
        self._handles = SlideHandles()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> PatchPair:
        # Index -> slide i and position in its draw: pairs of all slides are numbered one after another.
        i = int(np.searchsorted(self._ends, index, side="right"))
        rank = index - (int(self._ends[i - 1]) if i else 0)
        r = self._drawn_patch(i, rank)
        targets, n = self.slides[i], self.plan.n
        pixels, rows = self._lr_pixels(targets, r), _arranged(targets, r)
        hr = self._hr_pixels(targets, r) if self.with_hr_pixels else np.zeros((n, n, 0, 0, 3), np.uint8)
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, self.epoch, i, r])
            # Pixels, child rows and HR pixels are turned alike, so that every child keeps its place under the patch.
            turn = int(rng.integers(8)) if self.augmentation.turn else 0
            pixels, rows = apply_dihedral(pixels, turn), apply_dihedral(rows, turn)
            hr = _apply_dihedral_to_children(hr, turn)
            if self.augmentation.stain_sd:
                factors = 1 + self.augmentation.stain_sd * rng.standard_normal(3)
                pixels, hr = jitter_stain(pixels, factors), jitter_stain(hr, factors)
        free = self._slots - rows.size
        flat = torch.from_numpy(np.pad(np.ascontiguousarray(rows).reshape(-1), (0, free), constant_values=-1))
        return PatchPair(
            pixels=_channels_first(pixels),
            targets=targets.standardised(EMBEDDING, flat),
            layers={name: targets.standardised(name, flat) for name in targets.layers},
            scores=targets.scores[flat.clamp(min=0)],  # -1 would be the last row; `present` masks these scores
            present=flat >= 0,
            hr_pixels=_channels_first(hr.reshape(n * n, *hr.shape[2:])),
            classes=self._class_shares(i, r),
        )

    def _class_shares(self, i: int, r: int) -> Tensor:
        """Return the (C,) class shares of LR patch `r` of slide `i`; zeros if outlines say nothing of the slide."""
        if self.shares is None:
            return torch.empty(0)
        shares = self.shares[i]
        return shares[r] if len(shares) else shares.new_zeros(shares.shape[1])

    def _drawn_patch(self, i: int, rank: int) -> int:
        """Return the LR patch at position `rank` of this epoch's draw from slide `i`."""
        count = len(self.slides[i].grid.lr_index)
        size = int(self._ends[i] - (self._ends[i - 1] if i else 0))
        if size == count:
            return rank
        # All pairs of a slide draw from the same permutation, so no patch is drawn twice in an epoch.
        return int(np.random.default_rng([self.seed, self.epoch, i]).permutation(count)[rank])

    def _lr_pixels(self, targets: TeacherTargets, r: int) -> NDArray[np.uint8]:
        """Return the (p, p, 3) pixels of an LR patch."""
        grid = targets.grid
        patches = PatchSet(
            grid.lr_corners[r : r + 1], grid.lattice.lr_cell, self.plan.lr_patch_px, stain=targets.row.stain
        )
        pixels: NDArray[np.uint8] = patches.read(self._handles.of(targets.row), slice(0, 1))[0]
        return pixels

    def _hr_pixels(self, targets: TeacherTargets, r: int) -> NDArray[np.uint8]:
        """Return the (n, n, q, q, 3) pixels of the children, white for a child without tissue."""
        n, side, grid = self.plan.n, self.plan.hr_patch_px, targets.grid
        pixels = np.full((n * n, side, side, 3), 255, np.uint8)
        rows = targets.children_of(r)
        existing = np.flatnonzero(rows >= 0)
        patches = PatchSet(grid.hr_corners[rows[existing]], grid.lattice.cell, side, stain=targets.row.stain)
        pixels[existing] = patches.read(self._handles.of(targets.row), slice(None))
        return pixels.reshape(n, n, side, side, 3)

    def close(self) -> None:
        """Close all slides."""
        self._handles.close()


def _arranged(targets: TeacherTargets, r: int) -> Int64:
    """Return the HR rows of an LR patch's children as they lie, (n, n); in one line if they lie on no lattice."""
    rows, n = targets.children_of(r), targets.grid.lattice.n
    return rows.reshape(1, -1) if isinstance(targets.grid, PlacedGrid) else rows.reshape(n, n)


def apply_dihedral(array: NDArray[_Scalar], turn: int) -> NDArray[_Scalar]:
    """Return one of the eight mirrors and quarter turns of the first two axes; `turn` is 0 to 7."""
    array = array.swapaxes(0, 1) if turn & 4 else array
    return array[:: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1]


def _apply_dihedral_to_children(children: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """Return (n, n, q, q, 3) children turned as one image: their order and the pixels of each."""
    order = apply_dihedral(children, turn)
    return apply_dihedral(order.transpose(2, 3, 0, 1, 4), turn).transpose(2, 3, 0, 1, 4)


def jitter_stain(pixels: NDArray[np.uint8], factors: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return (…, 3) RGB pixels with the amount of haematoxylin, eosin and residual multiplied by (3,) `factors`.

    Colour deconvolution after Ruifrok and Johnston (2001), in the implementation of scikit-image.
    """
    from skimage.color import hed2rgb, rgb2hed  # slow to import, and needed for this augmentation alone

    if pixels.size == 0:
        return pixels
    rgb = hed2rgb(rgb2hed(pixels) * factors)
    changed: NDArray[np.uint8] = np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
    return changed


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).movedim(-1, -3)
