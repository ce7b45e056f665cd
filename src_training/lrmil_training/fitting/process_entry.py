"""Where a process of a group begins: what torch reads as it is imported is set here, so torch comes later."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path


def rank_main(rank: int, world: int, port: int, threads: int, payload: Path, pipe: Connection) -> None:
    """Be one of `world` processes that fit what `payload` holds, and report through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked hears it too, and decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    group = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    os.environ |= {name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # advice for programmers, once a process
    from lrmil_training.fitting.rank_worker import fit_rank

    fit_rank(rank, payload, pipe)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
