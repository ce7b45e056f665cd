"""State of runs: the active run, and the outcome of the last run for a slide and a model. No Qt, no napari."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from napari_lrmil.plugin.session.eta import StageProgress
from napari_lrmil.plugin.session.open_slides import SlideChoice

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction

SlideAndModel = tuple[SlideChoice, str]  # a slide, and the hash of a model


class SessionState(Enum):
    """Stage of the run of a session."""

    IDLE = "idle"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class ActiveRun:
    """A run that has not ended.

    Attributes
    ----------
    key
        Slide and model of the run, which stay when the user chooses others meanwhile.
    is_cancelled
        Whether the user has cancelled it; its events no longer count.
    progress
        Progress of the present stage; None before the first.
    warnings
        Sentences that the run has emitted so far.
    stage_began
        Clock time in seconds at which the present stage began.
    """

    key: SlideAndModel
    is_cancelled: bool = False
    progress: StageProgress | None = None
    warnings: tuple[str, ...] = ()
    stage_began: float = 0.0

    @property
    def state(self) -> SessionState:
        """Running or cancelling."""
        return SessionState.CANCELLING if self.is_cancelled else SessionState.RUNNING

    def advance(self, stage: str, done: int, total: int, unit: str, now: float) -> ActiveRun:
        """Return the run with new progress at the clock time `now`."""
        is_same_stage = self.progress is not None and self.progress.stage == stage
        began = self.stage_began if is_same_stage else now
        return replace(self, progress=StageProgress(stage, done, total, unit, now - began), stage_began=began)

    def warn(self, message: str) -> ActiveRun:
        """Return the run with one more warning."""
        return replace(self, warnings=(*self.warnings, message))


@dataclass(frozen=True)
class RunOutcome:
    """Last outcome for a slide and a model.

    Attributes
    ----------
    state
        Idle before the first run, done or failed.
    prediction
        The prediction; None without one.
    warnings
        Sentences that the user should know.
    message
        Why there is no prediction; empty without a failure.
    """

    state: SessionState = SessionState.IDLE
    prediction: Prediction | None = field(default=None, compare=False)  # it holds arrays
    warnings: tuple[str, ...] = ()
    message: str = ""


NO_OUTCOME = RunOutcome()


def outcome_of(prediction: Prediction) -> RunOutcome:
    """Return the outcome of a prediction that has its warnings inside: a stored one, or one of the live view."""
    warnings = tuple(dict.fromkeys((*prediction.warnings, *prediction.missing_tiles.sentences)))
    return RunOutcome(SessionState.DONE, prediction, warnings)
