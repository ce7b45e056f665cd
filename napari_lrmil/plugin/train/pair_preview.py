"""A picture of what is compared: one LR patch, and the HR patches that lie in the same place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.events import Event, Finished
from napari_lrmil.core.geometry import BoxLevel0, PatchPlan
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.slides.slide import Slide

PICTURE_PX = 288  # of each of the two pictures
MAX_GRID_CELLS = 8  # along a side, beyond which a line between children would hide them
LINE_RGB = (255, 255, 255)


@dataclass(frozen=True)
class PatchPairPicture:
    """One LR patch as the student sees it, and its HR patches as the teacher does.

    Attributes
    ----------
    lr, hr
        (SIDE_PX, SIDE_PX, 3) uint8 each.
    plan
        What they show.
    slide
        Where they come from.
    """

    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8]
    plan: PatchPlan
    slide: str

    @property
    def lr_text(self) -> str:
        """What the student sees."""
        p = self.plan
        return f"Student (LR): {p.lr_patch_px} px of {p.lr_mpp:g} µm = {p.lr_um:g} µm"

    @property
    def hr_text(self) -> str:
        """What the teacher sees."""
        p = self.plan
        return f"Teacher (HR): {p.n} × {p.n} of {p.hr_patch_px} px of {p.hr_mpp:g} µm = {p.hr_um:g} µm each"


def draw_patch_pair(path: Path, mpp: float | None, plan: PatchPlan) -> Iterator[Event]:
    """Draw the patch with the most tissue, and finish with the `PatchPairPicture`."""
    with Slide(path, mpp=mpp) as slide:
        grid = find_tissue_grid(slide, plan).grid
        children = np.bincount(grid.parent, minlength=len(grid.lr_index))
        full = np.flatnonzero(children == children.max())
        chosen = full[len(full) // 2]  # the middle one: the first lies on the edge of the tissue
        corner, cell = grid.lr_corners[chosen], grid.lattice.lr_cell
        box = BoxLevel0(float(corner[0]), float(corner[1]), *map(float, cell))
        seen = slide.read(box, (plan.lr_patch_px, plan.lr_patch_px))
        side = plan.n * plan.hr_patch_px
        fine = slide.read(box, (side, side) if side <= 4 * PICTURE_PX else (4 * PICTURE_PX, 4 * PICTURE_PX))
    yield Finished(PatchPairPicture(_resize(seen), _draw_grid_lines(_resize(fine), plan.n), plan, path.name))


def _resize(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    coarse = len(pixels) < PICTURE_PX  # its pixels are shown as they are, which is what the student has to live with
    how = Image.Resampling.NEAREST if coarse else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize((PICTURE_PX, PICTURE_PX), how))


def _draw_grid_lines(pixels: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    ruled = pixels.copy()
    for at in np.linspace(0, PICTURE_PX, n + 1)[1:-1].round().astype(int) if n <= MAX_GRID_CELLS else ():
        ruled[at - 1 : at + 1] = LINE_RGB
        ruled[:, at - 1 : at + 1] = LINE_RGB
    return ruled
