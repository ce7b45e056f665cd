"""State of one analysis: choices, progress, result. No Qt, no napari, so tests need no screen.

The dock displays a session and passes user actions to it; the session never calls the dock. The session uses no
threads: it returns jobs as event sources, and receives the events of whoever runs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, EventSource, Failed, Finished, Notice, Partial, Progress
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.regions import Region, box_region
from napari_lrmil.core.patching.roi import Kind, RegionOfInterest
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.session.eta import (
    PlannedPatches,
    RunEstimate,
    StageProgress,
    ThroughputHistory,
    cached_student_attention,
    plan_patches,
)
from napari_lrmil.plugin.session.jobs import FindTissueJob, PredictJob
from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice, SlideOpener
from napari_lrmil.plugin.session.preconditions import (
    NO_MODEL,
    why_roi_empty,
    why_roi_missing,
    why_teacher_unavailable,
    why_too_coarse,
)
from napari_lrmil.plugin.session.usual_model import UsualModels
from napari_lrmil.plugin.session.what_if import WhatIf

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.grid import TissueGrid
    from napari_lrmil.core.patching.tissue import Mask

STUDENT = "student (LR)"  # name of the network in sentences for the user


class SessionState(Enum):
    """Stage of the run of a session."""

    IDLE = "idle"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"


class Session:
    """Analysis of one slide with one model; one run at a time.

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
    changed
        Signal: something that the dock displays has changed.
    finished
        Signal: a run has ended with a prediction.
    prediction_updated
        Signal: a prediction of the live view or of a what-if replaces the last one.
    failed
        Signal with a sentence: there is no prediction, or no model, and why.
    warned
        Signal with a sentence that the user should know.
    """

    changed = Signal()
    finished = Signal(object)
    prediction_updated = Signal(object)
    failed = Signal(str)
    warned = Signal(str)

    def __init__(
        self,
        open_slide: SlideOpener | None = None,
        out: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        settings_store: SettingsStore | None = None,
    ) -> None:
        from napari_lrmil.core.features.embedding_cache import EmbeddingCache

        self._out, self._clock = out, clock
        self.settings_store = settings_store or SettingsStore()
        # Both live as long as the session: a second run on the same slide and model reads no pixel again.
        self.open_slides, self.cache = OpenSlides(open_slide or self._open_slide), EmbeddingCache()
        self.state = SessionState.IDLE
        self.slides: tuple[SlideChoice, ...] = ()
        self.slide: SlideChoice | None = None
        self.bundle: Bundle | None = None
        self.bundle_name = ""  # as the user gave it: a folder, or the name of a shipped model
        self._usual_models = UsualModels(self.settings_store)
        self.device = "auto"
        self.teacher = TeacherPatches.NONE  # LR patches that the teacher reads in addition to the student
        self.allow_missing = False  # whether a slide is analysed of which more than a third of the tissue is missing
        self.follows_view = False
        self.roi_kind: Kind = "slide"
        self.view: BoxLevel0 | None = None
        self.regions: tuple[Region, ...] = ()
        self.region_warnings: tuple[str, ...] = ()  # about the files that regions were imported from
        self.progress: StageProgress | None = None
        self.warnings: tuple[str, ...] = ()
        self.message = ""  # why there is no result or no model; empty without a failure
        self.prediction: Prediction | None = None
        self._what_if_steps: tuple[WhatIf, ...] = (WhatIf(),)  # the last one is in effect, the others are for undo
        # What the last live view, tissue search and patch selection were computed for: each is repeated only if
        # its input has changed.
        self._live_key: tuple[object, ...] = ()
        self._tissue_key: tuple[object, ...] = ()
        self._selection: tuple[tuple[object, ...], NDArray[np.bool_]] | None = None
        self._throughput = ThroughputHistory(self.settings_store)
        self._stage_began = 0.0

    def _open_slide(self, path: Path, mpp: float | None) -> Slide:
        return Slide(path, mpp=mpp, remembered=self.settings_store.remembered_mpp)

    def close(self) -> None:
        """Close all slides."""
        self.open_slides.close()

    # ------------------------------------------------------------ choices

    def set_slides(self, slides: Sequence[SlideChoice]) -> None:
        """Set the slides of the viewer and close all others.

        The chosen slide stays chosen if it is among them; else the last one is chosen.
        """
        self.slides = tuple(slides)
        if self.slide not in self.slides:
            self.choose_slide(self.slides[-1] if self.slides else None)
        self.open_slides.close_others(self.slides)
        self.changed.emit()

    def choose_slide(self, slide: SlideChoice | None) -> None:
        """Choose the slide; another one resets the view, the regions, the what-if steps and the prediction."""
        if slide != self.slide:
            self.view, self.regions, self.region_warnings, self.prediction = None, (), (), None
            self._what_if_steps, self._live_key = (WhatIf(),), ()
            self.allow_missing = False  # allowed for one slide only
            self.slide = slide
            usual = self.bundle_name if slide is None else self._usual_models.model_of(slide)
            if usual != self.bundle_name:
                self._open_bundle(usual or None)
        self.changed.emit()

    def choose_bundle(self, location: str | Path | None) -> None:
        """Choose the model for the slides of this folder; without a slide, for all slides of the session.

        If it cannot be opened, no model is chosen and `failed` is emitted.

        Parameters
        ----------
        location
            A bundle folder, or the name of a shipped model; None chooses no model.
        """
        if problem := self._usual_models.remember(self.slide, str(location or "")):
            self.failed.emit(problem)
        self._open_bundle(location)

    def _open_bundle(self, location: str | Path | None) -> None:
        from napari_lrmil.core.models.bundle import Bundle

        self.message = ""
        try:
            self.bundle = Bundle(location) if location is not None else None
            self.bundle_name = str(location or "")
        except LrmilError as error:
            self.bundle, self.bundle_name, self.message = None, "", str(error)
            self.failed.emit(self.message)
        self.changed.emit()

    def choose_device(self, name: str) -> None:
        """Choose the device: ``auto``, ``cpu``, ``cuda`` or ``mps``."""
        self.device = name
        self.changed.emit()

    def choose_teacher(self, patches: TeacherPatches) -> None:
        """Choose the LR patches that the teacher reads in addition to the student."""
        self.teacher = patches
        self.changed.emit()

    def choose_allow_missing(self, allow: bool) -> None:
        """Choose whether a slide is analysed of which more than a third of the tissue is missing."""
        self.allow_missing, self._live_key = allow, ()
        self.changed.emit()

    def choose_roi_kind(self, kind: Kind) -> None:
        """Choose the part of the slide for the next run: all of it, the view, or the drawn regions."""
        self.roi_kind = kind
        self.changed.emit()

    def set_follows_view(self, follow: bool) -> None:
        """Switch the live view on or off: whether the student analyses what is visible while the user moves."""
        self.follows_view, self._live_key = follow, ()
        self.changed.emit()

    def set_view(self, box: BoxLevel0) -> None:
        """Set the visible part of the chosen slide, in level-0 pixels."""
        self.view = box
        if self.roi_kind == "view":
            self.changed.emit()

    def set_regions(self, regions: Sequence[Region]) -> None:
        """Set the drawn regions of the chosen slide, in level-0 pixels."""
        self.regions = tuple(regions)
        if not regions:
            self.region_warnings = ()
        self.changed.emit()

    def add_region_warnings(self, warnings: Sequence[str]) -> None:
        """Add sentences about an imported file; results of drawn regions carry them."""
        self.region_warnings = tuple(dict.fromkeys((*self.region_warnings, *warnings)))

    # ------------------------------------------------------------ state that follows from the choices

    @property
    def is_busy(self) -> bool:
        """Whether a run has not ended yet."""
        return self.state in (SessionState.RUNNING, SessionState.CANCELLING)

    @property
    def tissue_grid(self) -> TissueGrid | None:
        """Tissue grid of the chosen slide; None before it has been computed."""
        if self.slide is None or self.bundle is None:
            return None
        return self.open_slides.get_cached_tissue_grid(self.slide, self.bundle)

    @property
    def opened_slide(self) -> Slide:
        """The chosen slide, open for analysis.

        Raises
        ------
        LrmilError
            If no slide is chosen, or its file cannot be opened any more.
        """
        if self.slide is None:
            raise LrmilError("no slide is open; drop one on the window")
        return self.open_slides.get_slide(self.slide)

    @property
    def scope(self) -> RegionOfInterest:
        """Part of the slide that a run would analyse."""
        if self.roi_kind == "view" and self.view is not None:
            return self._make_scope("view", (box_region(self.view, "view"),))
        if self.roi_kind == "region" and self.regions:
            return self._make_scope("region", self.regions)
        return self._make_scope("slide", ())

    def _make_scope(self, kind: Kind, regions: tuple[Region, ...]) -> RegionOfInterest:
        what_if = self.what_if
        warnings = self.region_warnings if kind == "region" or what_if != WhatIf() else ()
        return RegionOfInterest(kind, regions, what_if.included, what_if.excluded, warnings=warnings)

    @property
    def run_blocked_by(self) -> str:
        """Why no run can start; empty if one can."""
        if self.slide is None:
            return "No slide is open: drop one on the window, or take File > Open Sample."
        if self.bundle is None:
            return self.message or NO_MODEL
        return (
            why_too_coarse(self.slide, self.bundle.card.lr_mpp, STUDENT)
            or why_roi_missing(self.roi_kind, self.regions, self.view)
            or self._why_roi_empty()
        )

    def _why_roi_empty(self) -> str:
        tissue_grid = self.tissue_grid
        if tissue_grid is None:  # the run itself finds the tissue, and reports an empty region
            return ""
        return why_roi_empty(self.scope, tissue_grid, self._selected_patches(tissue_grid), self.what_if)

    @property
    def teacher_blocked_by(self) -> str:
        """Why the teacher cannot run; empty if it can."""
        return why_teacher_unavailable(self.slide, self.bundle)

    @property
    def runs_teacher(self) -> bool:
        """Whether a run would include the teacher."""
        return self.teacher != TeacherPatches.NONE and not self.teacher_blocked_by

    @property
    def estimate(self) -> RunEstimate | None:
        """Expected cost of a run; None before the tissue grid has been computed."""
        planned = self.planned_patches
        return planned.estimate(self.teacher if self.runs_teacher else TeacherPatches.NONE) if planned else None

    @property
    def planned_patches(self) -> PlannedPatches | None:
        """Patches that a run would read; None if there are none, or before the tissue grid has been computed."""
        tissue_grid = self.tissue_grid
        if tissue_grid is None or self.bundle is None or not self._selected_patches(tissue_grid).any():
            return None
        expected_seconds = partial(self._throughput.expected_seconds, self.bundle.sha256, self.device)
        grid = tissue_grid.grid.select(self._selected_patches(tissue_grid))
        stain = self.open_slides.get_cached_stain(self.slide, self.bundle, tissue_grid) if self.slide else None
        slide, bundle, cache = self.opened_slide, self.bundle, self.cache
        attention = cached_student_attention(self.prediction, grid, slide, bundle, cache, stain)
        return plan_patches(grid, attention, expected_seconds)

    def _selected_patches(self, tissue_grid: TissueGrid) -> NDArray[np.bool_]:
        """Return (N,) which LR patches a run would read; cached, because the dock reads it at every change."""
        key = (tissue_grid, self.roi_kind, self.view, self.regions, self.what_if)
        if self._selection is None or self._selection[0] != key:
            self._selection = key, self.scope.select(tissue_grid).is_selected
        return self._selection[1]

    # ------------------------------------------------------------ tissue search

    def prepare_tissue_search(self) -> EventSource | None:
        """Return the job that computes the tissue grid of the chosen slide; None if it is known or cannot be."""
        if self.slide is None or self.bundle is None or self.tissue_grid is not None:
            return None
        key = (self.slide, self.bundle.sha256)
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
        if self.is_busy or self.run_blocked_by or self.slide is None or self.bundle is None:
            raise RuntimeError(f"no run can start now: {self.run_blocked_by or self.state.value}")
        requested, teacher_blocked_by = teacher or self.teacher, self.teacher_blocked_by
        job = self._make_job(self.scope, TeacherPatches.NONE if teacher_blocked_by else requested, self._out)
        self.state, self.progress, self.prediction = SessionState.RUNNING, None, None
        self.warnings, self.message = (), ""
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
        )

    def show_stored(self, prediction: Prediction) -> None:
        """Show a stored prediction like the result of a run; one of another slide is ignored."""
        if self.is_busy or self.slide is None or prediction.path != self.slide.path:
            return
        self.state, self.message, self.prediction = SessionState.DONE, "", prediction
        self.warnings = tuple(dict.fromkeys((*prediction.warnings, *prediction.missing_tiles.sentences)))
        self.finished.emit(prediction)
        self.changed.emit()

    def cancel(self) -> None:
        """Ignore all further events of the run; the caller calls `on_finished` when the job has ended."""
        if self.state is SessionState.RUNNING:
            self.state = SessionState.CANCELLING
            self.changed.emit()

    def on_event(self, event: Event) -> None:
        """Handle an event of the run; after `cancel` it is ignored, because events may still be queued."""
        if self.state is not SessionState.RUNNING:
            return
        match event:
            case Progress(stage, done, total, unit):
                self._set_progress(stage, done, total, unit)
            case Notice(message):
                self._warn(message)
            case Failed(message):
                self._fail(message)
            case Finished(result):
                self.state, self.prediction = SessionState.DONE, result
                for problem in self._throughput.record(result, self.device):
                    self._warn(problem)
                self.finished.emit(result)
        self.changed.emit()

    def on_finished(self) -> None:
        """Handle the end of the job, with or without a result."""
        if self.state is SessionState.CANCELLING:
            self.state = SessionState.IDLE
        elif self.state is SessionState.RUNNING:
            self._fail("The analysis stopped without a result; please report it.")
        self.progress = None
        self.changed.emit()

    def _set_progress(self, stage: str, done: int, total: int, unit: str) -> None:
        now = self._clock()
        if self.progress is None or self.progress.stage != stage:
            self._stage_began = now
        self.progress = StageProgress(stage, done, total, unit, now - self._stage_began)

    def _warn(self, message: str) -> None:
        self.warnings = (*self.warnings, message)
        self.warned.emit(message)

    def _fail(self, message: str) -> None:
        self.state, self.message = SessionState.FAILED, message
        self.failed.emit(message)

    # ------------------------------------------------------------ live view

    def prepare_live_view(self) -> EventSource | None:
        """Return the job that analyses the visible patches; None if it cannot run or if they are the same as before."""
        tissue_grid = self.tissue_grid
        if not self.follows_view or self.is_busy or tissue_grid is None or self.view is None:
            return None
        scope = self._make_scope("view", (box_region(self.view, "view"),))
        is_visible = scope.select(tissue_grid).is_selected
        key = (self.slide, self.bundle, self.device, tissue_grid, self.what_if, is_visible.tobytes())
        if key == self._live_key or not is_visible.any():
            return None
        self._live_key = key
        return self._make_job(scope).live_events

    def on_live_event(self, event: Event) -> None:
        """Handle an event of the live view or of a what-if."""
        match event:
            case Partial(result) | Finished(result):
                self.prediction = result
                self.prediction_updated.emit(result)
                self.changed.emit()
            case Failed(message):
                self.failed.emit(message)

    # ------------------------------------------------------------ what if

    @property
    def what_if(self) -> WhatIf:
        """Regions that are excluded or kept at present."""
        return self._what_if_steps[-1]

    @property
    def can_undo(self) -> bool:
        """Whether there is a what-if step to undo."""
        return len(self._what_if_steps) > 1

    def exclude(self, regions: Sequence[Region]) -> None:
        """Exclude more regions."""
        self._add_step(self.what_if.exclude(self.what_if.select_new(regions, self.prediction)))

    def keep_only(self, regions: Sequence[Region]) -> None:
        """Exclude everything outside the regions."""
        self._add_step(self.what_if.keep_only(self.what_if.select_new(regions, self.prediction)))

    def undo(self) -> None:
        """Undo the last what-if step."""
        if self.can_undo:
            self._what_if_steps = self._what_if_steps[:-1]
            self.changed.emit()

    def _add_step(self, what_if: WhatIf) -> None:
        self._what_if_steps = (*self._what_if_steps, what_if)
        if self.roi_kind == "region":  # the regions drawn last belong to the what-if, they are not the part to analyse
            self.roi_kind = self.prediction.scope.kind if self.prediction else "slide"
        self.changed.emit()

    def prepare_what_if(self) -> EventSource | None:
        """Return the job that repeats the last prediction with the present what-if; None if there was none."""
        if self.is_busy or self.prediction is None or self.slide is None or self.bundle is None:
            return None
        last = self.prediction.scope
        return self._make_job(self._make_scope(last.kind, last.regions)).events

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
