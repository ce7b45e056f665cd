"""Options and progress of the commands on cohorts: where the work is done, and the files beside the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_lrmil.cli.console import SOME_FAILED, print_notice, print_result, select_device, show_progress
from napari_lrmil.core.formatting import format_count

if TYPE_CHECKING:
    from napari_lrmil.core.cohort import Backend, CohortProgress, Outcome, SlideJob, SlideTask

TABLES_LOCK = ".tables.lock"
LOCK_TIMEOUT_S = 600  # writing the tables of a large cohort takes seconds; a task that died releases the lock

WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="slides at once, each in its own process; if not given: one, or one per GPU"),
]
SchedulerOption = Annotated[
    str | None, typer.Option(help="a dask scheduler, such as tcp://host:8786; or slurm, or slurm:FILE.yaml")
]
MemoryOption = Annotated[
    str | None,
    typer.Option(help="memory limit of each worker, such as 2GB; a worker above it is ended, and its slide has failed"),
]


@dataclass(frozen=True)
class ExecutionOptions:
    """Options on where the slides of a cohort are processed.

    Attributes
    ----------
    workers, scheduler, memory, device
        Values of ``--workers``, ``--scheduler``, ``--memory`` and ``--device``.
    """

    workers: int | None
    scheduler: str | None
    memory: str | None
    device: str

    @property
    def is_remote(self) -> bool:
        """Whether workers may run on other machines, in another working directory."""
        return self.scheduler is not None

    def resolve_path(self, path: Path) -> Path:
        """Return a path that is the same file for every worker."""
        # Workers of a cluster start in working directories of their own.
        return path.absolute() if self.is_remote else path

    @property
    def load_device(self) -> str:
        """Device of a network that this process loads; the CPU if workers of a cluster compute."""
        from napari_lrmil.core.features.devices import resolve_device

        return "cpu" if self.is_remote else resolve_device(self.device)

    def require_device(self) -> None:
        """Raise `ConfigError` if this machine lacks the device. Devices of a cluster cannot be checked here."""
        if not self.is_remote:
            select_device(self.device)

    def backend(self, slides: int) -> Backend:
        """Return the backend for a number of slides."""
        from napari_lrmil.core.cohort import BackendChoice, choose_backend, parse_memory

        # Parsed before any slide is opened, so that a wrong --memory is a wrong call.
        memory = None if self.memory is None else parse_memory(self.memory)
        gpus = 0 if self.is_remote else _count_gpus(self.device)
        return choose_backend(BackendChoice(self.workers, self.scheduler, memory), slides=slides, gpus=gpus)


def start_imports_of_workers(module: str, slides: Sequence[Path], workers: int | None, scheduler: str | None) -> bool:
    """Let the process that workers are forked from import a module now, and return whether there is such a process.

    Parameters
    ----------
    module
        Module that imports all that workers need.
    slides
        Files, folders and tables as the user gave them. A single file needs no workers.
    workers, scheduler
        Values of ``--workers`` and ``--scheduler``.
    """
    from napari_lrmil.core.processes import start_server
    from napari_lrmil.core.slides.slide_files import is_table

    is_cohort = len(slides) > 1 or slides[0].is_dir() or is_table(slides[0])
    return is_cohort and scheduler is None and (workers or 1) > 1 and start_server([module])


def _count_gpus(device: str) -> int:
    """Return the number of CUDA devices to use; 0 if the work is done on another kind of device."""
    from napari_lrmil.core.features.devices import device_type, resolve_device

    if device_type(resolve_device(device)) != "cuda":
        return 0
    import torch

    return torch.cuda.device_count()


def run_with_progress(
    command: str,
    jobs: Sequence[SlideJob],
    task: SlideTask,
    execution: ExecutionOptions,
    folder: Path,
    *,
    shown_notices: set[str] | None = None,
    write_tables: Callable[[], None] = lambda: None,
    results: Sequence[Path] = (),
    notices: Sequence[str] = (),
    is_part: bool = False,
) -> CohortProgress:
    """Run a task on every slide, show progress, and write ``failures.csv`` and ``cohort.json`` to `folder`.

    Parameters
    ----------
    write_tables
        Called at the end, also after Ctrl-C, so that finished slides are listed.
    results
        Files or folders of the results, if they are not ``folder/<slide>``. Stale partial files beside them are
        removed.
    notices
        Sentences for ``cohort.json`` on what was left out of the given folders and tables.
    is_part
        Whether other calls write into the same folder now. Tables are then written under a lock, and ``cohort.json``,
        which is about one call, is not written.
    """
    from napari_lrmil.core.cohort import CohortProgress, run_cohort

    progress, backend = CohortProgress(notices=tuple(notices)), execution.backend(len(jobs))
    lock = partial(_lock_tables, folder, is_part)
    list_failures = partial(_list_failures, folder, lock)
    events = run_cohort(jobs, task, backend, progress, on_failure=list_failures)
    try:
        show_progress(events, command, quiet=len(jobs) == 1, shown_notices=shown_notices, on_partial=_print_result)
    finally:
        # Also after Ctrl-C or a full disk: finished and failed slides must be in the tables.
        list_failures(progress)
        with lock():
            write_tables()
        _remove_leftovers(results or [folder / job.name for job in jobs])
        # A call on a single slide must not replace the summary of the cohort in this folder.
        if len(jobs) > 1 and progress.settled:
            _write_summary(folder, progress, backend, is_part)
    return progress


def exit_if_failed(progress: CohortProgress) -> None:
    """End a command with exit code `SOME_FAILED` if slides failed.

    Raises
    ------
    typer.Exit
        If at least one slide failed. An unexpected error of a single slide is raised itself, for ``--debug``.
    """
    # Expected errors were printed as one sentence when they occurred.
    if progress.total == 1 and progress.failures and not progress.failures[0][1].is_expected:
        raise progress.failures[0][1].error or RuntimeError
    if progress.failures:
        raise typer.Exit(SOME_FAILED)


def _lock_tables(folder: Path, is_part: bool) -> AbstractContextManager[object]:
    """Return a lock on the tables of a folder that several calls share; nothing for a call alone."""
    if not is_part:
        return nullcontext()
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / TABLES_LOCK, timeout=LOCK_TIMEOUT_S)


def _list_failures(folder: Path, lock: Callable[[], AbstractContextManager[object]], progress: CohortProgress) -> None:
    """Write the failures so far. Rows of earlier calls about slides that this call settled are dropped."""
    from napari_lrmil.core.results.cohort_tables import write_failure_rows

    with lock():
        write_failure_rows(folder, progress.rows, progress.settled_slides)


def _remove_leftovers(results: Sequence[Path]) -> None:
    """Remove the partial files that killed calls left beside these results."""
    # Partial files of living processes and of other slides stay.
    from napari_lrmil.core.atomic_files import remove_stale_partials

    names_by_folder: dict[Path, set[str]] = {}
    for path in results:
        names_by_folder.setdefault(path.parent, set()).add(path.name)
    for parent, names in names_by_folder.items():
        remove_stale_partials(parent, names)


def _print_result(outcome: Outcome) -> None:
    """Print one line about a slide that is done."""
    if (result := outcome.result) is not None:
        print_result(f"{outcome.job.file_name}: {result.text} -> {result.path}")


def _write_summary(folder: Path, progress: CohortProgress, backend: Backend, is_part: bool) -> None:
    """Write ``cohort.json``, unless the call is a part of several, and print its figures."""
    summary = progress.summary(backend)
    if not is_part:
        summary.write(folder)
    peak = max(progress.worker_peak_mb.values(), default=0.0)
    pace = f"{summary.slides_per_hour} slides an hour; " if summary.slides_per_hour else ""
    text = (
        f"{progress.done} of {format_count(progress.total, 'slide')} done, {progress.reused} already there, "
        f"{len(progress.failures)} failed; {pace}at most {peak:.0f} MB in a worker"
    )
    print_notice("", text)
