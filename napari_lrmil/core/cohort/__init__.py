"""A list of slides and a task become a stream of events: here, in local processes, or on a cluster.

A task is a small value that travels to wherever the work is done; slides are opened and networks loaded there. What it
finds it writes to disk slide by slide, and only a few words about it come back. An engine hands slides out and tells
what became of each; `run_cohort` counts, tries again, and keeps the list of failures.
"""

from napari_lrmil.core.cohort.backends import BackendChoice, choose_backend, parse_memory
from napari_lrmil.core.cohort.run import CohortProgress, run_cohort
from napari_lrmil.core.cohort.task import Backend, Failure, Outcome, SlideJob, SlideTask, TaskResult

__all__ = [
    "Backend",
    "BackendChoice",
    "CohortProgress",
    "Failure",
    "Outcome",
    "SlideJob",
    "SlideTask",
    "TaskResult",
    "choose_backend",
    "parse_memory",
    "run_cohort",
]
