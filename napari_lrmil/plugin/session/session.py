"""Session of the Analyse dock: runs, live view, what-if steps and their answers. No Qt, no napari.

The dock passes user actions to a session and applies the state that `resolve` returns; the session never calls the
dock. It uses no threads: it returns jobs as event sources, and receives the events of whoever runs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, EventSource, Failed, Finished, Notice, Partial, Progress
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import RegionOfInterest
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.session.analyse_state import resolve
from napari_lrmil.plugin.session.chosen import ChosenAnalysis
from napari_lrmil.plugin.session.eta import StageProgress
from napari_lrmil.plugin.session.jobs import FindTissueJob, PredictJob
from napari_lrmil.plugin.session.open_slides import SlideOpener
from napari_lrmil.plugin.session.preconditions import STUDENT, why_too_coarse
from napari_lrmil.plugin.session.run_state import ActiveRun, RunOutcome, SessionState, SlideAndModel, outcome_of

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.patching.tissue import Mask
    from napari_lrmil.plugin.session.what_if import WhatIf

STOPPED = "The analysis stopped without a result; please report it."


class Session(ChosenAnalysis):
    """Analysis of one slide with one model; one run at a time.

    Answers are stored by slide and model. Choosing another slide or model shows its own answer, or none. A cancelled
    run leaves the answer that was there before it. A failed run leaves no answer and says why.

    Parameters
    ----------
    open_slide
        Opens a slide for the analysis, separately from the one on the screen; tests pass their own function.
    out
        Folder of the result files; None writes none.
    clock
        Monotonic time in seconds.
    settings_store
        Store of user settings and of the times of earlier runs; by default the user's.

    Attributes
    ----------
    finished
        Signal: a run has ended with a prediction, or a stored one is shown.
    prediction_updated
        Signal: a prediction of the live view or of a what-if replaces the last one.
    warned
        Signal with a sentence that the user should know.
    """

    finished = Signal(object)
    prediction_updated = Signal(object)
    warned = Signal(str)

    def __init__(
        self,
        open_slide: SlideOpener | None = None,
        out: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        settings_store: SettingsStore | None = None,
    ) -> None:
        super().__init__(open_slide, settings_store)
        self._out, self._clock = out, clock
        # What the last live view and tissue search were computed for: each is repeated only if its input has changed.
        self._live_key: tuple[object, ...] = ()
        self._tissue_key: tuple[object, ...] = ()

    def _on_slide_changed(self) -> None:
        self._live_key = ()
        self._tissue_key = ()  # the grid may be gone: slides that the viewer does not show any more are closed

    def choose_allow_missing(self, allow: bool) -> None:
        """Choose whether a slide is analysed of which more than a third of the tissue is missing."""
        self._live_key = ()
        self._choose(of_slide=replace(self.choices.of_slide, allow_missing=allow))

    def choose_exclude_artefacts(self, exclude: bool) -> None:
        """Choose whether artefacts are left out of the tissue of the chosen slide; its tissue is then found again."""
        if self.slide is None:
            return
        self.open_slides.exclude_artefacts(self.slide, exclude)
        self._choose(of_slide=replace(self.choices.of_slide, exclude_artefacts=exclude))

    def set_follows_view(self, follow: bool) -> None:
        """Switch the live view on or off: whether the student analyses what is visible while the user moves."""
        self._live_key = ()
        self._choose(follows_view=follow)

    # ------------------------------------------------------------ state of the run

    @property
    def state(self) -> SessionState:
        """Stage of the active run, else of the last one of the chosen slide and model."""
        return self._run.state if self._run is not None else self._memory.outcome(self._key).state

    @property
    def is_busy(self) -> bool:
        """Whether a run has not ended yet."""
        return self._run is not None

    @property
    def progress(self) -> StageProgress | None:
        """Progress of the active run; None without one."""
        return self._run.progress if self._run is not None else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Cautions about the answer for the chosen slide and model."""
        return resolve(self.choices, self._facts()).warnings

    @property
    def message(self) -> str:
        """Why there is no answer or no model; empty without a failure."""
        return resolve(self.choices, self._facts()).message

    # ------------------------------------------------------------ tissue search

    def prepare_tissue_search(self) -> EventSource | None:
        """Return the job that computes the tissue grid of the chosen slide; None if it is known or cannot be."""
        if self.slide is None or self.bundle is None or self.tissue_grid is not None:
            return None
        key = (self.slide, self.bundle.sha256, self.excludes_artefacts)
        if key == self._tissue_key or why_too_coarse(self.slide, self.bundle.card.lr_mpp, STUDENT):
            return None  # once per choice: a slide without tissue would be searched again and again
        self._tissue_key = key
        return FindTissueJob(self.slide, self.bundle, self.open_slides).events

    def on_tissue_event(self, event: Event) -> None:
        """Handle an event of the tissue search. A failure is not shown here: the run reports it when it is started."""
        if isinstance(event, Finished | Failed):
            self.changed.emit()

    # ------------------------------------------------------------ run

    def prepare_run(self, teacher: TeacherPatches | None = None) -> EventSource:
        """Set the state to running, and return the job with the present choices; the caller starts it in any thread.

        Parameters
        ----------
        teacher
            LR patches that the teacher reads in this run; None takes the chosen ones.

        Raises
        ------
        RuntimeError
            If no run can start now.
        """
        if self.is_busy or self.run_blocked_by or self._key is None:
            raise RuntimeError(f"no run can start now: {self.run_blocked_by or self.state.value}")
        requested, teacher_blocked_by = teacher or self.teacher, self.teacher_blocked_by
        job = self._make_job(self.scope, TeacherPatches.NONE if teacher_blocked_by else requested, self._out)
        self._run = ActiveRun(self._key)
        if requested != TeacherPatches.NONE and teacher_blocked_by:
            self._warn(f"{teacher_blocked_by} Only the student runs.")
        self.changed.emit()
        return job.events

    def _make_job(
        self, scope: RegionOfInterest, teacher: TeacherPatches = TeacherPatches.NONE, out: Path | None = None
    ) -> PredictJob:
        if self.slide is None or self.bundle is None:
            raise RuntimeError("a job needs a slide and a model")
        return PredictJob(
            self.slide,
            self.bundle,
            self.device,
            self.open_slides,
            self.cache,
            scope,
            teacher,
            out,
            allow_missing=self.allow_missing,
            exclude_artefacts=self.choices.of_slide.exclude_artefacts,
        )

    def show_stored(self, prediction: Prediction) -> None:
        """Show a stored prediction like the result of a run; one of another slide or model is ignored."""
        if self.is_busy or self._key is None or prediction.path != self._key[0].path:
            return
        if prediction.bundle_sha256 == self._key[1]:
            self._memory.store_outcome(self._key, outcome_of(prediction))
            self.finished.emit(prediction)
            self.changed.emit()

    def forget_shown(self) -> None:
        """Show no answer for the slide any more, until it is run or restored again. No file changes."""
        if self._key is not None and not self.is_busy:
            self._memory.store_outcome(self._key, RunOutcome())
            self.changed.emit()

    def cancel(self) -> None:
        """Ignore all further events of the run; the caller calls `on_finished` when the job has ended."""
        if self._run is not None and not self._run.is_cancelled:
            self._run = replace(self._run, is_cancelled=True)
            self.changed.emit()

    def on_event(self, event: Event) -> None:
        """Handle an event of the run; after `cancel` it is ignored, because events may still be queued."""
        run = self._run
        if run is None or run.is_cancelled:
            return
        match event:
            case Progress(stage, done, total, unit):
                self._run = run.advance(stage, done, total, unit, self._clock())
            case Notice(message):
                self._warn(message)
            case Failed(message):
                self._fail(run.key, message)
            case Finished(result):
                for problem in self._throughput.record(result, self.device):
                    self._warn(problem)
                self._end(run.key, RunOutcome(SessionState.DONE, result, self._run_warnings))
                self.finished.emit(result)
        self.changed.emit()

    def on_finished(self) -> None:
        """Handle the end of the job, with or without a result."""
        if self._run is not None and self._run.is_cancelled:
            self._run = None  # the earlier answer, if any, comes back
        elif self._run is not None:
            self._fail(self._run.key, STOPPED)
        self.changed.emit()

    @property
    def _run_warnings(self) -> tuple[str, ...]:
        return self._run.warnings if self._run is not None else ()

    def _warn(self, message: str) -> None:
        if self._run is not None:
            self._run = self._run.warn(message)
        self.warned.emit(message)

    def _fail(self, key: SlideAndModel, message: str) -> None:
        self._end(key, RunOutcome(SessionState.FAILED, None, self._run_warnings, message))
        self.failed.emit(message)

    def _end(self, key: SlideAndModel, outcome: RunOutcome) -> None:
        """End the run; the outcome of a slide that was closed meanwhile is dropped."""
        self._run = None
        if key[0] in self.slides:
            self._memory.store_outcome(key, outcome)

    # ------------------------------------------------------------ live view

    def prepare_live_view(self) -> EventSource | None:
        """Return the job that analyses the visible patches; None if it cannot run or if they are the same as before."""
        tissue_grid = self.tissue_grid
        if not self.follows_view or self.is_busy or tissue_grid is None or self.view is None:
            return None
        scope = self.choices.of_slide.make_scope("view", (self.view,))
        is_visible = scope.select(tissue_grid).is_selected
        key = (self.slide, self.bundle, self.device, tissue_grid, self.what_if, is_visible.tobytes())
        if key == self._live_key or not is_visible.any():
            return None
        self._live_key = key
        return self._make_job(scope).live_events

    def on_live_event(self, event: Event) -> None:
        """Handle an event of the live view or of a what-if; one of another slide or model comes too late."""
        match event:
            case Partial(result) | Finished(result):
                if self._key is None or (result.path, result.bundle_sha256) != (self._key[0].path, self._key[1]):
                    return
                self._memory.store_outcome(self._key, outcome_of(result))
                self.prediction_updated.emit(result)
                self.changed.emit()
            case Failed(message):
                self.failed.emit(message)

    # ------------------------------------------------------------ what if

    @property
    def can_undo(self) -> bool:
        """Whether there is a what-if step to undo."""
        return self.choices.of_slide.can_undo

    def exclude(self, regions: Sequence[Region]) -> None:
        """Exclude more regions."""
        self._add_step(self.what_if.exclude(self.what_if.select_new(regions, self.prediction)))

    def keep_only(self, regions: Sequence[Region]) -> None:
        """Exclude everything outside the regions."""
        self._add_step(self.what_if.keep_only(self.what_if.select_new(regions, self.prediction)))

    def undo(self) -> None:
        """Undo the last what-if step."""
        if self.can_undo:
            self._choose(of_slide=self.choices.of_slide.undo_step())

    def _add_step(self, what_if: WhatIf) -> None:
        self._choose(of_slide=self.choices.of_slide.add_step(what_if))

    def prepare_what_if(self) -> EventSource | None:
        """Return the job that answers for the chosen part with the present what-if; None before a first answer."""
        if self.is_busy or self.prediction is None:
            return None
        return self._make_job(self.scope).events

    def edit_tissue(self, mask: Mask | None) -> None:
        """Replace the tissue mask of the chosen slide.

        Parameters
        ----------
        mask
            A mask that the user edited, of the raster of `tissue_grid`; None returns to the computed mask.
        """
        if self.slide is None or self.bundle is None:
            return
        self._live_key = ()
        if mask is None:
            self.open_slides.discard_edit(self.slide, self.bundle)
            self._tissue_key = ()  # the next tissue search computes it again
        else:
            try:
                self.open_slides.set_edited_mask(self.slide, self.bundle, mask)
            except LrmilError as error:
                self.failed.emit(str(error))
        self.changed.emit()
