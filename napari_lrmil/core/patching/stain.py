"""Colour normalisation of a slide's patches: statistics of its tissue at low resolution, and the transform to a target.

The statistics are measured once for a slide, so HR and LR patches, training and inference get the same transform of a
pixel. `torchstain` and `histomicstk` normalise single images, whose statistics change from patch to patch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.patching.color import CELLS, OVERVIEW_MPP, Triple, optical_density
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.slides.slide import Pixels, Slide

StainMethod = Literal["reinhard", "density_gain"]
LEAST_DENSITY = 0.02  # optical density of a channel's mean; glass has 0 to 0.01, pale tissue 0.05 and more
FEWEST_PIXELS = 500  # stained pixels of 16 µm, 0.13 mm²: with fewer the mean follows single structures
ENOUGH_PIXELS = 8192  # pixels read where LR cells are small, so that few cells do not look like little tissue
GREATEST_GAIN = 4.0  # beyond it noise and JPEG blocks of pale tissue would be what the network sees
GREY = 256.0


@dataclass(frozen=True)
class StainStatistics:
    """Colour of a slide's stained tissue at low resolution.

    Attributes
    ----------
    density
        Mean optical density in red, green and blue.
    lab_mean, lab_deviation
        Mean and standard deviation in CIELAB.
    pixels
        Stained pixels that were measured.
    """

    density: Triple
    lab_mean: Triple
    lab_deviation: Triple
    pixels: int


def measure_stain(slide: Slide, grid: NestedGrid) -> StainStatistics:
    """Return the colour of the stained tissue of a slide, in evenly chosen LR cells.

    Parameters
    ----------
    slide
        The slide.
    grid
        Patches of the whole slide, not of a region: the transform must not depend on what is asked.

    Raises
    ------
    SlideError
        If the cells are glass: no pixel is stained, or a channel absorbs hardly any light.
    """
    side, cell = max(1, round(grid.lattice.lr_um / OVERVIEW_MPP)), grid.lattice.lr_cell
    count = min(len(grid.lr_index), max(CELLS, -(-ENOUGH_PIXELS // side**2)))
    chosen = np.unique(np.linspace(0, len(grid.lr_index) - 1, count).round().astype(int))
    patches = [slide.read(BoxLevel0(float(x), float(y), *cell), (side, side)) for x, y in grid.lr_corners[chosen]]
    pixels = np.concatenate([patch.reshape(-1, 3) for patch in patches])
    chroma = pixels.max(axis=1) - pixels.min(axis=1)
    stained = pixels[chroma > TissueConfig().lowest_chroma]
    density = optical_density(stained).mean(axis=0) if len(stained) else np.zeros(3)
    if density.min() < LEAST_DENSITY:
        raise SlideError(
            slide.path,
            f"what counts as tissue has a mean optical density of {density.min():.3f}, which is glass, so that its "
            "colour cannot be normalised; edit the tissue mask, or use a model without colour normalisation",
        )
    lab = rgb_to_lab(stained)
    return StainStatistics(_triple(density), _triple(lab.mean(axis=0)), _triple(lab.std(axis=0)), len(stained))


def mean_stain(statistics: Sequence[StainStatistics]) -> StainStatistics:
    """Return the target of a cohort: the mean over its slides, each with equal weight."""
    if not statistics:
        raise ValueError("a target needs at least one slide")
    table = np.array([(s.density, s.lab_mean, s.lab_deviation) for s in statistics]).mean(axis=0)
    density, mean, deviation = (_triple(row) for row in table)
    return StainStatistics(density, mean, deviation, sum(s.pixels for s in statistics))


@dataclass(frozen=True)
class StainTarget:
    """Colour that a model expects: how slides are brought to the mean colour of its training slides."""

    method: StainMethod
    statistics: StainStatistics

    @property
    def fingerprint(self) -> str:
        """Hash of method and statistics, for names of feature files."""
        return hashlib.sha256(repr((self.method, self.statistics)).encode()).hexdigest()[:16]

    def transform(self, slide: Slide, grid: NestedGrid) -> StainTransform:
        """Return the transform of a slide, given the grid of the whole slide; raises as `measure_stain` does."""
        return StainTransform(self.method, measure_stain(slide, grid), self.statistics)


@dataclass(frozen=True)
class StainTransform:
    """Colour transform of one slide, the same for every pixel at every resolution.

    Attributes
    ----------
    method
        ``density_gain``: the optical density of each channel times the ratio of target and slide; white stays white.
        ``reinhard``: mean and deviation of CIELAB are those of the target (Reinhard et al. 2001).
    slide, target
        Statistics of the slide and of the training cohort.
    """

    method: StainMethod
    slide: StainStatistics
    target: StainStatistics

    @property
    def warning(self) -> str:
        """Sentence for a slide whose statistics or transform are doubtful; empty if they are not."""
        if self.slide.pixels < FEWEST_PIXELS:
            return (
                f"only {self.slide.pixels} stained pixels of 16 µm for the colour of the slide (expected "
                f"{FEWEST_PIXELS} or more): its colour is not normalised, although the model expects it; "
                "read the result with care"
            )
        if self.method == "density_gain" and self.gain.max() > GREATEST_GAIN:
            return (
                f"the slide is so pale that its optical density would be multiplied by {self.gain.max():.1f}; "
                f"it is multiplied by {GREATEST_GAIN:g}"
            )
        return ""

    @property
    def fingerprint(self) -> str:
        """Hash of method and statistics, for keys of stored embeddings."""
        return hashlib.sha256(repr((self.method, self.slide, self.target)).encode()).hexdigest()[:16]

    @property
    def is_identity(self) -> bool:
        """Whether pixels stay as they are: too little tissue, or the slide has the target's colour."""
        return self.slide.pixels < FEWEST_PIXELS or self.slide == self.target

    @property
    def gain(self) -> NDArray[np.float64]:
        """(3,) factor of the optical density of each channel, before its upper bound."""
        ratio: NDArray[np.float64] = np.array(self.target.density) / np.array(self.slide.density)
        return ratio

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        """(256, 3) grey level after the gain. A table makes every resolution agree to the last bit."""
        levels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
        density = optical_density(levels) * np.minimum(self.gain, GREATEST_GAIN)
        return np.asarray(np.clip(np.rint(GREY * 10.0**-density - 1), 0, 255), dtype=np.uint8)

    def apply(self, pixels: Pixels) -> Pixels:
        """Return (..., 3) uint8 pixels with the target's colour."""
        if self.is_identity:
            return pixels
        if self.method == "density_gain":
            return np.stack([self._table[:, c][pixels[..., c]] for c in range(3)], axis=-1)
        flat = rgb_to_lab(pixels.reshape(-1, 3))
        scale = np.array(self.target.lab_deviation) / np.maximum(self.slide.lab_deviation, 1e-6)
        moved = (flat - np.array(self.slide.lab_mean)) * scale + np.array(self.target.lab_mean)
        return lab_to_rgb(moved).reshape(pixels.shape)


