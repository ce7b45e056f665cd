"""Artefacts painted over the finished pixels of a slide: pen of any colour, air bubble, blurred area."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.phantom.look import Pixels
from napari_lrmil.core.phantom.strokes import pen_stroke

Mask = NDArray[np.bool_]


def paint_pen(pixels: Pixels, mpp: float, transmission: tuple[float, float, float]) -> tuple[Pixels, Mask]:
    """Return the pixels with a marker's stroke over tissue and glass, and (h, w) where it lies.

    Parameters
    ----------
    pixels, mpp
        (h, w, 3) RGB, and µm per pixel.
    transmission
        Share of red, green and blue light that the ink lets through.
    """
    height, width = pixels.shape[:2]
    x, y = ((np.arange(n, dtype=np.float32) + np.float32(0.5)) * np.float32(mpp) for n in (width, height))
    covered: Mask = pen_stroke(width * mpp, height * mpp).depth(x, y[:, None]) > 0
    painted = pixels.copy()
    painted[covered] = (pixels[covered] * np.asarray(transmission, np.float32)).astype(np.uint8)
    return painted, covered


def paint_bubble(pixels: Pixels, mpp: float, centre: tuple[float, float], radius: float) -> tuple[Pixels, Mask]:
    """Return the pixels with an air bubble: a dark rim of 40 µm, and a paler, blurred inside.

    Parameters
    ----------
    pixels, mpp
        (h, w, 3) RGB, and µm per pixel.
    centre, radius
        Position (x, y) and radius in µm.
    """
    distance = _distance(pixels, mpp, centre)
    inside: Mask = distance <= radius
    blurred = _blurred(pixels, 6.0 / mpp)
    painted = pixels.copy()
    painted[inside] = 255 - 0.6 * (255 - blurred[inside])
    rim = inside & (distance > radius - 40.0)
    painted[rim] = (np.float32(0.25) * pixels[rim].mean(axis=-1, keepdims=True)).astype(np.uint8) + 30
    return painted, inside


def paint_blur(
    pixels: Pixels, mpp: float, centre: tuple[float, float], radius: float, sigma: float
) -> tuple[Pixels, Mask]:
    """Return the pixels with a round area out of focus.

    Parameters
    ----------
    pixels, mpp
        (h, w, 3) RGB, and µm per pixel.
    centre, radius
        Position (x, y) and radius in µm.
    sigma
        Standard deviation of the blur in µm.
    """
    inside: Mask = _distance(pixels, mpp, centre) <= radius
    painted = pixels.copy()
    painted[inside] = _blurred(pixels, sigma / mpp)[inside]
    return painted, inside


def _distance(pixels: Pixels, mpp: float, centre: tuple[float, float]) -> NDArray[np.float32]:
    """Return (h, w) distances from a point in µm."""
    height, width = pixels.shape[:2]
    x, y = ((np.arange(n, dtype=np.float32) + np.float32(0.5)) * np.float32(mpp) for n in (width, height))
    return np.asarray(np.hypot(x - np.float32(centre[0]), y[:, None] - np.float32(centre[1])), np.float32)


def _blurred(pixels: Pixels, sigma_px: float) -> Pixels:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(pixels, (sigma_px, sigma_px, 0.0), mode="nearest"), np.uint8)
