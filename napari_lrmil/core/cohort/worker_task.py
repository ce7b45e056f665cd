"""Task that is built in each worker, so that the process that watches them need not import what the task needs."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from napari_lrmil.core.cohort.task import SlideJob, SlideTask, TaskResult
from napari_lrmil.core.events import Event


@dataclass(frozen=True)
class WorkerTask:
    """Cohort task of a class whose module only the workers import.

    Attributes
    ----------
    module, name
        Module and name of the class of the task.
    arguments
        Picklable arguments of the class by name.
    shared_imports
        See `SlideTask`.
    """

    module: str
    name: str
    arguments: Mapping[str, Any]
    shared_imports: tuple[str, ...]

    def prepare(self, threads: int) -> None:
        """See `SlideTask`."""
        self._build().prepare(threads)

    def __call__(self, job: SlideJob) -> Generator[Event, None, TaskResult]:
        """See `SlideTask`."""
        return (yield from self._build()(job))

    def _build(self) -> SlideTask:
        task: SlideTask = getattr(import_module(self.module), self.name)(**self.arguments)
        return task
