"""Pictures for slides of tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from support.fake_slides import GLASS


def rectangles(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Return rectangles of many colours on glass, with a soft texture; other seeds are other pictures."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), GLASS, np.float64)
    for _ in range(20):
        x, y, across, down = (int(v) for v in rng.integers((0, 0, 80, 80), (width, height, 400, 400)))
        pixels[y : y + down, x : x + across] = rng.integers(60, 210, 3)
    return (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
