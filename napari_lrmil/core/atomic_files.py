"""Atomic writing of files and folders: complete or not at all.

No maintained library writes a folder atomically. `atomicwrites`, for single files, is archived.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_lrmil.core.errors import ConfigError, DiskFullError, LrmilError
from napari_lrmil.core.formatting import format_size

_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{6})-(?P<pid>\d+)\.partial", re.DOTALL)
NEARLY_FULL = 2**16  # bytes; HDF5, torch and safetensors report a full disk in words, without an errno
MAX_NAME_BYTES = 255  # of a file or folder, on all common file systems
MAX_PARTIAL_BYTES = 200  # of the name in a temporary name, which adds a dot, a machine and a process
_STATUS = Path("/proc/self/status")


def _stated_umask() -> int | None:
    """Return the umask of the process from /proc (Linux 4.7 and newer), or None on other systems."""
    try:
        line = re.search(r"^Umask:\s*([0-7]+)$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(line[1], 8) if line else None


def _umask_by_setting() -> int:
    """Return the umask by setting it for a moment. A file that another thread creates meanwhile is private."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_STATED = _stated_umask()
_UMASK_AT_IMPORT = _umask_by_setting() if _STATED is None else _STATED


@contextmanager
def atomic_write(path: Path, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It replaces `path` if the block succeeds, and is removed if not.

    Parameters
    ----------
    path
        Target file.
    needed
        Bytes that will be written, if known. Space is checked first, because HDF5 crashes on a full disk.

    Raises
    ------
    DiskFullError
        If there is not enough space, or the block failed because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if needed and shutil.disk_usage(path.parent).free < needed + NEARLY_FULL:
        raise _full(path)
    partial = path.with_name(_partial_name(path.name))
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # safetensors creates private files, but results are shared
        os.replace(partial, path)
    except Exception as error:  # each library reports a full disk with another exception
        raise_if_full(path, error)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_write_folder(folder: Path, stale: Collection[str], last: str) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`. Its files move into `folder` only if the block succeeds.

    Parameters
    ----------
    folder
        Target folder. Other files in it stay.
    stale
        Names of files that belong together. Those that were not written again are removed in the exchange.
    last
        File that marks the others as complete. It is removed first and written last.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(_partial_name(folder.name))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        folder.mkdir(exist_ok=True)
        (folder / last).unlink(missing_ok=True)
        written = sorted(file.name for file in partial.iterdir())
        for name in {*stale} - {*written}:
            (folder / name).unlink(missing_ok=True)
        for name in sorted(written, key=lambda name: name == last):
            os.replace(partial / name, folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_writable(folder: Path) -> None:
    """Raise `ConfigError` if a folder of results cannot be created and written to. Nothing is created yet."""
    try:
        probe_folder(folder)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from error


def probe_folder(folder: Path) -> None:
    """Raise `OSError` if a folder cannot be created and written to. Nothing is created."""
    place = folder
    # lstat and not exists: a broken link must not look like a folder to create.
    while not _is_there(place) and place != place.parent:
        if len(os.fsencode(place.name)) > MAX_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "a name is too long")
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file")
    with tempfile.TemporaryFile(dir=place):  # permission bits do not tell of a read-only disk
        pass


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _partial_name(name: str) -> str:
    """Return a temporary name with machine and process, as processes of two machines can share a number."""
    return f".{_bounded(name)}.{_machine()}-{os.getpid()}.partial"


def _bounded(name: str) -> str:
    """Return a name that leaves room for the ending of a temporary file, as file systems allow 255 bytes."""
    data = os.fsencode(name)
    return name if len(data) <= MAX_PARTIAL_BYTES else hashlib.sha256(data).hexdigest()


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def remove_stale_partials(folder: Path, names: Collection[str] | None = None) -> list[Path]:
    """Remove half-written files whose process on this machine has ended, of `names` or of all, and return their paths.

    Files of another machine stay, because its processes may still be writing.
    """
    import psutil

    bounded, removed = None if names is None else {_bounded(name) for name in names}, []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _PARTIAL.fullmatch(path.name)
        if match is None or (bounded is not None and match["name"] not in bounded) or match["machine"] != _machine():
            continue
        if not psutil.pid_exists(int(match["pid"])):
            removed.append(path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return removed


def raise_if_full(path: Path, error: BaseException) -> None:
    """Raise `DiskFullError` if an error in writing `path` was caused by a full disk."""
    if isinstance(error, LrmilError):
        return
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or shutil.disk_usage(path.parent).free < NEARLY_FULL:
        raise _full(path) from error


def _full(path: Path) -> DiskFullError:
    free = shutil.disk_usage(path.parent).free
    return DiskFullError(
        f"{path} could not be written: no space is left on the disk ({format_size(free)} free); "
        "free some space and run the same command again, complete files are reused"
    )


def _umask() -> int:
    """Return the umask of the process without setting it, because setting it affects all threads."""
    mask = _stated_umask()
    return _UMASK_AT_IMPORT if mask is None else mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. What UTF-8 cannot hold, such as ragged bytes of a file name, becomes an escape."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically.

    Raises
    ------
    ValueError
        If a value is NaN or infinite.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
