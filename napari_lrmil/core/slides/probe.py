"""Files are opened first in a probing process, where a crash of the slide library is an answer.

A process has one probing process at most, started for the first file that needs it. What it has opened is remembered
in the user's cache folder and not probed again.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slides import probe_child
from napari_lrmil.core.user_folders import cache_folder

LIMIT_S = 20.0  # for a file
MAX_MEMORY_BYTES = 2**20  # of remembered files: some 16,000
_CRASHES = frozenset({"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS"})

logger = logging.getLogger(__name__)


class ProbeUnavailableError(Exception):
    """The probing process does not start."""


class Probe:
    """Probing process, started with the first file. Calls are thread-safe.

    Parameters
    ----------
    command
        Program and arguments of the process; by default `probe_child` in this Python.
    limit_s
        Seconds for a file, after which the process is ended.

    Attributes
    ----------
    n_started
        Processes started so far: one more after each crash.
    """

    def __init__(self, command: Sequence[str] | None = None, limit_s: float = LIMIT_S) -> None:
        # -P: the folder of the script holds modules with the names of others.
        self._command = command or (sys.executable, "-P", probe_child.__file__, str(limit_s))
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self.n_started = 0

    def check(self, file: Path) -> None:
        """Open a file in the probing process.

        Raises
        ------
        SlideError
            If the process crashes or hangs.
        ProbeUnavailableError
            If the process does not start.
        """
        with self._lock:
            process = self._running()
            request = json.dumps({"path": os.path.abspath(file)})
            try:
                answer, is_late = self._ask(process, request)
            except OSError:  # it was ended while it had no file
                self._end()
                answer, is_late = self._ask(self._running(), request)
            if answer != probe_child.DONE:
                code = self._end()
                raise SlideError(file, _hang_text(self._limit_s) if is_late else exit_text(code))

    def close(self) -> None:
        """End the process. A later call starts another."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[str]:
        paths = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PYTHONPATH": paths},
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise ProbeUnavailableError(str(error)) from error
        self.n_started += 1
        self._process = process
        if self._line(process)[0] != probe_child.READY:
            raise ProbeUnavailableError(f"it ended with code {self._end()}")
        return process

    def _ask(self, process: subprocess.Popen[str], request: str) -> tuple[str, bool]:
        pipe = cast(IO[str], process.stdin)
        pipe.write(request + "\n")
        pipe.flush()
        return self._line(process)

    def _line(self, process: subprocess.Popen[str]) -> tuple[str, bool]:
        """Return the next line of the process, empty if it ended, and whether it was ended for being late."""
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(self._limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            line = cast(IO[str], process.stdout).readline().strip()
        finally:
            timer.cancel()
        return line, is_late.is_set()

    def _end(self) -> int:
        """End the process and return its code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        for pipe in (process.stdout, process.stdin):
            try:
                cast(IO[str], pipe).close()
            except OSError:  # what was not sent yet
                continue
        try:
            # Its output has ended, so it ends by itself; a crash takes a moment.
            return process.wait(self._limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _hang_text(limit_s: float) -> str:
    return (
        f"the slide library did not open this file within {limit_s:g} s; it is damaged, or its disk is very slow: "
        "copy it again from its source, to a local disk"
    )


def exit_text(code: int) -> str:
    """Return a sentence about a probing process that ended with `code` while it had a file."""
    try:
        name = signal.Signals(-code).name if code < 0 else f"code {code & 0xFFFFFFFF:#x}"
    except ValueError:
        name = f"signal {-code}"
    if name in _CRASHES or code > 0:
        return (
            f"opening this file crashed the slide library ({name}) in a process of its own; "
            "the file is damaged or made to do harm, copy it again from its source"
        )
    return (
        f"the process that opened this file first was ended from outside ({name}), as when the memory of the machine "
        "runs out; free memory and try again"
    )


# ---------------------------------------------------------------- what is known

_probes: dict[int, Probe] = {}  # by process: a fork must not write into its parent's pipe
_opened_keys: set[str] = set()
_lock = threading.Lock()


@atexit.register
def _close_probe() -> None:
    """End the probing process of this process, not that of its parent, which a fork knows too."""
    probe = _probes.pop(os.getpid(), None)
    if probe is not None:
        probe.close()


def require_opens(file: Path) -> None:
    """Raise `SlideError` if the slide library crashes or hangs at a file, unless an earlier call has opened it."""
    key = _key(file)
    if key in _opened_keys or key in _load():
        return
    with _lock:
        probe = _probes.setdefault(os.getpid(), Probe())
    try:
        probe.check(file)
    except ProbeUnavailableError as error:
        logger.warning("%s: opened without a probing process, which does not start: %s", file, error)
        return
    _opened_keys.add(key)
    _remember(key)


def _key(file: Path) -> str:
    """Return a hash of what changes with a file or its companions, and of the library's version."""
    import openslide

    parts = [openslide.__library_version__, os.path.abspath(file)]
    for path in (file, file.parent, file.with_suffix("")):  # MRXS has a folder of the slide's name
        try:
            state = path.stat()
        except OSError:
            continue
        parts.append(f"{state.st_size if path == file else 0} {state.st_mtime_ns} {state.st_ino}")
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _memory() -> Path:
    return cache_folder() / "opened-slides.txt"


def _load() -> set[str]:
    with suppress(OSError):  # nothing is remembered: files are probed again
        _opened_keys.update(_memory().read_text(encoding="ascii", errors="replace").split())
    return _opened_keys


def _remember(key: str) -> None:
    """Append a key, which several processes may do at once; a memory that has grown too large begins again."""
    file = _memory()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_full = file.exists() and file.stat().st_size > MAX_MEMORY_BYTES
        with file.open("w" if is_full else "a", encoding="ascii") as memory:
            memory.write(key + "\n")
    except OSError as error:
        logger.debug("%s: not remembered: %s", file, error)
