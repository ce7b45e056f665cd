"""A list of slides and a task become a stream of events: here, in local processes, or on a cluster.

A task is a small value that travels to wherever the work is done; slides are opened and networks loaded there. What it
finds it writes to disk slide by slide, and only a few words about it come back. An engine hands slides out and tells
what became of each; `run_cohort` counts, tries again, and keeps the list of failures.
"""

from napari_lrmil.core.cohort.backends import EngineChoice, choose_engine, parse_memory
from napari_lrmil.core.cohort.run import Tally, run_cohort
from napari_lrmil.core.cohort.task import Engine, Failure, Outcome, SlideTask, SlideWork, Told

__all__ = [
    "Engine",
    "EngineChoice",
    "Failure",
    "Outcome",
    "SlideTask",
    "SlideWork",
    "Tally",
    "Told",
    "choose_engine",
    "parse_memory",
    "run_cohort",
]
