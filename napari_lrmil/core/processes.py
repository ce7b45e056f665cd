"""Child processes, each with a pipe to the process that started it.

Each child has its own pipe, so the death of one child is known and leaves the others running. The executors of the
standard library break as a whole and do not state which task ended a process. This module must not import torch: a
child sets environment variables that torch reads at import.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVarTuple, cast

FAREWELL_S = 5.0  # seconds to wait for a process whose pipe has closed
# Libraries with these settings start no thread when they are imported. A worker sets its own number of threads.
SINGLE_THREADED = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
Ts = TypeVarTuple("Ts")


def start_context() -> BaseContext:
    """Return the start method of children. A fork would inherit threads of torch and OpenSlide."""
    return multiprocessing.get_context("spawn")


class ChildEndedError(Exception):
    """A child process has ended and will send no message."""


class Child:
    """A child process.

    It ignores Ctrl-C, which reaches the whole process group, because the parent decides. It ends with its parent.

    Parameters
    ----------
    name
        Name of the process.
    target
        Function to run in the child. It receives the child's end of the pipe and `args`.
    args
        Picklable arguments.
    shared_imports
        Modules that the child needs, if it has siblings that need them too. On Linux the child is then forked from a
        server process that has imported them once and does nothing else. Elsewhere, and without modules, it is spawned.

    Attributes
    ----------
    name
        As given.
    pid
        Process number.
    """

    def __init__(
        self,
        name: str,
        target: Callable[[Connection, *Ts], None],
        *args: *Ts,
        shared_imports: Sequence[str] = (),
    ) -> None:
        self._pipe, child_end = multiprocessing.Pipe()
        work = child_end, target, args
        self._process = _fork_from_server(name, work, shared_imports) or _start(start_context(), name, *work)
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


def start_server(shared_imports: Sequence[str]) -> bool:
    """Start the server of children with these imports, and return whether this machine has one.

    The first child starts it too. Called before, the server imports while this process does something else. There is
    one server per process: if it runs already, with other modules, children import what is missing.
    """
    if not _can_fork_from_server():
        return False
    multiprocessing.set_forkserver_preload(list(shared_imports))
    with _server_variables():
        forkserver.ensure_running()
    return True


def _start(context: BaseContext, name: str, *args: Any) -> BaseProcess:
    """Return a started process that calls `_enter` with these arguments."""
    process: BaseProcess = context.Process(target=_enter, args=args, name=name, daemon=True)  # type: ignore[attr-defined]
    process.start()
    return process


def _fork_from_server(name: str, work: tuple[Any, ...], shared_imports: Sequence[str]) -> BaseProcess | None:
    """Return a process forked from the server of the standard library, or None if it has to be spawned."""
    if not (shared_imports and start_server(shared_imports)):
        return None
    try:
        # The child has the variables of the server, as old as that is, so it gets the current ones.
        process = _start(multiprocessing.get_context("forkserver"), name, *work, dict(os.environ))
    except (OSError, EOFError):  # the server ended, as when the memory of the machine runs out
        return None
    if _was_forked_alone(process):
        return process
    process.kill()
    process.join()
    process.close()
    return None


def _can_fork_from_server() -> bool:
    # The server takes its search path from a variable, which some flags of Python switch off.
    path_fits = not any(os.pathsep in entry for entry in sys.path)
    return sys.platform.startswith("linux") and not sys.flags.ignore_environment and path_fits


def _was_forked_alone(process: BaseProcess) -> bool:
    """Return whether the server has no second thread, whose locks would stay locked in the forked process.

    Something that runs at every start of Python, such as a monitoring agent, may start one.
    """
    try:
        status = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
        server = int(status.rpartition(")")[2].split()[1])  # its parent; the name before it may hold anything
        return len(os.listdir(f"/proc/{server}/task")) == 1
    except OSError:  # one of them has ended: the caller learns that from the pipe
        return True


@contextmanager
def _server_variables() -> Iterator[None]:
    """Set variables for a server that starts now: one thread, and the module search path of this process.

    Without the path, the server would import modules from the working directory first, as ``python -c`` does.
    """
    paths = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    variables = {**SINGLE_THREADED, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _enter(
    pipe: Connection, target: Callable[..., None], args: tuple[Any, ...], variables: dict[str, str] | None = None
) -> None:
    if variables is not None:
        os.environ.clear()
        os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    target(pipe, *args)


def _end_with_parent() -> None:
    """Exit when the parent ends. A restart must not meet a child that is still writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
