"""Workers of a dask.distributed cluster, of anybody's or of SLURM jobs of our own.

Each worker is given one slide at a time, whatever its threads, and that slide is its own: where the worker dies it is
known which slide it had. The scheduler's own way of trying again blames whatever was on a worker when it died. Nothing
but a few words comes back: results are on the disk that all machines share.
"""

from __future__ import annotations

import queue
import re
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from napari_lrmil.core.cohort.slurm import SlurmOptions, create_slurm_cluster
from napari_lrmil.core.cohort.task import Outcome, SlideJob, SlideTask, lost_outcome, one_line, run_task
from napari_lrmil.core.errors import ConfigError, LrmilError
from napari_lrmil.core.events import Event, Notice
from napari_lrmil.version import __version__

CONNECT_TIMEOUT_S = 20.0
WORKER_POLL_S = 1.0  # between looks at which workers there are
RESULT_TIMEOUT_S = 60.0  # for a few words
NO_WORKER_NOTICE_S = 30.0  # without any worker, before that is told
LOST_WORKER = "was lost while it had this slide, as when its memory runs out"

_ONE_AT_A_TIME = threading.Lock()  # of one worker's threads


@dataclass
class DaskCluster:
    """A cluster that is there already, by the address of its scheduler."""

    address: str
    _seen: int = field(default=0, repr=False)

    @property
    def workers(self) -> int:
        """Most workers that were seen at once."""
        return self._seen

    @property
    def text(self) -> str:
        """Itself in a few words."""
        return f"dask cluster at {self.address}, at most {self._seen} workers"

    def run(self, todo: deque[SlideJob], task: SlideTask) -> Generator[Event | Outcome, None, None]:
        """See `Engine.run`."""
        with self._client() as client:
            _require_same_program(client)
            run = _Run(client, todo, task, self._tend)
            try:
                for word in run.words():
                    self._seen = max(self._seen, len(run.workers))
                    yield word
            finally:
                run.cancel()

    def _tend(self) -> None:
        """See to it that there are workers; here whoever started the cluster does."""

    @contextmanager
    def _client(self) -> Iterator[Any]:
        distributed = _distributed()
        try:
            _require_listener(self.address)
            client = distributed.Client(self.address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise ConfigError(
                f"no dask scheduler answers at {self.address} ({one_line(error)}); start one with `dask scheduler`, "
                "and give the address that it prints"
            ) from error
        with client:
            yield client


def _require_listener(address: str) -> None:
    """Raise `OSError` or `ValueError` where nobody listens: a client without a connection complains when it goes."""
    found = re.fullmatch(r"(?:(tcp|tls)://)?\[?([^\[\]/]+?)\]?:(\d+)", address)
    if found is None and "://" not in address:
        raise ValueError("that is no address such as tcp://HOST:8786")
    if found is not None:
        socket.create_connection((found[2], int(found[3])), CONNECT_TIMEOUT_S).close()


@dataclass
class SlurmJobs(DaskCluster):
    """A cluster of SLURM jobs that lasts as long as the work."""

    address: str = "slurm"
    options: SlurmOptions = field(default_factory=SlurmOptions)
    _jobs: Any = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """Itself in a few words."""
        o = self.options
        return f"SLURM, {o.jobs} jobs of {o.cores} cores and {o.memory_mb:.0f} MB, at most {self._seen} at once"

    @contextmanager
    def _client(self) -> Iterator[Any]:
        distributed = _distributed()
        with create_slurm_cluster(self.options) as self._jobs:
            self._tend()
            with distributed.Client(self._jobs, set_as_default=False) as client:
                yield client

    def _tend(self) -> None:
        self._jobs.scale(jobs=self.options.jobs)  # asks for those again that ended, such as by their walltime


class _Run:
    """Slides under way on a cluster."""

    def __init__(self, client: Any, todo: deque[SlideJob], task: SlideTask, tend: Callable[[], None]) -> None:
        self.client, self.todo, self.task, self.tend = client, todo, task, tend
        self.under_way: dict[str, _UnderWay] = {}
        self.settled: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.workers: set[str] = set()  # addresses of those that take work
        self.looked = 0.0
        self.seen_alive = time.monotonic()
        self.told = False
        self.call, self.number = secrets.token_hex(4), 0

    def words(self) -> Iterator[Event | Outcome]:
        """Yield what becomes of the slides."""
        while self.todo or self.under_way:
            yield from self._lost()
            busy = {one.worker for one in self.under_way.values()}
            for worker in sorted(self.workers - busy)[: len(self.todo)]:
                self._submit(self.todo.popleft(), worker)
            if not (self.told or self.workers) and time.monotonic() - self.seen_alive > NO_WORKER_NOTICE_S:
                self.told = True
                yield Notice("the scheduler has no worker that takes work; slides wait until one comes")
            try:
                future = self.settled.get(timeout=WORKER_POLL_S)
            except queue.Empty:
                continue
            one = self.under_way.pop(future.key, None)
            if one is not None:  # else its worker was given up already
                yield _outcome(one)
                future.release()

    def cancel(self) -> None:
        """Take everything back; workers notice it within a batch, and write nothing of what they had begun."""
        if self.under_way:
            self.client.cancel([one.future for one in self.under_way.values()])

    def _lost(self) -> Iterator[Outcome]:
        """Look which workers there are, at times, and yield what became of slides whose worker is gone."""
        now = time.monotonic()
        if now - self.looked < WORKER_POLL_S:
            return
        self.tend()
        there = self._workers_there()
        self.workers, self.looked = {name for name, told in there.items() if told["status"] == "running"}, now
        self.seen_alive = now if self.workers else self.seen_alive
        for key in [key for key, one in self.under_way.items() if one.worker not in there]:
            one = self.under_way.pop(key)
            self.client.cancel([one.future])
            yield lost_outcome(one.work, f"the worker {one.worker} {LOST_WORKER}")

    def _workers_there(self) -> dict[str, Any]:
        """Return the scheduler's workers by address; raise `LrmilError` where it is no more."""
        try:
            told: dict[str, Any] | None = self.client.scheduler_info(n_workers=-1).get("workers")
        except (OSError, TimeoutError):
            told = None
        if told is None or self.client.status == "closed":  # then what was told is old
            raise LrmilError("the scheduler is gone; start the same call again with another one, what is done stays")
        return told

    def _submit(self, work: SlideJob, worker: str) -> None:
        """Hand a slide to one worker and no other: where it dies, it is known whose slide that was."""
        self.number += 1
        key = f"{work.name}-{self.call}-{self.number}"  # its own: a second try does not mean the first one's result
        future = self.client.submit(_on_worker, self.task, work, key=key, workers=[worker], pure=False)
        self.under_way[key] = _UnderWay(work, future, worker)
        future.add_done_callback(self.settled.put)


@dataclass(frozen=True)
class _UnderWay:
    """A slide, what was promised for it, and the address of the worker that has it."""

    work: SlideJob
    future: Any
    worker: str


def _outcome(one: _UnderWay) -> Outcome:
    """Return what a settled future tells; its few words may have gone with its worker, then the disk will tell."""
    from distributed.scheduler import KilledWorker

    try:
        outcome: Outcome = one.future.result(timeout=RESULT_TIMEOUT_S)
    except (KilledWorker, TimeoutError):
        return lost_outcome(one.work, f"the worker {one.worker} {LOST_WORKER}")
    except Exception as error:  # the slide could not be sent, the worker lacks a package, the future was cancelled
        return lost_outcome(one.work, f"{type(error).__name__}: {one_line(error)}")
    return outcome


def _on_worker(task: SlideTask, work: SlideJob) -> Outcome:
    """Do a slide on a worker of the cluster."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def given_up() -> bool:
        one = worker.state.tasks.get(key)
        return one is None or one.state == "cancelled"

    with _ONE_AT_A_TIME:
        return run_task(task, work, worker.state.nthreads, given_up=given_up)


def _version() -> str:
    return __version__


def _require_same_program(client: Any) -> None:
    """Raise `ConfigError` where a worker has another napari-lrmil, or none."""
    found = set(client.run(_version, on_error="return").values())
    broken = [error for error in found if isinstance(error, ImportError)]
    if broken:
        raise ConfigError(
            f"the cluster's workers cannot import napari-lrmil ({one_line(broken[0])}); install it where they run"
        ) from broken[0]
    others = ", ".join(sorted(v for v in found if isinstance(v, str) and v != __version__))
    if others:
        raise ConfigError(f"workers of the cluster run napari-lrmil {others}, this is {__version__}; install the same")


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ConfigError('--scheduler needs dask.distributed; pip install "napari-lrmil[distributed]"') from error
    return distributed
