"""Frozen outputs of the stages of a run: `HrFeatures`, `TeacherOutputs`, `Student` and `Evaluation`.

Each stage takes the outputs that it needs and returns new ones, so a run reads from top to bottom in `pipeline`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lrmil_training.data.cohort import Cohort
from lrmil_training.data.feature_store import StoredRows
from lrmil_training.data.teacher_targets import EMBEDDING, FeatureStatistics, TeacherTargets
from lrmil_training.evaluation.evaluate import SlideResult
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.encoders import AlignedEncoder, LoadedEncoder
from napari_lrmil.core.events import Event
from napari_lrmil.core.models.limits import NetworkLimits
from napari_lrmil.core.models.mil import MIL


@dataclass(frozen=True)
class HrFeatures:
    """HR features of a cohort, on disk.

    Attributes
    ----------
    cohort
        The slides that gave features. All later stages use this cohort.
    arrays
        Slide name -> ``features`` or layer name -> stored (K, D) embeddings.
    statistics
        ``features`` or layer name -> mean and deviation over the training slides.
    encoder
        The encoder that gives ``features``: the run's, with the reduction that was fitted to them, if there is one.
    source
        Hash of the content, if another program made the features; otherwise empty.
    """

    cohort: Cohort
    arrays: Mapping[str, Mapping[str, StoredRows]]
    statistics: Mapping[str, FeatureStatistics]
    encoder: LoadedEncoder
    source: str = ""


@dataclass(frozen=True)
class TeacherOutputs:
    """The trained teacher MIL, and its scores and logits for every slide; in a run without one, the grids alone.

    Attributes
    ----------
    mil
        The fitted MIL, frozen and rounded to half precision. None in a run without a teacher.
    slides
        Slide name -> what the student learns from the teacher.
    statistics
        ``features`` or layer name -> statistics of the HR features over the training slides; empty without a teacher.
    """

    mil: MIL | None
    slides: Mapping[str, TeacherTargets]
    statistics: Mapping[str, FeatureStatistics]

    @property
    def embedding_statistics(self) -> FeatureStatistics:
        """Statistics of the final embedding."""
        return self.statistics[EMBEDDING]

    def require_mil(self) -> MIL:
        """Return the teacher's MIL; raise `RuntimeError` in a run without a teacher."""
        if self.mil is None:
            raise RuntimeError("the run has no teacher; the method must learn from the labels alone")
        return self.mil


@dataclass(frozen=True)
class Student:
    """Networks of a method after some of its stages.

    The networks themselves are fitted in place; a `Student` says which of its parts exist and belong together.

    Attributes
    ----------
    encoder
        The LR encoder.
    mil
        The MIL. None until `InitialMil` has run.
    features
        Slide name -> stored (N, D) LR embeddings by this encoder. None if they are not extracted yet.
    """

    encoder: AlignedEncoder
    mil: MIL | None = None
    # A stage that changes the encoder returns a `Student` without features, so that no later stage uses stale ones.
    features: Mapping[str, StoredRows] | None = None

    def require_mil(self) -> MIL:
        """Return the MIL; raise `RuntimeError` if the method's list of stages never made one."""
        if self.mil is None:
            raise RuntimeError("the student has no MIL yet; the method needs the stage InitialMil before this one")
        return self.mil

    def require_features(self) -> Mapping[str, StoredRows]:
        """Return the LR features; raise `RuntimeError` if no stage extracted them with the present encoder."""
        if self.features is None:
            raise RuntimeError("the student has no features yet; the method needs the stage LrFeatures before this one")
        return self.features


@dataclass(frozen=True)
class Evaluation:
    """Results of the teacher and of all methods.

    Attributes
    ----------
    results
        Method -> one result per slide; all methods have the same slides in the same order.
    metrics
        Method -> split -> figures: the content of ``metrics.json``.
    limits
        Method -> operating point and conformal scores.
    """

    results: Mapping[str, Sequence[SlideResult]]
    metrics: Mapping[str, Any]
    limits: Mapping[str, NetworkLimits]


class Stage(Protocol):
    """One stage of a method: a frozen specification that can be run."""

    def run(self, context: RunContext, teacher: TeacherOutputs, student: Student) -> Generator[Event, None, Student]:
        """Run the stage and return the student after it; yields the events of the stage."""
        ...
