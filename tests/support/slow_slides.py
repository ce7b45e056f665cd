"""Slides whose reads take a while, for tests of cancelling."""

from __future__ import annotations

import time
from pathlib import Path

from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import FakeSlide, fake_slide, resolution, speckled


class Slow:
    """Opens a slide whose reads take a while, and keeps what it opened."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.slides = folder, []

    def __call__(self, path: Path, mpp: float | None) -> Slide:
        fake = FakeSlide(speckled(1280, 1000), (1.0, 4.0), resolution(0.5), before_read=lambda: time.sleep(0.02))
        self.slides.append(fake_slide(self.folder, fake))
        return self.slides[-1]
