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

LOCK_FILE, STOP_FILE = "lock", "stop"  # file names in a run folder
HEARTBEAT_S = 5.0  # often enough to notice a dead writer soon, seldom enough for a network drive
TAKEOVER_GUARD_S = 30.0  # taking a lock over lasts milliseconds; a guard of this age belongs to a killed process
MAX_MISSED_HEARTBEATS = 6  # beats after which a writer of another machine counts as gone


class LockedError(LrmilError):
    """Another process writes to the folder; `owner` says which."""

    def __init__(self, message: str, owner: LockOwner) -> None:
        super().__init__(message)
        self.owner = owner


@dataclass(frozen=True)
class LockOwner:
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
        return (self.host, self.space) == (socket.gethostname(), _pid_namespace()) and not _is_running(self.pid)


class RunLock:
    """A folder that this process writes to."""

    def __init__(self, path: Path, owner: LockOwner, beat_s: float) -> None:
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
        if _read_lock(self.path, self.owner.token):
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._end.wait(self.beat_s):
            if not _read_lock(self.path, self.owner.token):
                self.lost = True
                return
            self.owner = replace(self.owner, beats=self.owner.beats + 1)
            try:
                _write_lock(self.path, self.owner)
            except OSError:
                continue  # a full disk is told by whoever needs the room; a beat may be missed


@contextmanager
def acquire_run_lock(folder: Path, beat_s: float = HEARTBEAT_S) -> Iterator[RunLock]:
    """Hold a run folder; no other process can meanwhile.

    Parameters
    ----------
    folder
        Made if it does not exist.
    beat_s
        Seconds between signs of life; a lock that shows none for `MAX_MISSED_HEARTBEATS` of them is taken over.

    Raises
    ------
    LockedError
        Where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    owner = LockOwner(socket.gethostname(), os.getpid(), _pid_namespace(), time.time(), uuid.uuid4().hex)
    while not _try_create(path, owner):
        other = _read_lock(path)
        if other is None and _file_age_s(path) < beat_s * MAX_MISSED_HEARTBEATS:
            time.sleep(0.02)  # it is being written, or was given free, at this moment
            continue
        if other is not None and not other.is_dead and _is_alive(path, other, beat_s):
            raise LockedError(_locked_message(folder, other), other)
        if _try_take_over(path, other, owner):
            break
    held = RunLock(path, owner, beat_s)
    try:
        yield held
    finally:
        held.release()


def find_owner(folder: Path) -> LockOwner | None:
    """Return who seems to write to a folder, without waiting for a sign of life; None where nobody does."""
    owner = _read_lock(folder / LOCK_FILE)
    return None if owner is None or owner.is_dead else owner


def clear_stop_request(folder: Path) -> None:
    """Remove a request to stop that was meant for an earlier process."""
    (folder / STOP_FILE).unlink(missing_ok=True)


def request_stop(folder: Path) -> None:
    """Ask the process that writes to a folder to end after the batch."""
    write_text(folder / STOP_FILE, "")


def is_stop_requested(folder: Path) -> bool:
    """Return whether the process that writes to a folder has been asked to end."""
    return (folder / STOP_FILE).exists()


def _try_create(path: Path, owner: LockOwner) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(asdict(owner), file)
    except FileExistsError:
        return False
    return True


def _write_lock(path: Path, owner: LockOwner) -> None:
    # Not `atomic_write`: its temporary name holds host and process number, which two containers may share.
    beside = path.with_name(f".{path.name}.{owner.token}")
    try:
        beside.write_text(json.dumps(asdict(owner)), encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _read_lock(path: Path, token: str = "") -> LockOwner | None:
    """Return who a lock file names; None where it is absent, half-written, or of another hold than `token`."""
    try:
        owner = LockOwner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return owner if token in ("", owner.token) else None


def _is_alive(path: Path, owner: LockOwner, beat_s: float) -> bool:
    """Return whether an owner shows signs of life.

    By the file's time where that is recent; else by waiting for the next beats, for clocks of two machines may differ.
    """
    if _file_age_s(path) < beat_s * MAX_MISSED_HEARTBEATS:
        return True
    end = time.monotonic() + 2 * beat_s
    while time.monotonic() < end:
        time.sleep(min(0.2, beat_s))
        if _read_lock(path) != owner:
            return True
    return False


def _try_take_over(path: Path, stale: LockOwner | None, owner: LockOwner) -> bool:
    """Replace a lock that nobody holds; of several who try, one succeeds, and a lock made meanwhile stays."""
    guard = path.with_name(f".{path.name}.takeover")
    if _file_age_s(guard) > TAKEOVER_GUARD_S:
        guard.unlink(missing_ok=True)
    try:
        guard.open("x").close()
    except FileExistsError:
        time.sleep(0.02)
        return False
    try:
        if not path.exists() or _read_lock(path) != stale:
            return False
        _write_lock(path, owner)  # in one step: there is no moment without a lock, in which another could be made
        return True
    finally:
        guard.unlink(missing_ok=True)


def _file_age_s(path: Path) -> float:
    """Return seconds since a file was written; 0 where there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _locked_message(folder: Path, owner: LockOwner) -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.since))
    return (
        f"{folder}: process {owner.pid} on {owner.host} has been writing to this run since {since}; wait for it, "
        f"put a file named {STOP_FILE} into the folder to end it, or choose another folder"
    )


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""  # no containers here


def _is_running(pid: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 would end it there: the heartbeat decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
