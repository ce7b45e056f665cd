"""What every command shares: options, exit codes, and a stream of events on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from napari_lrmil.core.events import Caution, Event, Failed, Finished, Metric, Progress, StageDone

if TYPE_CHECKING:
    import torch

out, err = Console(), Console(stderr=True)

SOME_FAILED, WRONG_CALL, FAILED, CANCELLED = 3, 2, 1, 130

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
MppOption = Annotated[
    float | None, typer.Option("--mpp", min=0.0, help="µm per level-0 pixel, where the slide does not say")
]
BundleOption = Annotated[str, typer.Option("--bundle", help="folder of a bundle, or a shipped one (demo)")]
Out = Annotated[Path, typer.Option("--out", help="folder for the results")]


def chosen_device(name: str) -> torch.device:
    """Return the device to work on; one core stays free for everything else."""
    from napari_lrmil.core.embed import leave_a_core, resolve_device

    leave_a_core()
    return resolve_device(name)


def follow(events: Iterator[Event], title: str, *, quiet: bool = True, told: set[str] | None = None) -> Any:
    """Print a stream of events and return what it finished with; figures of training are printed unless `quiet`.

    Cautions in `told` are not said again, and those said are added to it: a model's own holds for every slide.
    """
    told = set() if told is None else told
    result: Any = None
    try:
        with closing(events), _bars() as bars:  # type: ignore[type-var]  # generators close
            for event in events:
                if isinstance(event, Finished):
                    result = event.result
                elif not (isinstance(event, Caution) and event.message in told):
                    _show(event, title, bars, quiet)
                    told |= {event.message} if isinstance(event, Caution) else set()
    except KeyboardInterrupt:
        err.print("cancelled")
        raise typer.Exit(CANCELLED) from None
    return result


def _show(event: Event, title: str, bars: _Bars, quiet: bool) -> None:
    match event:
        case Progress(stage, done, total, unit):
            bars.show(f"{title} · {stage}", done, total, unit)
        case Caution(message, subject) | Failed(message, subject):
            err.print(f"[yellow]{escape(subject)}[/yellow] {escape(message)}", highlight=False, soft_wrap=True)
        case Metric(stage, name, value, step) if not quiet and name.startswith("val/"):
            err.print(f"{stage} epoch {step + 1}: {name} {value:.4f}", highlight=False)
        case StageDone(stage, seconds) if not quiet:
            err.print(f"{stage}: done in {seconds:.1f} s", highlight=False)


def returned(work: Any) -> Iterator[Event]:
    """Turn what a generator returns into its last event."""
    result = yield from work
    yield Finished(result)


class _Bars:
    """One line of progress per stage on a terminal; nothing but notes where output goes to a file."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
        )
        self.progress = Progress(
            *columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal
        )
        self.tasks: dict[str, Any] = {}

    def show(self, stage: str, done: int, total: int, unit: str) -> None:
        if stage not in self.tasks:
            for old in self.tasks.values():
                self.progress.update(old, visible=False)
            self.tasks[stage] = self.progress.add_task(stage, total=total, unit=unit)
        self.progress.update(self.tasks[stage], completed=done, total=total, unit=unit)


@contextmanager
def _bars() -> Iterator[_Bars]:
    bars = _Bars()
    with bars.progress:
        yield bars
