"""Patches with the highest and lowest attention, and their pixels at the student's and the teacher's resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.slides.slide import Pixels, Slide

PATCH_MAX_PX = 1024  # longer side of a patch's picture; at HR an LR patch with 8 x 8 HR patches would have 2048


@dataclass(frozen=True)
class GalleryPatch:
    """One LR patch of the gallery, with its attention and evidence.

    Attributes
    ----------
    side
        ``top`` for the highest attention, ``bottom`` for the lowest.
    row
        Row of the patch in the student's prediction.
    rank
        Rank by attention, 1 for the highest; patches with equal attention are ranked in grid order.
    attention
        Share of the total attention, which sums to 1.
    relative
        Attention relative to the average: uniform attention is 1 for every patch.
    teacher_relative
        The same for the teacher, summed over the HR patches in this patch; None if the teacher did not read it.
    evidence
        Class -> contribution of the patch to the centred, uncalibrated logit.
    centre_um
        Centre, x then y, in µm from the slide's level-0 corner: world coordinates of the viewer.
    box
        Position and size in level-0 pixels.
    """

    side: Literal["top", "bottom"]
    row: int
    rank: int
    attention: float
    relative: float
    teacher_relative: float | None
    evidence: dict[str, float]
    centre_um: tuple[float, float]
    box: BoxLevel0


def select_top_and_bottom(prediction: Prediction, k: int) -> tuple[GalleryPatch, ...]:
    """Return the `k` patches with the highest and the `k` with the lowest attention, by rank.

    No patch comes twice: with fewer than 2 k patches, the bottom has only those that the top leaves.

    Raises
    ------
    ValueError
        If `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected 1 or more patches on each side of the gallery")
    attention = prediction.student.attention
    order = np.argsort(-attention, kind="stable")  # stable: ties in grid order
    # Never below k, so that no patch is in both.
    bottom = max(k, len(order) - k)
    ranks = [*range(min(k, len(order))), *range(bottom, len(order))]  # from 0
    teacher = None if prediction.teacher is None else prediction.teacher_on_lr
    return tuple(
        _gallery_patch(prediction, "top" if rank < k else "bottom", rank + 1, int(order[rank]), teacher)
        for rank in ranks
    )


def _gallery_patch(
    prediction: Prediction,
    side: Literal["top", "bottom"],
    rank: int,
    row: int,
    teacher: NDArray[np.float64] | None,
) -> GalleryPatch:
    student, mpp = prediction.student, prediction.grid.lattice.mpp
    box, count = patch_box(prediction, row), len(student.attention)
    return GalleryPatch(
        side=side,
        row=row,
        rank=rank,
        attention=float(student.attention[row]),
        relative=float(student.attention[row]) * count,
        teacher_relative=None if teacher is None or np.isnan(teacher[row]) else _relative(teacher, row),
        evidence=dict(zip(prediction.classes, student.evidence[row].tolist(), strict=True)),
        centre_um=((box.x + box.width / 2) * mpp.x, (box.y + box.height / 2) * mpp.y),
        box=box,
    )


def _relative(attention: NDArray[np.float64], row: int) -> float:
    """Return a patch's attention relative to the average over the patches that the teacher read."""
    return float(attention[row]) * int(np.isfinite(attention).sum())


def patch_box(prediction: Prediction, row: int) -> BoxLevel0:
    """Return the level-0 box of a patch, given by its row in the student's prediction."""
    (x, y), (width, height) = prediction.student.coords[row], prediction.student.patch_level0
    return BoxLevel0(float(x), float(y), float(width), float(height))


def read_patch(slide: Slide, prediction: Prediction, row: int, *, mpp: float) -> Pixels:
    """Return the (height, width, 3) uint8 pixels of an LR patch.

    Parameters
    ----------
    slide
        Open slide of the prediction.
    prediction
        Prediction with the patch.
    row
        Row of the patch in the student's prediction.
    mpp
        µm per pixel of the picture. It is coarser if the slide is, or if a side would exceed `PATCH_MAX_PX`.
    """
    box = patch_box(prediction, row)
    width, height = box.size_at(max(mpp, slide.mpp.mean), slide.mpp)
    # Bounded, so that a gallery costs little for any ratio of LR to HR.
    shrink = max(1.0, max(width, height) / PATCH_MAX_PX)
    return slide.read(box, (max(1, round(width / shrink)), max(1, round(height / shrink))))
