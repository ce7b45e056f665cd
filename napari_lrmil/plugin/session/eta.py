"""Remaining time of a running stage, and the expected time of a run before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.formatting import format_duration
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.user_settings import SettingsStore, ThroughputKey
from napari_lrmil.plugin.session.scope_text import count_patches

if TYPE_CHECKING:
    from napari_lrmil.core.features.bag import Features
    from napari_lrmil.core.features.embedding_cache import EmbeddingCache
    from napari_lrmil.core.geometry import Int64
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.grid import NestedGrid
    from napari_lrmil.core.patching.stain import StainTransform
    from napari_lrmil.core.slides.slide import Slide

LOOKUP_PATCHES = 1000  # the settings store is asked for this many patches; the time of any other number follows
ETA_AFTER_S = 2.0  # the speed of a stage is too noisy before


@dataclass(frozen=True)
class StageProgress:
    """Progress of a stage: units done, units in total, seconds since the stage began."""

    stage: str
    done: int
    total: int
    unit: str
    seconds: float

    @property
    def fraction(self) -> float:
        """Share of the units that are done, 0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def text(self) -> str:
        """Stage, percentage and remaining time in one line; no time before `ETA_AFTER_S` or below one second."""
        # Assumes that the mean time per unit so far also holds for the rest of the stage.
        left = self.seconds * (self.total - self.done) / self.done if self.done else 0.0
        eta = f" · {format_duration(left)} left" if self.seconds > ETA_AFTER_S and left >= 1 else ""
        return f"{self.stage} · {self.fraction:.0%}{eta}"


@dataclass(frozen=True)
class RunEstimate:
    """Expected cost of a run.

    Attributes
    ----------
    patches
        LR patches of the student.
    hr_patches
        HR patches of the teacher; 0 without a teacher.
    seconds
        Expected time; None if a network has not run on this machine yet.
    """

    patches: int
    hr_patches: int
    seconds: float | None

    @property
    def text(self) -> str:
        """Numbers of patches and expected time in one line."""
        hr = f" + {self.hr_patches} of the teacher" if self.hr_patches else ""
        return f"{count_patches(self.patches)}{hr} · {self.time_text}"

    @property
    def time_text(self) -> str:
        """Expected time alone."""
        return "time not known yet" if self.seconds is None else f"about {format_duration(self.seconds)}"


@dataclass(frozen=True)
class PlannedPatches:
    """LR patches of a planned run, from which its cost follows for any choice of teacher patches.

    Attributes
    ----------
    hr_counts
        (N,) number of HR patches in each LR patch.
    attention
        (N,) attention of the student if it is cached, which makes the student free; else None.
    expected_seconds
        Returns the expected seconds of a network (``student``, ``teacher``) for a number of patches; None if it has
        not run yet.
    """

    hr_counts: Int64
    attention: Features | None
    expected_seconds: Callable[[str, int], float | None]

    def estimate(self, teacher: TeacherPatches) -> RunEstimate:
        """Return the expected cost of a run in which the teacher reads the patches `teacher`."""
        patches, hr = len(self.hr_counts), self._count_hr_patches(teacher)
        # A part is None if its network has not run yet; then the sum is unknown too.
        parts = [0.0 if self.attention is not None else self.expected_seconds("student", patches)]
        parts += [self.expected_seconds("teacher", hr)] if hr else []
        seconds = [part for part in parts if part is not None]
        return RunEstimate(patches, hr, sum(seconds) if len(seconds) == len(parts) else None)

    def max_teacher_patches(self, seconds: float) -> int | None:
        """Return how many LR patches the teacher can read within a time, at least one; None if no speed is known.

        Parameters
        ----------
        seconds
            Time for both networks together.
        """
        student = 0.0 if self.attention is not None else self.expected_seconds("student", len(self.hr_counts))
        per_hr_patch = self.expected_seconds("teacher", 1)
        if student is None or per_hr_patch is None:
            return None
        costs = per_hr_patch * np.cumsum(self._ordered_hr_counts())
        return max(1, int((costs <= seconds - student).sum()))

    def _count_hr_patches(self, teacher: TeacherPatches) -> int:
        if teacher == TeacherPatches.NONE:
            return 0
        return round(float(self._ordered_hr_counts()[: teacher.count(len(self.hr_counts))].sum()))

    def _ordered_hr_counts(self) -> NDArray[np.float64]:
        """Return (N,) HR patches of each LR patch, by falling attention of the student.

        Without attention the order is unknown, and every entry is the mean.
        """
        if self.attention is None:
            return np.full(len(self.hr_counts), self.hr_counts.mean())
        order = np.argsort(-self.attention.astype(np.float64), kind="stable")
        return np.asarray(self.hr_counts[order], dtype=np.float64)


