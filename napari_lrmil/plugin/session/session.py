"""What the dock knows: what is chosen, how far the work is, what came out. No Qt, no napari, so tests need no screen.

The dock shows a session and passes the user's wishes to it; the session never touches the dock. Threads are no concern
of it either: it hands out the work and takes events, whoever carries them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Failed, Finished, Notice, Partial, Progress
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
    why_roi_empty,
    why_roi_missing,
    why_teacher_unavailable,
    why_too_coarse,
)
from napari_lrmil.plugin.session.what_if import WhatIf

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.grid import TissueGrid
    from napari_lrmil.core.patching.tissue import Mask


Work = Callable[[], Iterator[Event]]


class SessionState(Enum):
    """How far a session is."""

    IDLE = "idle"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"


class Session:
    """One analysis at a time of one slide with one model.

    Parameters
    ----------
    open_slide
        Opens a slide for the analysis, apart from the one on the screen; tests pass their own.
    out
        Folder in which each result is written; None writes nothing.
    clock
        Seconds that only go forward.
    settings_store
        What this machine's last runs took.

    Attributes
    ----------
    changed
        Something that the dock shows has changed.
    finished
        A prediction is there.
    prediction_updated
        A prediction is there that takes the last one's place: of the moving view, or of a what-if.
    failed
        A sentence that says why there is none.
    warned
        A sentence that the user should know.
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
        self.open_slides, self.cache = OpenSlides(open_slide or self._open), EmbeddingCache()
        self.state = SessionState.IDLE
        self.slides: tuple[SlideChoice, ...] = ()
        self.slide: SlideChoice | None = None
        self.bundle: Bundle | None = None
        self.bundle_name = ""  # as the user gave it: a folder, or the name of a shipped one
        self.device = "auto"
        self.teacher = TeacherPatches.NONE  # LR patches that the teacher reads beside the student
        self.follows_view = False
        self.roi_kind: Kind = "slide"
        self.view: BoxLevel0 | None = None
        self.regions: tuple[Region, ...] = ()
        self.progress: StageProgress | None = None
        self.warnings: tuple[str, ...] = ()
        self.message = ""  # why there is no result or no model; empty where all is well
        self.prediction: Prediction | None = None
        self._steps: tuple[WhatIf, ...] = (WhatIf(),)  # the last one holds
        self._asked: PredictJob | None = None
        self._answered: tuple[object, ...] = ()  # what the live view last asked
        self._sought: tuple[object, ...] = ()  # whose tissue was last looked for
        self._last_meant: tuple[tuple[object, ...], NDArray[np.bool_]] | None = None
        self._paces = ThroughputHistory(self.settings_store)
        self._stage_began = 0.0

    def _open(self, path: Path, mpp: float | None) -> Slide:
        return Slide(path, mpp=mpp, remembered=self.settings_store.remembered_mpp)

    def close(self) -> None:
        """Give the slides back."""
        self.open_slides.close()

    # ------------------------------------------------------------ choices

    def set_slides(self, slides: Sequence[SlideChoice]) -> None:
        """Take the slides there are; the chosen one stays chosen while it is among them, others are closed."""
        self.slides = tuple(slides)
        if self.slide not in self.slides:
            self.choose_slide(self.slides[-1] if self.slides else None)
        self.open_slides.close_others(self.slides)
        self.changed.emit()

    def choose_slide(self, slide: SlideChoice | None) -> None:
        """Take the slide to analyse; what was drawn on another does not hold for it."""
        if slide != self.slide:
            self.view, self.regions, self._steps, self.prediction = None, (), (WhatIf(),), None
            self._answered = ()
        self.slide = slide
        self.changed.emit()

    def choose_bundle(self, where: str | Path | None) -> None:
        """Take the model: a folder, or the name of a shipped one. Where it cannot be used, none is chosen."""
        from napari_lrmil.core.models.bundle import Bundle

        self.message = ""
        try:
            self.bundle = Bundle(where) if where is not None else None
            self.bundle_name = str(where or "")
        except LrmilError as error:
            self.bundle, self.message = None, str(error)
            self.failed.emit(self.message)
        self.changed.emit()

    def choose_device(self, name: str) -> None:
        """Take the device, one of `DEVICES`."""
        self.device = name
        self.changed.emit()

    def choose_teacher(self, patches: TeacherPatches) -> None:
        """Take the LR patches that the teacher reads beside the student."""
        self.teacher = patches
        self.changed.emit()

    def choose_roi_kind(self, kind: Kind) -> None:
        """Take what a run is to be about: the slide, what is visible, or the drawn regions."""
        self.roi_kind = kind
        self.changed.emit()

    def set_follows_view(self, follow: bool) -> None:
        """Take whether the student follows the view."""
        self.follows_view, self._answered = follow, ()
        self.changed.emit()

    def set_view(self, box: BoxLevel0) -> None:
        """Take what is visible now, in level-0 pixels of the chosen slide."""
        self.view = box
        if self.roi_kind == "view":
            self.changed.emit()

    def set_regions(self, regions: Sequence[Region]) -> None:
        """Take the regions that are drawn on the chosen slide."""
        self.regions = tuple(regions)
        self.changed.emit()

    @property
    def is_busy(self) -> bool:
        """Whether work is under way."""
        return self.state in (SessionState.RUNNING, SessionState.CANCELLING)

    @property
    def tissue_grid(self) -> TissueGrid | None:
        """Where the tissue of the chosen slide is, once it was found."""
        if self.slide is None or self.bundle is None:
            return None
        return self.open_slides.get_cached_tissue_grid(self.slide, self.bundle)

    @property
    def open_slide(self) -> Slide:
        """The chosen slide, open for analysis.

        Raises
        ------
        LrmilError
            Where none is chosen, or it cannot be opened any more.
        """
        if self.slide is None:
            raise LrmilError("no slide is open; drop one on the window")
        return self.open_slides.get_slide(self.slide)

    @property
    def scope(self) -> RegionOfInterest:
        """What a run would be about."""
        if self.roi_kind == "view" and self.view is not None:
            return self._scope("view", (box_region(self.view, "view"),))
        if self.roi_kind == "region" and self.regions:
            return self._scope("region", self.regions)
        return self._scope("slide", ())

    def _scope(self, kind: Kind, regions: tuple[Region, ...]) -> RegionOfInterest:
        what_if = self._steps[-1]
        return RegionOfInterest(kind, regions, what_if.included, what_if.excluded)

    @property
    def run_blocked_by(self) -> str:
        """Why nothing can be run; empty where it can."""
        if self.slide is None:
            return "No slide is open: drop one on the window, or take File > Open Sample."
        if self.bundle is None:
            return self.message or "No model is chosen."
        return (
            why_too_coarse(self.slide, self.bundle.card.lr_mpp, "student (LR)")
            or why_roi_missing(self.roi_kind, self.regions, self.view)
            or (
                why_roi_empty(self.scope, self.tissue_grid, self._selected_patches(self.tissue_grid), self.what_if)
                if self.tissue_grid
                else ""
            )
        )

    @property
    def teacher_blocked_by(self) -> str:
        """Why the teacher cannot run; empty where it can."""
        return why_teacher_unavailable(self.slide, self.bundle)

    @property
    def runs_teacher(self) -> bool:
        """Whether a run would include the teacher."""
        return self.teacher != TeacherPatches.NONE and not self.teacher_blocked_by

    @property
    def estimate(self) -> RunEstimate | None:
        """What a run would cost; None before the tissue was found."""
        asked = self.planned_patches
        return asked.estimate(self.teacher if self.runs_teacher else TeacherPatches.NONE) if asked else None

    @property
    def planned_patches(self) -> PlannedPatches | None:
        """The patches that a run would be about, to tell what looking at them costs; None where none are known."""
        ground = self.tissue_grid
        if ground is None or self.bundle is None or not self._selected_patches(ground).any():
            return None
        pace = partial(self._paces.expected_seconds, self.bundle.sha256, self.device)
        meant = ground.grid.only(self._selected_patches(ground))
        return plan_patches(
            meant, cached_student_attention(self.prediction, meant, self.open_slide, self.bundle, self.cache), pace
        )

    def _selected_patches(self, ground: TissueGrid) -> NDArray[np.bool_]:
        """Return which patches a run would be about; found once for each choice, for the dock asks often."""
        asked = (ground, self.roi_kind, self.view, self.regions, self._steps[-1])
        if self._last_meant is None or self._last_meant[0] != asked:
            self._last_meant = asked, self.scope.keeps(ground.grid)
        return self._last_meant[1]

    # ------------------------------------------------------------ a run

    def prepare_tissue_search(self) -> Work | None:
        """Return the work of finding the chosen slide's tissue; None where it is found, or cannot be."""
        if self.slide is None or self.bundle is None or self.tissue_grid is not None:
            return None
        sought = (self.slide, self.bundle.sha256)
        if sought == self._sought or why_too_coarse(self.slide, self.bundle.card.lr_mpp, "student (LR)"):
            return None  # once for each choice: a slide without tissue would be searched for ever
        self._sought = sought
        return FindTissueJob(self.slide, self.bundle, self.open_slides).events

    def prepare_run(self, teacher: TeacherPatches | None = None) -> Work:
        """Return the work to be done, to be called in whatever thread; the choices are fixed now.

        Parameters
        ----------
        teacher
            LR patches that the teacher reads in this run; None takes what was chosen.
        """
        if self.is_busy or self.run_blocked_by or self.slide is None or self.bundle is None:
            raise RuntimeError(f"nothing can be started now: {self.run_blocked_by or self.state.value}")
        wanted, barred = teacher or self.teacher, self.teacher_blocked_by
        self._asked = self._question(self.scope, TeacherPatches.NONE if barred else wanted, self._out)
        self.state, self.progress, self.warnings, self.message, self.prediction = (
            SessionState.RUNNING,
            None,
            (),
            "",
            None,
        )
        if wanted != TeacherPatches.NONE and barred:
            self._caution(f"{barred} Only the student runs.")
        self.changed.emit()
        return self._asked.events

    def _question(
        self, scope: RegionOfInterest, teacher: TeacherPatches = TeacherPatches.NONE, out: Path | None = None
    ) -> PredictJob:
        if self.slide is None or self.bundle is None:
            raise RuntimeError("a question needs a slide and a model")
        return PredictJob(self.slide, self.bundle, self.device, self.open_slides, self.cache, scope, teacher, out)

    def show_stored(self, prediction: Prediction) -> None:
        """Take an answer that was stored, as if a run had given it."""
        if self.is_busy or self.slide is None or prediction.path != self.slide.path:
            return
        self.state, self.warnings, self.message, self.prediction = SessionState.DONE, (), "", prediction
        self.finished.emit(prediction)
        self.changed.emit()

    def cancel(self) -> None:
        """Stop listening to the run; `end` follows when the work has let go."""
        if self.state is SessionState.RUNNING:
            self.state = SessionState.CANCELLING
            self.changed.emit()

    def on_event(self, event: Event) -> None:
        """Take an event of the run. After `cancel` they are ignored: late ones may still be on their way."""
        if self.state is not SessionState.RUNNING:
            return
        match event:
            case Progress(stage, done, total, unit):
                self._progress(stage, done, total, unit)
            case Notice(message):
                self._caution(message)
            case Failed(message):
                self._fail(message)
            case Finished(result):
                self.state, self.prediction = SessionState.DONE, result
                for sentence in self._paces.record(result, self.device):
                    self._caution(sentence)
                self.finished.emit(result)
        self.changed.emit()

    def on_finished(self) -> None:
        """Take that the work has ended."""
        if self.state is SessionState.CANCELLING:
            self.state = SessionState.IDLE
        elif self.state is SessionState.RUNNING:
            self._fail("The analysis stopped without a result; please report it.")
        self.progress = None
        self.changed.emit()

    def _progress(self, stage: str, done: int, total: int, unit: str) -> None:
        now = self._clock()
        if self.progress is None or self.progress.stage != stage:
            self._stage_began = now
        self.progress = StageProgress(stage, done, total, unit, now - self._stage_began)

    def _caution(self, message: str) -> None:
        self.warnings = (*self.warnings, message)
        self.warned.emit(message)

    def _fail(self, message: str) -> None:
        self.state, self.message = SessionState.FAILED, message
        self.failed.emit(message)

    def prepare_live_view(self) -> Work | None:
        """Return the work that answers what is visible now; None where that was answered, or nothing can be.

        Moving within the same patches asks nothing anew.
        """
        ground = self.tissue_grid
        if not self.follows_view or self.is_busy or ground is None or self.view is None:
            return None
        scope = self._scope("view", (box_region(self.view, "view"),))
        rows = scope.keeps(ground.grid)
        asked = (self.slide, self.bundle, self.device, ground, self._steps[-1], rows.tobytes())
        if asked == self._answered or not rows.any():
            return None
        self._answered = asked
        return self._question(scope).live_events

    def on_live_event(self, event: Event) -> None:
        """Take an event of the live view or of a what-if."""
        match event:
            case Partial(result) | Finished(result):
                self.prediction = result
                self.prediction_updated.emit(result)
                self.changed.emit()
            case Failed(message):
                self.failed.emit(message)

    def on_tissue_event(self, event: Event) -> None:
        """Take an event of finding the tissue; that there is none is told when somebody asks for an answer."""
        if isinstance(event, Finished | Failed):
            self.changed.emit()

    # ------------------------------------------------------------ what if

    @property
    def what_if(self) -> WhatIf:
        """What is left out at present."""
        return self._steps[-1]

    @property
    def can_undo(self) -> bool:
        """Whether there is a what-if to take back."""
        return len(self._steps) > 1

    def exclude(self, regions: Sequence[Region]) -> None:
        """Leave regions out, beside what is left out already."""
        self._step(self.what_if.exclude(self.what_if.select_new(regions, self.prediction)))

    def keep_only(self, regions: Sequence[Region]) -> None:
        """Leave out everything outside of regions."""
        self._step(self.what_if.keep_only(self.what_if.select_new(regions, self.prediction)))

    def undo(self) -> None:
        """Take the last step back."""
        if self.can_undo:
            self._steps = self._steps[:-1]
            self.changed.emit()

    def _step(self, what_if: WhatIf) -> None:
        self._steps = (*self._steps, what_if)
        if self.roi_kind == "region":  # what was drawn last is left out, not asked about
            self.roi_kind = self.prediction.scope.kind if self.prediction else "slide"
        self.changed.emit()

    def prepare_what_if(self) -> Work | None:
        """Return the work that answers the last question with the present what-if; None where nothing was asked."""
        if self.is_busy or self.prediction is None or self.slide is None or self.bundle is None:
            return None
        last = self.prediction.scope
        return self._question(self._scope(last.kind, last.regions)).events

    def edit_tissue(self, mask: Mask | None) -> None:
        """Take a tissue mask changed by hand, in the raster of `ground`; None goes back to the one that was found."""
        if self.slide is None or self.bundle is None:
            return
        self._answered = ()
        if mask is None:
            self.open_slides.discard_edit(self.slide, self.bundle)
            self._sought = ()
        else:
            try:
                self.open_slides.set_edited_mask(self.slide, self.bundle, mask)
            except LrmilError as error:
                self.failed.emit(str(error))
        self.changed.emit()
