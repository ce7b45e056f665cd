"""Several devices: one process each, started and watched from the one that asked.

Lightning's own launcher starts the whole command again on every rank, so that features, lock and log would have to be
kept apart rank by rank. Here a rank does one thing, `run_stage`; the process that asked never joins the group, writes
all files but checkpoints, and can end ranks at any time, because checkpoints are written whole.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import torch

from lrmil_training.fitloop import Make, State, run_stage
from lrmil_training.fitplan import FitPlan, StoppedError
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event

SECOND_WORD_S = 2.0  # when one rank fails the others fail at the broken connection; the first reason may come later
JOIN_S = 30.0  # for the group to take leave


class OutOfMemoryError(Exception):
    """A device's memory ran out."""


def memory_ran_out(error: BaseException) -> bool:
    """Return whether an error says that a device's memory ran out; Apple's says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


@dataclass(frozen=True)
class _Problem:
    """Why a rank ended: kinds of errors travel between processes, errors themselves often cannot."""

    kind: str
    message: str

    def error(self) -> Exception:
        kinds = {"memory": OutOfMemoryError, "stopped": StoppedError, "user": LrmilError}
        return kinds.get(self.kind, RuntimeError)(self.message)


def _problem(error: BaseException) -> _Problem:
    if memory_ran_out(error):
        return _Problem("memory", str(error))
    if isinstance(error, LrmilError):
        return _Problem("stopped" if isinstance(error, StoppedError) else "user", str(error))
    return _Problem("unexpected", "".join(traceback.format_exception(error)))


def run_in_processes(make: Make, plan: FitPlan, scale: float) -> Generator[Event, None, None]:
    """Fit a stage in `plan.devices` processes and yield the events of the first of them.

    `make` travels as a file that all ranks map into memory, so bags are held once, not once a rank.
    """
    with _payload(make, plan) as file:
        context = multiprocessing.get_context("spawn")
        processes, pipes = [], []
        port = _free_port()
        for rank in range(plan.devices):
            receive, send = context.Pipe(duplex=False)
            arguments = (rank, port, file, replace(plan, loggers=()), scale, send)
            processes.append(context.Process(target=_rank, args=arguments, name=f"{plan.stage}-{rank}", daemon=True))
            processes[-1].start()
            send.close()  # so that the end of the process ends the pipe
            pipes.append(receive)
        try:
            yield from _followed(plan, pipes)
            for rank, process in enumerate(processes):
                process.join(JOIN_S)
                if process.exitcode != 0:
                    raise LrmilError(_died(plan, rank, process))
        finally:
            for process in processes:
                process.kill()  # no farewell: a rank that waits for another would never hear it
                process.join()
            for pipe in pipes:
                pipe.close()


def _followed(plan: FitPlan, pipes: list[Connection]) -> Generator[Event, None, None]:
    """Yield events until all ranks have closed their pipes; raise what the first of them met."""
    waiting = list(pipes)
    while waiting:
        for pipe in _ready(waiting):
            try:
                word = pipe.recv()
            except (EOFError, ConnectionResetError):
                waiting.remove(pipe)
                continue
            if not isinstance(word, _Problem):
                yield word
                continue
            problems = [word, *_second_words([one for one in waiting if one is not pipe])]
            raise min(problems, key=lambda p: p.kind == "unexpected").error()


def _ready(pipes: list[Connection], timeout: float | None = None) -> list[Connection]:
    return cast(list[Connection], wait(pipes, timeout))


def _second_words(pipes: list[Connection]) -> Iterator[_Problem]:
    for pipe in _ready(pipes, SECOND_WORD_S):
        with contextlib.suppress(EOFError, ConnectionResetError):
            word = pipe.recv()
            if isinstance(word, _Problem):
                yield word


def _died(plan: FitPlan, rank: int, process: BaseProcess) -> str:
    return (
        f"{plan.stage}: process {rank + 1} of {plan.devices} ended with code {process.exitcode} and no reason, as when "
        "the system's memory runs out; start the same command again to go on, on fewer devices if it happens again"
    )


@contextmanager
def _payload(make: Make, plan: FitPlan) -> Iterator[Path]:
    """Lend a private file that holds `make` and the tensors it captured."""
    import cloudpickle  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory(prefix=f".{plan.stage}.", dir=plan.folder) as folder:
        file = Path(folder) / "make.pt"
        torch.save(make, file, pickle_module=cloudpickle)
        yield file


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _rank(rank: int, port: int, file: Path, plan: FitPlan, scale: float, pipe: Connection) -> None:
    """Be one of the processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked hears it too, and decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    group = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": plan.devices, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(max(1, torch.get_num_threads() // plan.devices))
    try:
        make = torch.load(file, map_location="cpu", weights_only=False, mmap=True)  # made by us a moment ago
        run_stage(make, plan, scale, State(), pipe.send if rank == 0 else lambda _: None, lambda: False)
    except BaseException as error:
        pipe.send(_problem(error))
    finally:
        pipe.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
