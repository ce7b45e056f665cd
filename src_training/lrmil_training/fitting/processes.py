"""Several devices: one process each, started and watched from the one that asked.

Lightning's own launcher starts the whole command again on every rank, so that features, lock and log would have to be
kept apart rank by rank. Here a rank does one thing, `run_stage`; the process that asked never joins the group, writes
all files but checkpoints, and can end ranks at any time, because checkpoints are written whole.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lrmil_training.fitting.checkpoints import temporary_prefix
from lrmil_training.fitting.plan import FitPlan
from lrmil_training.fitting.process_entry import rank_main
from lrmil_training.fitting.rank_worker import _Done, _Problem
from lrmil_training.fitting.trainer import Make
from napari_lrmil.core.events import Event
from napari_lrmil.core.processes import Child, ChildEndedError, wait_for_any

SECOND_WORD_S = 2.0  # when one rank fails the others fail at the broken connection; the first reason may come later


def run_in_processes(make: Make, plan: FitPlan, scale: float) -> Generator[Event, None, None]:
    """Fit a stage in `plan.devices` processes and yield the events of the first of them.

    `make` travels as a file that all ranks map into memory, so bags are held once, not once a rank.
    """
    with _payload(make, plan, scale) as file:
        ranks: list[Child] = []
        port, threads = _free_port(), max(1, torch.get_num_threads() // plan.devices)
        try:
            for rank in range(plan.devices):
                name = f"process {rank + 1} of {plan.devices}"
                ranks.append(Child(name, rank_main, rank, plan.devices, port, threads, file))
            yield from _followed(plan, ranks)
        finally:
            for child in ranks:
                child.close()  # no farewell: one that is done has nothing to add, one that waits would not hear it


def _followed(plan: FitPlan, ranks: list[Child]) -> Generator[Event, None, None]:
    """Yield events until all ranks have said that they are done; raise the first reason where one has not."""
    waiting = set(ranks)
    while waiting:
        for child in wait_for_any(waiting):
            word = _word(plan, child)
            if isinstance(word, _Done):
                waiting.remove(child)
            elif isinstance(word, _Problem):
                waiting.remove(child)
                raise (word if word.is_told else _first_reason(plan, waiting) or word).error()
            else:
                yield word


def _first_reason(plan: FitPlan, waiting: set[Child]) -> _Problem | None:
    end = time.monotonic() + SECOND_WORD_S
    while waiting and time.monotonic() < end:
        for child in wait_for_any(waiting, SECOND_WORD_S):
            word = _word(plan, child)
            if isinstance(word, _Problem):
                waiting.remove(child)
                if word.is_told:
                    return word
    return None


def _word(plan: FitPlan, child: Child) -> Any:
    try:
        return child.receive()
    except ChildEndedError:
        return _Problem(
            "user",
            f"{plan.stage}: {child.exit_text(child.name, ' and no reason')}; start the same command again to go on, "
            "on fewer devices if it happens again",
        )


@contextmanager
def _payload(make: Make, plan: FitPlan, scale: float) -> Iterator[Path]:
    """Lend a private file that holds what a rank needs, with the tensors that `make` captured."""
    import cloudpickle  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory(prefix=temporary_prefix(plan), dir=plan.folder) as folder:
        file = Path(folder) / "make.pt"
        torch.save((make, replace(plan, loggers=()), scale), file, pickle_module=cloudpickle)
        yield file


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
