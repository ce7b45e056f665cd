"""Sentences for errors that no other code has turned into one: of the environment, or a fault of this program.

Only a fault of this program is called unexpected. Its traceback is written to a log file that can be sent.
"""

from __future__ import annotations

import errno
import hashlib
import platform
import sys
import tempfile
import traceback
from pathlib import Path

from napari_lrmil.core.extras import extra_of, pip_line
from napari_lrmil.version import __version__

MAX_LOGS = 20


def describe_error(error: BaseException) -> str:
    """Return one sentence on an error that is no `LrmilError`; a fault of this program is logged to a file."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing_module(error.name)
    if isinstance(error, MemoryError):
        return "the memory is full; close other programs, or use fewer workers or a smaller region"
    if isinstance(error, OSError) and error.errno is not None:
        return _system_error(error)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    log = write_error_log(error)
    where = f"send {log} with your report" if log else "run it again with --debug and report it"
    return f"{reason}; this was not expected, it is a fault of napari-lrmil; {where}"


def _missing_module(name: str) -> str:
    extra = extra_of(name)
    if extra is not None:
        return f"{name} is not installed; {pip_line(extra)}"
    return (
        f"the library {name} is missing; install napari-lrmil anew, or run napari-lrmil doctor to see what is missing"
    )


def _system_error(error: OSError) -> str:
    """Return a sentence on what the system refused: its reason, the file, and what to do."""
    remedy = {
        errno.ENOSPC: "free some space, and call again",
        errno.EACCES: "check the rights on it, or choose another",
        errno.EPERM: "check the rights on it, or choose another",
        errno.EROFS: "choose another folder",
        errno.ENOENT: "check the path",
        errno.ENAMETOOLONG: "choose a shorter name or path",
        errno.EMFILE: "use fewer workers, or raise the limit of open files (ulimit -n)",
    }.get(error.errno or 0, "check the disk and the path, and call again")
    name = f"{error.filename}: " if error.filename is not None else ""
    return f"{name}{error.strerror or error}; {remedy}"


def write_error_log(error: BaseException) -> Path | None:
    """Write traceback and versions of an error, and return the file; None if no folder can be written.

    The name is a hash of the traceback, so that an error that repeats for every slide fills one file.
    """
    from napari_lrmil.core.user_folders import cache_folder

    lines = traceback.format_exception(error)
    name = f"error-{hashlib.sha256(''.join(lines[:-1]).encode()).hexdigest()[:12]}.log"
    head = f"napari-lrmil {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv!r}\n\n"
    for folder in (cache_folder() / "logs", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(head + "".join(lines), encoding="utf-8", errors="backslashreplace")
            _delete_oldest(folder)
        except OSError:  # the next folder
            continue
        return folder / name
    return None


def _delete_oldest(folder: Path) -> None:
    logs = sorted(folder.glob("error-" + "?" * 12 + ".log"), key=lambda path: path.stat().st_mtime, reverse=True)
    for log in logs[MAX_LOGS:]:
        log.unlink(missing_ok=True)
