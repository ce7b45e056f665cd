"""Disk cache of agreement checks, which tell whether a runtime gives the same results as torch in float32.

A later process reuses the check and the converted network of an earlier one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from napari_lrmil.core.atomic_files import atomic_write_folder, write_json
from napari_lrmil.core.user_folders import cache_folder
from napari_lrmil.version import __version__

CACHE_VERSION = 3  # increase it if the preparation of networks changes: cached entries are then made again
MAX_ENTRIES = 24  # runtimes on disk; the least recently used are deleted
CHECK_FILE = "verdict.json"
MODEL_FILE = "encoder.blob"  # network that OpenVINO has converted and optimised for this CPU


@dataclass(frozen=True)
class AgreementCheck:
    """Result of a comparison with torch in float32, made on this machine.

    Attributes
    ----------
    agrees
        True if attention and probabilities are the same within the tolerances.
    reason
        Figures of the comparison, as text.
    patches
        Number of patches that were compared.
    """

    agrees: bool
    reason: str
    patches: int


@dataclass(frozen=True)
class RuntimeKey:
    """Everything that a runtime of an encoder, and its agreement check, depend on.

    Attributes
    ----------
    network
        Hash of the model, and the name of the network in it.
    side
        Side of the patches as the encoder receives them, in pixels.
    runtime
        ``torch`` or ``openvino``.
    version
        Version of the runtime.
    precision
        Number format: ``bfloat16`` or ``float32``.
    processor
        Name and instruction sets of the CPU, or name of the GPU.
    """

    network: str
    side: int
    runtime: str
    version: str
    precision: str
    processor: str

    @property
    def folder(self) -> Path:
        """Cache folder of this runtime; its name is a hash of all fields and of the versions of torch and this code."""
        # The names of these entries are part of the hash. A new name would orphan every cached runtime.
        entries = {**asdict(self), "torch": torch_version(), "ours": __version__, "edition": CACHE_VERSION}
        digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
        return cache_folder() / "runtimes" / digest[:32]


@cache
def torch_version() -> str:
    """Return the version of the installed torch, without importing it."""
    return version("torch")  # read from disk, and asked for with every key


def load_check(key: RuntimeKey) -> AgreementCheck | None:
    """Return the check of an earlier process, or None if the cache holds none that is complete."""
    try:
        entry = json.loads((key.folder / CHECK_FILE).read_text(encoding="utf-8"))
        check = AgreementCheck(**entry)
        os.utime(key.folder)  # the modification time is the time of the last use, see `_delete_oldest`
    except (OSError, ValueError, TypeError):  # a missing or damaged entry: the caller checks again
        return None
    return check


@contextmanager
def preparation_lock(key: RuntimeKey) -> Iterator[None]:
    """Hold the right to prepare a runtime. Another process waits, and finds the runtime in the cache then.

    The lock ends with its process. Where the cache cannot be written, each process prepares its own.
    """
    from filelock import FileLock

    try:
        key.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{key.folder}.lock")
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def store_check(key: RuntimeKey, check: AgreementCheck, write: Callable[[Path], None]) -> None:
    """Store a check for later processes, with the files that `write` adds to its folder.

    If the folder cannot be written, nothing is stored: later processes check again.
    """
    try:
        with atomic_write_folder(key.folder, (MODEL_FILE,), CHECK_FILE) as partial:
            write(partial)
            write_json(partial / CHECK_FILE, asdict(check))
        _delete_oldest(key.folder.parent)
    except (OSError, RuntimeError):  # OpenVINO raises RuntimeError for a file that it cannot write
        return


def _delete_oldest(folder: Path) -> None:
    entries = sorted((f for f in folder.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime, reverse=True)
    for entry in entries[MAX_ENTRIES:]:
        shutil.rmtree(entry, ignore_errors=True)
