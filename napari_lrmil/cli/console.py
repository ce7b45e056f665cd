"""Options, exit codes and progress display that all commands share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from napari_lrmil.core.encoders.hub_name import HUB_PREFIX
from napari_lrmil.core.events import Event, Failed, Finished, Metric, Notice, Partial, Progress, StageDone
from napari_lrmil.core.formatting import format_duration
from napari_lrmil.core.text_escapes import printable

if TYPE_CHECKING:
    from napari_lrmil.core.models.bundle import Bundle

logger = logging.getLogger(__name__)

out, err = Console(), Console(stderr=True)

NOTE_INTERVAL_S = 20.0  # between lines of progress if the output is not a terminal, as in a batch job
FEW_SLIDES = 30  # in a split; below, the AUROC of another sample would differ widely
SOME_FAILED, WRONG_CALL, FAILED, CANCELLED = 3, 2, 1, 130

SlideArgument = Annotated[Path, typer.Argument(help="slide, or folder of one DICOM slide")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
RuntimeOption = Annotated[
    str,
    typer.Option("--runtime", help="torch, openvino, or auto: the fastest one that agrees with torch"),
]
MppOption = Annotated[
    float | None,
    typer.Option(
        "--mpp", min=0.02, max=100.0, help="µm per level-0 pixel; overrides the resolution that the slide states"
    ),
]
BundleOption = Annotated[
    str, typer.Option("--bundle", help="folder of a bundle, name of a shipped one (breast-idc, demo), or hf:owner/name")
]
SlideBundleOption = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        help="folder of a bundle, name of a shipped one (breast-idc, demo), or hf:owner/name; if not given: demo, for "
        "phantoms only",
    ),
]
FullPathsOption = Annotated[
    bool, typer.Option("--full-paths", help="write absolute paths into the results; they may hold the name of a user")
]
OutOption = Annotated[Path, typer.Option("--out", help="folder for the results")]
AllowMissingOption = Annotated[
    bool, typer.Option("--allow-missing", help="use slides even if more than a third of their tissue is missing")
]


def select_device(name: str) -> str:
    """Return the device for the work, and leave one CPU core free for everything else.

    Raises
    ------
    ConfigError
        If this machine lacks the device.
    """
    from napari_lrmil.core.features.devices import resolve_device
    from napari_lrmil.core.threads import leave_core_free

    leave_core_free()
    return resolve_device(name)


def print_result(text: str) -> None:
    """Print a line of results to stdout, character by character as it is; see `print_notice`."""
    out.print(Text(_printable_lines(text)), highlight=False, soft_wrap=True)


def print_notice(subject: str, message: str, style: str = "yellow") -> None:
    """Print a line to stderr: the subject in colour and a colon, then the message.

    Names of slides and messages of libraries may hold brackets, ``:smile:`` or control characters. They are printed as
    text and never as markup of rich or as commands of the terminal.
    """
    label = f"{printable(subject)}:" if subject else ""
    line = Text.assemble((label, style), " " if subject else "", _printable_lines(message))
    err.print(line, highlight=False, soft_wrap=True)


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def show_progress(
    events: Iterator[Event],
    title: str,
    *,
    quiet: bool = True,
    shown_notices: set[str] | None = None,
    on_partial: Callable[[Any], None] = lambda _: None,
    cancel_text: str = "cancelled",
) -> Any:
    """Print a stream of events and return the result it finishes with.

    Parameters
    ----------
    quiet
        Whether the ends of stages are logged only.
    shown_notices
        Messages of notices that are not printed again. New ones are added: a model's notice holds for every slide.
    on_partial
        Called with each early result.
    cancel_text
        Text that is printed after Ctrl-C.

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
        # The stream is closed by now: workers have ended, and nothing is half-written.
        print_notice("", cancel_text)
        raise typer.Exit(CANCELLED) from None
    return result


