"""How long work takes: what is left of it, and what it should take before it begins."""

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

if TYPE_CHECKING:
    from napari_lrmil.core.features.bag import Features
    from napari_lrmil.core.features.embedding_cache import EmbeddingCache
    from napari_lrmil.core.geometry import Int64
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.grid import NestedGrid
    from napari_lrmil.core.slides.slide import Slide

LOOKUP_PATCHES = 1000  # patches of which the pace is asked
ETA_AFTER_S = 2.0  # before that the pace of a stage is not known


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is: units done, units in all, seconds since the stage began."""

    stage: str
    done: int
    total: int
    unit: str
    seconds: float

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def text(self) -> str:
        """One line: the stage, the share, and the time left where it is known."""
        left = self.seconds * (self.total - self.done) / self.done if self.done else 0.0
        shown = f" · {format_duration(left)} left" if self.seconds > ETA_AFTER_S and left >= 1 else ""
        return f"{self.stage} · {self.fraction:.0%}{shown}"


@dataclass(frozen=True)
class RunEstimate:
    """What a run would read: LR patches, HR patches of a teacher, and the seconds that it should take, where known."""

    patches: int
    hr_patches: int
    seconds: float | None

    @property
    def text(self) -> str:
        """One line for the user, before a run."""
        hr = f" + {self.hr_patches} of the teacher" if self.hr_patches else ""
        return f"{self.patches} patches{hr} · {self.time_text}"

    @property
    def time_text(self) -> str:
        """The expected time alone."""
        return "time not known yet" if self.seconds is None else f"about {format_duration(self.seconds)}"


@dataclass(frozen=True)
class PlannedPatches:
    """LR patches that are asked about, and what the two networks would take for them.

    Attributes
    ----------
    hr_counts
        (N,) HR patches in each.
    attention
        (N,) the student's attention where it is known, so that asking it again costs nothing; None where it is not.
    expected_seconds
        Seconds that a network (``student``, ``teacher``) should take for so many patches; None where it never ran.
    """

    hr_counts: Int64
    attention: Features | None
    expected_seconds: Callable[[str, int], float | None]

    def estimate(self, teacher: TeacherPatches) -> RunEstimate:
        """Return what a run would read and take if the teacher reads these patches."""
        patches, hr = len(self.hr_counts), self._hr_patches(teacher)
        told = [0.0 if self.attention is not None else self.expected_seconds("student", patches)]
        told += [self.expected_seconds("teacher", hr)] if hr else []
        known = [seconds for seconds in told if seconds is not None]
        return RunEstimate(patches, hr, sum(known) if len(known) == len(told) else None)

    def max_teacher_patches(self, seconds: float) -> int | None:
        """Return how many patches the teacher can look into in that time, at least one; None where no pace is known."""
        student = 0.0 if self.attention is not None else self.expected_seconds("student", len(self.hr_counts))
        each = self.expected_seconds("teacher", 1)
        if student is None or each is None:
            return None
        costs = each * np.cumsum(self._in_order())
        return max(1, int((costs <= seconds - student).sum()))

    def _hr_patches(self, teacher: TeacherPatches) -> int:
        if teacher == TeacherPatches.NONE:
            return 0
        return round(float(self._in_order()[: teacher.count(len(self.hr_counts))].sum()))

    def _in_order(self) -> NDArray[np.float64]:
        """Return (N,) HR patches of each LR patch, the student's first choice first; their mean where unknown."""
        if self.attention is None:
            return np.full(len(self.hr_counts), self.hr_counts.mean())
        order = np.argsort(-self.attention.astype(np.float64), kind="stable")
        return np.asarray(self.hr_counts[order], dtype=np.float64)


def plan_patches(
    grid: NestedGrid, attention: Features | None, pace: Callable[[str, int], float | None]
) -> PlannedPatches:
    """Return what looking at the patches of a grid costs."""
    return PlannedPatches(np.bincount(grid.parent, minlength=len(grid.lr_index)), attention, pace)


def cached_student_attention(
    known: Prediction | None, grid: NestedGrid, slide: Slide, bundle: Bundle, cache: EmbeddingCache
) -> Features | None:
    """Return the student's attention to exactly these patches where it is known and costs nothing to ask again."""
    from napari_lrmil.core.inference.predict import cache_key

    if known is None or known.bundle_sha256 != bundle.sha256 or not np.array_equal(known.grid.lr_index, grid.lr_index):
        return None
    ends = grid.lr_index[[0, -1]]  # kept and dropped together, or nearly so: an estimate may ask for two of many
    there = cache.has(cache_key(slide, bundle, grid, "student"), ends).all()
    return known.student.attention if there else None


class ThroughputHistory:
    """What a patch takes on this machine; asked often, so each is looked up once.

    Parameters
    ----------
    remembered
        What the last runs took.
    """

    def __init__(self, remembered: SettingsStore) -> None:
        self._remembered = remembered
        self._known: dict[ThroughputKey, float | None] = {}

    def expected_seconds(self, bundle_sha256: str, device: str, network: str, patches: int) -> float | None:
        """Return the seconds that patches should take; None where nothing was run yet."""
        key = ThroughputKey(bundle_sha256, device, network)
        if key not in self._known:
            self._known[key] = self._remembered.expected_seconds(key, LOOKUP_PATCHES)
        known = self._known[key]
        return None if known is None else known / LOOKUP_PATCHES * patches

    def record(self, prediction: Prediction, device: str) -> list[str]:
        """Keep what a run took, and return sentences on what kept it from being kept; the cache teaches nothing."""
        self._known.clear()
        told = []
        for network, reading in (("student", prediction.student), ("teacher", prediction.teacher)):
            if reading is None or reading.seconds["encode"] <= 0:
                continue
            key = ThroughputKey(prediction.bundle_sha256, device, network)
            try:
                self._remembered.remember_pace(key, reading.seconds["total"], reading.patches_encoded)
            except LrmilError as error:  # the answer is there all the same
                told.append(str(error))
        return told
