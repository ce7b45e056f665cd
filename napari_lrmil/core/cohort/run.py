"""The cohort as a whole: every slide once, failures once more at the end, names that would collide refused."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
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

STAGE = "cohort"
TRIES = 2


@dataclass
class CohortProgress:
    """What became of the slides so far; it is right at any moment, so that broken-off work can be told too.

    Attributes
    ----------
    total
        Slides of the cohort.
    done, reused
        Slides that gave results in this call, and those whose results were there.
    retried
        Slides that were tried a second time.
    failures
        Slide and why, in the order of their last try.
    settled_slides
        File names of the slides about which nothing more will be heard.
    worker_slides, worker_peak_mb
        Worker -> slides it was heard of, and the most memory that it held, MB.
    """

    total: int = 0
    done: int = 0
    reused: int = 0
    retried: int = 0
    failures: list[tuple[SlideJob, Failure]] = field(default_factory=list)
    settled_slides: set[str] = field(default_factory=set)
    worker_slides: dict[str, int] = field(default_factory=dict)
    worker_peak_mb: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def settled(self) -> int:
        """Slides about which nothing more will be heard."""
        return self.done + self.reused + len(self.failures)

    @property
    def seconds(self) -> float:
        """Wall seconds since the beginning."""
        return time.monotonic() - self.began

    @property
    def seconds_left(self) -> float | None:
        """How long the rest should take; None as long as nothing tells."""
        return estimate_seconds_left(self.began, self.settled - self.reused, self.total - self.settled)

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Slide, step and reason of each failure, as ``failures.csv`` has them."""
        return [(work.path.name, failure.step, failure.reason) for work, failure in self.failures]

    def record(self, outcome: Outcome) -> None:
        """Count an outcome for its worker."""
        if outcome.worker:
            self.worker_slides[outcome.worker] = self.worker_slides.get(outcome.worker, 0) + 1
            peak = max(outcome.peak_mb, self.worker_peak_mb.get(outcome.worker, 0.0))
            self.worker_peak_mb[outcome.worker] = peak

    def summary(self, engine: Backend) -> CohortFile:
        """Return the content of ``cohort.json``."""
        workers = {
            name: WorkerSummary(tries=count, peak_memory_mb=round(self.worker_peak_mb[name], 1))
            for name, count in sorted(self.worker_slides.items())
        }
        computed, hours = self.done, self.seconds / 3600
        return CohortFile(
            engine=engine.text,
            slides=self.total,
            done=self.done,
            already_there=self.reused,
            failed=len(self.failures),
            retried=self.retried,
            seconds=round(self.seconds, 3),
            slides_per_hour=round(computed / hours, 1) if computed and hours else None,
            workers=workers,
        )


def run_cohort(
    works: Sequence[SlideJob],
    task: SlideTask,
    engine: Backend,
    tally: CohortProgress,
    *,
    keep: Callable[[CohortProgress], None] = lambda _: None,
) -> Generator[Event, None, None]:
    """Do a task for every slide, and fill `tally`. One bad slide stops nobody.

    Yields `Progress` with the time left, `Notice`, `Partial` with the `Outcome` of every slide that is done, and
    `Failed` for each that is not, after its second try. Second tries come last, when a passing trouble may be over;
    what a slide *is* (no resolution, no tissue) is not asked twice.

    Parameters
    ----------
    works
        The slides. The second of two whose results would have one name is refused.
    task, engine
        What is done, and where.
    tally
        An empty one.
    keep
        Called after each failure, so that a list of them outlives this process.

    Raises
    ------
    DiskFullError
        Where no space is left for results.
    """
    tally.total = len(works)
    todo: deque[SlideJob] = deque()
    for work, failure in _refused(works, todo):
        yield _failed(tally, work, failure, keep)
    again: set[SlideJob] = set()
    several = tally.total > 1
    if several:
        yield Progress(STAGE, tally.settled, tally.total, "slides", tally.seconds_left)
    with closing(engine.run(todo, task)) as stream:
        for event in stream:
            if not isinstance(event, Outcome):
                yield from _within(event, several)
                continue
            yield from event.notices
            tally.record(event)
            if event.failure is not None and event.failure.retry and event.job not in again:
                again.add(event.job)
                tally.retried += 1
                todo.append(event.job)
                if event.failure.step == WORKER:
                    yield Notice(f"{event.failure.reason}; it is tried once more, after the others", event.job.name)
                continue
            yield _settled(tally, event, keep)
            if several:
                yield Progress(STAGE, tally.settled, tally.total, "slides", tally.seconds_left)


def _refused(works: Sequence[SlideJob], todo: deque[SlideJob]) -> list[tuple[SlideJob, Failure]]:
    """Add to `todo` what can be done, and return what cannot: results of one name would overwrite each other."""
    named: dict[str, SlideJob] = {}
    refused = []
    for work in works:
        first = named.setdefault(os.path.normcase(work.name), work)
        if first is work:
            todo.append(work)
        else:
            reason = f"its results would overwrite those of {first.path}; rename one, or use another --out"
            refused.append((work, Failure(WRITE, reason, retry=False)))
    return refused


def _settled(tally: CohortProgress, outcome: Outcome, keep: Callable[[CohortProgress], None]) -> Event:
    if outcome.failure is None:
        tally.settled_slides.add(outcome.job.path.name)
        if outcome.result is not None and outcome.result.is_reused:
            tally.reused += 1
        else:
            tally.done += 1
        return Partial(outcome)
    event = _failed(tally, outcome.job, outcome.failure, keep)
    if outcome.failure.fatal:
        raise DiskFullError(outcome.failure.reason)
    return event


def _failed(tally: CohortProgress, work: SlideJob, failure: Failure, keep: Callable[[CohortProgress], None]) -> Failed:
    tally.failures.append((work, failure))
    tally.settled_slides.add(work.path.name)
    keep(tally)
    return Failed(failure.reason, work.path.name, failure.step, failure.error)


def _within(event: Event, several: bool) -> Generator[Event, None, None]:
    """Yield what is worth telling of the events within a slide: all of them where there is only one."""
    if not several or isinstance(event, Notice) or (isinstance(event, Progress) and event.unit == "patches"):
        yield event
