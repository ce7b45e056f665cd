"""Shows one slide of a worklist at a time, and prepares the next one while the user reads."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, QTimer, Signal

from napari_lrmil.core.events import Event, Failed, Partial, Progress
from napari_lrmil.plugin.qt.errors import show_errors
from napari_lrmil.plugin.qt.worker import LatestOnly
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.viewer.layers import add_layers, lrmil_layers, remove_layers
from napari_lrmil.plugin.viewer.navigation.places import PlaceMemory
from napari_lrmil.plugin.viewer.opening.reader import ask_mpp_with_estimate, read_slide_layers
from napari_lrmil.plugin.viewer.slide_swap import swap_slide
from napari_lrmil.plugin.worklist.answer_jobs import AnswerJob, SlideAnswer, SlideProblem
from napari_lrmil.plugin.worklist.jobs import AheadJob, OpenedSlide, OpenSlideJob

if TYPE_CHECKING:
    from pathlib import Path

    from napari.components import ViewerModel

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.worklist.entry import ListedSlide, WorklistEntry
    from napari_lrmil.plugin.session.session import Session
    from napari_lrmil.plugin.viewer.layers import LayerData

MAX_ANSWERS = 4
TURN_MS = 25  # between two changes of layers, in which the window draws and takes keys
TIDY_MS = 100  # between two looks whether the answer is there
CANCELLED = "The slide was not opened: its resolution is not known."


class SlidePager(QObject):  # type: ignore[misc]  # qtpy has no types
    """Opens slides for the canvas, one at a time.

    Parameters
    ----------
    viewer
        The viewer.
    parent
        The dock.

    Attributes
    ----------
    arrived
        Emitted with the path of a slide when canvas and session show it.
    answered
        Emitted with the path of a slide when its answer is restored or computed, see `answer`.
    failed
        Emitted with path and reason if a slide cannot be opened or answered.
    progress
        Emitted with a sentence on the work for the slide that is shown; empty at its end.
    """

    arrived = Signal(object)
    answered = Signal(object)
    failed = Signal(object, str)
    progress = Signal(str)

    def __init__(self, viewer: ViewerModel, parent: QObject) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._places = PlaceMemory(viewer)
        self._session: Session | None = None
        self._wanted: ListedSlide | None = None
        self._has_arrived = self._is_opening = False
        self._next: OpenedSlide | None = None
        self._prepared: Path | None = None  # the slide that is being prepared, or was last
        self._is_opening_ahead = False
        self._answers: dict[Path, Prediction] = {}
        self._underlays: list[LayerData] = []  # of the slide that was placed last
        self._completing = 0  # steps that wait for their turn
        self._placed = 0  # number of slides that this list has put on the canvas
        self._listed: set[Path] = set()  # slides that the list has opened; those of the user stay
        self._opener = LatestOnly(self._on_event, self)
        self._answerer = LatestOnly(self._on_event, self)
        self._ahead = LatestOnly(self._on_ahead_event, self)

    def join(self, session: Session) -> None:
        """Show slides in a session from now on."""
        self._session = session

    def start(self) -> None:
        """Begin a list. Objects other than the layers of its slides are exempted from garbage collection until `stop`.

        napari collects garbage whenever layers are removed. Over all modules and widgets that takes 0.3 s, over the
        layers of a slide a hundredth of it.
        """
        self._placed = 0
        gc.freeze()

    @property
    def wanted(self) -> Path | None:
        """File of the slide that is shown or being opened."""
        return self._wanted.path if self._wanted is not None else None

    @property
    def has_arrived(self) -> bool:
        """Whether canvas and session show the wanted slide, also now: the user may have opened another one."""
        return self._has_arrived and self._is_chosen()

    @property
    def is_opening(self) -> bool:
        """Whether the wanted slide is still to come to the canvas."""
        return self._is_opening

    @property
    def is_busy(self) -> bool:
        """Whether a slide is being opened, answered or prepared."""
        return self._opener.is_busy or self._answerer.is_busy or self._ahead.is_busy

    @property
    def is_completing(self) -> bool:
        """Whether the canvas is still to get the overview of the slide, or to lose the layers of others."""
        return self._completing > 0

    def answer(self, path: Path) -> Prediction | None:
        """Return the answer for a slide, if it was restored or computed."""
        return self._answers.get(path)

    def stop(self) -> None:
        """End all work."""
        gc.unfreeze()
        for work in (self._opener, self._answerer, self._ahead):
            work.stop()
        self._next = None

    # ------------------------------------------------------------ one slide

    def show(self, slide: ListedSlide) -> None:
        """Show a slide in place of the present one."""
        self._leave()
        self._answerer.stop()
        self._wanted, self._has_arrived, self._is_opening = slide, False, True
        if self.is_on_canvas(slide.path):  # by its layers: the session learns later that a slide was removed
            self._choose()
        elif self._next is not None and self._next.path == slide.path:
            opened, self._next = self._next, None
            self._place(opened)
        else:
            self._next = None
            self.progress.emit("opening the slide")
            if not (self._is_opening_ahead and self._prepared == slide.path):  # else it comes by `_on_ahead_event`
                self._opener.submit(self._opening(slide).events)

    def is_on_canvas(self, path: Path) -> bool:
        """Return whether the canvas has layers of a slide."""
        return bool(lrmil_layers(self._viewer, path, role="slide"))

    def show_nothing(self) -> None:
        """Remove the slides of the list from the canvas, for an entry that cannot be shown."""
        self._leave()
        self._wanted, self._has_arrived, self._is_opening = None, False, False
        self._answerer.stop()
        self._remove_others(None)

    def _leave(self) -> None:
        if self.has_arrived and self._wanted is not None:
            self._places.leave(self._wanted.path)

    def _opening(self, slide: ListedSlide) -> OpenSlideJob:
        cache = self._session.settings_store.load_settings().settings.tile_cache_mb if self._session else 64
        return OpenSlideJob(slide, cache << 20)

    def _place(self, opened: OpenedSlide) -> None:
        """Put an opened slide on the canvas; the session learns of it with the next turn of the event loop."""
        if self.is_on_canvas(opened.path):
            return  # it was opened twice, because the user went back and forth
        layers = opened.layers
        if opened.asks_mpp:
            layers = self._ask_mpp() or ()
        if not layers:
            self._is_opening = False
            self._remove_others(None)
            self.progress.emit("")
            self.failed.emit(opened.path, opened.problem or CANCELLED)
            return
        is_swapped = self._swap(opened.path, layers)
        if self._placed == 1:  # the first answer has loaded the model: its objects are exempted too
            if not is_swapped:
                self._remove_others(opened.path)  # so that its layers stay collectable
            gc.freeze()
        self._placed += 1
        if not is_swapped:
            *self._underlays, pyramid = layers
            add_layers(self._viewer, [pyramid])
        self._listed.add(opened.path)
        self._choose()

    def _swap(self, path: Path, layers: Sequence[LayerData]) -> bool:
        """Show a slide in the layers of the last one of the list, and return whether that was possible."""
        shown = [other for other in self._listed if self.is_on_canvas(other)]
        is_busy = self._session is not None and self._session.is_busy  # a slide with an active run stays
        return len(shown) == 1 and not is_busy and swap_slide(self._viewer, shown[0], layers)

    def _place_underlays(self, path: Path) -> None:
        """Add the overview below a slide that is still shown."""
        underlays, self._underlays = self._underlays, []
        if underlays and path == self.wanted and lrmil_layers(self._viewer, path):
            layers, active = self._viewer.layers, self._viewer.layers.selection.active
            for layer in add_layers(self._viewer, underlays):
                layers.move(layers.index(layer), 0)
            layers.selection.active = active  # napari chooses the layer that was added last
        self._later(2 * TURN_MS, self._tidy)

    def _tidy(self) -> None:
        """Remove what is left of other slides; their maps stay until the answer that may use them is there."""
        if self._answerer.is_busy or (self._ahead.is_busy and self._prepared == self.wanted):
            self._later(TIDY_MS, self._tidy)
        else:
            self._remove_others(self.wanted)

    def _ask_mpp(self) -> tuple[LayerData, ...] | None:
        if self._wanted is None or self._session is None:
            return None
        store = self._session.settings_store
        path, mpp = self._wanted.path, self._wanted.mpp
        layers = show_errors(partial(read_slide_layers, path, mpp, ask=ask_mpp_with_estimate, memory=store))
        return tuple(layers) if layers else None

    def _choose(self) -> None:
        if self._session is not None and self._wanted is not None:
            self._session.show_slide(self._wanted.path)

    def _is_chosen(self) -> bool:
        """Return whether the wanted slide is that of the session."""
        slide = self._session.slide if self._session is not None else None
        return slide is not None and slide.path == self.wanted

    def sync(self) -> None:
        """Notice that the session shows the wanted slide, or another one. Called whenever the session has changed."""
        self._has_arrived = self.has_arrived
        wanted = self._wanted
        if not self._has_arrived and wanted is not None and self._is_chosen() and self.is_on_canvas(wanted.path):
            self._has_arrived, self._is_opening = True, False
            self.progress.emit("")
            self._places.enter(wanted.path)
            self._later(TURN_MS, partial(self._announce, wanted.path))

    def _later(self, delay_ms: int, step: Callable[[], None]) -> None:
        """Do a step in a turn of the event loop of its own."""

        def run() -> None:
            try:
                step()
            finally:
                self._completing -= 1

        self._completing += 1
        QTimer.singleShot(delay_ms, self, run)

    def _announce(self, path: Path) -> None:
        """Say that a slide has arrived, then complete the canvas in turns of their own.

        Each layer that napari adds or removes takes a tenth of a second.
        """
        if path == self.wanted:
            self.arrived.emit(path)
            self._later(2 * TURN_MS, partial(self._place_underlays, path))

    def _remove_others(self, path: Path | None) -> None:
        """Remove the layers of all slides that the list has opened, but for one. A slide with an active run stays."""
        if self._session is not None and self._session.is_busy:
            return
        others = self._listed - {path}
        self._listed -= others
        layers = [layer for other in others for layer in lrmil_layers(self._viewer, other)]
        if layers:
            remove_layers(self._viewer, layers)

    # ------------------------------------------------------------ answers

    def fetch_answer(self, job: AnswerJob) -> None:
        """Restore or compute the answer of the slide that is shown, unless that goes on since before it was shown."""
        if not (self._ahead.is_busy and self._prepared == self.wanted):
            self._answerer.submit(job.events)

    def prepare(self, slide: ListedSlide | None, answering: Callable[[SlideChoice], AnswerJob | None]) -> None:
        """Open a slide and get its answer, so that it can be shown at once; None ends the preparation.

        Parameters
        ----------
        slide
            The next slide.
        answering
            Returns the job for its answer.
        """
        path = slide.path if slide is not None else None
        if path == self._prepared and (self._ahead.is_busy or self._next is not None):
            return
        self._ahead.stop()
        self._next, self._prepared, self._is_opening_ahead = None, path, slide is not None
        if slide is not None:
            job = AheadJob(self._opening(slide), partial(self._answer_ahead, answering))
            self._ahead.submit(job.events)

    def _answer_ahead(
        self, answering: Callable[[SlideChoice], AnswerJob | None], choice: SlideChoice
    ) -> AnswerJob | None:
        if self._session is not None:
            self._session.open_slides.keep_ahead([choice])
        return answering(choice)

    def _on_ahead_event(self, event: Event) -> None:
        match event:
            case Partial(OpenedSlide() as opened) if opened.path == self._prepared:
                self._is_opening_ahead = False
                if opened.path == self.wanted and not self._has_arrived:
                    self._place(opened)
                else:
                    self._next = opened
            case Partial(SlideAnswer() | SlideProblem()):
                self._on_event(event)
            case Failed(message):
                self._is_opening_ahead = False
                self._is_opening = self._is_opening and self._prepared != self.wanted
                self.failed.emit(self._prepared, message)

    def _on_event(self, event: Event) -> None:
        match event:
            case Partial(OpenedSlide() as opened):
                if opened.path == self.wanted and not self._has_arrived:
                    self._place(opened)
            case Partial(SlideAnswer(path, prediction)):
                self.keep_answer(path, prediction)
                self.progress.emit("")
                self.answered.emit(path)
            case Partial(SlideProblem(path, problem)):
                self.progress.emit("")
                self.failed.emit(path, problem)
            case Progress(stage, done, total, unit):
                self.progress.emit(f"{stage} · {done} of {total} {unit}")
            case Failed(message):
                self._is_opening = False
                self.progress.emit("")
                self.failed.emit(self.wanted, message)

    def keep_answer(self, path: Path, prediction: Prediction) -> None:
        """Keep an answer that was computed elsewhere and is stored now."""
        self._answers[path] = prediction
        self._forget_answers()

    def _forget_answers(self) -> None:
        """Keep the answers of few slides: they hold arrays, and are restored in no time."""
        for path in list(self._answers)[:-MAX_ANSWERS]:
            if path != self.wanted:
                del self._answers[path]

    def forget(self, entry: WorklistEntry) -> None:
        """Drop the answer of a slide, because another model was chosen."""
        self._answers.pop(entry.path, None)
