"""Artefacts in the shape of a band: a fold of the section, and a pen stroke on the glass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.phantom.look import Field, Outline

_FOLD_UM = 60.0  # width of a fold
_PEN_UM = 350.0  # width of a marker's stroke; narrower on a small slide


@dataclass(frozen=True)
class Stroke:
    """Bent band with round ends; lengths in µm."""

    start: tuple[float, float]  # x, y
    end: tuple[float, float]
    width: float
    bow: float  # distance of its middle from the straight line

    def depth(self, x: Field, y: Field) -> Field:
        """Return the depth of points within the band, µm; negative outside."""
        length = math.dist(self.start, self.end)
        along_x, along_y = ((b - a) / length for a, b in zip(self.start, self.end, strict=True))
        dx, dy = x - np.float32(self.start[0]), y - np.float32(self.start[1])
        along = (dx * np.float32(along_x) + dy * np.float32(along_y)) / np.float32(length)
        inside = np.clip(along, 0, 1)
        across = dy * np.float32(along_x) - dx * np.float32(along_y) - np.float32(4 * self.bow) * inside * (1 - inside)
        return np.asarray(self.width / 2 - np.hypot(across, (along - inside) * np.float32(length)), dtype=np.float32)

    def outline(self, points: int = 32) -> Outline:
        """Return the outline without the round ends, µm."""
        t = np.linspace(0, 1, points)[:, None]
        start, end = (np.array(p, dtype=np.float64) for p in (self.start, self.end))
        along = (end - start) / math.dist(self.start, self.end)
        off = np.array([-along[1], along[0]])
        middle: NDArray[np.float64] = start + t * (end - start) + 4 * self.bow * t * (1 - t) * off
        return np.concatenate([middle + off * self.width / 2, (middle - off * self.width / 2)[::-1]])


def fold_stroke(width: float, height: float) -> Stroke:
    """Return the fold of a piece of tissue: near its middle, where both orientations of the L have tissue."""
    return Stroke((0.46 * width, 0.20 * height), (0.54 * width, 0.80 * height), _FOLD_UM, 0.03 * width)


def pen_stroke(width: float, height: float) -> Stroke:
    """Return a stroke from top right to bottom left: one end is in the notch of the L, the middle is on tissue."""
    thick = min(_PEN_UM, 0.12 * min(width, height))
    return Stroke((0.86 * width, 0.12 * height), (0.14 * width, 0.88 * height), thick, 0.04 * min(width, height))
