"""Entry point of a process of a fit. It sets variables that torch reads on import, so torch is imported after them."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path


def rank_main(pipe: Connection, rank: int, world: int, port: int, threads: int, payload: Path) -> None:
    """Fit the stage in `payload` as one of `world` processes, and report through the pipe.

    Parameters
    ----------
    pipe
        Connection to the process that started the fit.
    rank, world
        Number of this process, and of all processes.
    port
        Port of the group on this machine.
    threads
        Threads of torch in this process.
    payload
        File with the stage; see `processes`.
    """
    group = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    os.environ |= {name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # its warnings are for programmers and would repeat in every process
    from lrmil_training.fitting.rank_worker import fit_rank

    fit_rank(pipe, rank, payload)
