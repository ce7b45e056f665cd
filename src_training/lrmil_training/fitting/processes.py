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
from lrmil_training.fitting.rank_worker import RankDone, RankError
from lrmil_training.fitting.trainer import FitFactory
from napari_lrmil.core.events import Event
from napari_lrmil.core.processes import Child, ChildEndedError, wait_for_any

# The rank that failed first may report after those that failed because they lost the connection to it.
ROOT_CAUSE_TIMEOUT_S = 2.0


def run_in_processes(make: FitFactory, plan: FitPlan, scale: float) -> Generator[Event, None, None]:
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
            yield from _receive_events(plan, ranks)
        finally:
            for child in ranks:
                child.close()  # no farewell: one that is done has nothing to add, one that waits would not hear it


def _receive_events(plan: FitPlan, ranks: list[Child]) -> Generator[Event, None, None]:
    """Yield events until all ranks have said that they are done; raise the first reason where one has not."""
    waiting = set(ranks)
    while waiting:
        for child in wait_for_any(waiting):
            word = _receive(plan, child)
            if isinstance(word, RankDone):
                waiting.remove(child)
            elif isinstance(word, RankError):
                waiting.remove(child)
                raise (word if word.is_told else _find_root_cause(plan, waiting) or word).error()
            else:
                yield word


def _find_root_cause(plan: FitPlan, waiting: set[Child]) -> RankError | None:
    end = time.monotonic() + ROOT_CAUSE_TIMEOUT_S
    while waiting and time.monotonic() < end:
        for child in wait_for_any(waiting, ROOT_CAUSE_TIMEOUT_S):
            word = _receive(plan, child)
            if isinstance(word, RankError):
                waiting.remove(child)
                if word.is_told:
                    return word
    return None


def _receive(plan: FitPlan, child: Child) -> Any:
    try:
        return child.receive()
    except ChildEndedError:
        return RankError(
            "user",
            f"{plan.stage}: {child.exit_text(child.name, ' and no reason')}; start the same command again to go on, "
            "on fewer devices if it happens again",
        )


@contextmanager
def _payload(make: FitFactory, plan: FitPlan, scale: float) -> Iterator[Path]:
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
