"""One slide's work: what travels to a worker, how it is done there, and what comes back."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from napari_lrmil.core.cohort.memory import peak_memory_mb
from napari_lrmil.core.errors import (
    DiskFullError,
    LrmilError,
    NewerSchemaError,
    RegionError,
    ResolutionError,
    SlideError,
    TissueError,
)
from napari_lrmil.core.events import Event, Notice, Progress, StageDone

OPEN, TISSUE, READ, ENCODE, WRITE, WORKER = "open", "tissue", "read", "encode", "write", "worker"
PERMANENT_ERRORS = (ResolutionError, TissueError, RegionError, NewerSchemaError)  # a second try would find the same


@dataclass(frozen=True)
class SlideJob:
    """A slide of a cohort.

    Attributes
    ----------
    path
        The slide.
    mpp
        µm per level-0 pixel, where the caller or a table tells it.
    """

    path: Path
    mpp: float | None = None

    @property
    def name(self) -> str:
        """What its results are called, as `Slide.name`."""
        return self.path.name if self.path.is_dir() else self.path.stem


@dataclass(frozen=True)
class TaskResult:
    """A few words on a slide that is done.

    Attributes
    ----------
    text
        What came out, in a line.
    path
        File or folder of its results.
    is_reused
        Whether these were there before.
    """

    text: str
    path: Path
    is_reused: bool = False


@dataclass(frozen=True)
class Failure:
    """Why a slide gave nothing.

    Attributes
    ----------
    step
        ``open``, ``tissue``, ``read``, ``encode``, ``write``, or ``worker`` where the process ended.
    reason
        One line.
    retry
        Whether a second try could end otherwise.
    fatal
        Whether no other slide would fare better.
    error
        The error itself, where it happened in this process.
    """

    step: str
    reason: str
    retry: bool = True
    fatal: bool = False
    error: BaseException | None = field(default=None, repr=False, compare=False)

    @property
    def is_expected(self) -> bool:
        """Whether the reason is one that was foreseen; the others deserve a traceback."""
        return self.error is None or isinstance(self.error, LrmilError | OSError | MemoryError)


@dataclass(frozen=True)
class Outcome:
    """What became of a slide: what its task returned, or why it failed.

    Attributes
    ----------
    job
        The slide.
    result
        What the task returned; None where it failed.
    failure
        None where it did not.
    worker
        Host and process.
    peak_mb
        Largest resident memory of that process up to now, MB.
    notices
        What was said on the way, where it could not be told at once.
    """

    job: SlideJob
    result: TaskResult | None = None
    failure: Failure | None = None
    worker: str = ""
    peak_mb: float = 0.0
    notices: tuple[Notice, ...] = ()


class SlideTask(Protocol):
    """What is done with every slide. It travels to workers, so it holds names and paths: no handle and no network."""

    def prepare(self, threads: int) -> None:
        """Make a worker's process ready; called before every slide, cheap after the first."""
        ...

    def __call__(self, work: SlideJob) -> Generator[Event, None, TaskResult]:
        """Do a slide: yield events, leave the results on disk, return a few words.

        `Progress` of the stage ``tissue``, `StageDone` of it, and `Progress` of ``writing`` tell at which step it is.
        """
        ...


class Backend(Protocol):
    """Where the work is done."""

    @property
    def workers(self) -> int:
        """How many slides are under way at once, as far as that is known."""
        ...

    @property
    def text(self) -> str:
        """Itself in a few words."""
        ...

    def run(self, todo: deque[SlideJob], task: SlideTask) -> Generator[Event | Outcome, None, None]:
        """Take slides from `todo` until it is empty and none is under way, and yield what became of each.

        The caller may add to `todo` between two results. Closing the generator ends the work.
        """
        ...


