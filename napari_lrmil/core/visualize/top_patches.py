"""Which patches counted most and least, and their pixels as the student and as the teacher would see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.slides.slide import Pixels, Slide

PATCH_MAX_PX = 1024  # longer side of a patch's picture; at HR an LR patch of n = 8 would have 2048


@dataclass(frozen=True)
class GalleryPatch:
    """One LR patch of a prediction and what the student made of it.

    Attributes
    ----------
    side
        Whether it is among the patches that counted most or least.
    row
        Its row in the student's reading.
    rank
        1 is the patch with the highest attention; patches with equal attention are ranked in reading order.
    attention
        Its share of the whole attention, which sums to 1.
    relative
        The same, times the number of patches: 1 is what each would have if the student looked everywhere alike.
    teacher_relative
        The same for the teacher, its attention summed over the patch's HR patches; None where it did not run.
    evidence
        Class -> what the patch adds to the class's centred, uncalibrated logit.
    centre_um
        Its centre, x then y, in µm from the slide's level-0 corner, as the viewer's world has it.
    box
        Its place in level-0 pixels.
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
    """Return the `k` patches with the highest and the `k` with the lowest attention, by rank; no patch comes twice.

    Where there are fewer than 2 k patches the top ones go first and the bottom is what remains.
    """
    if k < 1:
        raise ValueError(f"a gallery needs at least one patch on each side, got {k}")
    attention = prediction.student.attention
    order = np.argsort(-attention, kind="stable")  # equal attention: in reading order
    bottom = max(k, len(order) - k)
    places = [*range(min(k, len(order))), *range(bottom, len(order))]
    beside = None if prediction.teacher is None else prediction.teacher_on_lr
    return tuple(
        _patch(prediction, "top" if place < k else "bottom", place + 1, int(order[place]), beside) for place in places
    )


def _patch(
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
    """Return a patch's attention as a multiple of the average of those that have one."""
    return float(attention[row]) * int(np.isfinite(attention).sum())


def patch_box(prediction: Prediction, row: int) -> BoxLevel0:
    """Return the place of a patch, given by its row in the student's reading."""
    (x, y), (width, height) = prediction.student.coords[row], prediction.student.patch_level0
    return BoxLevel0(float(x), float(y), float(width), float(height))


def read_patch(slide: Slide, prediction: Prediction, row: int, *, mpp: float) -> Pixels:
    """Return the pixels of an LR patch at `mpp` µm per pixel: the student's resolution, or the teacher's.

    Never finer than the slide itself, and at most `PATCH_MAX_PX` a side, so that a gallery costs little whatever n is.

    Parameters
    ----------
    slide
        The slide that the prediction is about.
    prediction
        Whose patch it is.
    row
        Of the student's reading.
    mpp
        µm per pixel of the picture.
    """
    box = patch_box(prediction, row)
    width, height = box.size_at(max(mpp, slide.mpp.mean), slide.mpp)
    shrink = max(1.0, max(width, height) / PATCH_MAX_PX)
    return slide.read(box, (max(1, round(width / shrink)), max(1, round(height / shrink))))
