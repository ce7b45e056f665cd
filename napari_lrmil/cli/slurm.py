"""Command ``slurm``: print a job script for a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def slurm(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND ...", help="a command of this program with its arguments")
    ],
    tasks: Annotated[int, typer.Option(min=1, help="tasks of the array, each with a part of the slides")] = 10,
    options: Annotated[
        Path | None, typer.Option("--options", help="YAML with resources of a task, the keys of --scheduler slurm:FILE")
    ] = None,
) -> None:
    """Print a SLURM job script that runs a command: an array for predict and features, one job for train and others."""
    from napari_lrmil.core.cohort.slurm import SlurmOptions, read_slurm_options
    from napari_lrmil.core.cohort.slurm_array import array_script

    resources = SlurmOptions() if options is None else read_slurm_options(options)
    sys.stdout.write(array_script(command, resources, tasks))  # as it is: rich would fold long lines
