"""Colour of slides: true to the scanner's ICC profile, and how far from the slides that a model was trained on.

`torchstain` and `histomicstk` normalise stains. Only statistics of colour are needed here.
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

CELLS = 64  # HR cells that a slide's colour is measured in: the cost does not grow with the slide
OVERVIEW_MPP = 16.0  # µm per pixel to which they are read, from a coarse level
LEAST_SPREAD = 0.015  # optical density; else a cohort of one batch would find every other colour far
FEWEST_SLIDES = 5  # below, a spread between slides is chance

Triple = tuple[float, float, float]


# ---------------------------------------------------------------- ICC


def icc_transform(slide: Slide) -> Callable[[Pixels], Pixels] | None:
    """Return what turns (height, width, 3) pixels of `slide` into sRGB, or None where it has no ICC profile.

    Raises
    ------
    SlideError
        Where there is a profile that cannot be used on RGB.
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
    """How the colour of slides varies within a cohort.

    Attributes
    ----------
    mean, deviation
        Over the slides, the average of what `ColourStats` calls so.
    mean_spread, deviation_spread
        Their standard deviation between slides, no less than `LEAST_SPREAD`.
    slides
        How many were measured.
    """

    mean: Triple
    deviation: Triple
    mean_spread: Triple
    deviation_spread: Triple
    slides: int


def color_stats(slide: Slide, grid: NestedGrid) -> ColourStats:
    """Return the colour of the tissue of `slide`, from up to `CELLS` kept HR cells evenly through the list of them."""
    chosen = np.unique(np.linspace(0, len(grid.hr_index) - 1, min(CELLS, len(grid.hr_index))).round().astype(int))
    side = max(1, round(grid.lattice.hr_um / OVERVIEW_MPP))
    cell = grid.lattice.cell
    found = [slide.read(BoxLevel0(float(x), float(y), *cell), (side, side)) for x, y in grid.hr_corners[chosen]]
    density = optical_density(_stained(np.concatenate([pixels.reshape(-1, 3) for pixels in found])))
    return ColourStats(_triple(density.mean(axis=0)), _triple(density.std(axis=0)))


def _stained(pixels: Pixels) -> Pixels:
    """Return those of (N, 3) pixels that are no glass; all of them where none is stained."""
    chroma = pixels.max(axis=1) - pixels.min(axis=1)
    stained = pixels[chroma > TissueConfig().lowest_chroma]
    return stained if len(stained) else pixels


def optical_density(pixels: Pixels) -> NDArray[np.float64]:
    """Return -log10 of the light that is let through, channel by channel."""
    density: NDArray[np.float64] = -np.log10((pixels.astype(np.float64) + 1) / 256)
    return density


def cohort_colour(stats: Sequence[ColourStats]) -> CohortColour:
    """Return centre and spread of the colours of a cohort's slides.

    Raises
    ------
    ValueError
        Where fewer than `FEWEST_SLIDES` are given.
    """
    if len(stats) < FEWEST_SLIDES:
        raise ValueError(f"{len(stats)} slides tell no spread of colour between slides; give at least {FEWEST_SLIDES}")
    table = np.array([(s.mean, s.deviation) for s in stats])  # (slides, 2, 3)
    centre, spread = table.mean(axis=0), np.maximum(table.std(axis=0, ddof=1), LEAST_SPREAD)
    return CohortColour(_triple(centre[0]), _triple(centre[1]), _triple(spread[0]), _triple(spread[1]), len(stats))


def colour_distance(stats: ColourStats, cohort: CohortColour) -> float:
    """Return how far a slide's colour is from a cohort's: root mean square of its six figures in units of the spread.

    A slide of the cohort itself is seldom more than 1 away.
    """
    centre = np.array([cohort.mean, cohort.deviation])
    spread = np.array([cohort.mean_spread, cohort.deviation_spread])
    return math.sqrt(float(np.mean(((np.array([stats.mean, stats.deviation]) - centre) / spread) ** 2)))


def _triple(values: NDArray[np.float64]) -> Triple:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