def plan_patches(
    grid: NestedGrid, attention: Features | None, expected_seconds: Callable[[str, int], float | None]
) -> PlannedPatches:
    """Return the planned patches of a grid; see `PlannedPatches` for the arguments."""
    return PlannedPatches(np.bincount(grid.parent, minlength=len(grid.lr_index)), attention, expected_seconds)


def cached_student_attention(
    last: Prediction | None,
    grid: NestedGrid,
    slide: Slide,
    bundle: Bundle,
    cache: EmbeddingCache,
    stain: StainTransform | None = None,
) -> Features | None:
    """Return the student's attention to exactly the patches of `grid`, if its embeddings are cached; else None.

    Parameters
    ----------
    last
        The last prediction; it counts only if it comes from the same model and the same LR patches.
    grid
        Patches of the planned run.
    slide, bundle, cache
        The slide and the model of the planned run, and the cache that it would use.
    stain
        Transform of the slide to the model's colour; None if it is not measured yet, or the model has none.
    """
    from napari_lrmil.core.inference.encoding import cache_key

    if last is None or last.bundle_sha256 != bundle.sha256 or not np.array_equal(last.grid.lr_index, grid.lr_index):
        return None
    if bundle.card.stain is not None and stain is None:
        return None
    # The cache keeps and evicts the patches of a run nearly together. For an estimate it is enough to look up two.
    ends = grid.lr_index[[0, -1]]
    is_cached = cache.has(cache_key(slide, bundle, grid, "student", stain=stain), ends).all()
    return last.student.attention if is_cached else None


class ThroughputHistory:
    """Speed of earlier runs on this machine; the dock asks often, so each file lookup is kept in memory.

    Parameters
    ----------
    settings_store
        Store with the measured times of earlier runs.
    """

    def __init__(self, settings_store: SettingsStore) -> None:
        self._settings_store = settings_store
        self._seconds: dict[ThroughputKey, float | None] = {}  # for LOOKUP_PATCHES patches

    def expected_seconds(self, bundle_sha256: str, device: str, network: str, patches: int) -> float | None:
        """Return the expected seconds for a number of patches; None if nothing comparable has run yet."""
        key = ThroughputKey(bundle_sha256, device, network)
        if key not in self._seconds:
            self._seconds[key] = self._settings_store.expected_seconds(key, LOOKUP_PATCHES)
        seconds = self._seconds[key]
        return None if seconds is None else seconds / LOOKUP_PATCHES * patches

    def record(self, prediction: Prediction, device: str) -> list[str]:
        """Store the times of a run, and return one sentence for each that could not be stored.

        A network whose embeddings all came from the cache is left out, because its time says nothing about its speed.
        """
        self._seconds.clear()  # the new record changes the expected times
        problems = []
        for network, reading in (("student", prediction.student), ("teacher", prediction.teacher)):
            if reading is None or reading.seconds["encode"] <= 0:
                continue
            key = ThroughputKey(prediction.bundle_sha256, device, network)
            try:
                self._settings_store.remember_pace(key, reading.seconds["total"], reading.patches_encoded)
            except LrmilError as error:  # the prediction is valid without the record
                problems.append(str(error))
        return problems
