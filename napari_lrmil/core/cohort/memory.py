"""Memory of processes and of the machine, in MB (10^6 bytes)."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

MB = 1e6


def process_memory_mb(pid: int) -> float:
    """Return the resident memory of a process; 0 if it has ended."""
    try:
        return float(psutil.Process(pid).memory_info().rss) / MB
    except psutil.Error:
        return 0.0


def exceeding_memory_mb(pid: int, limit_mb: float) -> float | None:
    """Return the memory that a process holds for itself if that exceeds a limit, else None.

    On Linux, workers share the pages of imported modules with the process that they were forked from. Shared pages do
    not count there.
    """
    memory_mb = process_memory_mb(pid)
    if memory_mb > limit_mb and sys.platform.startswith("linux"):
        # Counting shared pages walks the page table: only for a process whose resident memory exceeds the limit.
        try:
            memory_mb = float(psutil.Process(pid).memory_full_info().uss) / MB
        except psutil.Error:
            return None
    return memory_mb if memory_mb > limit_mb else None


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
