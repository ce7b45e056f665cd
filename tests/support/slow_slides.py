"""Slides whose reads take a while, for tests that cancel a run."""

from __future__ import annotations

import time
from pathlib import Path

from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import FakeSlide, fake_slide, resolution, speckled

READ_S = 0.02  # of each read: a run is then still going when a test cancels it


class Slow:
    """Slide opener whose slides read slowly; `slides` are those that it has opened."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.slides = folder, []

    def __call__(self, path: Path, mpp: float | None) -> Slide:
        fake = FakeSlide(speckled(1280, 1000), (1.0, 4.0), resolution(0.5), before_read=lambda: time.sleep(READ_S))
        self.slides.append(fake_slide(self.folder, fake))
        return self.slides[-1]
