"""Comparison of student and teacher on one slide: difference of attention, localisation of annotated lesions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.metrics.agreement import LESION_SHARE, Values, lesion_auroc, lesion_shares
from napari_lrmil.core.patching.regions import Region, RegionFile, read_regions


@dataclass(frozen=True)
class SharedPatches:
    """Attention of both networks on the LR patches that both read, in the order of the grid.

    Attributes
    ----------
    rows
        (M,) rows of the prediction's grid.
    student, teacher
        (M,) attention relative to the average over these patches.
    """

    rows: NDArray[np.int64]
    student: NDArray[np.float64]
    teacher: NDArray[np.float64]

    @property
    def difference(self) -> NDArray[np.float64]:
        """(M,) student minus teacher; above 0 if the student pays more attention to the patch."""
        return self.student - self.teacher


@dataclass(frozen=True)
class LesionMetrics:
    """Lesion localisation by attention, over the patches that both networks read; None if undefined.

    Attributes
    ----------
    lesion_auroc_student, lesion_auroc_teacher
        AUROC of attention for patches with a quarter or more of lesion against patches without any.
    pointing_student, pointing_teacher
        Pointing game: whether the patch with the highest attention has a quarter or more of lesion.
    n_lesion_patches
        Patches with a quarter or more of lesion.
    """

    lesion_auroc_student: float | None
    lesion_auroc_teacher: float | None
    pointing_student: bool | None
    pointing_teacher: bool | None
    n_lesion_patches: int


def shared_patches(prediction: Prediction) -> SharedPatches:
    """Return the attention of both networks on the patches that both read.

    The teacher's attention is summed over the children of each LR patch.

    Raises
    ------
    ValueError
        If the teacher did not run.
    """
    teacher = prediction.teacher_on_lr
    # Patches that the teacher did not read are NaN.
    rows = np.flatnonzero(np.isfinite(teacher))
    attention = (prediction.student.attention[rows].astype(np.float64), teacher[rows])
    # Shares of different patch counts are comparable only relative to their average.
    student, teacher = (values / values.mean() for values in attention)
    return SharedPatches(rows, student, teacher)


def score_lesion_localisation(prediction: Prediction, lesions: Sequence[Region]) -> LesionMetrics:
    """Return how well each network's attention finds lesions (Method 3).

    Raises
    ------
    ValueError
        If the teacher did not run.
    """
    both, grid = shared_patches(prediction), prediction.grid
    areas = [region.geometry for region in lesions]
    shares = lesion_shares(grid.lr_corners[both.rows], grid.lattice.lr_cell, areas)
    # A patch with a sliver of lesion is neither hit nor miss; `lesion_auroc` leaves such patches out.
    is_lesion = shares >= LESION_SHARE
    return LesionMetrics(
        lesion_auroc(both.student, shares),
        lesion_auroc(both.teacher, shares),
        _hits_lesion(both.student, is_lesion),
        _hits_lesion(both.teacher, is_lesion),
        int(is_lesion.sum()),
    )


def _hits_lesion(attention: Values, is_lesion: NDArray[np.bool_]) -> bool | None:
    """Return whether the patch with the highest attention is lesion; None if no patch is."""
    return bool(is_lesion[int(np.argmax(attention))]) if is_lesion.any() else None


def lesion_file(slide: Path) -> Path:
    """Return the path of a slide's annotated lesions: ``SLIDE_lesions.geojson`` beside it, as `phantom` writes it."""
    return slide.with_name(f"{slide.stem}_lesions.geojson")


def read_lesions(slide: Path, bounds: Bounds, file: Path | None = None) -> RegionFile:
    """Return the lesions in a file, or else in the one beside the slide, see `lesion_file`; none if there is no file.

    The file beside the slide is in level-0 pixels, as training reads it and `phantom` writes it. Other GeoJSON files
    are in QuPath's coordinates, which count from the corner of `bounds`.

    Raises
    ------
    RegionError
        If the file cannot be read.
    """
    if file is not None:
        return read_regions(file, bounds, may_be_empty=True)
    file = lesion_file(slide)
    # os.path: pathlib raises an error for a name that is too long to exist.
    if not os.path.isfile(file):
        return RegionFile(())
    lesions = read_regions(file, replace(bounds, x=0, y=0), may_be_empty=True)
    if not lesions.regions or (bounds.x, bounds.y) == (0, 0):
        return lesions
    frame = (
        f"{file.name}: taken in level-0 pixels, not in QuPath's coordinates, which are smaller by {bounds.x} and "
        f"{bounds.y} on this slide; for a file from QuPath use --lesions"
    )
    return replace(lesions, warnings=(*lesions.warnings, frame))
