"""Run of a cohort: every slide once, failures a second time at the end, slides with colliding names refused."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from napari_lrmil.core.cohort.task import (
    WORKER,
    WRITE,
    Backend,
    Failure,
    Outcome,
    SlideJob,
    SlideTask,
    estimate_seconds_left,
)
from napari_lrmil.core.errors import DiskFullError
from napari_lrmil.core.events import Event, Failed, Notice, Partial, Progress
from napari_lrmil.core.results.schema import CohortFile, WorkerSummary
from napari_lrmil.core.text_escapes import printable

STAGE = "cohort"


@dataclass
class CohortProgress:
    """Outcomes of a cohort so far. It is consistent at any moment, so that interrupted work can be reported too.

    Attributes
    ----------
    total
        Slides of the cohort.
    done, reused
        Slides computed by this call, and slides whose results were kept from earlier calls.
    retried_jobs
        Slides that were attempted a second time.
    failures
        Slide and failure, in the order of their last attempt.
    settled_slides
        File names of the slides whose outcome is final.
    worker_slides, worker_peak_mb
        Worker -> number of outcomes, and its peak memory in MB.
    notices
        Sentences on what was left out of the folders and tables that the call was given.
    began
        Start of the work, by `time.monotonic`.
    """

    total: int = 0
    done: int = 0
    reused: int = 0
    retried_jobs: set[SlideJob] = field(default_factory=set)
    failures: list[tuple[SlideJob, Failure]] = field(default_factory=list)
    settled_slides: set[str] = field(default_factory=set)
    worker_slides: dict[str, int] = field(default_factory=dict)
    worker_peak_mb: dict[str, float] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    began: float = field(default_factory=time.monotonic)

    @property
    def settled(self) -> int:
        """Number of slides whose outcome is final."""
        return self.done + self.reused + len(self.failures)

    @property
    def retried(self) -> int:
        """Number of slides that were attempted a second time."""
        return len(self.retried_jobs)

    @property
    def seconds(self) -> float:
        """Wall seconds since the beginning."""
        return time.monotonic() - self.began

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds for the remaining slides; None before the first is computed."""
        return estimate_seconds_left(self.began, self.settled - self.reused, self.total - self.settled)

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Slide, step and reason of each failure, the columns of ``failures.csv``."""
        return [(job.file_name, failure.step, failure.reason) for job, failure in self.failures]

    def record(self, outcome: Outcome) -> None:
        """Count an outcome for its worker."""
        if outcome.worker:
            self.worker_slides[outcome.worker] = self.worker_slides.get(outcome.worker, 0) + 1
            peak = max(outcome.peak_mb, self.worker_peak_mb.get(outcome.worker, 0.0))
            self.worker_peak_mb[outcome.worker] = peak

    def summary(self, backend: Backend) -> CohortFile:
        """Return the content of ``cohort.json``."""
        workers = {
            name: WorkerSummary(tries=count, peak_memory_mb=round(self.worker_peak_mb[name], 1))
            for name, count in sorted(self.worker_slides.items())
        }
        computed, hours = self.done, self.seconds / 3600
        return CohortFile(
            engine=backend.text,
            slides=self.total,
            done=self.done,
            already_there=self.reused,
            failed=len(self.failures),
            retried=self.retried,
            seconds=round(self.seconds, 3),
            slides_per_hour=round(computed / hours, 1) if computed and hours else None,
            workers=workers,
            notices=tuple(map(printable, self.notices)),
        )


OnFailure = Callable[[CohortProgress], None]


def run_cohort(
    jobs: Sequence[SlideJob],
    task: SlideTask,
    backend: Backend,
    progress: CohortProgress,
    *,
    on_failure: OnFailure = lambda _: None,
) -> Generator[Event, None, None]:
    """Run a task on every slide and fill `progress`. A failed slide does not stop the others.

    Yields `Progress` with the time left, `Notice`, `Partial` with each successful `Outcome`, and `Failed` for each
    slide that failed for good. Of two slides whose results would have the same name, the second is refused.

    Parameters
    ----------
    progress
        An empty one.
    on_failure
        Called after each failure, so that the list of failures on disk survives this process.

    Raises
    ------
    DiskFullError
        If no space is left for results.
    """
    progress.total = len(jobs)
    todo, refused = _refuse_same_names(jobs)
    for job, failure in refused:
        yield _fail(progress, job, failure, on_failure)
    yield from _cohort_progress(progress)
    # Closing the generator ends the workers, also if this loop ends by an error.
    with closing(backend.run(todo, task)) as stream:
        for event in stream:
            if isinstance(event, Outcome):
                yield from _handle_outcome(event, progress, todo, on_failure)
            elif progress.total <= 1 or _is_shown(event):
                yield event


def _cohort_progress(progress: CohortProgress) -> Iterator[Event]:
    """Yield how far the cohort is; a single slide has its own progress."""
    if progress.total > 1:
        yield Progress(STAGE, progress.settled, progress.total, "slides", progress.seconds_left)


def _refuse_same_names(jobs: Sequence[SlideJob]) -> tuple[deque[SlideJob], list[tuple[SlideJob, Failure]]]:
    """Return the slides to process, and those whose results would overwrite the results of another slide."""
    first_of_name: dict[str, SlideJob] = {}
    accepted, refused = deque[SlideJob](), []
    for job in jobs:
        first = first_of_name.setdefault(os.path.normcase(job.name), job)  # Windows ignores case in file names
        if first is job:
            accepted.append(job)
        else:
            other = printable(first.path_in_cohort or first.path)
            reason = f"its results would overwrite those of {other}; rename one, or use another --out"
            refused.append((job, Failure(WRITE, reason, retry=False)))
    return accepted, refused


def _handle_outcome(
    outcome: Outcome, progress: CohortProgress, todo: deque[SlideJob], on_failure: OnFailure
) -> Iterator[Event]:
    """Settle a slide, or queue it for its second attempt after all others, when a passing fault may be over."""
    yield from outcome.notices
    progress.record(outcome)
    failure, job = outcome.failure, outcome.job
    if failure is not None and failure.retry and job not in progress.retried_jobs:
        progress.retried_jobs.add(job)
        todo.append(job)
        # Other errors are reported only if the second attempt fails too.
        if failure.step == WORKER:
            yield Notice(f"{failure.reason}; it is tried once more, after the others", job.name)
        return
    yield _settle(progress, outcome, on_failure)
    yield from _cohort_progress(progress)


def _settle(progress: CohortProgress, outcome: Outcome, on_failure: OnFailure) -> Event:
    """Count a final outcome and return its event; raises `DiskFullError`."""
    if outcome.failure is None:
        progress.settled_slides.add(outcome.job.file_name)
        if outcome.result is not None and outcome.result.is_reused:
            # Counted apart, because a reused slide takes no time and would spoil the pace.
            progress.reused += 1
        else:
            progress.done += 1
        return Partial(outcome)
    event = _fail(progress, outcome.job, outcome.failure, on_failure)
    if outcome.failure.fatal:
        # After the failure is listed: no other slide could be written either.
        raise DiskFullError(outcome.failure.reason)
    return event


def _fail(progress: CohortProgress, job: SlideJob, failure: Failure, on_failure: OnFailure) -> Failed:
    """Record a failed slide and return its event."""
    progress.failures.append((job, failure))
    progress.settled_slides.add(job.file_name)
    # At once, so that the list is on disk if this process is killed.
    on_failure(progress)
    return Failed(failure.reason, job.file_name, failure.step, failure.error)


def _is_shown(event: Event) -> bool:
    """Return whether an event within a slide is shown beside the progress of the cohort."""
    return isinstance(event, Notice) or (isinstance(event, Progress) and event.unit == "patches")
