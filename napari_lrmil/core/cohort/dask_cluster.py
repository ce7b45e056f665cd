"""Workers of a dask.distributed cluster: an existing one, or SLURM jobs of our own.

Each worker gets one slide at a time, whatever its number of threads. If a worker dies, its slide is known. dask's own
retries would blame every task on that worker. Only a summary comes back: results are on the shared disk.
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
WORKER_POLL_S = 1.0  # between checks of the scheduler's workers
# Names in dask's configuration -> its environment variables.
TLS_VARIABLES = {
    "ca-file": "DASK_DISTRIBUTED__COMM__TLS__CA_FILE",
    "cert": "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT",
    "key": "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY",
}
RESULT_TIMEOUT_S = 60.0  # for the few hundred bytes of an outcome
NO_WORKER_NOTICE_S = 30.0  # without any worker before the user is told
LOST_WORKER = "was lost while it had this slide, as when its memory runs out"

_ONE_SLIDE_AT_A_TIME = threading.Lock()  # across the threads of one worker


@dataclass
class DaskCluster:
    """Backend with the workers of an existing cluster.

    Attributes
    ----------
    address
        Address of the scheduler.
    """

    address: str
    _most_workers: int = field(default=0, repr=False)

    @property
    def workers(self) -> int:
        """Largest number of workers at once so far."""
        return self._most_workers

    @property
    def text(self) -> str:
        """Description in a few words."""
        return f"dask cluster at {self.address}, at most {self._most_workers} workers"

    def run(self, todo: deque[SlideJob], task: SlideTask) -> Generator[Event | Outcome, None, None]:
        """See `Backend.run`."""
        with self._client() as client:
            _require_same_version(client)
            run = _ClusterRun(client, todo, task, self._keep_workers)
            try:
                for event in run.events():
                    self._most_workers = max(self._most_workers, len(run.workers))
                    yield event
            finally:
                run.cancel()

    def _keep_workers(self) -> None:
        """Replace workers that ended. The owner of an existing cluster does that."""

    @contextmanager
    def _client(self) -> Iterator[Any]:
        distributed = _import_distributed()
        security = _read_security(self.address)
        try:
            _require_listener(self.address)
            client = distributed.Client(
                self.address, timeout=CONNECT_TIMEOUT_S, set_as_default=False, security=security
            )
        except (OSError, ValueError, TimeoutError) as error:
            raise ConfigError(
                f"no dask scheduler answers at {self.address} ({one_line(error)}); start one with `dask scheduler`, "
                "and give the address that it prints"
            ) from error
        with client:
            yield client


def _read_security(address: str) -> Any:
    """Return the certificates of dask's configuration for an encrypted scheduler, ``tls://…``; None for another.

    Raises
    ------
    ConfigError
        If a certificate or its key is not set, or cannot be read.
    """
    if not address.startswith("tls://"):
        return None
    from distributed.security import Security

    security = Security(require_encryption=True)
    files = {"ca-file": security.tls_ca_file, "cert": security.tls_client_cert, "key": security.tls_client_key}
    missing = [TLS_VARIABLES[name] for name, file in files.items() if not file]
    if missing:
        raise ConfigError(
            f"{address}: an encrypted scheduler asks for certificates, which are not set; set {', '.join(missing)} to "
            "their files, or write them into dask's configuration under distributed.comm.tls"
        )
    try:
        security.get_connection_args("client")
    except OSError as error:  # a missing file, and every error of ssl
        names = ", ".join(str(file) for file in files.values())
        raise ConfigError(f"{address}: the certificates cannot be read ({one_line(error)}); check {names}") from error
    return security


def _require_listener(address: str) -> None:
    """Raise `OSError` or `ValueError` if nothing listens there: a dask client that never connected logs errors."""
    match = re.fullmatch(r"(?:(tcp|tls)://)?\[?([^\[\]/]+?)\]?:(\d+)", address)
    if match is None and "://" not in address:
        raise ValueError("it is not an address such as tcp://HOST:8786")
    if match is not None:  # other protocols, such as ws://, are left to dask
        socket.create_connection((match[2], int(match[3])), CONNECT_TIMEOUT_S).close()


@dataclass
class SlurmJobs(DaskCluster):
    """Backend with SLURM jobs, which end with the work.

    Attributes
    ----------
    options
        Options of the jobs.
    """

    address: str = "slurm"
    options: SlurmOptions = field(default_factory=SlurmOptions)
    _cluster: Any = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """Description in a few words."""
        o = self.options
        return f"SLURM, {o.jobs} jobs of {o.cores} cores and {o.memory_mb:.0f} MB, at most {self._most_workers} at once"

    @contextmanager
    def _client(self) -> Iterator[Any]:
        distributed = _import_distributed()
        with create_slurm_cluster(self.options) as self._cluster:
            self._keep_workers()
            with distributed.Client(self._cluster, set_as_default=False) as client:
                yield client

    def _keep_workers(self) -> None:
        self._cluster.scale(jobs=self.options.jobs)  # submits a new job for each that ended, as by its time limit


@dataclass(frozen=True)
class _RunningSlide:
    """A slide in progress: its job, its future, and the address of its worker."""

    job: SlideJob
    future: Any
    worker: str


class _ClusterRun:
    """Slides in progress on a cluster."""

    def __init__(self, client: Any, todo: deque[SlideJob], task: SlideTask, keep_workers: Callable[[], None]) -> None:
        self.client, self.todo, self.task, self.keep_workers = client, todo, task, keep_workers
        self.running: dict[str, _RunningSlide] = {}
        self.settled: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.workers: set[str] = set()  # addresses of those that accept work
        self.polled = 0.0
        self.last_worker_seen = time.monotonic()
        self.has_told_no_worker = False
        self.run_id, self.submitted = secrets.token_hex(4), 0

    def events(self) -> Iterator[Event | Outcome]:
        """Yield the outcome of each slide, and a notice if no worker comes."""
        while self.todo or self.running:
            yield from self._poll_workers()
            busy = {slide.worker for slide in self.running.values()}
            for worker in sorted(self.workers - busy)[: len(self.todo)]:
                self._submit(self.todo.popleft(), worker)
            waited = time.monotonic() - self.last_worker_seen
            if not (self.has_told_no_worker or self.workers) and waited > NO_WORKER_NOTICE_S:
                self.has_told_no_worker = True
                yield Notice("the scheduler has no worker that takes work; slides wait until one comes")
            try:
                future = self.settled.get(timeout=WORKER_POLL_S)
            except queue.Empty:
                continue
            slide = self.running.pop(future.key, None)
            if slide is not None:  # None: its worker was already given up as lost
                yield _outcome(slide)
                future.release()

    def cancel(self) -> None:
        """Cancel all slides in progress. Workers notice it within a batch and write nothing of them."""
        if self.running:
            self.client.cancel([slide.future for slide in self.running.values()])

    def _poll_workers(self) -> Iterator[Outcome]:
        """Update the list of workers from time to time; yield a failed outcome for each slide whose worker is gone."""
        now = time.monotonic()
        if now - self.polled < WORKER_POLL_S:
            return
        self.keep_workers()
        connected = self._connected_workers()
        self.workers, self.polled = {name for name, facts in connected.items() if facts["status"] == "running"}, now
        self.last_worker_seen = now if self.workers else self.last_worker_seen
        for key in [key for key, slide in self.running.items() if slide.worker not in connected]:
            slide = self.running.pop(key)
            self.client.cancel([slide.future])
            yield lost_outcome(slide.job, f"the worker {slide.worker} {LOST_WORKER}")

    def _connected_workers(self) -> dict[str, Any]:
        """Return address -> facts of the scheduler's workers; raises `LrmilError` if the scheduler is gone."""
        try:
            workers: dict[str, Any] | None = self.client.scheduler_info(n_workers=-1).get("workers")
        except (OSError, TimeoutError):
            workers = None
        if workers is None or self.client.status == "closed":  # a closed client returns its last, outdated answer
            raise LrmilError("the scheduler is gone; start the same call again with another one, what is done stays")
        return workers

    def _submit(self, job: SlideJob, worker: str) -> None:
        """Submit a slide to one worker and no other, so that the slide of a dead worker is known."""
        self.submitted += 1
        key = f"{job.name}-{self.run_id}-{self.submitted}"  # unique: a retry must not get the first attempt's result
        future = self.client.submit(_run_on_worker, self.task, job, key=key, workers=[worker], pure=False)
        self.running[key] = _RunningSlide(job, future, worker)
        future.add_done_callback(self.settled.put)


