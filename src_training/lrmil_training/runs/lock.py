"""Lock file that allows one writer per run folder; it expires if its process dies or its heartbeat stops.

`flufl.lock` would save about 90 lines, but it breaks a lock only after its lifetime. This lock notices at once that a
process of this machine is dead, and it tells containers with equal process numbers apart. `filelock` does not expire.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.errors import LrmilError

LOCK_FILE, STOP_FILE = "lock", "stop"  # in a run folder
HEARTBEAT_S = 5.0  # often enough to notice a dead writer soon, seldom enough for a network drive
TAKEOVER_GUARD_S = 5.0  # a takeover lasts milliseconds; a guard file of this age belongs to a killed process
HALF_WRITTEN_S = 3.0  # a lock file is written in milliseconds; one that stays half-written belongs to a killed process
MAX_MISSED_HEARTBEATS = 6  # after which a writer of another machine counts as dead
LAST_DATE = 2e10  # in the year 2603; later numbers are no dates
RETRY_S = 0.02  # pause before a lock file that is being written or removed is read again
FILE_KEYS = {"pid_namespace": "space", "heartbeats": "beats"}  # field -> key in the lock file, if they differ


class LockedError(LrmilError):
    """Error: another process writes to the folder; `owner` is that process."""

    def __init__(self, message: str, owner: LockOwner) -> None:
        super().__init__(message)
        self.owner = owner


@dataclass(frozen=True)
class LockOwner:
    """Process that writes to a run folder.

    Attributes
    ----------
    host
        Name of the machine.
    pid
        Process number.
    pid_namespace
        PID namespace; process numbers of two containers on one host are not comparable.
    since
        Start, in seconds since 1970.
    token
        Unique to this acquisition of the lock.
    heartbeats
        Number of heartbeats so far.
    """

    host: str
    pid: int
    pid_namespace: str
    since: float
    token: str
    heartbeats: int = 0

    @property
    def is_dead(self) -> bool:
        """Whether the process has certainly ended; False for a process of another machine, which cannot be checked."""
        return (self.host, self.pid_namespace) == (socket.gethostname(), _pid_namespace()) and not _is_running(self.pid)


class RunLock:
    """Lock on a run folder, held by this process; a thread writes its heartbeats.

    Parameters
    ----------
    path
        The lock file.
    owner
        This process.
    heartbeat_s
        Seconds between heartbeats.

    Attributes
    ----------
    lost
        Whether another process has taken the folder over.
    """

    def __init__(self, path: Path, owner: LockOwner, heartbeat_s: float) -> None:
        self.path, self.owner, self.heartbeat_s = path, owner, heartbeat_s
        self.lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._write_heartbeats, name="run lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LrmilError` if another process took the folder over, for example while this machine slept."""
        if self.lost:
            raise LrmilError(
                f"{self.path.parent}: another process took the run over while this one was not heard of; "
                "this one ends, follow the other"
            )

    def release(self) -> None:
        """Stop the heartbeat and remove the lock file, unless it belongs to another process by now."""
        self._released.set()
        self._thread.join()
        if _read_lock(self.path, self.owner.token):
            self.path.unlink(missing_ok=True)

    def _write_heartbeats(self) -> None:
        while not self._released.wait(self.heartbeat_s):
            if not _read_lock(self.path, self.owner.token):
                self.lost = True
                return
            self.owner = replace(self.owner, heartbeats=self.owner.heartbeats + 1)
            try:
                _write_lock(self.path, self.owner)
            except OSError:
                continue  # a missed heartbeat does no harm; a full disk is reported by the next writer of run files


@contextmanager
def acquire_run_lock(folder: Path, heartbeat_s: float = HEARTBEAT_S) -> Iterator[RunLock]:
    """Hold a run folder exclusively.

    Parameters
    ----------
    folder
        Created if it does not exist.
    heartbeat_s
        Seconds between heartbeats; a lock without one for `MAX_MISSED_HEARTBEATS` of them is taken over.

    Yields
    ------
    RunLock
        Released at the end of the block.

    Raises
    ------
    LockedError
        If another process holds the folder.
    LrmilError
        If the folder cannot be written, or the name of the lock is taken by something that is no file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, f"cannot be made ({error.strerror})", "choose another folder") from error
    path = folder / LOCK_FILE
    owner = LockOwner(socket.gethostname(), os.getpid(), _pid_namespace(), time.time(), uuid.uuid4().hex)
    while not _try_create(path, owner):
        _require_file(path)
        other = _read_lock(path)
        if other is None and _becomes_readable(path, min(HALF_WRITTEN_S, heartbeat_s * MAX_MISSED_HEARTBEATS)):
            continue
        if other is not None and not other.is_dead and _is_alive(path, other, heartbeat_s):
            raise LockedError(_locked_message(folder, other), other)
        if _try_take_over(path, other, owner):
            break
    lock = RunLock(path, owner, heartbeat_s)
    try:
        yield lock
    finally:
        lock.release()


def find_owner(folder: Path) -> LockOwner | None:
    """Return the process in the lock file, without waiting for a heartbeat; None if there is none or it is dead."""
    owner = _read_lock(folder / LOCK_FILE)
    return None if owner is None or owner.is_dead else owner


# ---------------------------------------------------------------- the lock file


def _try_create(path: Path, owner: LockOwner) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(owner_to_json(owner))
    except FileExistsError:
        return False
    except OSError as error:
        raise _unusable(path, f"cannot be written ({error.strerror})", "choose another folder") from error
    return True


def _unusable(path: Path, reason: str, remedy: str) -> LrmilError:
    return LrmilError(f"{path}: {reason}; {remedy}")


def _require_file(path: Path) -> None:
    """Raise `LrmilError` if a name of a lock is taken by a folder, a link or a pipe, which no process would release."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # removed at this moment
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "pipe or device"
        raise _unusable(path, f"is a {kind}; expected the lock file of a run", "remove it, or choose another folder")


