"""Cohorts: run one task on many slides, in this process, in local processes or on a cluster.

A task is a small value that travels to the workers. Slides are opened and networks are loaded there. Results go to disk
slide by slide, and only a summary of each comes back. A backend distributes the slides and reports an outcome for each.
`run_cohort` counts outcomes, retries failures and collects them.
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
