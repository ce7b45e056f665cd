"""One writer to a run folder: a lock file with host, process and heartbeat that goes stale by itself.

`flufl.lock` would save about 90 lines, but a lock is broken only after its lifetime. Here a dead process of this
machine is noticed at once, and containers that number their processes alike are told apart. `filelock` does not expire.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.errors import LrmilError

LOCK, STOP = "lock", "stop"  # file names in a run folder
BEAT_S = 5.0  # often enough to notice a dead writer soon, seldom enough for a network drive
GUARD_S = 30.0  # taking a lock over lasts milliseconds; a guard of this age belongs to a killed process
MISSED = 6  # beats after which a writer of another machine counts as gone


class LockedError(LrmilError):
    """Another process writes to the folder; `owner` says which."""

    def __init__(self, message: str, owner: Owner) -> None:
        super().__init__(message)
        self.owner = owner


@dataclass(frozen=True)
class Owner:
    """Who writes to a folder.

    Attributes
    ----------
    host
        Name of the machine.
    pid
        Number of the process.
    space
        Where that number counts: containers of one name number their processes apart.
    since
        Start, in seconds since 1970.
    token
        Tells this hold from all others.
    beats
        How often it has shown that it lives.
    """

    host: str
    pid: int
    space: str
    since: float
    token: str
    beats: int = 0

    @property
    def is_dead(self) -> bool:
        """Whether it surely no longer runs; another machine's processes cannot be looked for."""
        return (self.host, self.space) == (socket.gethostname(), _space()) and not _runs(self.pid)


class RunLock:
    """A folder that this process writes to."""

    def __init__(self, path: Path, owner: Owner, beat_s: float) -> None:
        self.path, self.owner, self.beat_s = path, owner, beat_s
        self.lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LrmilError` where another process took the folder over, as after this machine slept."""
        if self.lost:
            raise LrmilError(
                f"{self.path.parent}: another process took the run over while this one was not heard of; "
                "this one ends, follow the other"
            )

    def release(self) -> None:
        """Give the folder free."""
        self._end.set()
        self._thread.join()
        if _read(self.path, self.owner.token):
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._end.wait(self.beat_s):
            if not _read(self.path, self.owner.token):
                self.lost = True
                return
            self.owner = replace(self.owner, beats=self.owner.beats + 1)
            try:
                _write(self.path, self.owner)
            except OSError:
                continue  # a full disk is told by whoever needs the room; a beat may be missed


@contextmanager
def acquire_run_lock(folder: Path, beat_s: float = BEAT_S) -> Iterator[RunLock]:
    """Hold a run folder; no other process can meanwhile.

    Parameters
    ----------
    folder
        Made if it does not exist.
    beat_s
        Seconds between signs of life; a lock that shows none for `MISSED` of them is taken over.

    Raises
    ------
    LockedError
        Where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    owner = Owner(socket.gethostname(), os.getpid(), _space(), time.time(), uuid.uuid4().hex)
    while not _created(path, owner):
        other = _read(path)
        if other is None and _age(path) < beat_s * MISSED:
            time.sleep(0.02)  # it is being written, or was given free, at this moment
            continue
        if other is not None and not other.is_dead and _lives(path, other, beat_s):
            raise LockedError(_sentence(folder, other), other)
        if _taken_over(path, other, owner):
            break
    held = RunLock(path, owner, beat_s)
    try:
        yield held
    finally:
        held.release()


def find_holder(folder: Path) -> Owner | None:
    """Return who seems to write to a folder, without waiting for a sign of life; None where nobody does."""
    owner = _read(folder / LOCK)
    return None if owner is None or owner.is_dead else owner


def clear_stop(folder: Path) -> None:
    """Remove a request to stop that was meant for an earlier process."""
    (folder / STOP).unlink(missing_ok=True)


def request_stop(folder: Path) -> None:
    """Ask the process that writes to a folder to end after the batch."""
    write_text(folder / STOP, "")


def stop_requested(folder: Path) -> bool:
    """Return whether the process that writes to a folder has been asked to end."""
    return (folder / STOP).exists()


def _created(path: Path, owner: Owner) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(asdict(owner), file)
    except FileExistsError:
        return False
    return True


def _write(path: Path, owner: Owner) -> None:
    # Not `atomic_write`: its temporary name holds host and process number, which two containers may share.
    beside = path.with_name(f".{path.name}.{owner.token}")
    try:
        beside.write_text(json.dumps(asdict(owner)), encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _read(path: Path, token: str = "") -> Owner | None:
    """Return who a lock file names; None where it is absent, half-written, or of another hold than `token`."""
    try:
        owner = Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return owner if token in ("", owner.token) else None


def _lives(path: Path, owner: Owner, beat_s: float) -> bool:
    """Return whether an owner shows signs of life.

    By the file's time where that is recent; else by waiting for the next beats, for clocks of two machines may differ.
    """
    if _age(path) < beat_s * MISSED:
        return True
    end = time.monotonic() + 2 * beat_s
    while time.monotonic() < end:
        time.sleep(min(0.2, beat_s))
        if _read(path) != owner:
            return True
    return False


def _taken_over(path: Path, stale: Owner | None, owner: Owner) -> bool:
    """Replace a lock that nobody holds; of several who try, one succeeds, and a lock made meanwhile stays."""
    guard = path.with_name(f".{path.name}.takeover")
    if _age(guard) > GUARD_S:
        guard.unlink(missing_ok=True)
    try:
        guard.open("x").close()
    except FileExistsError:
        time.sleep(0.02)
        return False
    try:
        if not path.exists() or _read(path) != stale:
            return False
        _write(path, owner)  # in one step: there is no moment without a lock, in which another could be made
        return True
    finally:
        guard.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Return seconds since a file was written; 0 where there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sentence(folder: Path, owner: Owner) -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.since))
    return (
        f"{folder}: process {owner.pid} on {owner.host} has been writing to this run since {since}; wait for it, "
        f"put a file named {STOP} into the folder to end it, or choose another folder"
    )


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""  # no containers here


def _runs(pid: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 would end it there: the heartbeat decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
