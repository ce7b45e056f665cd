"""Work of one process of a fit, and the messages with which it ends."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from lrmil_training.fitting.plan import StoppedError
from lrmil_training.fitting.trainer import StateDict, run_stage
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.features.torch_encoding import is_out_of_memory


class OutOfMemoryError(Exception):
    """The memory of a device ran out."""


@dataclass(frozen=True)
class RankError:
    """Error of a rank, as text and kind: exceptions themselves often cannot be pickled.

    Attributes
    ----------
    kind
        ``memory``, ``stopped``, ``user`` or ``unexpected``.
    message
        Text of the error; the traceback if it was unexpected.
    """

    kind: str
    message: str

    @property
    def is_root_cause(self) -> bool:
        """True unless the error can follow from the end of another rank, which breaks the connection."""
        return self.kind != "unexpected"

    def error(self) -> Exception:
        """Return the exception to raise in the process that started the ranks."""
        kinds = {"memory": OutOfMemoryError, "stopped": StoppedError, "user": LrmilError}
        return kinds.get(self.kind, RuntimeError)(self.message)


class RankDone:
    """Last message of a rank that finished its fit."""


def _rank_error(error: BaseException) -> RankError:
    if is_out_of_memory(error):
        return RankError("memory", str(error))
    if isinstance(error, LrmilError):
        return RankError("stopped" if isinstance(error, StoppedError) else "user", str(error))
    return RankError("unexpected", "".join(traceback.format_exception(error)))


def fit_rank(pipe: Connection, rank: int, payload: Path) -> None:
    """Fit the stage in `payload` as rank `rank`. Only the first rank sends events."""
    try:
        # The parent process has just written the payload, so unpickling it is safe.
        make, plan, scale = torch.load(payload, map_location="cpu", weights_only=False, mmap=True)
        run_stage(make, plan, scale, StateDict(), pipe.send if rank == 0 else lambda _: None, lambda: False)
        pipe.send(RankDone())
    except BaseException as error:  # also KeyboardInterrupt: the parent waits for a message
        pipe.send(_rank_error(error))
    finally:
        pipe.close()
