"""Maps of one slide's stored results as rasters with one pixel per LR patch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.results.reader import StoredPatches, StoredPrediction


@dataclass(frozen=True)
class MapChannel:
    """One map of a slide.

    Attributes
    ----------
    label
        Short name.
    explanation
        What the values are, in a few words.
    values
        (rows, columns) float32; NaN outside the patches that have a value.
    """

    label: str
    explanation: str
    values: NDArray[np.float32]


@dataclass(frozen=True)
class AttentionRaster:
    """Maps of a slide on one raster.

    Attributes
    ----------
    channels
        Attention of the student; if the teacher ran, its attention and the difference; evidence of each class.
    origin_level0
        Level-0 corner of the raster, x then y.
    pixel_level0
        Width and height of a pixel, which is an LR patch, in level-0 pixels.
    """

    channels: tuple[MapChannel, ...]
    origin_level0: tuple[int, int]
    pixel_level0: tuple[int, int]


def rasterize_stored(stored: StoredPrediction) -> AttentionRaster:
    """Return the maps of one slide's results.

    Attention is relative to the average over its patches. The teacher's is summed over the HR patches of each LR patch,
    and the difference counts both relative to the patches that the teacher read, as in `shared_patches`.

    Raises
    ------
    StoredError
        If patches of the teacher lie outside those of the student.
    """
    student = stored.student
    width, height = (int(side) for side in student.attributes["patch_level0_xy"])
    first = student.coords.min(axis=0)
    cells = _cells(student, first, (width, height))
    shape = tuple((cells.max(axis=0) + 1).tolist())

    def spread(values: NDArray[np.floating]) -> NDArray[np.float32]:
        raster = np.full(shape, np.nan, np.float32)
        raster[cells[:, 0], cells[:, 1]] = values
        return raster

    relative = student.attention * np.float32(len(cells))
    channels = [MapChannel("attention", "Attention of the LR student, 1 is the slide's average", spread(relative))]
    if stored.teacher is not None:
        channels += _teacher_channels(stored, stored.teacher, cells, _cells(stored.teacher, first, (width, height)))
    for column, name in enumerate(stored.summary.classes):
        values = spread(student.evidence[:, column])
        channels.append(MapChannel(f"evidence {column + 1}", f"Evidence for {name}, part of the logit", values))
    return AttentionRaster(tuple(channels), (int(first[0]), int(first[1])), (width, height))


def _cells(patches: StoredPatches, first: Int64, size: tuple[int, int]) -> Int64:
    """Return (N, 2) row and column of the LR cell of each patch."""
    return np.asarray((patches.coords - first) // np.array(size), np.int64)[:, ::-1]


def _teacher_channels(
    stored: StoredPrediction, teacher: StoredPatches, cells: Int64, hr_cells: Int64
) -> list[MapChannel]:
    """Return the teacher's attention and the difference, on the LR patches that the teacher read."""
    shape = tuple((cells.max(axis=0) + 1).tolist())
    rows = np.full(shape, -1, np.int64)
    rows[cells[:, 0], cells[:, 1]] = np.arange(len(cells))
    is_inside = ((hr_cells >= 0) & (hr_cells < np.array(shape))).all(axis=1)
    parents = rows[tuple(hr_cells.T)] if is_inside.all() else np.array([-1])
    if (parents < 0).any():
        raise StoredError(stored.folder, "a patch of the teacher lies in no patch of the student; run compare again")
    sums = np.bincount(parents, weights=teacher.attention, minlength=len(cells))
    is_read = np.bincount(parents, minlength=len(cells)) > 0
    both = [values[is_read] / values[is_read].mean() for values in (stored.student.attention.astype(np.float64), sums)]
    rasters = []
    for values in (both[1], both[0] - both[1]):
        raster = np.full(shape, np.nan, np.float32)
        raster[tuple(cells[is_read].T)] = values
        rasters.append(raster)
    return [
        MapChannel("teacher", "Attention of the HR teacher, 1 is the average where it read", rasters[0]),
        MapChannel("difference", "Student less teacher, both relative to their average", rasters[1]),
    ]