# ---------------------------------------------------------------- CIELAB (D65), as in IEC 61966-2-1 and CIE 15

_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = _TO_XYZ.sum(axis=1)
_FROM_XYZ = np.linalg.inv(_TO_XYZ)
_KNEE = 6 / 29


def _linear_light(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


_LIGHT = _linear_light(np.arange(256) / 255)  # a table: each patch has 65,536 pixels


def rgb_to_lab(pixels: Pixels) -> NDArray[np.float64]:
    """Return (N, 3) CIELAB values of (N, 3) uint8 sRGB pixels."""
    xyz = _LIGHT[pixels] @ (_TO_XYZ / _WHITE[:, None]).T
    f = np.where(xyz > _KNEE**3, np.cbrt(xyz), xyz / (3 * _KNEE**2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def lab_to_rgb(lab: NDArray[np.float64]) -> Pixels:
    """Return (N, 3) uint8 sRGB pixels of (N, 3) CIELAB values; colours that sRGB lacks are clipped."""
    y = (lab[:, 0] + 16) / 116
    f = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], axis=1)
    xyz = np.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29)) * _WHITE
    light = np.clip(xyz @ _FROM_XYZ.T, 0, 1)
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.clip(np.rint(255 * levels), 0, 255), dtype=np.uint8)


def _triple(values: NDArray[np.float64]) -> Triple:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
