"""Where a process of a group begins: what torch reads as it is imported is set here, so torch comes later."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path


def rank_main(pipe: Connection, rank: int, world: int, port: int, threads: int, payload: Path) -> None:
    """Be one of `world` processes that fit what `payload` holds, and report through the pipe."""
    group = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    os.environ |= {name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # advice for programmers, once a process
    from lrmil_training.fitting.rank_worker import fit_rank

    fit_rank(pipe, rank, payload)
