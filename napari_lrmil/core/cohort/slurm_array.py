"""Script of a SLURM job array, as text: each task of it processes a part of a cohort, without a scheduler of dask."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from napari_lrmil.core.cohort.slurm import SlurmOptions
from napari_lrmil.core.errors import ConfigError

ARRAY_COMMANDS = ("predict", "features")  # slides are independent, so parts can run at once
SINGLE_COMMANDS = ("train", "evaluate", "compare", "bench")  # one job
REFUSED = ("--part", "--scheduler", "--workers")  # what the array itself decides


def array_script(arguments: Sequence[str], options: SlurmOptions, tasks: int) -> str:
    """Return the script for ``sbatch`` that runs a command of this program.

    Parameters
    ----------
    arguments
        The command and its arguments, as in ``predict cohort.csv --out OUT``.
    options
        Resources of each task. ``jobs`` limits how many run at once.
    tasks
        Number of tasks of the array, each with a part of the cohort.

    Raises
    ------
    ConfigError
        If the command cannot be a job, or an option contradicts the array.
    """
    command = arguments[0] if arguments else ""
    if command not in (*ARRAY_COMMANDS, *SINGLE_COMMANDS):
        accepted = ", ".join((*ARRAY_COMMANDS, *SINGLE_COMMANDS))
        raise ConfigError(
            f"'{command}' is no command that runs as a job; expected one of {accepted}, then its arguments"
        )
    if refused := next((word for word in arguments if word.partition("=")[0] in REFUSED), None):
        raise ConfigError(f"{refused} contradicts a job script, which sets parts and cores itself; leave it out")
    is_array = command in ARRAY_COMMANDS
    call = f"{shlex.quote(options.python)} -m napari_lrmil {shlex.join(arguments)}"
    part = f' --part "$SLURM_ARRAY_TASK_ID/{tasks}"' if is_array else ""
    lines = ["#!/bin/bash", *_directives(command, options, tasks if is_array else 0), ""]
    lines += ["# A task that was cut off continues where it ended: submit the same script again.", "set -eu"]
    lines += [*options.prologue, f"export NAPARI_LRMIL_THREADS={options.cores} OMP_NUM_THREADS={options.cores}"]
    return "\n".join((*lines, f"{call}{part}", ""))


def _directives(command: str, options: SlurmOptions, tasks: int) -> list[str]:
    logs = f"{options.logs}/" if options.logs is not None else ""
    number = "%A_%a" if tasks else "%j"
    values = [
        f"--job-name=lrmil-{command}",
        *([f"--array=1-{tasks}%{options.jobs}"] if tasks else []),
        f"--cpus-per-task={options.cores}",
        f"--mem={options.memory_mb:.0f}M",
        f"--time={options.walltime}",
        *([f"--partition={options.partition}"] if options.partition else []),
        *([f"--account={options.account}"] if options.account else []),
        *(["--gres=gpu:1"] if options.gpu else []),
        f"--output={logs}lrmil-{command}-{number}.log",
        *options.directives,
    ]
    return [f"#SBATCH {value}" for value in values]