class SerialBackend:
    """One slide after the other, in this process; their events are told as they come."""

    workers, text = 1, "in this process"

    def run(self, todo: deque[SlideJob], task: SlideTask) -> Generator[Event | Outcome, None, None]:
        """See `Engine.run`."""
        while todo:
            work = todo.popleft()
            with closing(process_slide(task, work)) as stream:
                try:
                    while True:
                        yield _named(next(stream), work)
                except StopIteration as end:
                    outcome: Outcome = end.value
            yield outcome


def _named(event: Event, work: SlideJob) -> Event:
    """Return an event whose stage says which slide it is about."""
    if isinstance(event, Progress):
        return replace(event, stage=f"{work.path.name} · {event.stage}")
    return event


def process_slide(task: SlideTask, work: SlideJob) -> Generator[Event, None, Outcome]:
    """Do a slide, pass its events on, and return what became of it; only an interrupt is raised."""
    step = OPEN
    try:
        with closing(task(work)) as stream:
            while True:
                event = next(stream)
                step = _step_after(event, step)
                yield event
    except StopIteration as end:
        return Outcome(work, end.value, None, worker_name(), peak_memory_mb())
    except Exception as error:
        return Outcome(work, None, _failure(error, step, work), worker_name(), peak_memory_mb())


def run_task(task: SlideTask, work: SlideJob, threads: int, *, given_up: Callable[[], bool] = lambda: False) -> Outcome:
    """Do a slide in a worker, and return what became of it in a form that travels.

    `given_up` is asked between events: where nobody waits for the slide any more, nothing is written of it.
    """
    notices = []
    try:
        task.prepare(threads)
        with closing(process_slide(task, work)) as stream:
            while not given_up():
                event = next(stream)
                if isinstance(event, Notice):
                    notices.append(event)
        outcome = lost_outcome(work, "given up")
    except StopIteration as end:
        outcome = end.value
    except Exception as error:  # of `prepare`
        outcome = Outcome(work, None, _failure(error, WORKER, work), worker_name(), peak_memory_mb())
    failure = outcome.failure and replace(outcome.failure, error=None)  # errors often do not survive the journey
    return replace(outcome, failure=failure, notices=tuple(notices))


def lost_outcome(work: SlideJob, reason: str, *, worker: str = "", retry: bool = True, peak_mb: float = 0.0) -> Outcome:
    """Return what became of a slide whose worker is no more."""
    return Outcome(work, None, Failure(WORKER, reason, retry=retry), worker, peak_mb)


def worker_name(process: int | None = None) -> str:
    """Return host and process, this one where none is given."""
    return f"{socket.gethostname()}:{process or os.getpid()}"


def _step_after(event: Event, step: str) -> str:
    """Return at which step a slide is after an event of its task."""
    match event:
        case Progress("tissue"):
            return TISSUE
        case Progress("writing"):
            return WRITE
        case Progress() | StageDone("tissue"):
            return ENCODE
    return step


def _failure(error: Exception, step: str, work: SlideJob) -> Failure:
    if isinstance(error, DiskFullError):
        return Failure(WRITE, one_line(error), retry=False, fatal=True, error=error)
    at = _step_of(error, step)
    if isinstance(error, MemoryError):
        reason = "memory: no more could be had; use fewer workers"
    elif isinstance(error, LrmilError | OSError):
        reason = one_line(error).removeprefix(f"{work.path}: ")
    else:
        told = f"{type(error).__name__}: {one_line(error)}"
        reason = f"{told}; this was not expected, call it for this slide alone with --debug and report it"
    return Failure(at, reason, retry=not isinstance(error, PERMANENT_ERRORS), error=error)


def _step_of(error: Exception, step: str) -> str:
    if isinstance(error, ResolutionError):
        return OPEN
    if isinstance(error, TissueError):
        return TISSUE
    return READ if isinstance(error, SlideError) and step == ENCODE else step


def one_line(error: BaseException) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def estimate_seconds_left(began: float, computed: int, remaining: int) -> float | None:
    """Return the seconds that `remaining` slides should take, by the `computed` ones since `began` (monotonic)."""
    return (time.monotonic() - began) / computed * remaining if computed else None
