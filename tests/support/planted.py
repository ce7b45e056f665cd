"""Slides with one dark square at a known position, and the centre of darkness in an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from support.fake_slides import GLASS, TISSUE, FakeSlide, resolution

DARK = (60, 20, 80)
LR_UM = 128.0  # of DarknessBundle


@dataclass(frozen=True)
class Planted:
    """Slide with a dark square on tissue; `centre_um` is the centre of the square in µm, x then y."""

    fake: FakeSlide
    centre_um: tuple[float, float]
    mpp: tuple[float, float]


def plant(mpp: tuple[float, float], origin: tuple[int, int] = (0, 0)) -> Planted:
    """Return 0.6 x 0.4 mm of tissue with a square of 90 µm within one LR patch.

    Parameters
    ----------
    mpp
        µm per level-0 pixel, x then y.
    origin
        Level-0 pixel at which the scanned part begins, x then y.
    """
    width, height = round(600 / mpp[0]), round(400 / mpp[1])
    x, y = (round(v / m) for v, m in zip((3 * LR_UM + 15, LR_UM + 22), mpp, strict=True))
    w, h = (round(90 / m) for m in mpp)
    base = np.full((height + origin[1], width + origin[0], 3), GLASS, np.uint8)
    base[origin[1] :, origin[0] :] = TISSUE
    base[origin[1] + y : origin[1] + y + h, origin[0] + x : origin[0] + x + w] = DARK
    properties = resolution(*mpp)
    if origin != (0, 0):
        names = ("bounds-x", "bounds-y", "bounds-width", "bounds-height")
        sizes = (*origin, width, height)
        properties |= {f"openslide.{name}": str(v) for name, v in zip(names, sizes, strict=True)}
    centre = ((origin[0] + x + w / 2) * mpp[0], (origin[1] + y + h / 2) * mpp[1])
    return Planted(FakeSlide(base, (1.0, 4.0, 8.02), properties), centre, mpp)


def centroid(pixels: Any) -> Any:
    """Return row and column of the centre of the pixels darker than tissue; blurred edges count in proportion."""
    darkness = np.clip((TISSUE[0] - pixels[..., 0].astype(float)) / (TISSUE[0] - DARK[0]), 0, 1)
    darkness[darkness < 0.04] = 0  # tissue, apart from rounding
    rows, columns = np.indices(darkness.shape)
    return np.array([(rows * darkness).sum(), (columns * darkness).sum()]) / darkness.sum()
