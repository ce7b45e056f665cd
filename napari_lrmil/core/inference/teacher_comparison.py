"""Student against teacher on one slide: where they differ, and which of them finds annotated lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.metrics.agreement import LESION_SHARE, Values, lesion_auroc, lesion_shares
from napari_lrmil.core.patching.regions import Area, Region, read_regions


@dataclass(frozen=True)
class SharedPatches:
    """What both networks give to the LR patches that both looked into, in the order of the grid.

    Attributes
    ----------
    rows
        (M,) rows of the prediction's grid.
    student, teacher
        (M,) attention as a multiple of the average over these patches.
    """

    rows: NDArray[np.int64]
    student: NDArray[np.float64]
    teacher: NDArray[np.float64]

    @property
    def difference(self) -> NDArray[np.float64]:
        """(M,) above 0 where the student looks more than its teacher does."""
        return self.student - self.teacher


@dataclass(frozen=True)
class LesionMetrics:
    """Attention against annotated lesions, over the patches that both networks looked into; None where undefined.

    Attributes
    ----------
    lesion_auroc_student, lesion_auroc_teacher
        How well attention tells patches with a quarter or more of lesion from those with none.
    pointing_student, pointing_teacher
        The pointing game: whether the patch of most attention is one with a quarter or more of lesion.
    n_lesion_patches
        Patches with a quarter or more of lesion.
    """

    lesion_auroc_student: float | None
    lesion_auroc_teacher: float | None
    pointing_student: bool | None
    pointing_teacher: bool | None
    n_lesion_patches: int


def shared_patches(prediction: Prediction) -> SharedPatches:
    """Return what both networks give to the patches that both looked into; the teacher must have run.

    The teacher's attention is summed over the children of each LR patch.
    """
    teacher = prediction.teacher_on_lr
    rows = np.flatnonzero(np.isfinite(teacher))
    both = (prediction.student.attention[rows].astype(np.float64), teacher[rows])
    student, teacher = (values / values.mean() for values in both)
    return SharedPatches(rows, student, teacher)


def score_lesion_localisation(prediction: Prediction, lesions: Sequence[Region]) -> LesionMetrics:
    """Return how well each network's attention finds lesions (Method 3); the teacher must have run."""
    both, grid = shared_patches(prediction), prediction.grid
    areas: list[Area] = [region.geometry for region in lesions]
    outlines = [part for area in areas for part in getattr(area, "geoms", [area])]
    shares = lesion_shares(grid.lr_corners[both.rows], grid.lattice.lr_cell, outlines)
    hit = shares >= LESION_SHARE
    return LesionMetrics(
        lesion_auroc(both.student, shares),
        lesion_auroc(both.teacher, shares),
        _points(both.student, hit),
        _points(both.teacher, hit),
        int(hit.sum()),
    )


def _points(values: Values, hit: NDArray[np.bool_]) -> bool | None:
    return bool(hit[int(np.argmax(values))]) if hit.any() else None


def lesion_file(slide: Path) -> Path:
    """Return where the annotated lesions of a slide lie: beside it, under its name, as `phantom` writes them."""
    return slide.with_name(f"{slide.stem}_lesions.geojson")


def find_lesion_outlines(slide: Path, bounds: Bounds) -> tuple[Region, ...]:
    """Return the lesions in the file beside a slide that is named after it; none where there is no such file."""
    file = lesion_file(slide)
    return read_regions(file, bounds, may_be_empty=True).regions if file.is_file() else ()
