"""Child processes, each with a pipe to the process that started it.

Each child has its own pipe, so the death of one child is known and leaves the others running. The executors of the
standard library break as a whole and do not state which task ended a process. This module must not import torch: a
child sets environment variables that torch reads at import.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from typing import Any, TypeVarTuple, cast

FAREWELL_S = 5.0  # seconds to wait for a process whose pipe has closed
Ts = TypeVarTuple("Ts")


def start_context() -> SpawnContext:
    """Return the start method of children. A fork would inherit threads of torch and OpenSlide."""
    return multiprocessing.get_context("spawn")


class ChildEndedError(Exception):
    """A child process has ended and will send no message."""


class Child:
    """A spawned child process.

    It ignores Ctrl-C, which reaches the whole process group, because the parent decides. It ends with its parent.

    Parameters
    ----------
    name
        Name of the process.
    target
        Function to run in the child. It receives the child's end of the pipe and `args`.
    args
        Picklable arguments.

    Attributes
    ----------
    name
        As given.
    pid
        Process number.
    """

    def __init__(self, name: str, target: Callable[[Connection, *Ts], None], *args: *Ts) -> None:
        context = start_context()
        self._pipe, child_end = context.Pipe()
        self._process = context.Process(target=_enter, args=(child_end, target, args), name=name, daemon=True)
        self._process.start()
        child_end.close()  # an open copy here would keep the pipe open after the child has ended
        self.name, self.pid = name, self._process.pid or 0

    def send(self, message: Any) -> None:
        """Send a message; raise `OSError` if the child has ended."""
        self._pipe.send(message)

    def receive(self) -> Any:
        """Wait for the next message and return it.

        Raises
        ------
        ChildEndedError
            If the child ended without sending one.
        """
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(FAREWELL_S)  # so that `exit_text` has its code
            raise ChildEndedError(self.name) from error

    def exit_text(self, subject: str, detail: str = "") -> str:
        """Return a sentence about a child that ended without a reason. `detail` follows the code or signal."""
        code = self._process.exitcode or 0
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"{subject} {how}{detail}, as when the memory of the machine runs out"

    def kill(self) -> None:
        """Kill the child. Its pipe stays open for the messages that are left."""
        self._process.kill()

    def close(self) -> None:
        """Kill the child if it still runs, and close its pipe."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()


def wait_for_any(children: Iterable[Child], timeout: float | None = None) -> list[Child]:
    """Wait until a child has sent a message or ended, and return those that have. `timeout` is in seconds."""
    by_pipe = {child._pipe: child for child in children}
    return [by_pipe[pipe] for pipe in cast(list[Connection], wait(list(by_pipe), timeout))]


def _enter(pipe: Connection, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    target(pipe, *args)


def _end_with_parent() -> None:
    """Exit when the parent ends. A restart must not meet a child that is still writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
