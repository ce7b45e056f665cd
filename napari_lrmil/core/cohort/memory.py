"""Memory of processes, in MB (10^6 bytes): how much one holds, the most it ever held, how much this machine has."""

from __future__ import annotations

from pathlib import Path

import psutil

MB = 1e6


def process_memory_mb(pid: int) -> float:
    """Return the resident memory of a process; 0 where it is no more."""
    try:
        return float(psutil.Process(pid).memory_info().rss) / MB
    except psutil.Error:
        return 0.0


def peak_memory_mb() -> float:
    """Return the most that this process held up to now.

    Linux' own high-water mark is read in place of ``getrusage``, which starts with what the parent held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MB
    info = psutil.Process().memory_info()
    return float(getattr(info, "peak_wset", info.rss)) / MB  # peak_wset: Windows


def total_memory_mb() -> float:
    """Return the memory of this machine, or of the container that this process is in."""
    found = [float(psutil.virtual_memory().total)]
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            found.append(float(file.read_text()))
        except (OSError, ValueError):  # no such limit, or the word "max"
            continue
    return min(found) / MB
