"""Which engine a call means, and how many workers, threads and bytes each gets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.cohort.local_pool import LocalProcesses
from napari_lrmil.core.cohort.memory import MB, total_memory_mb
from napari_lrmil.core.cohort.task import Backend, SerialBackend
from napari_lrmil.core.errors import ConfigError

VISIBLE_DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
SLURM = "slurm"
MEMORY_SHARE = 0.9  # of the machine's memory, for all workers together


@dataclass(frozen=True)
class BackendChoice:
    """What the caller said about where to work.

    Attributes
    ----------
    workers
        Processes or jobs; None leaves it to the machine: one, or one for each GPU.
    scheduler
        Address of a dask scheduler, ``slurm``, or ``slurm:FILE.yaml``; None works on this machine.
    memory_mb
        Bound for each worker; None: an equal share of the machine's.
    """

    workers: int | None = None
    scheduler: str | None = None
    memory_mb: float | None = None


def choose_backend(choice: BackendChoice, *, slides: int, gpus: int = 0) -> Backend:
    """Return the engine that a choice means.

    Parameters
    ----------
    choice
        What the caller said.
    slides
        How many there are: more workers would have nothing to do.
    gpus
        CUDA devices that the work would use on this machine; 0 where it uses none.

    Raises
    ------
    ConfigError
        Where a scheduler is not there, or options do not go together.
    """
    if choice.scheduler is not None:
        return _cluster(choice)
    workers = choice.workers or (gpus if gpus > 1 else 1)
    workers = min(workers, max(1, slides), gpus or workers)
    if workers == 1 and choice.memory_mb is None:
        return SerialBackend()  # a bound needs a process that can be ended
    threads = max(1, (os.cpu_count() or 1) // workers)
    memory = choice.memory_mb or total_memory_mb() * MEMORY_SHARE / workers
    return LocalProcesses(worker_environments(workers, gpus, os.environ), threads, memory)


def worker_environments(workers: int, gpus: int, own: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the variables of each worker: with GPUs each sees one of those that this process sees (`own`)."""
    if not gpus:
        return [{} for _ in range(workers)]
    seen = [device.strip() for device in own.get(VISIBLE_DEVICES_VARIABLE, "").split(",") if device.strip()]
    devices = seen or [str(number) for number in range(gpus)]
    return [{VISIBLE_DEVICES_VARIABLE: devices[number % len(devices)]} for number in range(workers)]


def parse_memory(text: str) -> float:
    """Return MB of a text such as ``1500MB``, ``1.5G`` or ``2 GiB``; a number alone is bytes.

    Raises
    ------
    ConfigError
        Where it is none.
    """
    from dask.utils import parse_bytes

    try:
        n_bytes = parse_bytes(text) if any(map(str.isdigit, text)) else 0  # it would read "MB" as 1 MB
    except (ValueError, OverflowError):
        n_bytes = 0
    if n_bytes <= 0:
        raise ConfigError(f"--memory {text}: expected an amount of memory, such as 1500MB or 2GB")
    return float(n_bytes) / MB


def _cluster(choice: BackendChoice) -> Backend:
    from napari_lrmil.core.cohort.dask_cluster import DaskCluster, SlurmJobs
    from napari_lrmil.core.cohort.slurm import SlurmOptions, read_slurm_options

    scheduler = choice.scheduler or ""
    kind, _, file = scheduler.partition(":")
    if kind == SLURM:
        options = read_slurm_options(Path(file)) if file else SlurmOptions()
        given = {"jobs": choice.workers, "memory_mb": choice.memory_mb}
        return SlurmJobs(options=options.model_copy(update={k: v for k, v in given.items() if v is not None}))
    if choice.workers is not None or choice.memory_mb is not None:
        option = "--workers" if choice.workers is not None else "--memory"
        raise ConfigError(
            f"{option} is not for {scheduler}: workers and their memory are set where they are started, as in "
            "`dask worker --nworkers 4 --nthreads 1 --memory-limit 4GB ADDRESS`"
        )
    return DaskCluster(scheduler)
