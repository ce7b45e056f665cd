"""What every command shares: options, exit codes, and a stream of events on the terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from napari_lrmil.core.events import Event, Failed, Finished, Metric, Notice, Partial, Progress, StageDone
from napari_lrmil.core.formatting import format_duration

if TYPE_CHECKING:
    import torch

    from napari_lrmil.core.models.bundle import Bundle

logger = logging.getLogger(__name__)

out, err = Console(), Console(stderr=True)

NOTE_INTERVAL_S = 20.0  # between notes of long work, where there is no terminal to draw on
SOME_FAILED, WRONG_CALL, FAILED, CANCELLED = 3, 2, 1, 130

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
RuntimeOption = Annotated[
    str,
    typer.Option("--runtime", help="torch, openvino, or auto: the fastest that agrees with torch"),
]
MppOption = Annotated[
    float | None, typer.Option("--mpp", min=0.02, max=100.0, help="µm per level-0 pixel, where the slide does not say")
]
BundleOption = Annotated[str, typer.Option("--bundle", help="folder of a bundle, or a shipped one (demo)")]
OutOption = Annotated[Path, typer.Option("--out", help="folder for the results")]


def select_device(name: str) -> torch.device:
    """Return the device to work on; one core stays free for everything else."""
    from napari_lrmil.core.features.devices import limit_torch_threads, resolve_device

    limit_torch_threads()
    return resolve_device(name)


def show_progress(
    events: Iterator[Event],
    title: str,
    *,
    quiet: bool = True,
    shown_notices: set[str] | None = None,
    on_partial: Callable[[Any], None] = lambda _: None,
) -> Any:
    """Print a stream of events and return the result it finishes with.

    Parameters
    ----------
    events
        The stream. It is closed at the end, which ends the work.
    title
        Shown before the name of each stage.
    quiet
        Whether the ends of stages are logged only.
    shown_notices
        Messages of notices that are not printed again. New ones are added: a model's notice holds for every slide.
    on_partial
        Called with each result that exists before the work is done.

    Raises
    ------
    typer.Exit
        With the code `CANCELLED`, after Ctrl-C.
    """
    shown_notices = set() if shown_notices is None else shown_notices
    result: Any = None
    try:
        with closing(events), _bars(quiet) as bars:  # type: ignore[type-var]  # generators close
            for event in events:
                if isinstance(event, Finished):
                    result = event.result
                elif isinstance(event, Partial):
                    on_partial(event.result)
                elif not (isinstance(event, Notice) and event.message in shown_notices):
                    _show(event, title, bars, quiet)
                    shown_notices |= {event.message} if isinstance(event, Notice) else set()
    except KeyboardInterrupt:
        err.print("cancelled")
        raise typer.Exit(CANCELLED) from None
    return result


def _show(event: Event, title: str, bars: _Bars, quiet: bool) -> None:
    match event:
        case Progress(stage, done, total, unit, left):
            bars.show(f"{title} · {stage}", done, total, unit, left)
        case Notice(message, subject) | Failed(message, subject):
            err.print(f"[yellow]{escape(subject)}[/yellow] {escape(message)}", highlight=False, soft_wrap=True)
        case Metric(_, "val/auroc", value, _):
            bars.figure = f", validation AUROC {value:.3f}"
        case StageDone(stage, seconds) if not quiet:
            err.print(f"{stage}: done in {seconds:.1f} s", highlight=False)
        case StageDone(stage, seconds):
            logger.info("%s: %s done in %.2f s", title, stage, seconds)


def load_networks(model: Bundle, *, teacher: bool) -> set[str]:
    """Load a bundle's networks before any slide, for a broken bundle is no slide's fault; return what was said.

    The terms of a teacher that the bundle only names are told first, because its weights may be fetched.
    """
    said = {terms for terms in [model.teacher_notice if teacher else None] if terms}
    for terms in said:
        err.print(terms, markup=False, emoji=False, highlight=False, soft_wrap=True)  # its colons are no emoji
    _ = model.student, model.teacher if teacher else None
    return said


def with_finished_event(work: Any) -> Iterator[Event]:
    """Turn what a generator returns into its last event."""
    result = yield from work
    yield Finished(result)


class _Bars:
    """A line of progress for the stage and one for the slide within it; a note at times where there is no terminal.

    The time left comes from the events if they state it: `rich` knows only the pace of its own bar.
    """

    def __init__(self, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self.tasks: dict[bool, tuple[str, Any]] = {}  # whether within a slide -> name and bar
        self.figure = ""  # how good the last epoch was
        self.quiet = quiet
        self.noted = time.monotonic()

    def show(self, stage: str, done: int, total: int, unit: str, seconds_left: float | None = None) -> None:
        """Show how far a stage is."""
        left = "" if seconds_left is None or done >= total else f"{format_duration(seconds_left)} left"
        within = unit == "patches"
        if self.tasks.get(within, ("",))[0] != stage:
            for gone in (True,) if within else (True, False):  # a new stage has no slide yet
                if gone in self.tasks:
                    self.progress.remove_task(self.tasks.pop(gone)[1])
            self.figure = "" if not within else self.figure
            self.tasks[within] = stage, self.progress.add_task(stage, total=total, unit=unit, left="")
        told = unit if within else f"{unit}{self.figure}"
        self.progress.update(self.tasks[within][1], completed=done, total=total, unit=told, left=left)
        if not (within or self.quiet or err.is_terminal) and time.monotonic() - self.noted > NOTE_INTERVAL_S:
            self.noted = time.monotonic()
            err.print(f"{stage}: {done} of {total} {told}{', ' if left else ''}{left}", highlight=False)


@contextmanager
def _bars(quiet: bool) -> Iterator[_Bars]:
    bars = _Bars(quiet)
    with bars.progress:
        yield bars
