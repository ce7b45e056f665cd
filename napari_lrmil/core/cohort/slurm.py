"""Jobs on a SLURM cluster through dask-jobqueue: what can be set, and the script that each job is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_lrmil.core.errors import ConfigError


class SlurmOptions(BaseModel):
    """How jobs are asked for; what is left out here is left to dask-jobqueue's own configuration and to the cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    jobs: int = Field(4, ge=1)
    """Jobs at once, each one worker with one slide at a time."""
    cores: int = Field(2, ge=1)
    """Cores of a job, which are the threads of its computing."""
    memory_mb: float = Field(4000, gt=0)
    """Memory of a job, MB (10^6 bytes); the worker is started anew before it holds more."""
    walltime: str = "04:00:00"
    """How long a job may last; a slide that is cut off by it is done by another job."""
    partition: str | None = None
    """Which part of the cluster; None: its default."""
    account: str | None = None
    """Whom it is charged to."""
    gpu: bool = False
    """Whether each job gets a GPU."""
    interface: str | None = None
    """Network interface over which jobs reach this machine, such as ib0."""
    python: str = sys.executable
    """The interpreter that has napari-lrmil, on the nodes."""
    prologue: tuple[str, ...] = ()
    """Lines of shell before the worker, such as `module load` or `source .venv/bin/activate`."""
    directives: tuple[str, ...] = ()
    """Further options of sbatch, such as --exclusive."""
    logs: Path | None = None
    """Folder for what jobs print; None: where sbatch puts it."""


def read_slurm_options(file: Path) -> SlurmOptions:
    """Return the options of a YAML file.

    Raises
    ------
    ConfigError
        Where it cannot be read, or holds a key or value that means nothing here.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        return SlurmOptions(**content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        known = ", ".join(SlurmOptions.model_fields)
        raise ConfigError(f"{file}: {where}: {first['msg']}; keys are {known}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"{file} cannot be read as options of SLURM jobs ({told}); expected YAML") from error


def create_slurm_cluster(options: SlurmOptions) -> Any:
    """Return a dask-jobqueue cluster without jobs: a scheduler in this process; jobs come with ``scale(jobs=N)``.

    Raises
    ------
    ConfigError
        Where dask-jobqueue is not installed.
    """
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ConfigError('jobs on SLURM need dask-jobqueue; pip install "napari-lrmil[distributed]"') from error
    directives = [*(["--gres=gpu:1"] if options.gpu else []), *options.directives]
    return SLURMCluster(
        n_workers=0,
        cores=options.cores,
        processes=1,  # one slide at a time in a job: its threads are those of the network
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
        scheduler_options={"dashboard_address": ":0"},
    )


def job_script(options: SlurmOptions) -> str:
    """Return the script of a job, as it would be given to ``sbatch``."""
    with create_slurm_cluster(options) as cluster:
        script: str = cluster.job_script()
    return script
