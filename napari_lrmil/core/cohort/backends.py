"""Choice of a backend, and the workers, threads and memory that it gets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.cohort.local_pool import LocalProcesses
from napari_lrmil.core.cohort.memory import MB, total_memory_mb
from napari_lrmil.core.cohort.task import Backend, SerialBackend
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.site_settings import most_threads

VISIBLE_DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
SLURM = "slurm"
MEMORY_SHARE = 0.9  # of the machine's memory, for all workers together; the rest is for everything else


@dataclass(frozen=True)
class BackendChoice:
    """Options of the caller on where to work.

    Attributes
    ----------
    workers
        Number of processes or jobs; None for one, or one per GPU.
    scheduler
        Address of a dask scheduler, ``slurm``, or ``slurm:FILE.yaml``; None for this machine.
    memory_mb
        Memory limit of each worker, MB; None for an equal share of the machine's memory.
    """

    workers: int | None = None
    scheduler: str | None = None
    memory_mb: float | None = None


def choose_backend(choice: BackendChoice, *, slides: int, gpus: int = 0) -> Backend:
    """Return the backend for the options of the caller.

    Parameters
    ----------
    choice
        Options of the caller.
    slides
        Number of slides; no more workers than that are started.
    gpus
        Number of CUDA devices to use on this machine; 0 for none.

    Raises
    ------
    ConfigError
        If a scheduler does not answer, or options exclude each other.
    """
    if choice.scheduler is not None:
        return _choose_cluster(choice, choice.scheduler)
    workers = choice.workers or (gpus if gpus > 1 else 1)
    workers = min(workers, max(1, slides), gpus or workers)  # at most one per slide and per GPU
    if workers == 1 and choice.memory_mb is None:
        return SerialBackend()  # a memory limit needs a process that can be ended
    threads = max(1, (most_threads() or os.cpu_count() or 1) // workers)
    memory = choice.memory_mb or total_memory_mb() * MEMORY_SHARE / workers
    return LocalProcesses(worker_environments(workers, gpus, os.environ), threads, memory)


def worker_environments(workers: int, gpus: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the environment variables of each worker.

    Parameters
    ----------
    workers
        Number of workers.
    gpus
        Number of GPUs. Each worker sees one of those that this process sees.
    environment
        Variables of this process, which may restrict its GPUs.
    """
    if not gpus:
        return [{} for _ in range(workers)]
    visible = [device.strip() for device in environment.get(VISIBLE_DEVICES_VARIABLE, "").split(",") if device.strip()]
    devices = visible or [str(number) for number in range(gpus)]
    return [{VISIBLE_DEVICES_VARIABLE: devices[number % len(devices)]} for number in range(workers)]


def parse_memory(text: str) -> float:
    """Return the MB of a text such as ``1500MB``, ``1.5G`` or ``2 GiB``. A number alone is in bytes.

    Raises
    ------
    ConfigError
        If the text is not an amount of memory above 0.
    """
    from dask.utils import parse_bytes

    try:
        n_bytes = parse_bytes(text) if any(map(str.isdigit, text)) else 0  # dask reads "MB" as 1 MB
    except (ValueError, OverflowError):
        n_bytes = 0
    if n_bytes <= 0:
        raise ConfigError(f"--memory {text}: expected an amount of memory, such as 1500MB or 2GB")
    return float(n_bytes) / MB


def _choose_cluster(choice: BackendChoice, scheduler: str) -> Backend:
    """Return the backend of a dask scheduler or of SLURM jobs."""
    from napari_lrmil.core.cohort.dask_cluster import DaskCluster, SlurmJobs
    from napari_lrmil.core.cohort.slurm import SlurmOptions, read_slurm_options

    kind, _, file = scheduler.partition(":")
    if kind == SLURM:
        options = read_slurm_options(Path(file)) if file else SlurmOptions()
        changes = {"jobs": choice.workers, "memory_mb": choice.memory_mb}  # the command line overrides the file
        return SlurmJobs(options=options.model_copy(update={k: v for k, v in changes.items() if v is not None}))
    if choice.workers is not None or choice.memory_mb is not None:
        option = "--workers" if choice.workers is not None else "--memory"
        raise ConfigError(
            f"{option} is not for {scheduler}: workers and their memory are set where they are started, as in "
            "`dask worker --nworkers 4 --nthreads 1 --memory-limit 4GB ADDRESS`"
        )
    return DaskCluster(scheduler)
