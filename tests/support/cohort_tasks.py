"""Light tasks for cohort tests. They travel to workers, which import this module themselves."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from napari_lrmil.core.cohort import Backend, CohortProgress, SlideJob, TaskResult, run_cohort
from napari_lrmil.core.errors import (
    BagError,
    DiskFullError,
    LrmilError,
    RegionError,
    ResolutionError,
    SlideError,
    TissueError,
)
from napari_lrmil.core.events import Event, Notice, Progress, StageDone

LOG, DONE, GIVEN_UP = "log", "done", "given up"


@dataclass(frozen=True)
class Logged:
    """Task that acts as the slide's name says, and appends a line to a log each time it computes."""

    shared_imports: ClassVar = (__name__,)
    folder: Path

    def prepare(self, threads: int) -> None:
        (self.folder / "threads").write_text(str(threads))

    def __call__(self, job: SlideJob) -> Generator[Event, None, TaskResult]:
        mark = self.folder / f"{job.name}.{DONE}"
        if mark.exists():
            return TaskResult("there", mark, is_reused=True)
        yield Notice("about the model", job.name)
        with (self.folder / LOG).open("a") as log:
            log.write(f"{job.name}\n")
        for prefix, act in ACTS.items():
            if job.name.startswith(prefix):
                act(self.folder / f"{job.name}.seen")
        if job.name.startswith("ticks"):
            yield from self._ticks(job)
        yield Progress("encode", 1, 1)
        mark.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        return TaskResult("done", mark)

    def _ticks(self, job: SlideJob) -> Generator[Event, None, None]:
        """Yield a minute of batches, and leave a mark if the slide is abandoned."""
        try:
            for tick in range(600):
                time.sleep(0.1)
                yield Progress("encode", tick, 600)
        except GeneratorExit:
            (self.folder / f"{job.name}.{GIVEN_UP}").touch()
            raise


def _kill(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_once(seen: Path) -> None:
    if not seen.exists():
        seen.touch()
        _kill(seen)


def _end_job_once(seen: Path) -> None:
    """End the whole SLURM job with its nanny: the job leads a process group of its own."""
    if not seen.exists():
        seen.touch()
        group = os.getpgid(os.getppid())
        assert group != int(os.environ["GROUP_OF_TESTS"])
        os.killpg(group, signal.SIGKILL)
        time.sleep(30)


def _fail_once(seen: Path) -> None:
    if not seen.exists():
        seen.touch()
        raise OSError("the share is away")


def _no_mpp(seen: Path) -> None:
    raise ResolutionError(seen, "no resolution")


def _take_memory(_: Path) -> None:
    held = bytearray(400_000_000)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(240)


def _meet(seen: Path) -> None:
    """Wait until another worker is at such a slide too."""
    seen.touch()
    while len(list(seen.parent.glob("meets*.seen"))) < 2:
        time.sleep(0.01)


ACTS = {
    "dies once": _kill_once,
    "job ends once": _end_job_once,
    "dies always": _kill,
    "fails once": _fail_once,
    "no mpp": _no_mpp,
    "takes memory": _take_memory,
    "waits": lambda _: time.sleep(600),
    "meets": _meet,
    "pauses": lambda _: time.sleep(0.3),
}


def count_computed(folder: Path) -> Counter[str]:
    """Return slide name -> how often it was computed."""
    log = folder / LOG
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def finished_slides(folder: Path) -> set[str]:
    """Return the names of the slides that have a result."""
    return {path.name.removesuffix(f".{DONE}") for path in folder.glob(f"*.{DONE}")}


def make_jobs(*names: str) -> list[SlideJob]:
    """Return jobs for slides of these names."""
    return [SlideJob(Path(f"{name}.svs")) for name in names]


def run_to_end(
    jobs: list[SlideJob], task: Any, backend: Backend, on_failure: Callable[[CohortProgress], None] = lambda _: None
) -> tuple[CohortProgress, list[Event]]:
    """Run a cohort to its end and return its progress and events."""
    progress = CohortProgress()
    return progress, list(run_cohort(jobs, task, backend, progress, on_failure=on_failure))


@dataclass(frozen=True)
class Raising:
    """Task that raises an error of the given kind, at the step that belongs to it."""

    shared_imports: ClassVar = (__name__,)
    kind: str

    def prepare(self, threads: int) -> None:
        """Nothing to prepare."""

    def __call__(self, job: SlideJob) -> Generator[Event, None, Any]:
        errors: dict[str, tuple[int, Exception]] = {
            "open": (0, SlideError(job.path, "no slide")),
            "no mpp": (1, ResolutionError(job.path, "no resolution")),
            "glass": (1, TissueError(job.path, "no tissue")),
            "overview": (1, SlideError(job.path, "level 4 could not be read")),
            "region": (1, RegionError("no regions")),
            "tile": (2, SlideError(job.path, "level 2 could not be read")),
            "encode": (2, LrmilError("the memory of cuda does not hold a single patch")),
            "bug": (2, RuntimeError("two\nlines")),
            "write": (3, OSError("no such device")),
            "bag": (3, BagError("x.h5", "in the way")),
            "memory": (2, MemoryError()),
            "full": (3, DiskFullError("no space is left")),
        }
        after, error = errors[self.kind]
        events = [Progress("tissue", 0, 1, "slide"), StageDone("tissue", 0.1), Progress("writing", 0, 4, "files")]
        yield from events[:after]
        raise error


class Unimportable:
    """Task that ends the process that unpickles it."""

    shared_imports: ClassVar = (__name__,)

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (9,)

    def prepare(self, threads: int) -> None:
        """Never reached."""

    def __call__(self, job: SlideJob) -> Generator[Event, None, Any]:
        raise NotImplementedError
        yield


@dataclass(frozen=True)
class KillsItsWorker:
    """Another task whose worker is killed once, in the middle of one slide; computed slides are logged."""

    shared_imports: ClassVar = (__name__,)
    task: Any
    victim: str
    folder: Path

    def prepare(self, threads: int) -> None:
        self.task.prepare(threads)

    def __call__(self, job: SlideJob) -> Generator[Event, None, Any]:
        seen = self.folder / "seen"
        stream = self.task(job)
        while True:
            try:
                event = next(stream)
            except StopIteration as end:
                if not end.value.is_reused:
                    with (self.folder / LOG).open("a") as log:
                        log.write(f"{job.name}\n")
                return end.value
            if job.name == self.victim and event == StageDone("tissue", getattr(event, "seconds", 0)):
                _kill_once(seen)
            yield event
