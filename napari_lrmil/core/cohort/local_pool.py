"""Pool of local processes. If a worker dies, its slide is known and no other slide is lost.

`concurrent.futures` and `loky` lose every slide in progress with one dead worker, and `pebble` is LGPL. dask's
`LocalCluster` could do it, but takes 2 to 4 s to start and is an optional dependency.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from multiprocessing.connection import Connection

from napari_lrmil.core.cohort.memory import exceeding_memory_mb
from napari_lrmil.core.cohort.task import Outcome, SlideJob, SlideTask, lost_outcome, run_task, worker_name
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Notice
from napari_lrmil.core.processes import Child, ChildEndedError, wait_for_any

MEMORY_POLL_S = 0.2  # between checks of the workers' memory
# The first slide of a worker takes about this much longer than later ones, because it loads and compiles the model.
MODEL_LOAD_S = 0.4
MAX_FAILED_STARTS = 3  # workers in a row that end before they are ready: the fault is not theirs
Environment = Mapping[str, str]


@dataclass(frozen=True)
class LocalProcesses:
    """Backend with worker processes on this machine.

    Attributes
    ----------
    environments
        Environment variables of each worker, such as the GPU that it sees.
    threads
        Threads of each worker's computation.
    memory_mb
        Memory limit, MB. A worker that exceeds it is ended, and its slide has failed.
    """

    environments: Sequence[Environment]
    threads: int
    memory_mb: float

    @property
    def workers(self) -> int:
        """Number of slides in progress at once."""
        return len(self.environments)

    @property
    def text(self) -> str:
        """Description in a few words."""
        return f"{self.workers} local processes, {self.threads} threads and {self.memory_mb:.0f} MB each"

    def run(self, todo: deque[SlideJob], task: SlideTask) -> Generator[Event | Outcome, None, None]:
        """See `Backend.run`. A further worker starts when the pace of those that run shows that it pays."""
        waiting = deque(self.environments[: max(1, len(todo))])
        limit, failed_starts = len(waiting), 0
        pool = [_Worker(self, task, waiting.popleft())]
        try:
            while todo or any(worker.job for worker in pool):
                for worker in pool:
                    worker.assign_next(todo)
                if waiting and another_worker_pays([worker.pace for worker in pool], len(todo), time.monotonic()):
                    pool.append(_Worker(self, task, waiting.popleft()))
                for worker in _wait_for_messages(pool):
                    outcome = worker.receive()
                    if worker.has_ended:
                        # A worker that was ready died of its slide, which says nothing about the start of others.
                        failed_starts = 0 if worker.is_ready else failed_starts + 1
                        if failed_starts >= MAX_FAILED_STARTS:
                            raise LrmilError(f"{worker.exit_text()} before it could begin; start with fewer workers")
                        outcome = worker.crash_outcome()
                        # A new process, with the environment and so the GPU of the old one.
                        pool[pool.index(worker)] = _Worker(self, task, worker.environment)
                    elif outcome is not None:
                        failed_starts = 0
                    if outcome is not None:
                        yield outcome
                for worker in pool:
                    worker.check_memory()
            if waiting:
                yield Notice(f"{len(pool)} of {limit} workers started: the rest would not have paid")
        finally:
            # Also if the caller stops early: no worker may outlive the call.
            for worker in pool:
                worker.close()


@dataclass
class WorkerPace:
    """Times of a worker, by `time.monotonic`.

    Attributes
    ----------
    began
        Its start.
    prepared
        Beginning of its first slide; None before that.
    slide_began
        Beginning of its current slide; None if it is idle.
    slides, busy_seconds
        Slides that it has ended, and the seconds for them.
    """

    began: float
    prepared: float | None = None
    slide_began: float | None = None
    slides: int = 0
    busy_seconds: float = 0.0

    def begin_slide(self, now: float) -> None:
        """Record the beginning of a slide, for which the worker is prepared."""
        self.slide_began = now
        if self.prepared is None:
            self.prepared = now

    def end_slide(self, now: float) -> None:
        """Record the end of the current slide."""
        self.busy_seconds, self.slides, self.slide_began = self.busy_until(now), self.slides + 1, None

    def busy_until(self, now: float) -> float:
        """Return the seconds that the worker has spent on slides, with the current one."""
        return self.busy_seconds + (0.0 if self.slide_began is None else now - self.slide_began)


def another_worker_pays(paces: Sequence[WorkerPace], waiting: int, now: float) -> bool:
    """Return whether one more worker would save more time than its start takes.

    Before the first slide has ended, the time that it has taken so far is the least that each slide takes.

    Parameters
    ----------
    paces
        Workers that run.
    waiting
        Slides that no worker has yet.
    now
        Time by `time.monotonic`.
    """
    starts = [pace.prepared - pace.began for pace in paces if pace.prepared is not None]
    if not starts:
        return False
    seconds_per_slide = sum(pace.busy_until(now) for pace in paces) / max(1, sum(pace.slides for pace in paces))
    workers, work = len(paces), waiting * seconds_per_slide
    return work / workers - work / (workers + 1) > max(starts) + MODEL_LOAD_S


class _Signal(Enum):
    """Message of a worker that is no outcome."""

    READY = auto()  # it can take a slide
    SLIDE_BEGINS = auto()  # it is prepared for the slide


class _Worker:
    """Worker process, seen from its parent: its current slide and its memory."""

    def __init__(self, backend: LocalProcesses, task: SlideTask, environment: Environment) -> None:
        self.environment = environment
        self.memory_limit_mb = backend.memory_mb
        self.child = Child(
            "slides", _serve, task, backend.threads, dict(environment), shared_imports=task.shared_imports
        )
        self.pace = WorkerPace(time.monotonic())
        self.job: SlideJob | None = None
        self.is_ready = False
        self.has_ended = False
        self.excess_mb: float | None = None  # its memory when it was killed for exceeding the limit

    def assign_next(self, todo: deque[SlideJob]) -> None:
        """Send the next slide to the worker, if it is ready and idle."""
        if not (self.is_ready and self.job is None and todo):
            return
        try:
            self.child.send(todo[0])
        except OSError:  # it died while idle: the next `receive` reports that
            return
        self.job = todo.popleft()

    def receive(self) -> Outcome | None:
        """Return the outcome of its slide; None if the message is a signal or its end."""
        try:
            message = self.child.receive()
        except ChildEndedError:
            self.has_ended = True
            return None
        self.is_ready = True
        if message is _Signal.SLIDE_BEGINS:
            self.pace.begin_slide(time.monotonic())
        if not isinstance(message, Outcome):
            return None
        self.job = None
        self.pace.end_slide(time.monotonic())
        return message

    def check_memory(self) -> None:
        """Kill the worker if it exceeds its memory limit."""
        if self.job is None or self.excess_mb is not None:
            return
        self.excess_mb = exceeding_memory_mb(self.child.pid, self.memory_limit_mb)
        if self.excess_mb is not None:
            self.child.kill()

    def exit_text(self) -> str:
        """Return the reason of its end."""
        return self.child.exit_text("the worker")

    def crash_outcome(self) -> Outcome | None:
        """Return a failed outcome for the slide that the ended worker was processing; None if it was idle."""
        exit_text = self.child.exit_text("the worker", " while it had this slide")
        self.child.close()
        if self.job is None:
            return None
        if self.excess_mb is None:
            return lost_outcome(self.job, exit_text)
        reason = (
            f"memory: the worker held {self.excess_mb:.0f} MB, and {self.memory_limit_mb:.0f} MB are allowed; "
            "see --memory"
        )
        return lost_outcome(self.job, reason, worker=worker_name(self.child.pid), peak_mb=self.excess_mb)

    def close(self) -> None:
        """End the process at once. Files are written atomically, so no half-written one stays."""
        self.child.close()


def _wait_for_messages(pool: Sequence[_Worker]) -> list[_Worker]:
    """Return the workers that sent a message or ended, after `MEMORY_POLL_S` at the latest."""
    workers = {worker.child: worker for worker in pool}
    return [workers[child] for child in wait_for_any(workers, MEMORY_POLL_S)]


def _serve(pipe: Connection, task: SlideTask, threads: int, environment: Environment) -> None:
    """Process one slide after the other in the worker until the pipe closes."""
    os.environ.update(environment)  # before any library looks for GPUs
    pipe.send(_Signal.READY)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(run_task(task, job, threads, on_prepared=partial(pipe.send, _Signal.SLIDE_BEGINS)))
