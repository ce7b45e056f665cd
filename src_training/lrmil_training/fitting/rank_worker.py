"""OutOfMemoryError, _Problem, _Done of `lrmil_training.fitting.fit.rank_worker`."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from lrmil_training.fitting.plan import StoppedError
from lrmil_training.fitting.trainer import StateDict, run_stage
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.features.prefetch import is_out_of_memory


class OutOfMemoryError(Exception):
    """A device's memory ran out."""


@dataclass(frozen=True)
class RankError:
    """Why a rank ended: kinds of errors travel between processes, errors themselves often cannot."""

    kind: str
    message: str

    @property
    def is_told(self) -> bool:
        """Whether it is a reason of its own, and not what follows from another rank's end."""
        return self.kind != "unexpected"

    def error(self) -> Exception:
        """Return the exception to raise in the process that started the ranks."""
        kinds = {"memory": OutOfMemoryError, "stopped": StoppedError, "user": LrmilError}
        return kinds.get(self.kind, RuntimeError)(self.message)


class RankDone:
    """Last word of a rank that came to its end."""


def _rank_error(error: BaseException) -> RankError:
    if is_out_of_memory(error):
        return RankError("memory", str(error))
    if isinstance(error, LrmilError):
        return RankError("stopped" if isinstance(error, StoppedError) else "user", str(error))
    return RankError("unexpected", "".join(traceback.format_exception(error)))


def fit_rank(pipe: Connection, rank: int, payload: Path) -> None:
    """Do a rank's part; the first one tells of the events."""
    try:
        made = torch.load(payload, map_location="cpu", weights_only=False, mmap=True)  # ours, of a moment ago
        make, plan, scale = made
        run_stage(make, plan, scale, StateDict(), pipe.send if rank == 0 else lambda _: None, lambda: False)
        pipe.send(RankDone())
    except BaseException as error:
        pipe.send(_rank_error(error))
    finally:
        pipe.close()
