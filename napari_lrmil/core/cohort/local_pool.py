"""Local processes: where one dies it is known which slide it had, and no other is lost.

`concurrent.futures` and `loky` lose every slide under way with one dead worker, and `pebble` is LGPL. dask's
`LocalCluster` could do it, but takes 2 to 4 s to start and is an optional dependency.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from napari_lrmil.core.cohort.memory import process_memory_mb
from napari_lrmil.core.cohort.task import Outcome, SlideJob, SlideTask, lost_outcome, run_task, worker_name
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event
from napari_lrmil.core.processes import Child, ChildEndedError, wait_for_any

MEMORY_POLL_S = 0.2  # between looks at what workers hold
MAX_FAILED_STARTS = 3  # workers in a row that end before they can begin: then something is wrong with all of them
Environment = Mapping[str, str]


@dataclass(frozen=True)
class LocalProcesses:
    """Workers on this machine.

    Attributes
    ----------
    environments
        One for each worker: variables that are set there, such as the one device that it sees.
    threads
        Of each worker's computing.
    memory_mb
        A worker that holds more is ended, and its slide has failed.
    """

    environments: Sequence[Environment]
    threads: int
    memory_mb: float

    @property
    def workers(self) -> int:
        """How many slides are under way at once."""
        return len(self.environments)

    @property
    def text(self) -> str:
        """Itself in a few words."""
        return f"{self.workers} local processes, {self.threads} threads and {self.memory_mb:.0f} MB each"

    def run(self, todo: deque[SlideJob], task: SlideTask) -> Generator[Event | Outcome, None, None]:
        """See `Engine.run`."""
        crew = [_Worker(self, task, environment) for environment in self.environments[: max(1, len(todo))]]
        unready = 0
        try:
            while todo or any(worker.work for worker in crew):
                for worker in crew:
                    worker.take(todo)
                for worker in _speaking(crew):
                    word = worker.hear()
                    if isinstance(word, Outcome):
                        unready = 0
                        yield word
                    elif word is None:  # it is no more
                        unready = 0 if worker.ready else unready + 1
                        if unready >= MAX_FAILED_STARTS:
                            raise LrmilError(f"{worker.how_it_ended()} before it could begin; start with fewer workers")
                        outcome = worker.outcome_of_death()
                        crew[crew.index(worker)] = _Worker(self, task, worker.environment)
                        if outcome is not None:
                            yield outcome
                for worker in crew:
                    worker.watch()
        finally:
            for worker in crew:
                worker.end()


class _Worker:
    """A process, seen from the one that started it: what it does at the moment, and what it holds."""

    def __init__(self, engine: LocalProcesses, task: SlideTask, environment: Environment) -> None:
        self.environment = environment
        self.memory_mb = engine.memory_mb
        self.child = Child("slides", _serve, task, engine.threads, dict(environment))
        self.work: SlideJob | None = None
        self.ready = False
        self.held_mb = 0.0
        self.above: float | None = None  # what it held when it was ended for that

    def take(self, todo: deque[SlideJob]) -> None:
        """Give it the next slide, if it can take one."""
        if not (self.ready and self.work is None and todo):
            return
        try:
            self.child.send(todo[0])
        except OSError:  # it died while idle: heard of in a moment
            return
        self.work = todo.popleft()

    def hear(self) -> Any:
        """Return its next word: True when it is ready, an `Outcome`; None where there will be no more."""
        try:
            word = self.child.receive()
        except ChildEndedError:
            return None
        if isinstance(word, Outcome):
            self.work = None
        self.ready = True
        return word

    def watch(self) -> None:
        """End it where it holds more than it may."""
        if self.work is None:
            return
        self.held_mb = process_memory_mb(self.child.pid)
        if self.above is None and self.held_mb > self.memory_mb:
            self.above = self.held_mb
            self.child.kill()

    def how_it_ended(self) -> str:
        """Return how it ended, in words."""
        return self.child.exit_text("the worker")

    def outcome_of_death(self) -> Outcome | None:
        """Return what became of the slide that it had, if it had one."""
        how = self.child.exit_text("the worker", " while it had this slide")
        self.child.close()
        if self.work is None:
            return None
        if self.above is None:
            return lost_outcome(self.work, how)
        reason = f"memory: the worker held {self.above:.0f} MB, and {self.memory_mb:.0f} MB are allowed; see --memory"
        return lost_outcome(self.work, reason, worker=worker_name(self.child.pid), peak_mb=self.above)

    def end(self) -> None:
        """End it, whatever it does: files are written whole or not at all."""
        self.child.close()


def _speaking(crew: Sequence[_Worker]) -> list[_Worker]:
    """Return the workers of which there is news, after `MEMORY_POLL_S` at the latest."""
    workers = {worker.child: worker for worker in crew}
    return [workers[child] for child in wait_for_any(workers, MEMORY_POLL_S)]


def _serve(pipe: Connection, task: SlideTask, threads: int, environment: Environment) -> None:
    """Do slide after slide until the pipe ends."""
    os.environ.update(environment)  # before anything looks for devices
    pipe.send(True)
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        pipe.send(run_task(task, work, threads))
