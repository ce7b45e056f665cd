"""Local processes, each with a pipe of its own: where one dies it is known which slide it had, and no other is lost.

An executor of the standard library would lose everything under way with one dead worker, and would not say whose fault
it was.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

from napari_lrmil.core.cohort.memory import held_mb
from napari_lrmil.core.cohort.task import Outcome, SlideJob, SlideTask, ended_text, lost_outcome, run_task, worker_name
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event

WATCH_S = 0.2  # between looks at what workers hold
FAREWELL_S = 5.0
STARTS = 3  # workers in a row that end before they can begin: then something is wrong with all of them
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
                        if unready >= STARTS:
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
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads of torch and OpenSlide
        self.environment = environment
        self.memory_mb = engine.memory_mb
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, task, engine.threads, dict(environment)), name="slides", daemon=True
        )
        self.process.start()
        theirs.close()  # so that the end of the process ends the pipe
        self.work: SlideJob | None = None
        self.ready = False
        self.held_mb = 0.0
        self.above: float | None = None  # what it held when it was ended for that

    def take(self, todo: deque[SlideJob]) -> None:
        """Give it the next slide, if it can take one."""
        if not (self.ready and self.work is None and todo):
            return
        try:
            self.pipe.send(todo[0])
        except OSError:  # it died while idle: heard of in a moment
            return
        self.work = todo.popleft()

    def hear(self) -> Any:
        """Return its next word: True when it is ready, an `Outcome`; None where there will be no more."""
        try:
            word = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(FAREWELL_S)
            return None
        if isinstance(word, Outcome):
            self.work = None
        self.ready = True
        return word

    def watch(self) -> None:
        """End it where it holds more than it may."""
        if self.work is None:
            return
        self.held_mb = held_mb(self.process.pid or 0)
        if self.above is None and self.held_mb > self.memory_mb:
            self.above = self.held_mb
            self.process.kill()

    def how_it_ended(self) -> str:
        """Return how it ended, in words."""
        return ended_text(self.process.exitcode).replace(" while it had this slide", "")

    def outcome_of_death(self) -> Outcome | None:
        """Return what became of the slide that it had, if it had one."""
        self.pipe.close()
        if self.work is None:
            return None
        if self.above is None:
            return lost_outcome(self.work, ended_text(self.process.exitcode))
        reason = f"memory: the worker held {self.above:.0f} MB, and {self.memory_mb:.0f} MB are allowed; see --memory"
        return lost_outcome(self.work, reason, worker=worker_name(self.process.pid), peak_mb=self.above)

    def end(self) -> None:
        """End it, whatever it does: files are written whole or not at all."""
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _speaking(crew: Sequence[_Worker]) -> list[_Worker]:
    """Return the workers of which there is news, after `WATCH_S` at the latest."""
    pipes = {worker.pipe: worker for worker in crew}
    return [pipes[pipe] for pipe in cast(list[Connection], wait(list(pipes), WATCH_S))]


def _serve(pipe: Connection, task: SlideTask, threads: int, environment: Environment) -> None:
    """Do slide after slide until the pipe ends."""
    os.environ.update(environment)  # before anything looks for devices
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the one that asked decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send(True)
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        pipe.send(run_task(task, work, threads))


def _end_with_parent() -> None:
    """End this process when its parent does: a restart must not meet a worker that still writes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