def owner_to_json(owner: LockOwner) -> str:
    """Return the content of the lock file."""
    return json.dumps({FILE_KEYS.get(name, name): value for name, value in vars(owner).items()})


def _write_lock(path: Path, owner: LockOwner) -> None:
    # Not `atomic_write`: its temporary name holds host and process number, which two containers may share.
    temporary = path.with_name(f".{path.name}.{owner.token}")
    try:
        temporary.write_text(owner_to_json(owner), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_lock(path: Path, token: str = "") -> LockOwner | None:
    """Return the owner in a lock file; None if it is absent, half-written, or has another token than `token`."""
    names = {FILE_KEYS.get(field.name, field.name): field.name for field in fields(LockOwner)}
    try:
        if not path.is_file():  # a pipe would never end
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        # Keys of a newer version are left out.
        owner = LockOwner(**{names[key]: value for key, value in values.items() if key in names})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return owner if _is_possible(owner) and token in ("", owner.token) else None


def _is_possible(owner: LockOwner) -> bool:
    """Return whether the values have their types, a process number can exist, and the start is a date."""
    texts = owner.host, owner.pid_namespace, owner.token
    numbers = owner.pid, owner.heartbeats
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        return False
    is_date = isinstance(owner.since, int | float) and 0 <= owner.since < LAST_DATE
    return 0 < owner.pid < 2**31 and is_date


def _becomes_readable(path: Path, seconds: float) -> bool:
    """Wait for a process that is writing its lock at this moment; return False if the file stays as it is."""
    if _file_age_s(path) > seconds:
        return False
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(RETRY_S)
        if not os.path.lexists(path) or _read_lock(path) is not None:
            return True
    return False


def _is_alive(path: Path, owner: LockOwner, heartbeat_s: float) -> bool:
    """Return whether an owner still writes heartbeats.

    A recent modification time is enough. An old one, or one in the future, may come from a clock that differs, so wait
    for the next heartbeat.
    """
    if -heartbeat_s <= _file_age_s(path) < heartbeat_s * MAX_MISSED_HEARTBEATS:
        return True
    end = time.monotonic() + 2 * heartbeat_s
    while time.monotonic() < end:
        time.sleep(min(0.2, heartbeat_s))
        if _read_lock(path) != owner:
            return True
    return False


def _try_take_over(path: Path, stale: LockOwner | None, owner: LockOwner) -> bool:
    """Replace a stale lock; only one of several contenders succeeds, and a lock created meanwhile stays."""
    guard = path.with_name(f".{path.name}.takeover")
    _require_file(guard)
    if abs(_file_age_s(guard)) > TAKEOVER_GUARD_S:  # in the future: the clock of a killed process was wrong
        guard.unlink(missing_ok=True)
    try:
        guard.open("x").close()
    except FileExistsError:
        time.sleep(RETRY_S)
        return False
    try:
        if not path.exists() or _read_lock(path) != stale:
            return False
        _write_lock(path, owner)  # in one step: without a lock file in between, no contender can create its own
        return True
    finally:
        guard.unlink(missing_ok=True)


def _file_age_s(path: Path) -> float:
    """Return seconds since a file was written; 0 if it does not exist."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _locked_message(folder: Path, owner: LockOwner) -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.since))
    return (
        f"{folder}: process {owner.pid} on {owner.host} has been writing to this run since {since}; wait for it, "
        f"put a file named {STOP_FILE} into the folder to end it, or choose another folder; if that machine is off, "
        f"call again in {HEARTBEAT_S * MAX_MISSED_HEARTBEATS:.0f} s"
    )


# ---------------------------------------------------------------- processes


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""  # not Linux, so there are no PID namespaces


def _is_running(pid: int) -> bool:
    if os.name == "nt":
        return True  # on Windows signal 0 would end the process, so only the heartbeat decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# ---------------------------------------------------------------- request to stop


def request_stop(folder: Path) -> None:
    """Ask the process that writes to a folder to end after the current batch."""
    write_text(folder / STOP_FILE, "")


def is_stop_requested(folder: Path) -> bool:
    """Return whether the process that writes to a folder has been asked to end."""
    return (folder / STOP_FILE).is_file()


def clear_stop_request(folder: Path) -> None:
    """Remove a request to stop that was addressed to an earlier process."""
    if is_stop_requested(folder):
        (folder / STOP_FILE).unlink(missing_ok=True)
