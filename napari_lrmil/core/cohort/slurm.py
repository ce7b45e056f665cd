"""SLURM jobs as dask workers, through dask-jobqueue: their options, and the script of a job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.yaml_text import parse_yaml


class SlurmOptions(BaseModel):
    """Options of SLURM jobs. Anything else comes from dask-jobqueue's own configuration and from the cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    jobs: int = Field(4, ge=1)
    """Jobs at once. Each is one worker, with one slide at a time."""
    cores: int = Field(2, ge=1)
    """Cores of a job, and threads of its computation."""
    memory_mb: float = Field(4000, gt=0)
    """Memory of a job, MB (10^6 bytes). The worker is restarted before it exceeds this."""
    walltime: str = "04:00:00"
    """Time limit of a job. Another job takes over a slide that the limit cut off."""
    partition: str | None = None
    """Partition of the cluster; None for its default."""
    account: str | None = None
    """Account that is charged."""
    gpu: bool = False
    """Whether each job gets a GPU."""
    interface: str | None = None
    """Network interface over which jobs reach this machine, such as ib0."""
    python: str = sys.executable
    """Python interpreter on the nodes that has napari-lrmil."""
    prologue: tuple[str, ...] = ()
    """Shell lines before the worker starts, such as `module load` or `source .venv/bin/activate`."""
    directives: tuple[str, ...] = ()
    """Further options of sbatch, such as --exclusive."""
    logs: Path | None = None
    """Folder for the output of jobs; None for sbatch's default."""


def read_slurm_options(file: Path) -> SlurmOptions:
    """Return the options of a YAML file.

    Raises
    ------
    ConfigError
        If it cannot be read, or holds an unknown key or a wrong value.
    """
    try:
        content = parse_yaml(file.read_bytes()) or {}
        return SlurmOptions(**content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        keys = ", ".join(SlurmOptions.model_fields)
        raise ConfigError(f"{file}: {key}: {first['msg']}, got {first['input']!r:.80}; keys are {keys}") from error
    # TypeError: the YAML is a list or a text instead of keys and values.
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} cannot be read as options of SLURM jobs ({reason}); expected YAML") from error


def create_slurm_cluster(options: SlurmOptions) -> Any:
    """Return a dask-jobqueue cluster: a scheduler in this process. Jobs are submitted by ``scale(jobs=N)``.

    Raises
    ------
    ConfigError
        If dask-jobqueue is not installed.
    """
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ConfigError('jobs on SLURM need dask-jobqueue; pip install "napari-lrmil[distributed]"') from error
    directives = [*(["--gres=gpu:1"] if options.gpu else []), *options.directives]
    return SLURMCluster(
        n_workers=0,
        cores=options.cores,
        processes=1,  # a job has one slide at a time, and its threads are those of the network
        memory=f"{options.memory_mb:.0f}MB",
        walltime=options.walltime,
        queue=options.partition,
        account=options.account,
        interface=options.interface,
        python=options.python,
        job_name="napari-lrmil",
        job_script_prologue=list(options.prologue),
        job_extra_directives=directives,
        log_directory=None if options.logs is None else str(options.logs),
        scheduler_options={"dashboard_address": ":0"},  # any free port, so that two calls can run at once
    )


def job_script(options: SlurmOptions) -> str:
    """Return the script of a job, as it is submitted with ``sbatch``."""
    with create_slurm_cluster(options) as cluster:
        script: str = cluster.job_script()
    return script