def _show(event: Event, title: str, bars: _Bars, quiet: bool) -> None:
    """Print or draw one event."""
    match event:
        case Progress(stage, done, total, unit, left):
            bars.show(f"{title} · {stage}", done, total, unit, left)
        case Notice(message, subject) | Failed(message, subject):
            print_notice(subject, message)
        case Metric(_, "val/auroc", value, _):
            bars.metric = f", validation AUROC {value:.3f}"
        case StageDone(stage, seconds) if not quiet:
            print_notice("", f"{stage}: done in {seconds:.1f} s")
        # Without quiet=False only --verbose shows it.
        case StageDone(stage, seconds):
            logger.info("%s: %s done in %.2f s", title, stage, seconds)


def load_networks(model: Bundle, *, teacher: bool, device: str = "cpu", runtime: str = "torch") -> set[str]:
    """Load a bundle's networks before any slide is opened, and return the notices that were printed.

    The terms of a teacher that the bundle only names are printed first, because loading may download its weights.
    Networks that `runtime` has converted on this machine before are only checked.

    Raises
    ------
    BundleError
        If the bundle is broken, or has no teacher although one is required.
    """
    from napari_lrmil.core.inference.network_input import is_network_converted

    if teacher:
        model.require_teacher()
    notices = {terms for terms in [model.teacher_notice if teacher else None] if terms}
    for terms in notices:
        print_notice("", terms)
    for network in ("student", "teacher") if teacher else ("student",):
        # A network that was converted before is not built again. Its file is checked all the same.
        if not is_network_converted(model, network, device, runtime):
            _ = model.teacher if network == "teacher" else model.student  # cached properties: this loads the weights
    return notices


def download_hub_bundles(*names: str | None) -> None:
    """Download the bundles that are given by a hub name and are not cached, after a notice of host, size and licence.

    Raises
    ------
    BundleError
        As `napari_lrmil.core.models.hub_bundle.fetch_hub_bundle` raises it.
    """
    for name in names:
        if name is not None and name.startswith(HUB_PREFIX):
            from napari_lrmil.core.models.hub_bundle import fetch_hub_bundle

            fetch_hub_bundle(name, partial(print_notice, ""))


def with_finished_event(generator: Any) -> Iterator[Event]:
    """Yield the events of a generator, and its return value as a last `Finished`."""
    result = yield from generator
    yield Finished(result)


class _Bars:
    """Progress bars of a stage and of the slide within it; without a terminal, a line every `NOTE_INTERVAL_S`.

    The time left is that of the events if they state it, because `rich` knows only the pace of its own bar.
    """

    def __init__(self, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),  # names of slides
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[left]}"),
        )
        # transient: when the work is done, only results and warnings stay on the terminal.
        self.progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self.tasks: dict[bool, tuple[str, Any]] = {}  # is it within a slide -> stage and bar
        self.metric = ""  # validation metric of the last epoch
        self.quiet = quiet
        self.last_note = time.monotonic()

    def show(self, stage: str, done: int, total: int, unit: str, seconds_left: float | None = None) -> None:
        """Show the progress of a stage."""
        left = "" if seconds_left is None or done >= total else f"{format_duration(seconds_left)} left"
        is_within_slide = unit == "patches"
        if self.tasks.get(is_within_slide, ("",))[0] != stage:
            self._start_bar(is_within_slide, stage, total, unit)
        text = unit if is_within_slide else f"{unit}{self.metric}"
        self.progress.update(self.tasks[is_within_slide][1], completed=done, total=total, unit=text, left=left)
        is_due = time.monotonic() - self.last_note > NOTE_INTERVAL_S
        if is_due and not (is_within_slide or self.quiet or err.is_terminal):
            self.last_note = time.monotonic()
            print_notice("", f"{stage}: {done} of {total} {text}{', ' if left else ''}{left}")

    def _start_bar(self, is_within_slide: bool, stage: str, total: int, unit: str) -> None:
        """Replace the bar of this kind. A new stage also removes the bar of the old stage's slide."""
        for kind in (True,) if is_within_slide else (True, False):
            if kind in self.tasks:
                self.progress.remove_task(self.tasks.pop(kind)[1])
        self.metric = self.metric if is_within_slide else ""
        self.tasks[is_within_slide] = stage, self.progress.add_task(stage, total=total, unit=unit, left="")


@contextmanager
def _bars(quiet: bool) -> Iterator[_Bars]:
    bars = _Bars(quiet)
    with bars.progress:
        yield bars
