"""What the dock knows: what is chosen, how far the work is, what came out. No Qt, no napari, so tests need no screen.

The dock shows a session and passes the user's wishes to it; the session never touches the dock. Threads are no concern
of it either: it hands out the work and takes events, whoever carries them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Caution, Event, Failed, Finished, Progress
from napari_lrmil.core.geometry import MPP_TOLERANCE
from napari_lrmil.core.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil.core.bundle import Bundle
    from napari_lrmil.core.predict import Prediction

DEVICES = ("auto", "cpu", "cuda", "mps")
ETA_AFTER_S = 2.0  # before that the pace of a stage is not known

OpenSlide = Callable[[Path, float | None], Slide]


class State(Enum):
    """How far a session is."""

    IDLE = "idle"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class SlideChoice:
    """A slide that may be analysed: its layer's name, its file, its µm per pixel, and those that the user gave."""

    name: str
    path: Path
    mpp: float
    given_mpp: float | None = None


@dataclass(frozen=True)
class Pace:
    """How far a stage is: units done, units in all, seconds since the stage began."""

    stage: str
    done: int
    total: int
    unit: str
    seconds: float

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def text(self) -> str:
        """One line: the stage, the share, and the time left where it is known."""
        left = self.seconds * (self.total - self.done) / self.done if self.done else 0.0
        shown = f" · {left:.0f} s left" if self.seconds > ETA_AFTER_S and left >= 1 else ""
        return f"{self.stage} · {self.share:.0%}{shown}"


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

    Attributes
    ----------
    changed
        Something that the dock shows has changed.
    finished
        A prediction is there.
    failed
        A sentence that says why there is none.
    cautioned
        A sentence that the user should know.
    """

    changed = Signal()
    finished = Signal(object)
    failed = Signal(str)
    cautioned = Signal(str)

    def __init__(
        self,
        open_slide: OpenSlide = lambda path, mpp: Slide(path, mpp=mpp),
        out: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_slide, self._out, self._clock = open_slide, out, clock
        self.state = State.IDLE
        self.slides: tuple[SlideChoice, ...] = ()
        self.slide: SlideChoice | None = None
        self.bundle: Bundle | None = None
        self.device = "auto"
        self.beside = False
        self.pace: Pace | None = None
        self.cautions: tuple[str, ...] = ()
        self.message = ""  # why there is no result or no model; empty where all is well
        self.prediction: Prediction | None = None
        self._stage_began = 0.0

    # ------------------------------------------------------------ choices

    def offer(self, slides: Sequence[SlideChoice]) -> None:
        """Take the slides there are; the chosen one stays chosen while it is among them."""
        self.slides = tuple(slides)
        if self.slide not in self.slides:
            self.slide = self.slides[-1] if self.slides else None
        self.changed.emit()

    def choose_slide(self, slide: SlideChoice | None) -> None:
        """Take the slide to analyse."""
        self.slide = slide
        self.changed.emit()

    def choose_bundle(self, where: str | Path | None) -> None:
        """Take the model: a folder, or the name of a shipped one. Where it cannot be used, none is chosen."""
        from napari_lrmil.core.bundle import Bundle

        self.message = ""
        try:
            self.bundle = Bundle(where) if where is not None else None
        except LrmilError as error:
            self.bundle, self.message = None, str(error)
            self.failed.emit(self.message)
        self.changed.emit()

    def choose_device(self, name: str) -> None:
        """Take the device, one of `DEVICES`."""
        self.device = name
        self.changed.emit()

    def choose_beside(self, beside: bool) -> None:
        """Take whether the teacher runs as well."""
        self.beside = beside
        self.changed.emit()

    # ------------------------------------------------------------ what can be done

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self.state in (State.RUNNING, State.CANCELLING)

    @property
    def run_blocked_by(self) -> str:
        """Why nothing can be run; empty where it can."""
        if self.slide is None:
            return "No slide is open: drop one on the window, or take File > Open Sample."
        if self.bundle is None:
            return self.message or "No model is chosen."
        return self._too_coarse(self.bundle.card.lr_mpp, "student (LR)")

    @property
    def teacher_blocked_by(self) -> str:
        """Why the teacher cannot run; empty where it can."""
        if self.slide is None or self.bundle is None:
            return "Choose a slide and a model first."
        if not self.bundle.has_teacher:
            return "This model brings no teacher (HR)."
        return self._too_coarse(self.bundle.card.hr_mpp, "teacher (HR)")

    def _too_coarse(self, wanted: float, who: str) -> str:
        if self.slide is None or self.slide.mpp <= wanted * (1 + MPP_TOLERANCE):
            return ""
        seen = f"The slide has {self.slide.mpp:.3g} µm per pixel at best"
        return f"{seen}, too coarse for the {who}, which needs {wanted:g} or finer."

    @property
    def runs_teacher(self) -> bool:
        """Whether a run would include the teacher."""
        return self.beside and not self.teacher_blocked_by

    # ------------------------------------------------------------ a run

    def start(self) -> Callable[[], Iterator[Event]]:
        """Return the work to be done, to be called in whatever thread; the choices are fixed now."""
        if self.busy or self.run_blocked_by or self.slide is None or self.bundle is None:
            raise RuntimeError(f"nothing can be started now: {self.run_blocked_by or self.state.value}")
        request = _Request(self.slide, self.bundle, self.device, self.runs_teacher, self._open_slide, self._out)
        self.state, self.pace, self.cautions, self.message, self.prediction = State.RUNNING, None, (), "", None
        if self.beside and self.teacher_blocked_by:
            self._caution(f"{self.teacher_blocked_by} Only the student runs.")
        self.changed.emit()
        return request.events

    def cancel(self) -> None:
        """Stop listening to the run; `end` follows when the work has let go."""
        if self.state is State.RUNNING:
            self.state = State.CANCELLING
            self.changed.emit()

    def handle(self, event: Event) -> None:
        """Take an event of the run. After `cancel` they are ignored: late ones may still be on their way."""
        if self.state is not State.RUNNING:
            return
        match event:
            case Progress(stage, done, total, unit):
                self._progress(stage, done, total, unit)
            case Caution(message):
                self._caution(message)
            case Failed(message):
                self._fail(message)
            case Finished(result):
                self.state, self.prediction = State.DONE, result
                self.finished.emit(result)
        self.changed.emit()

    def end(self) -> None:
        """Take that the work has ended."""
        if self.state is State.CANCELLING:
            self.state = State.IDLE
        elif self.state is State.RUNNING:
            self._fail("The analysis stopped without a result; please report it.")
        self.pace = None
        self.changed.emit()

    def _progress(self, stage: str, done: int, total: int, unit: str) -> None:
        now = self._clock()
        if self.pace is None or self.pace.stage != stage:
            self._stage_began = now
        self.pace = Pace(stage, done, total, unit, now - self._stage_began)

    def _caution(self, message: str) -> None:
        self.cautions = (*self.cautions, message)
        self.cautioned.emit(message)

    def _fail(self, message: str) -> None:
        self.state, self.message = State.FAILED, message
        self.failed.emit(message)


@dataclass(frozen=True)
class _Request:
    """What a run needs, fixed when it starts."""

    slide: SlideChoice
    bundle: Bundle
    device: str
    teacher: bool
    open_slide: OpenSlide
    out: Path | None

    def events(self) -> Iterator[Event]:
        """Open the slide, analyse it, write the result where asked, and close the slide, however it ends."""
        from napari_lrmil.core.embed import leave_a_core, resolve_device
        from napari_lrmil.core.predict import predict

        _leave_a_core()
        leave_a_core()
        began = time.perf_counter()
        with self.open_slide(self.slide.path, self.slide.given_mpp) as slide:
            seconds, device = time.perf_counter() - began, resolve_device(self.device)
            teacher = "all" if self.teacher else "none"
            stream = predict(slide, self.bundle, device=device, teacher=teacher, seconds_open=seconds)
            with closing(stream) as events:  # type: ignore[type-var]  # generators close
                for event in events:
                    if isinstance(event, Finished):
                        self._write(slide, event.result)
                    yield event

    def _write(self, slide: Slide, prediction: Prediction) -> None:
        if self.out is not None:
            from napari_lrmil.core.results import write_prediction

            write_prediction(self.out, slide, prediction)


def _leave_a_core() -> None:
    """Keep one core free for the window. OpenMP counts threads for the calling thread alone."""
    import torch

    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 2) - 1)))


def devices_here() -> dict[str, str]:
    """Return the devices of this machine and what to call them; loads torch."""
    import torch

    cores = f"CPU, {os.cpu_count() or 1} cores"
    found = {"cpu": cores}
    if torch.cuda.is_available():
        found["cuda"] = f"GPU 0 · {torch.cuda.get_device_name(0)}"
    if torch.backends.mps.is_available():
        found["mps"] = "GPU · Apple"
    best = next(name for name in ("cuda", "mps", "cpu") if name in found)
    return {"auto": found[best], **found}


def shipped_bundles() -> tuple[str, ...]:
    """Return the names of the models that come with the program; loads torch."""
    from napari_lrmil.core.bundle import CARD, SHIPPED

    return tuple(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CARD}")))
