"""The command line: a loop over the same events that the window consumes. Heavy libraries load inside the commands."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.markup import escape

from napari_lrmil.cli.bench import bench
from napari_lrmil.cli.console import CANCELLED, FAILED, err, out
from napari_lrmil.cli.encoders import encoders
from napari_lrmil.cli.predict import compare, info, predict
from napari_lrmil.cli.train import evaluate, features, phantom, train
from napari_lrmil.cli.view import demo, view
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.version import __version__

GLOBAL_FLAGS = ("--debug", "--verbose")

app = typer.Typer(
    name="napari-lrmil",
    help="Low-resolution MIL for whole-slide images, distilled from a high-resolution teacher. Research use only.",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="print the version", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show a traceback on errors; also after a command")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="print each step and choice; also after a command")
    ] = False,
) -> None:
    if version:
        out.print(f"napari-lrmil {__version__}", highlight=False)
        raise typer.Exit


for _command in (demo, view, info, predict, compare, phantom, features, train, evaluate, bench, encoders):
    app.command()(_command)


def main() -> None:
    """Run the command line; errors are one sentence and an exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    words = [word for word in sys.argv[1:] if word not in GLOBAL_FLAGS]  # people add them at the end
    debug = "--debug" in sys.argv[1:]
    try:
        with _terminal_log("--verbose" in sys.argv[1:]):
            app(words)
    except LrmilError as error:
        _report(error, str(error), debug)
        sys.exit(error.exit_code)
    except Exception as error:
        unforeseen = f"{type(error).__name__}: {error}; this was not expected; call it again with --debug and report it"
        _report(error, unforeseen, debug)
        sys.exit(FAILED)


@contextmanager
def _terminal_log(verbose: bool) -> Iterator[None]:
    """Print what the package logs, if `verbose`. The libraries below it stay silent."""
    if not verbose:
        yield
        return
    from rich.logging import RichHandler

    logger, handler = logging.getLogger("napari_lrmil"), RichHandler(console=err, show_path=False)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _report(error: Exception, sentence: str, debug: bool) -> None:
    if debug:
        raise error
    stopped = isinstance(error, LrmilError) and error.exit_code == CANCELLED  # as asked, which is no error
    word = "[yellow]stopped:[/yellow]" if stopped else "[red]error:[/red]"
    err.print(f"{word} {escape(sentence)}", highlight=False, soft_wrap=True)
