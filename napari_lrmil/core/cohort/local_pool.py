"""Pool of local processes. If a worker dies, its slide is known and no other slide is lost.

`concurrent.futures` and `loky` lose every slide in progress with one dead worker, and `pebble` is LGPL. dask's
`LocalCluster` could do it, but takes 2 to 4 s to start and is an optional dependency.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from napari_lrmil.core.cohort.memory import process_memory_mb
from napari_lrmil.core.cohort.task import Outcome, SlideJob, SlideTask, lost_outcome, run_task, worker_name
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event
from napari_lrmil.core.processes import Child, ChildEndedError, wait_for_any

MEMORY_POLL_S = 0.2  # between checks of the workers' memory
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
        """See `Backend.run`."""
        pool = [_Worker(self, task, variables) for variables in self.environments[: max(1, len(todo))]]
        failed_starts = 0
        try:
            while todo or any(worker.job for worker in pool):
                for worker in pool:
                    worker.assign_next(todo)
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
        finally:
            # Also if the caller stops early: no worker may outlive the call.
            for worker in pool:
                worker.close()


class _Worker:
    """Worker process, seen from its parent: its current slide and its memory."""

    def __init__(self, backend: LocalProcesses, task: SlideTask, environment: Environment) -> None:
        self.environment = environment
        self.memory_limit_mb = backend.memory_mb
        self.child = Child("slides", _serve, task, backend.threads, dict(environment))
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
        """Return the outcome of its slide; None if the message is its start or its end."""
        try:
            message = self.child.receive()
        except ChildEndedError:
            self.has_ended = True
            return None
        self.is_ready = True
        if not isinstance(message, Outcome):
            return None
        self.job = None
        return message

    def check_memory(self) -> None:
        """Kill the worker if it exceeds its memory limit."""
        if self.job is None:
            return
        memory_mb = process_memory_mb(self.child.pid)
        if self.excess_mb is None and memory_mb > self.memory_limit_mb:
            self.excess_mb = memory_mb
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
    pipe.send(True)  # ready
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(run_task(task, job, threads))
