"""What was found out about a slide, by the student and by the teacher beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.metrics.agreement import Agreement, pool_to_lr_grid
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.core.runtimes.select import REFERENCE, RuntimeChoice
from napari_lrmil.core.slides.tile_reader import AUTO, OPENSLIDE, REQUESTED, ReaderChoice


@dataclass(frozen=True)
class NetworkPrediction:
    """What one network says of one slide.

    Attributes
    ----------
    coords
        (N, 2) level-0 corner of each patch, x then y.
    patch_level0
        Width and height of a patch in level-0 pixels.
    attention
        (N,) sums to 1.
    evidence
        (N, C) what each patch adds to each class's centred, uncalibrated logit.
    logits, probabilities
        Class -> value; probabilities are calibrated where the bundle has a temperature.
    target_mpp
        µm per pixel that the network saw.
    pixels_decoded
        Native pixels asked of the file for it, the tissue mask included; the same number by whichever reader, though
        each decodes whole tiles.
    seconds
        Step -> wall seconds; ``total`` is from opening the slide, loading the weights included, as if it had run alone.
    cpu_seconds
        What the process computed for it, over all threads, the tissue mask included.
    patches_encoded
        Patches that were not in the cache.
    runtime
        What ran the encoder.
    """

    coords: Int64
    patch_level0: tuple[int, int]
    attention: Features
    evidence: Features
    logits: dict[str, float]
    probabilities: dict[str, float]
    target_mpp: float
    pixels_decoded: int
    seconds: dict[str, float]
    cpu_seconds: float
    patches_encoded: int = 0
    runtime: RuntimeChoice = REFERENCE

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=lambda c: self.probabilities[c])


@dataclass(frozen=True)
class Prediction:
    """Everything that was found out about a slide; `predict` makes it, `write` and the window show it."""

    slide: str
    path: Path
    slide_fingerprint: str
    bundle: str
    bundle_sha256: str
    classes: tuple[str, ...]
    calibrated: bool
    grid: NestedGrid
    level0_size: tuple[int, int]
    student: NetworkPrediction
    device: str
    warnings: tuple[str, ...]
    scope: RegionOfInterest = WHOLE_SLIDE
    teacher: NetworkPrediction | None = None
    compared: NDArray[np.bool_] | None = None  # (N,) the LR patches that the teacher looked into; None: all of them
    agreement: Agreement | None = None  # over these
    reader: ReaderChoice | None = None  # how the slide was read and why; None where earlier versions did not say

    @property
    def partly_compared(self) -> bool:
        """Whether the teacher looked into some of the patches only."""
        return self.compared is not None and not self.compared.all()

    @property
    def reader_asked(self) -> str:
        """The ``--reader`` that reads the slide in the same way."""
        return OPENSLIDE if self.reader is not None and self.reader.reason == REQUESTED else AUTO

    @property
    def teacher_patches(self) -> TeacherPatches:
        """The LR patches that the teacher read."""
        if self.teacher is None or self.compared is None:
            return TeacherPatches.NONE if self.teacher is None else TeacherPatches.ALL
        return TeacherPatches(int(self.compared.sum())) if self.partly_compared else TeacherPatches.ALL

    @property
    def teacher_on_lr(self) -> NDArray[np.float64]:
        """(N,) the teacher's attention summed over the children of each LR patch; NaN where it did not look.

        Raises
        ------
        ValueError
            Where no teacher ran.
        """
        if self.teacher is None:
            raise ValueError("no attention of a teacher that did not run")
        if self.compared is None or self.compared.all():
            return pool_to_lr_grid(self.grid, self.teacher.attention)
        carried = np.full(len(self.grid.lr_index), np.nan)
        carried[self.compared] = pool_to_lr_grid(self.grid.only(self.compared), self.teacher.attention)
        return carried
