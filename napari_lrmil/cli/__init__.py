"""Command line ``napari-lrmil``. Its commands consume the same events as the window.

Heavy libraries are imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from napari_lrmil.cli.bench import bench
from napari_lrmil.cli.cache import cache
from napari_lrmil.cli.cohort import cohort
from napari_lrmil.cli.console import CANCELLED, FAILED, err, out, print_notice
from napari_lrmil.cli.doctor import doctor
from napari_lrmil.cli.encoders import encoders
from napari_lrmil.cli.export import export, export_model
from napari_lrmil.cli.hub import models, push
from napari_lrmil.cli.info import info
from napari_lrmil.cli.phantom import phantom
from napari_lrmil.cli.predict import compare, predict
from napari_lrmil.cli.review import review
from napari_lrmil.cli.slurm import slurm
from napari_lrmil.cli.train import evaluate, features, train
from napari_lrmil.cli.view import demo, view
from napari_lrmil.core.errors import ConfigError, LrmilError
from napari_lrmil.core.site_settings import apply_site_settings
from napari_lrmil.core.telemetry import block_telemetry
from napari_lrmil.core.user_folders import keep_matplotlib_in_cache
from napari_lrmil.version import __version__

GLOBAL_FLAGS = ("--debug", "--verbose")

app = typer.Typer(
    name="napari-lrmil",
    help="Low-resolution MIL for whole-slide images, distilled from a high-resolution teacher. Research use only.",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
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


for _command in (
    demo,
    view,
    info,
    predict,
    compare,
    phantom,
    cohort,
    features,
    train,
    evaluate,
    review,
    bench,
    export,
    export_model,
    encoders,
    models,
    push,
    cache,
    slurm,
    doctor,
):
    app.command()(_command)


def main() -> None:
    """Run the command line. An error is printed as one sentence and sets the exit code."""
    _escape_missing_characters()
    block_telemetry()  # before any library reads its switch
    # NumPy's products are small here. OpenBLAS threads that wait for the next one take a fifth of a cohort's CPU time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Typer accepts global options only before the command, but people add them at the end of a failed call.
    arguments = [argument for argument in sys.argv[1:] if argument not in GLOBAL_FLAGS]
    debug = "--debug" in sys.argv[1:]
    try:
        _apply_site_settings(arguments)
        keep_matplotlib_in_cache()
        with _terminal_log("--verbose" in sys.argv[1:]):
            app(arguments)
    except LrmilError as error:
        _report(error, str(error), debug)
        sys.exit(error.exit_code)
    except Exception as error:
        from napari_lrmil.core.unexpected_errors import describe_error

        _report(error, "" if debug else describe_error(error), debug)
        sys.exit(FAILED)


def _apply_site_settings(arguments: list[str]) -> None:
    """Apply the site's settings. If they are broken, only ``doctor`` goes on, which reports it."""
    try:
        apply_site_settings()
    except ConfigError:
        if arguments[:1] != ["doctor"]:
            raise


def _escape_missing_characters() -> None:
    """Print an escape for a character that the encoding of the output lacks, as code pages of Windows lack ρ."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # not where another program has replaced it
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _terminal_log(verbose: bool) -> Iterator[None]:
    """Print the log of this package if `verbose`. Other libraries stay silent."""
    if not verbose:
        yield
        return
    from rich.logging import RichHandler

    # To stderr: stdout has the results, which scripts read.
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
    """Print an error, or raise it with its traceback if `debug`."""
    if debug:
        raise error
    is_stopped = isinstance(error, LrmilError) and error.exit_code == CANCELLED  # the user stopped the work
    print_notice(*(("stopped", sentence, "yellow") if is_stopped else ("error", sentence, "red")))
