"""Work on one slide of a cohort: the job that travels to a worker, its processing there, and the outcome."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from napari_lrmil.core.cohort.memory import peak_memory_mb
from napari_lrmil.core.errors import (
    DiskFullError,
    LrmilError,
    MissingTilesError,
    NewerSchemaError,
    RegionError,
    ResolutionError,
    SlideError,
    TissueError,
)
from napari_lrmil.core.events import Event, Notice, Progress, StageDone
from napari_lrmil.core.slides.slide_names import slide_name
from napari_lrmil.core.text_escapes import printable
from napari_lrmil.core.unexpected_errors import describe_error

OPEN, TISSUE, READ, ENCODE, WRITE, WORKER = "open", "tissue", "read", "encode", "write", "worker"
# Properties of the slide: a retry cannot help.
PERMANENT_ERRORS = (ResolutionError, TissueError, MissingTilesError, RegionError, NewerSchemaError)


@dataclass(frozen=True)
class SlideJob:
    """A slide of a cohort.

    Attributes
    ----------
    path
        Slide file, or folder of a DICOM slide.
    mpp
        µm per level-0 pixel, if the caller or the cohort table states it.
    path_in_cohort
        Path that is written into the results, see `napari_lrmil.core.slides.slide_files.path_in_cohort`; if it is
        empty, the file name.
    """

    path: Path
    mpp: float | None = None
    path_in_cohort: str = ""

    @property
    def name(self) -> str:
        """Name of the results, the same as `Slide.name`."""
        return slide_name(self.path)

    @property
    def file_name(self) -> str:
        """Name of the slide file for messages and tables, printable."""
        return printable(self.path.name or self.path.resolve().name)


@dataclass(frozen=True)
class TaskResult:
    """Summary of a slide that is done.

    Attributes
    ----------
    text
        The result in one line.
    path
        File or folder of the results.
    is_reused
        Whether the results are of an earlier call.
    """

    text: str
    path: Path
    is_reused: bool = False


@dataclass(frozen=True)
class Failure:
    """Reason why a slide has no result.

    Attributes
    ----------
    step
        ``open``, ``tissue``, ``read``, ``encode``, ``write``, or ``worker`` if the process ended.
    reason
        One line.
    retry
        Whether a second attempt could succeed.
    fatal
        Whether every other slide would fail too.
    error
        The error itself, if it was raised in this process.
    """

    step: str
    reason: str
    retry: bool = True
    fatal: bool = False
    error: BaseException | None = field(default=None, repr=False, compare=False)

    @property
    def is_expected(self) -> bool:
        """Whether the error is of an expected kind; any other deserves a traceback."""
        return self.error is None or isinstance(self.error, LrmilError | OSError | MemoryError)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a slide: the result of its task, or its failure.

    Attributes
    ----------
    job
        The slide.
    result
        Return value of the task; None if it failed.
    failure
        None if the task succeeded.
    worker
        Host and process, see `worker_name`.
    peak_mb
        Peak resident memory of that process so far, MB.
    notices
        Notices of a worker, which cannot be shown at once as those of this process are.
    """

    job: SlideJob
    result: TaskResult | None = None
    failure: Failure | None = None
    worker: str = ""
    peak_mb: float = 0.0
    notices: tuple[Notice, ...] = ()


class SlideTask(Protocol):
    """Work that is done for every slide. It travels to workers, so it holds names and paths, no handle or network.

    Attributes
    ----------
    shared_imports
        Modules that workers need. On Linux they are imported once, in the process that workers are forked from, so
        their import must start no thread.
    """

    @property
    def shared_imports(self) -> Sequence[str]:
        """See `SlideTask`."""
        ...

    def prepare(self, threads: int) -> None:
        """Prepare a worker's process. Called before every slide; cheap after the first."""
        ...

    def __call__(self, job: SlideJob, /) -> Generator[Event, None, TaskResult]:
        """Process a slide: yield events, write the results to disk, return a summary.

        `Progress` and `StageDone` of ``tissue``, and `Progress` of ``writing``, tell the current step.
        """
        ...


class Backend(Protocol):
    """Place where slides are processed."""

    @property
    def workers(self) -> int:
        """Number of slides in progress at once, as far as it is known."""
        ...

    @property
    def text(self) -> str:
        """Description in a few words."""
        ...

    def run(self, todo: deque[SlideJob], task: SlideTask) -> Generator[Event | Outcome, None, None]:
        """Process slides until `todo` is empty and none is in progress; yield an `Outcome` for each.

        The caller may append to `todo` between two outcomes. Closing the generator ends the work.
        """
        ...