def _outcome(slide: _RunningSlide) -> Outcome:
    """Return the outcome of a settled future. If it was lost with its worker, a retry finds the results on disk."""
    from distributed.scheduler import KilledWorker

    try:
        outcome: Outcome = slide.future.result(timeout=RESULT_TIMEOUT_S)
    except (KilledWorker, TimeoutError):
        return lost_outcome(slide.job, f"the worker {slide.worker} {LOST_WORKER}")
    except Exception as error:  # the slide could not be sent, the worker lacks a package, the future was cancelled
        return lost_outcome(slide.job, f"{type(error).__name__}: {one_line(error)}")
    return outcome


def _run_on_worker(task: SlideTask, job: SlideJob) -> Outcome:
    """Run the task on a slide, on a worker of the cluster."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def is_cancelled() -> bool:
        state = worker.state.tasks.get(key)
        return state is None or state.state == "cancelled"

    with _ONE_SLIDE_AT_A_TIME:
        return run_task(task, job, worker.state.nthreads, is_cancelled=is_cancelled)


def _version() -> str:
    return __version__


def _require_same_version(client: Any) -> None:
    """Raise `ConfigError` if a worker has another version of napari-lrmil, or none."""
    versions = set(client.run(_version, on_error="return").values())
    broken = [error for error in versions if isinstance(error, ImportError)]
    if broken:
        raise ConfigError(
            f"the cluster's workers cannot import napari-lrmil ({one_line(broken[0])}); install it where they run"
        ) from broken[0]
    others = ", ".join(sorted(v for v in versions if isinstance(v, str) and v != __version__))
    if others:
        raise ConfigError(f"workers of the cluster run napari-lrmil {others}, this is {__version__}; install the same")


def _import_distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ConfigError('--scheduler needs dask.distributed; pip install "napari-lrmil[distributed]"') from error
    return distributed
