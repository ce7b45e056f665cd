"""Prediction of one slide, by the student and, if it ran, by the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.inference.slide_limits import NO_LIMITS, SlideLimits
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.metrics.agreement import Agreement, pool_to_lr_grid
from napari_lrmil.core.models.cohort_distance import CohortDistance
from napari_lrmil.core.patching.artefacts import ArtefactShares
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.patching.missing_tissue import NOTHING_MISSING, MissingTiles
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.core.runtimes.select import REFERENCE, RuntimeChoice
from napari_lrmil.core.slides.slide import FinestRead
from napari_lrmil.core.slides.tile_reader import AUTO, OPENSLIDE, REQUESTED, ReaderChoice


@dataclass(frozen=True)
class NetworkPrediction:
    """Prediction of one slide by one network.

    Attributes
    ----------
    coords
        (N, 2) level-0 corner of each patch, x then y.
    patch_level0
        Width and height of a patch in level-0 pixels.
    attention
        (N,) share of each patch; sums to 1.
    evidence
        (N, C) contribution of each patch to the centred, uncalibrated logit of each class.
    logits, probabilities
        Class -> value; probabilities are calibrated if the bundle has a temperature.
    target_mpp
        µm per pixel of the patches.
    pixels_decoded
        Native pixels requested for this network, the tissue mask included. The number does not depend on the reader,
        although readers decode whole tiles.
    seconds
        Step -> wall seconds; ``total`` starts with opening the slide and includes loading the weights, as if the
        network had run alone.
    cpu_seconds
        CPU seconds of the process over all threads, the tissue mask included.
    patches_encoded
        Patches that were not in the cache.
    runtime
        Runtime of the encoder.
    embedding
        (D,) mean embedding of the patches; None of the teacher and in stored results.
    attention_mass
        The slide's weight in a bag of all slides of its patient, see `napari_lrmil.core.models.patient_bag`; None if
        the model answers by slide.
    patch_logits
        (N, C) raw class scores of each patch alone; None in results that do not state them.
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
    embedding: NDArray[np.float64] | None = None
    attention_mass: float | None = None
    patch_logits: Features | None = None

    @property
    def patches_from_cache(self) -> int:
        """Patches whose embeddings an earlier run had left: if there are any, costs are not those of all the work."""
        return len(self.coords) - self.patches_encoded

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=lambda c: self.probabilities[c])


@dataclass(frozen=True)
class Prediction:
    """Prediction of one slide, with the grid and the part of the slide that it is about.

    Attributes
    ----------
    slide, path, slide_fingerprint
        Name of the slide, its file, and the hash of its pixels.
    bundle, bundle_sha256, classes
        Name and hash of the model, and its classes in order.
    calibrated
        Whether the student's probabilities are calibrated.
    grid
        LR and HR patches.
    level0_size
        Width and height of level 0 in pixels.
    student
        Prediction of the LR student.
    device
        Device of the encoders, as torch names it.
    warnings
        Sentences on why the result may be wrong.
    scope
        Part of the slide.
    teacher
        Prediction of the HR teacher; None if it did not run.
    compared
        (N,) LR patches that the teacher read; None for all.
    agreement
        Agreement of both attention maps over these patches.
    reader
        Reader of the slide and why it was chosen; None in results that do not state it.
    finest_read
        Finest level that was read for the student; None in results that do not state it.
    missing_tiles
        Missing and damaged tiles of the levels that were read.
    limits
        Side of the operating point and set of classes of the student, as far as the model has such limits.
    cohort_distance
        Distance from the training slides; None for regions, and if the model does not state how its slides lie.
    stated_hr_patches
        Number of HR patches if `grid` does not hold them all, as in a restored result; None if it does.
    artefacts
        Pen, folds, air bubbles and blur on the tissue; None for regions, and if there are none.
    """

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
    compared: NDArray[np.bool_] | None = None
    agreement: Agreement | None = None
    reader: ReaderChoice | None = None
    finest_read: FinestRead | None = None
    missing_tiles: MissingTiles = NOTHING_MISSING
    limits: SlideLimits = NO_LIMITS
    cohort_distance: CohortDistance | None = None
    artefacts: ArtefactShares | None = None
    stated_hr_patches: int | None = None

    @property
    def n_hr_patches(self) -> int:
        """HR patches of the part of the slide."""
        return len(self.grid.hr_index) if self.stated_hr_patches is None else self.stated_hr_patches

    @property
    def partly_compared(self) -> bool:
        """Whether the teacher read some of the patches only."""
        return self.compared is not None and not self.compared.all()

    @property
    def reader_option(self) -> str:
        """The value of ``--reader`` that reads the slide in the same way."""
        return OPENSLIDE if self.reader is not None and self.reader.reason == REQUESTED else AUTO

    @property
    def teacher_patches(self) -> TeacherPatches:
        """The LR patches that the teacher read."""
        # Results without `compared` are of a teacher that read all patches.
        if self.teacher is None or self.compared is None:
            return TeacherPatches.NONE if self.teacher is None else TeacherPatches.ALL
        return TeacherPatches(int(self.compared.sum())) if self.partly_compared else TeacherPatches.ALL

    @property
    def teacher_on_lr(self) -> NDArray[np.float64]:
        """(N,) teacher attention, summed over the children of each LR patch; NaN if the teacher did not read it.

        Raises
        ------
        ValueError
            If no teacher ran.
        """
        if self.teacher is None:
            raise ValueError("no teacher ran, so there is no teacher attention; run the teacher first")
        if self.compared is None or self.compared.all():
            return pool_to_lr_grid(self.grid, self.teacher.attention)
        # NaN, not 0: that would mean that the teacher read the patch and ignored it.
        attention = np.full(len(self.grid.lr_index), np.nan)
        attention[self.compared] = pool_to_lr_grid(self.grid.select(self.compared), self.teacher.attention)
        return attention
