"""Fit on several devices: one process per device, started and watched by the parent process.

Lightning's launcher starts the whole command again on every rank, so each rank would need its own features, lock and
log. Here a rank only runs `run_stage`. The parent never joins the group and writes all files except checkpoints. It can
kill ranks at any time, because checkpoints are written atomically.
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
    """Fit a stage in `plan.devices` processes and yield the events of the first one.

    `make` is passed as a file that all ranks map into memory, so bags are in memory once, not once per rank.

    Raises
    ------
    LrmilError
        If a rank fails with an error for the user, or ends without a reason.
    OutOfMemoryError
        If the memory of a device runs out.
    """
    with _payload(make, plan, scale) as file:
        ranks: list[Child] = []
        # The threads of this machine are divided between the processes: more would only take turns.
        port, threads = _free_port(), max(1, torch.get_num_threads() // plan.devices)
        try:
            for rank in range(plan.devices):
                name = f"process {rank + 1} of {plan.devices}"
                ranks.append(Child(name, rank_main, rank, plan.devices, port, threads, file))
            yield from _receive_events(plan, ranks)
        finally:
            for child in ranks:
                child.close()  # kill at once: finished ranks have nothing left to write, waiting ranks would not react


def _receive_events(plan: FitPlan, ranks: list[Child]) -> Generator[Event, None, None]:
    """Yield events until all ranks are done; raise the root cause if a rank fails."""
    waiting = set(ranks)
    while waiting:
        for child in wait_for_any(waiting):
            message = _receive(plan, child)
            if isinstance(message, RankDone):
                waiting.remove(child)
            elif isinstance(message, RankError):
                waiting.remove(child)
                raise (message if message.is_root_cause else _find_root_cause(plan, waiting) or message).error()
            else:
                yield message


def _find_root_cause(plan: FitPlan, waiting: set[Child]) -> RankError | None:
    """Return the first root cause that other ranks report within `ROOT_CAUSE_TIMEOUT_S`, or None."""
    end = time.monotonic() + ROOT_CAUSE_TIMEOUT_S
    while waiting and time.monotonic() < end:
        for child in wait_for_any(waiting, ROOT_CAUSE_TIMEOUT_S):
            message = _receive(plan, child)
            if isinstance(message, RankError):
                waiting.remove(child)
                if message.is_root_cause:
                    return message
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
    """Write `make`, with the tensors that it captured, and the plan to a temporary file, and delete it afterwards."""
    # `make` is a local function, which pickle cannot store by name.
    import cloudpickle  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory(prefix=temporary_prefix(plan), dir=plan.folder) as folder:
        file = Path(folder) / "make.pt"
        torch.save((make, replace(plan, loggers=()), scale), file, pickle_module=cloudpickle)
        yield file


def _free_port() -> int:
    """Return a port that is free now; port 0 asks the system for one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
