"""Child processes, each with a pipe to the process that started it.

A child is known by its pipe, so one that dies is told apart from the others and takes none of them along. An executor
of the standard library breaks as a whole and does not say which task ended it. No torch here: a child may have to set
what torch reads at import.
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

FAREWELL_S = 5.0  # a process whose pipe has ended is at its own end
Ts = TypeVarTuple("Ts")


def start_context() -> SpawnContext:
    """Return how children are started: a fork of this process would inherit threads of torch and OpenSlide."""
    return multiprocessing.get_context("spawn")


class ChildEndedError(Exception):
    """A child has ended, so that no message will come from it."""


class Child:
    """A spawned process, as the process that started it sees it.

    It ignores Ctrl-C, which reaches the whole group, because its parent decides; it ends with its parent.

    Parameters
    ----------
    name
        Of the process.
    target
        Runs in the child; given the child's end of the pipe and `args`.
    args
        Have to be picklable.

    Attributes
    ----------
    name
        As given.
    pid
        Number of the process.
    """

    def __init__(self, name: str, target: Callable[[Connection, *Ts], None], *args: *Ts) -> None:
        context = start_context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_enter, args=(theirs, target, args), name=name, daemon=True)
        self._process.start()
        theirs.close()  # else the pipe would not end with the process
        self.name, self.pid = name, self._process.pid or 0

    def send(self, message: Any) -> None:
        """Send a message; raise `OSError` if the child has ended."""
        self._pipe.send(message)

    def receive(self) -> Any:
        """Return the next message, waiting for it.

        Raises
        ------
        ChildEndedError
            If the child ended without one.
        """
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(FAREWELL_S)  # so that `exit_text` has its code
            raise ChildEndedError(self.name) from error

    def exit_text(self, subject: str, detail: str = "") -> str:
        """Return how the child ended without giving a reason; `detail` follows the code or signal."""
        code = self._process.exitcode or 0
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"{subject} {how}{detail}, as when the memory of the machine runs out"

    def kill(self) -> None:
        """End the child at once; its pipe stays, to be read to its end."""
        self._process.kill()

    def close(self) -> None:
        """End the child, if it has not ended, and give its pipe back."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()


def wait_for_any(children: Iterable[Child], timeout: float | None = None) -> list[Child]:
    """Return the children that have sent a message or have ended, after `timeout` seconds at the latest."""
    by_pipe = {child._pipe: child for child in children}
    return [by_pipe[pipe] for pipe in cast(list[Connection], wait(list(by_pipe), timeout))]


def _enter(pipe: Connection, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    target(pipe, *args)


def _end_with_parent() -> None:
    """End this process when its parent does: a restart must not meet a child that still writes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
