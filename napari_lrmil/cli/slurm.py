"""Command ``slurm``: print a job script for a cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_lrmil.cli.console import print_notice


def slurm(
    context: typer.Context,
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
    script = array_script(command, resources, tasks)
    for path in _missing_inputs(context, command):
        print_notice("", f"{path} does not exist, seen from this folder; the job needs it")
    sys.stdout.write(script)  # as it is: rich would fold long lines


def _missing_inputs(context: typer.Context, words: Sequence[str]) -> Iterator[Path]:
    """Parse a command of this program without running it, and yield its arguments that are paths of nothing.

    The parser refuses what is no call of the command, with the sentence and exit code of the command itself: otherwise
    every task of the array would, hours later. A path that is missing is no error, because the cluster may see others.
    """
    root: Any = context.find_root().command
    command = root.commands[words[0]]
    parsed = command.make_context(words[0], list(words[1:]), parent=context.find_root())
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            value = parsed.params[parameter.name]
            paths = value if isinstance(value, list | tuple) else [value]
            yield from (path for path in paths if isinstance(path, Path) and not path.exists())
