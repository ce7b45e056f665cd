"""Files are written whole or not at all.

No maintained library writes a folder in one step; `atomicwrites`, for single files, is archived.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_lrmil.core.errors import DiskFullError, LrmilError
from napari_lrmil.core.formatting import format_size

_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{6})-(?P<pid>\d+)\.partial", re.DOTALL)
NEARLY_FULL = 2**16  # bytes: HDF5, torch and safetensors tell of a full disk in words only
_STATUS = Path("/proc/self/status")


def _stated_umask() -> int | None:
    """Return the process's umask as Linux states it since 4.7; None on other systems."""
    try:
        line = re.search(r"^Umask:\s*([0-7]+)$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(line[1], 8) if line else None


def _umask_by_setting() -> int:
    """Return the process's umask by setting it for a moment: a file that another thread makes then is private."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_STATED = _stated_umask()
_UMASK_AT_IMPORT = _umask_by_setting() if _STATED is None else _STATED


@contextmanager
def atomic_write(path: Path, needed: int = 0) -> Iterator[Path]:
    """Lend a temporary name beside `path`; it becomes `path` if the block ends well and vanishes if not.

    Parameters
    ----------
    path
        What will be there.
    needed
        Bytes that will be written, where that is known: HDF5 does not survive a disk that is full.

    Raises
    ------
    DiskFullError
        Where there is no space, or the block failed because none was left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if needed and shutil.disk_usage(path.parent).free < needed + NEARLY_FULL:
        raise _full(path)
    partial = path.with_name(_partial_name(path.name))
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # safetensors makes private files; results are shared as others are
        os.replace(partial, path)
    except Exception as error:  # every library that writes has an error of its own for it
        raise_if_full(path, error)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_write_folder(folder: Path, stale: Collection[str], last: str) -> Iterator[Path]:
    """Lend a temporary folder beside `folder`; its files take their places in `folder` only if the block ends well.

    Parameters
    ----------
    folder
        Where the files will be; others that are there stay.
    stale
        Names of files that belong together: those that are not written anew are removed with the exchange.
    last
        The file that says that the others are there: it goes first and comes last.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(_partial_name(folder.name))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        folder.mkdir(exist_ok=True)
        (folder / last).unlink(missing_ok=True)
        made = sorted(file.name for file in partial.iterdir())
        for name in {*stale} - {*made}:
            (folder / name).unlink(missing_ok=True)
        for name in sorted(made, key=lambda name: name == last):
            os.replace(partial / name, folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial_name(name: str) -> str:
    """Return a temporary name that tells whose it is: processes of two machines may have the same number."""
    return f".{name}.{_machine()}-{os.getpid()}.partial"


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def remove_stale_partials(folder: Path, names: Collection[str]) -> list[Path]:
    """Remove what processes of this machine that are no more left half-written of `names`, and return what that was.

    What another machine left is not touched, for nothing here tells whether it still writes.
    """
    import psutil

    wanted, gone = set(names), []
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _PARTIAL.fullmatch(path.name)
        if (
            found
            and found["name"] in wanted
            and found["machine"] == _machine()
            and not psutil.pid_exists(int(found["pid"]))
        ):
            gone.append(path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return gone


def raise_if_full(path: Path, error: BaseException) -> None:
    """Raise `DiskFullError` where an error in writing `path` came of a full disk."""
    if isinstance(error, LrmilError):
        return
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or shutil.disk_usage(path.parent).free < NEARLY_FULL:
        raise _full(path) from error


def _full(path: Path) -> DiskFullError:
    free = shutil.disk_usage(path.parent).free
    return DiskFullError(
        f"{path} could not be written: no space is left on the disk ({format_size(free)} free); "
        "make room and start the same command again, what is whole is used as it is"
    )


def _umask() -> int:
    """Return the process's umask without setting it, because a set mask holds for all threads."""
    mask = _stated_umask()
    return _UMASK_AT_IMPORT if mask is None else mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all. NaN is refused: a NaN never reaches a file."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
