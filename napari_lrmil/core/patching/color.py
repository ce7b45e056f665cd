"""Colour of slides: correction by the ICC profile, and the distance from the colours of a training cohort.

`torchstain` and `histomicstk` normalise stains. This module only needs colour statistics.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.slides.slide import Pixels, Slide

CELLS = 64  # HR cells in which a slide's colour is measured, so that the cost does not grow with the slide
OVERVIEW_MPP = 16.0  # µm per pixel at which they are read, from a coarse level
LEAST_SPREAD = 0.015  # optical density; lower bound, as a cohort of one staining batch would flag every other slide
FEWEST_SLIDES = 5  # with fewer slides the spread between slides is chance

Triple = tuple[float, float, float]


# ---------------------------------------------------------------- ICC


def icc_transform(slide: Slide) -> Callable[[Pixels], Pixels] | None:
    """Return a function that converts (height, width, 3) pixels of `slide` to sRGB, or None without an ICC profile.

    Raises
    ------
    SlideError
        If the profile cannot be applied to RGB.
    """
    from PIL import ImageCms

    profile = slide.icc_profile
    if profile is None:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(source))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise SlideError(
            slide.path, f"its ICC profile cannot be used ({error}); show the slide without colour correction"
        ) from error

    def correct(pixels: Pixels) -> Pixels:
        return np.asarray(transform.apply(Image.fromarray(pixels)))

    return correct


# ---------------------------------------------------------------- distance from a cohort


@dataclass(frozen=True)
class ColourStats:
    """Mean and standard deviation of the optical density of a slide's tissue in red, green and blue."""

    mean: Triple
    deviation: Triple


@dataclass(frozen=True)
class CohortColour:
    """Centre and spread of the colours of a cohort's slides.

    Attributes
    ----------
    mean, deviation
        Averages over the slides of the fields of `ColourStats`.
    mean_spread, deviation_spread
        Their standard deviations between slides, at least `LEAST_SPREAD`.
    slides
        Number of slides.
    """

    mean: Triple
    deviation: Triple
    mean_spread: Triple
    deviation_spread: Triple
    slides: int


def color_stats(slide: Slide, grid: NestedGrid) -> ColourStats:
    """Return the colour of the tissue of `slide`, measured in up to `CELLS` evenly chosen HR patches."""
    chosen = np.unique(np.linspace(0, len(grid.hr_index) - 1, min(CELLS, len(grid.hr_index))).round().astype(int))
    side = max(1, round(grid.lattice.hr_um / OVERVIEW_MPP))
    boxes = [BoxLevel0(float(x), float(y), *grid.hr_size) for x, y in grid.hr_corners[chosen]]
    patches = [slide.read(box, (side, side)) for box in boxes]
    density = optical_density(_stained(np.concatenate([pixels.reshape(-1, 3) for pixels in patches])))
    return ColourStats(_triple(density.mean(axis=0)), _triple(density.std(axis=0)))


def _stained(pixels: Pixels) -> Pixels:
    """Return the stained pixels among (N, 3) pixels, or all of them if none is stained."""
    chroma = pixels.max(axis=1) - pixels.min(axis=1)
    stained = pixels[chroma > TissueConfig().lowest_chroma]
    return stained if len(stained) else pixels


def optical_density(pixels: Pixels) -> NDArray[np.float64]:
    """Return optical density, -log10 of the transmitted light, per channel."""
    density: NDArray[np.float64] = -np.log10((pixels.astype(np.float64) + 1) / 256)
    return density


def cohort_colour(stats: Sequence[ColourStats]) -> CohortColour:
    """Return centre and spread of the colours of a cohort.

    Raises
    ------
    ValueError
        If there are fewer than `FEWEST_SLIDES` slides.
    """
    if len(stats) < FEWEST_SLIDES:
        raise ValueError(f"{len(stats)} slides are too few for a spread of colours; give at least {FEWEST_SLIDES}")
    table = np.array([(s.mean, s.deviation) for s in stats])  # (slides, 2, 3)
    centre, spread = table.mean(axis=0), np.maximum(table.std(axis=0, ddof=1), LEAST_SPREAD)
    return CohortColour(_triple(centre[0]), _triple(centre[1]), _triple(spread[0]), _triple(spread[1]), len(stats))


def colour_distance(stats: ColourStats, cohort: CohortColour) -> float:
    """Return the distance of a slide's colour from a cohort, in units of the cohort's spread.

    It is the root mean square over the six values of `ColourStats`. Slides of the cohort are seldom farther than 1.
    """
    centre = np.array([cohort.mean, cohort.deviation])
    spread = np.array([cohort.mean_spread, cohort.deviation_spread])
    return math.sqrt(float(np.mean(((np.array([stats.mean, stats.deviation]) - centre) / spread) ** 2)))


def _triple(values: NDArray[np.float64]) -> Triple:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
