"""Preview of the patch settings: one LR patch, and the HR patches of the same area."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.events import Event, Finished
from napari_lrmil.core.geometry import BoxLevel0, PatchPlan
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.slides.slide import Slide

PICTURE_PX = 288  # side of each of the two pictures
MAX_GRID_CELLS = 8  # per side; with more, grid lines would hide the patches
LINE_RGB = (255, 255, 255)


@dataclass(frozen=True)
class PatchPairPicture:
    """Picture of one LR patch, the student's input, and of its HR patches, the teacher's input.

    Attributes
    ----------
    lr, hr
        (SIDE_PX, SIDE_PX, 3) uint8 each.
    plan
        Resolutions and patch sizes.
    slide
        File name of the slide.
    """

    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8]
    plan: PatchPlan
    slide: str

    @property
    def lr_text(self) -> str:
        """Caption of the LR patch."""
        p = self.plan
        return f"Student (LR): {p.lr_patch_px} px of {p.lr_mpp:g} µm = {p.lr_um:g} µm"

    @property
    def hr_text(self) -> str:
        """Caption of the HR patches."""
        p = self.plan
        return f"Teacher (HR): {p.n} × {p.n} of {p.hr_patch_px} px of {p.hr_mpp:g} µm = {p.hr_um:g} µm each"


def draw_patch_pair(
    path: Path, mpp: float | None, plan: PatchPlan, tissue: TissueConfig | None = None
) -> Iterator[Event]:
    """Draw the LR patch with the most tissue; the `Finished` event has the `PatchPairPicture`."""
    with Slide(path, mpp=mpp) as slide:
        grid = find_tissue_grid(slide, plan, tissue).grid
        children = np.bincount(grid.parent, minlength=len(grid.lr_index))
        full = np.flatnonzero(children == children.max())
        chosen = full[len(full) // 2]  # from the middle of the slide: the first is at the edge of the tissue
        corner, cell = grid.lr_corners[chosen], grid.lattice.lr_cell
        box = BoxLevel0(float(corner[0]), float(corner[1]), *map(float, cell))
        lr = slide.read(box, (plan.lr_patch_px, plan.lr_patch_px))
        side = plan.n * plan.hr_patch_px
        hr = slide.read(box, (side, side) if side <= 4 * PICTURE_PX else (4 * PICTURE_PX, 4 * PICTURE_PX))
    yield Finished(PatchPairPicture(_resize(lr), _draw_grid_lines(_resize(hr), plan.n), plan, path.name))


def _resize(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    coarse = len(pixels) < PICTURE_PX  # no smoothing: the student has only these pixels
    resampling = Image.Resampling.NEAREST if coarse else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize((PICTURE_PX, PICTURE_PX), resampling))


def _draw_grid_lines(pixels: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    ruled = pixels.copy()
    for at in np.linspace(0, PICTURE_PX, n + 1)[1:-1].round().astype(int) if n <= MAX_GRID_CELLS else ():
        ruled[at - 1 : at + 1] = LINE_RGB
        ruled[:, at - 1 : at + 1] = LINE_RGB
    return ruled
