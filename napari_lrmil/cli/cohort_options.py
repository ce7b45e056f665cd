"""What the commands on cohorts share: where the work is done, how it is followed, what is left beside the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_lrmil.cli.console import SOME_FAILED, err, out, select_device, show_progress

if TYPE_CHECKING:
    from napari_lrmil.core.cohort import Backend, CohortProgress, Outcome, SlideJob, SlideTask

WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="slides at once, each in a process of its own; left out: one, or one for each GPU"),
]
SchedulerOption = Annotated[
    str | None, typer.Option(help="a dask scheduler, such as tcp://host:8786; or slurm, or slurm:FILE.yaml")
]
MemoryOption = Annotated[
    str | None,
    typer.Option(help="for each worker, such as 2GB; one that holds more is ended, and its slide has failed"),
]


@dataclass(frozen=True)
class ExecutionOptions:
    """Where a cohort's work is done, as the options say it."""

    workers: int | None
    scheduler: str | None
    memory: str | None
    device: str

    @property
    def far(self) -> bool:
        """Whether other processes may start in another folder than this one."""
        return self.scheduler is not None

    def place(self, path: Path) -> Path:
        """Return a path that means the same to every worker."""
        return path.absolute() if self.far else path

    def require_device(self) -> None:
        """Raise `ConfigError` where the device is not here; the devices of a cluster are not known here."""
        if not self.far:
            select_device(self.device)

    def engine(self, slides: int) -> Backend:
        """Return what does the work."""
        from napari_lrmil.core.cohort import BackendChoice, choose_backend, parse_memory

        memory = None if self.memory is None else parse_memory(self.memory)
        gpus = 0 if self.far else _gpus(self.device)
        return choose_backend(BackendChoice(self.workers, self.scheduler, memory), slides=slides, gpus=gpus)


def _gpus(device: str) -> int:
    """Return how many CUDA devices would be used; 0 where the work is done elsewhere."""
    import torch

    from napari_lrmil.core.features.devices import resolve_device

    return torch.cuda.device_count() if resolve_device(device).type == "cuda" else 0


def require_writable(folder: Path) -> None:
    """Raise `ConfigError` where results cannot be written, before any work is done."""
    from napari_lrmil.core.errors import ConfigError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: no folder can be made there ({error.strerror}); choose another") from error


def run_with_progress(
    command: str,
    works: Sequence[SlideJob],
    task: SlideTask,
    where: ExecutionOptions,
    folder: Path,
    told: set[str] | None = None,
    tables: Callable[[], None] = lambda: None,
    results: Sequence[Path] = (),
) -> CohortProgress:
    """Do a task for every slide, tell of it as it goes, and leave ``failures.csv`` and the summary in `folder`.

    `tables` is called at the end, also after Ctrl-C: what is done stays, and is listed. `results` is what the slides
    leave, where that is not ``folder/<slide>``. See `exit_if_failed` for what is returned.
    """
    from napari_lrmil.core.atomic_files import remove_stale_partials
    from napari_lrmil.core.cohort import CohortProgress, run_cohort

    tally, engine, keep = CohortProgress(), where.engine(len(works)), partial(_keep, folder)
    leftovers: dict[Path, set[str]] = {}
    stream = run_cohort(works, task, engine, tally, on_failure=keep)
    try:
        show_progress(stream, command, quiet=len(works) == 1, shown_notices=told, on_partial=_tell)
    finally:
        keep(tally)
        tables()
        for place in results or [folder / work.name for work in works]:
            leftovers.setdefault(place.parent, set()).add(place.name)
        for parent, names in leftovers.items():
            remove_stale_partials(parent, names)
        if len(works) > 1 and tally.settled:
            _summary(folder, tally, engine)
    return tally


def exit_if_failed(tally: CohortProgress) -> None:
    """End a command where slides failed.

    Raises
    ------
    typer.Exit
        Where some did; of one slide alone, what was not expected is raised as it is, so that --debug shows where.
    """
    if tally.total == 1 and tally.failures and not tally.failures[0][1].is_expected:
        raise tally.failures[0][1].error or RuntimeError
    if tally.failures:
        raise typer.Exit(SOME_FAILED)


def _keep(folder: Path, tally: CohortProgress) -> None:
    """Write what failed so far; of slides that this call heard of, what earlier calls said no longer counts."""
    from napari_lrmil.core.results.cohort_tables import write_failure_rows

    write_failure_rows(folder, tally.rows, tally.settled_slides)


def _tell(outcome: Outcome) -> None:
    """Print the line of a slide that has its results."""
    if (told := outcome.result) is not None:
        name = outcome.job.path.name
        out.print(f"{name}: {told.text} -> {told.path}", highlight=False, soft_wrap=True)


def _summary(folder: Path, tally: CohortProgress, engine: Backend) -> None:
    summary = tally.summary(engine)
    summary.write(folder)
    peak = max(tally.worker_peak_mb.values(), default=0.0)
    pace = f"{summary.slides_per_hour} slides an hour; " if summary.slides_per_hour else ""
    text = (
        f"{tally.done} of {tally.total} slides done, {tally.reused} already there, {len(tally.failures)} failed; "
        f"{pace}at most {peak:.0f} MB in a worker"
    )
    err.print(text, highlight=False, soft_wrap=True)