class SerialBackend:
    """Backend that processes one slide after the other in this process and passes on all events."""

    workers, text = 1, "in this process"

    def run(self, todo: deque[SlideJob], task: SlideTask) -> Generator[Event | Outcome, None, None]:
        """See `Backend.run`."""
        while todo:
            job = todo.popleft()
            with closing(process_slide(task, job)) as stream:
                try:
                    while True:
                        yield _with_slide_name(next(stream), job)
                except StopIteration as end:
                    outcome: Outcome = end.value
            yield outcome


def _with_slide_name(event: Event, job: SlideJob) -> Event:
    """Return a progress event whose stage names the slide."""
    if isinstance(event, Progress):
        return replace(event, stage=f"{job.file_name} · {event.stage}")
    return event


def process_slide(task: SlideTask, job: SlideJob) -> Generator[Event, None, Outcome]:
    """Run the task on a slide, pass its events on, and return the outcome. Only interrupts are raised."""
    step = OPEN
    try:
        with closing(task(job)) as stream:
            while True:
                event = next(stream)
                step = _step_after(event, step)
                yield event
    except StopIteration as end:
        return Outcome(job, end.value, None, worker_name(), peak_memory_mb())
    # Whatever is raised, the other slides go on. KeyboardInterrupt is not an Exception and passes.
    except Exception as error:
        return Outcome(job, None, _failure(error, step, job), worker_name(), peak_memory_mb())


def run_task(
    task: SlideTask,
    job: SlideJob,
    threads: int,
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    on_prepared: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run the task on a slide in a worker, and return an outcome that can be pickled.

    `is_cancelled` is called between events. If it returns True, the slide is abandoned and nothing of it is written.
    `on_prepared` is called when the process is prepared and the slide begins.
    """
    notices = []
    try:
        task.prepare(threads)
        on_prepared()
        with closing(process_slide(task, job)) as stream:
            while not is_cancelled():
                event = next(stream)
                if isinstance(event, Notice):
                    notices.append(event)
        outcome = lost_outcome(job, "given up")
    except StopIteration as end:
        outcome = end.value
    except Exception as error:  # from `prepare`: process_slide raises none
        outcome = Outcome(job, None, _failure(error, WORKER, job), worker_name(), peak_memory_mb())
    # Many exceptions cannot be unpickled, because their constructors take other arguments than their message.
    failure = outcome.failure and replace(outcome.failure, error=None)
    return replace(outcome, failure=failure, notices=tuple(notices))


def lost_outcome(job: SlideJob, reason: str, *, worker: str = "", retry: bool = True, peak_mb: float = 0.0) -> Outcome:
    """Return the outcome of a slide whose worker has ended."""
    return Outcome(job, None, Failure(WORKER, reason, retry=retry), worker, peak_mb)


def worker_name(process: int | None = None) -> str:
    """Return ``host:pid``, of this process if none is given."""
    return f"{socket.gethostname()}:{process or os.getpid()}"


def _step_after(event: Event, step: str) -> str:
    """Return the step of a slide after an event of its task."""
    match event:
        case Progress("tissue"):
            return TISSUE
        case Progress("writing"):
            return WRITE
        # Any other progress counts patches that are read and encoded.
        case Progress() | StageDone("tissue"):
            return ENCODE
    return step


def _failure(error: Exception, step: str, job: SlideJob) -> Failure:
    """Return the failure for an error that was raised at `step`."""
    if isinstance(error, DiskFullError):
        return Failure(WRITE, one_line(error), retry=False, fatal=True, error=error)
    if isinstance(error, MemoryError):
        reason = "memory: no more could be allocated; use fewer workers"
    elif isinstance(error, LrmilError | OSError):
        reason = one_line(error, prefix=f"{job.path}: ")  # the table has the slide in a column of its own
    else:
        reason = printable(describe_error(error))
    return Failure(_failed_step(error, step), reason, retry=not isinstance(error, PERMANENT_ERRORS), error=error)


def _failed_step(error: Exception, step: str) -> str:
    """Return the step at which an error belongs: its kind tells more than the last event."""
    if isinstance(error, ResolutionError):
        return OPEN
    if isinstance(error, TissueError):
        return TISSUE
    # Patches are read ahead while the network encodes, so both steps look the same from outside.
    return READ if isinstance(error, SlideError) and step == ENCODE else step


def one_line(error: BaseException, prefix: str = "") -> str:
    """Return an error's message on one line without `prefix`, or its class name if it has none."""
    return printable(" ".join(str(error).removeprefix(prefix).split())) or type(error).__name__


def estimate_seconds_left(began: float, computed: int, remaining: int) -> float | None:
    """Return the expected seconds for `remaining` slides, or None before the first is computed.

    The pace is that of the `computed` slides since `began` (`time.monotonic`).
    """
    return (time.monotonic() - began) / computed * remaining if computed else None
