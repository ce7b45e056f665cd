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
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch

from lrmil_training.checkpoints import travelling
from lrmil_training.fitloop import Make, State, run_stage
from lrmil_training.fitplan import FitPlan, StoppedError
from lrmil_training.rank import enter
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event
from napari_lrmil.core.readahead import memory_ran_out

SECOND_WORD_S = 2.0  # when one rank fails the others fail at the broken connection; the first reason may come later


class OutOfMemoryError(Exception):
    """A device's memory ran out."""


@dataclass(frozen=True)
class _Problem:
    """Why a rank ended: kinds of errors travel between processes, errors themselves often cannot."""

    kind: str
    message: str

    @property
    def is_told(self) -> bool:
        """Whether it is a reason of its own, and not what follows from another rank's end."""
        return self.kind != "unexpected"

    def error(self) -> Exception:
        kinds = {"memory": OutOfMemoryError, "stopped": StoppedError, "user": LrmilError}
        return kinds.get(self.kind, RuntimeError)(self.message)


class _Done:
    """Last word of a rank that came to its end."""


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
    with _payload(make, plan, scale) as file:
        context = multiprocessing.get_context("spawn")
        ranks: dict[Connection, BaseProcess] = {}
        port, threads = _free_port(), max(1, torch.get_num_threads() // plan.devices)
        for rank in range(plan.devices):
            receive, send = context.Pipe(duplex=False)
            arguments = (rank, plan.devices, port, threads, file, send)
            name = f"process {rank + 1} of {plan.devices}"
            ranks[receive] = context.Process(target=enter, args=arguments, name=name, daemon=True)
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

    with tempfile.TemporaryDirectory(prefix=travelling(plan), dir=plan.folder) as folder:
        file = Path(folder) / "make.pt"
        torch.save((make, replace(plan, loggers=()), scale), file, pickle_module=cloudpickle)
        yield file


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def fit_rank(rank: int, payload: Path, pipe: Connection) -> None:
    """Do a rank's part; the first one tells of the events."""
    try:
        made = torch.load(payload, map_location="cpu", weights_only=False, mmap=True)  # ours, of a moment ago
        make, plan, scale = made
        run_stage(make, plan, scale, State(), pipe.send if rank == 0 else lambda _: None, lambda: False)
        pipe.send(_Done())
    except BaseException as error:
        pipe.send(_problem(error))
    finally:
        pipe.close()
