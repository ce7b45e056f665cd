"""Several devices: one process each, started and watched from the one that asked.

Lightning's own launcher starts the whole command again on every rank, so that features, lock and log would have to be
kept apart rank by rank. Here a rank does one thing, `run_stage`; the process that asked never joins the group, writes
all files but checkpoints, and can end ranks at any time, because checkpoints are written whole.
"""

from __future__ import annotations

import multiprocessing
import socket
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch

from lrmil_training.fitting.checkpoints import temporary_prefix
from lrmil_training.fitting.plan import FitPlan
from lrmil_training.fitting.process_entry import rank_main
from lrmil_training.fitting.rank_worker import _Done, _Problem
from lrmil_training.fitting.trainer import Make
from napari_lrmil.core.events import Event

SECOND_WORD_S = 2.0  # when one rank fails the others fail at the broken connection; the first reason may come later


def run_in_processes(make: Make, plan: FitPlan, scale: float) -> Generator[Event, None, None]:
    """Fit a stage in `plan.devices` processes and yield the events of the first of them.

    `make` travels as a file that all ranks map into memory, so bags are held once, not once a rank.
    """
    with _payload(make, plan, scale) as file:
        context = multiprocessing.get_context("spawn")
        ranks: dict[Connection, BaseProcess] = {}
        port, threads = _free_port(), max(1, torch.get_num_threads() // plan.devices)
        for rank in range(plan.devices):
            receive, send = context.Pipe(duplex=False)
            arguments = (rank, plan.devices, port, threads, file, send)
            name = f"process {rank + 1} of {plan.devices}"
            ranks[receive] = context.Process(target=rank_main, args=arguments, name=name, daemon=True)
            ranks[receive].start()
            send.close()  # so that the end of the process ends the pipe
        try:
            yield from _followed(plan, ranks)
        finally:
            for pipe, process in ranks.items():
                process.kill()  # no farewell: one that is done has nothing to add, one that waits would not hear it
                process.join()
                pipe.close()


def _followed(plan: FitPlan, ranks: Mapping[Connection, BaseProcess]) -> Generator[Event, None, None]:
    """Yield events until all ranks have said that they are done; raise the first reason where one has not."""
    waiting = dict(ranks)
    while waiting:
        for pipe in _ready(waiting):
            word = _word(plan, pipe, waiting[pipe])
            if isinstance(word, _Done):
                del waiting[pipe]
            elif isinstance(word, _Problem):
                del waiting[pipe]
                raise (word if word.is_told else _first_reason(plan, waiting) or word).error()
            else:
                yield word


def _first_reason(plan: FitPlan, waiting: dict[Connection, BaseProcess]) -> _Problem | None:
    end = time.monotonic() + SECOND_WORD_S
    while waiting and time.monotonic() < end:
        for pipe in _ready(waiting, SECOND_WORD_S):
            word = _word(plan, pipe, waiting[pipe])
            if isinstance(word, _Problem):
                del waiting[pipe]
                if word.is_told:
                    return word
    return None


def _ready(waiting: Mapping[Connection, BaseProcess], timeout: float | None = None) -> list[Connection]:
    return cast(list[Connection], wait(list(waiting), timeout))


def _word(plan: FitPlan, pipe: Connection, process: BaseProcess) -> Any:
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join(SECOND_WORD_S)
        return _Problem(
            "user",
            f"{plan.stage}: {process.name} ended with code {process.exitcode} and no reason, as when the system's "
            "memory runs out; start the same command again to go on, on fewer devices if it happens again",
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
