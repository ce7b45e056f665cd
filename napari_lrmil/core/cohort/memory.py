"""Memory of processes and of the machine, in MB (10^6 bytes)."""

from __future__ import annotations

from pathlib import Path

import psutil

MB = 1e6


def process_memory_mb(pid: int) -> float:
    """Return the resident memory of a process; 0 if it has ended."""
    try:
        return float(psutil.Process(pid).memory_info().rss) / MB
    except psutil.Error:
        return 0.0


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process so far.

    On Linux it is read from ``VmHWM``, because the value of ``getrusage`` starts with the parent's memory.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MB
    info = psutil.Process().memory_info()
    return float(getattr(info, "peak_wset", info.rss)) / MB  # peak_wset: Windows


def total_memory_mb() -> float:
    """Return the memory of this machine, or the limit of the container in which this process runs."""
    limits = [float(psutil.virtual_memory().total)]
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):  # v2, v1
        try:
            limits.append(float(file.read_text()))
        except (OSError, ValueError):  # no such file, or the word "max" for no limit
            continue
    return min(limits) / MB
