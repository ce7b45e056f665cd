"""Fast filters for masks of millions of pixels: Gaussian smoothing, removal of small objects and holes.

Tests compare both with ``scipy.ndimage`` and ``skimage.morphology``.

CPU time of a 2560 x 2560 px mask on one thread: removing small objects takes 22 to 30 ms here, and 110 to 210 ms with
scikit-image, SciPy or OpenCV. Smoothing takes 58 ms here, 151 to 191 ms with SciPy and 13 ms with OpenCV, whose wheel
of 50 MB is not worth 45 ms per slide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_STRIP = 16  # rows per step, few enough for the CPU cache
_REACH = 4  # radius in px at which scipy truncates a Gaussian of sd 1


def gaussian_smooth(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a (height, width) image smoothed by a Gaussian of sd 1 px, mirrored at its edges.

    The result equals ``scipy.ndimage.gaussian_filter(grey, 1.0)`` within 1e-4 grey levels, in a third of the time.
    """
    weights = np.exp(-0.5 * np.arange(_REACH + 1) ** 2)
    weights = (weights / (2 * weights.sum() - weights[0])).astype(np.float32)
    height, width = grey.shape
    padded = np.pad(grey, _REACH, mode="symmetric")
    out = np.empty((height, width), np.float32)
    for top in range(0, height, _STRIP):
        rows = padded[top : top + _STRIP + 2 * _REACH].astype(np.float32)
        rows = rows[: min(_STRIP, height - top) + 2 * _REACH]
        down = _weighted([rows[i : len(rows) - 2 * _REACH + i] for i in range(2 * _REACH + 1)], weights)
        across = [down[:, i : i + width] for i in range(2 * _REACH + 1)]
        _weighted(across, weights, out[top : top + _STRIP])
    return out


def _weighted(
    shifted: list[NDArray[np.float32]], weights: NDArray[np.float32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return the weighted sum of an image shifted by -4 to 4 px. `weights` holds those of 0 to 4."""
    out = np.multiply(shifted[_REACH], weights[0], out=out)
    pair = np.empty_like(out)
    for i in range(1, _REACH + 1):
        np.add(shifted[_REACH - i], shifted[_REACH + i], out=pair)
        pair *= weights[i]
        out += pair
    return out


def remove_small_objects_and_holes(mask: Mask, largest_px: int) -> Mask:
    """Remove objects, and then holes, of at most `largest_px` pixels from a mask.

    Objects and holes are 4-connected. The algorithm works on runs of pixels within rows. A tissue mask has a hundred
    times fewer runs than pixels.
    """
    height, width = mask.shape
    edges = np.zeros((height, width + 2), np.bool_)
    edges[:, 1:-1] = mask
    changes = np.flatnonzero(edges[:, 1:] != edges[:, :-1])
    runs = _Runs(changes[::2], changes[1::2], width + 1)
    small = runs.are_in_small_objects(largest_px)
    gaps = runs.select(~small).gaps(height)
    tidy = mask.copy()
    tidy[runs.select(small).pixels()] = False
    tidy[gaps.select(gaps.are_in_small_objects(largest_px)).pixels()] = True
    return tidy


@dataclass(frozen=True, eq=False)
class _Runs:
    """Runs of pixels in reading order, as (R,) starts and (R,) stops.

    A position is row * `stride` + column. `stride` is the width plus one, so that runs of two rows never touch.
    """

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    stride: int

    def select(self, is_selected: Mask) -> _Runs:
        return _Runs(self.starts[is_selected], self.stops[is_selected], self.stride)

    def gaps(self, rows: int) -> _Runs:
        """Return the runs of all other pixels, which lie between these runs and the ends of rows."""
        row = np.arange(rows, dtype=np.int64) * self.stride
        starts = np.sort(np.concatenate([row, self.stops]))
        stops = np.sort(np.concatenate([self.starts, row + self.stride - 1]))
        return _Runs(starts, stops, self.stride).select(starts < stops)

    def are_in_small_objects(self, largest_px: int) -> Mask:
        """Return (R,) whether each run belongs to an object of at most `largest_px` pixels."""
        if len(self.starts) == 0:
            return np.zeros(0, np.bool_)
        objects = self._object_numbers()
        small: Mask = np.bincount(objects, weights=self.stops - self.starts)[objects] <= largest_px
        return small

    def _object_numbers(self) -> NDArray[np.int32]:
        """Return (R,) object numbers of the runs. Runs of neighbouring rows that share a column are connected."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        number = len(self.starts)
        # in the row above: the first run that ends after this one starts, and the first that starts after it ends
        first = np.searchsorted(self.stops, self.starts - self.stride, side="right")
        after = np.searchsorted(self.starts, self.stops - self.stride, side="left")
        below, above = _expand_ranges(first, np.maximum(after - first, 0))
        graph = coo_array((np.ones(len(below), np.int8), (below, above)), shape=(number, number))
        objects: NDArray[np.int32] = connected_components(graph, directed=False)[1]
        return objects

    def pixels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of all pixels of the runs."""
        _, at = _expand_ranges(self.starts, self.stops - self.starts)
        rows, columns = np.divmod(at, self.stride)
        return rows, columns


def _expand_ranges(
    firsts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for ranges of `lengths` from `firsts`, the range number of each element and its value."""
    which = np.repeat(np.arange(len(firsts)), lengths)
    begins = np.cumsum(lengths) - lengths
    return which, np.arange(len(which)) - begins[which] + firsts[which]
