"""Prefetching of patches: threads read the next batches while the device encodes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.features.devices import device_type

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BATCH = 32  # patches per read, and the default batch on a CPU
LARGEST = 512  # largest batch on a GPU, whose memory other programs share
PIXELS = 2**18  # pixels per batch on a CPU if the batch size is free: the output of a layer then stays in the CPU cache
AHEAD = 3  # batches to read ahead: enough to bridge a slow read
GPU_READERS = 4  # reading threads for a GPU, as far as there are cores
GAIN = 1.1  # minimum speed-up (patches per second) for which the batch size is doubled again


@dataclass(frozen=True)
class Batch:
    """Pixels of consecutive patches.

    Attributes
    ----------
    pixels
        (B, h, w, 3) uint8: an array in main memory, or a tensor on a CUDA device with enough memory.
    seconds
        Seconds of reading.
    """

    pixels: NDArray[np.uint8] | Tensor
    seconds: float


class PatchPrefetcher:
    """Reads batches of patches in order in threads, at most `ahead` of them in advance.

    It is a context manager. Its exit waits for running reads and starts no others.

    Parameters
    ----------
    read
        Returns (B, h, w, 3) uint8 pixels of a slice of rows. It must be thread-safe if there are several `readers`.
    total
        Number of patches.
    device
        Where the pixels will be encoded. For CUDA the reading thread pins and sends them on a separate stream, so that
        transfers overlap with computation.
    readers
        Number of reading threads. None means one for a CPU, and up to `GPU_READERS` for other devices.
    ahead
        Batches of `BATCH` patches to hold in advance. More are held only if `take` needs more at once.
    """

    def __init__(
        self,
        read: Callable[[slice], NDArray[np.uint8]],
        total: int,
        device: str | torch.device,
        *,
        readers: int | None = None,
        ahead: int = AHEAD,
    ) -> None:
        cores = 1 if device_type(device) == "cpu" else min(GPU_READERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(readers or cores, "patches")
        self._pixels, self._total, self._ahead = read, total, ahead
        self._next = 0  # first patch that no read has been submitted for
        self._waiting: deque[Future[Any]] = deque()  # of what the transfer sends and joins
        self._transfer = _transfer_to(device)

    def __enter__(self) -> PatchPrefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, count: int) -> Batch | None:
        """Return the next `count` patches, rounded up to whole batches, or None after the last patch.

        Raises
        ------
        LrmilError
            If a patch cannot be read.
        """
        batches = -(-count // BATCH)
        self._send(max(self._ahead, batches))
        parts: list[Any] = []
        while self._waiting and len(parts) < batches:
            parts.append(self._waiting.popleft().result())
            # As many as one call takes: with fewer, a GPU with large batches would wait for the readers.
            self._send(max(self._ahead, batches))
        if not parts:
            return None
        return Batch(self._transfer.join(parts), sum(part.seconds for part in parts))

    def _send(self, waiting: int) -> None:
        while len(self._waiting) < waiting and self._next < self._total:
            self._waiting.append(self._pool.submit(self._read, self._next))
            self._next += BATCH

    def _read(self, start: int) -> Any:
        return self._transfer.send(lambda: self._pixels(slice(start, min(start + BATCH, self._total))))


@dataclass(frozen=True)
class _Read:
    """Pixels that were read, and the seconds that reading took."""

    pixels: NDArray[np.uint8]
    seconds: float


class _MainMemory:
    """Keeps pixels as they are read; the counterpart of `CudaTransfer` for all other devices."""

    def send(self, read: Callable[[], NDArray[np.uint8]]) -> _Read:
        """Read pixels."""
        began = time.perf_counter()
        return _Read(read(), time.perf_counter() - began)

    def join(self, parts: Sequence[_Read]) -> NDArray[np.uint8]:
        """Return all pixels as one array."""
        return parts[0].pixels if len(parts) == 1 else np.concatenate([part.pixels for part in parts])


def _transfer_to(device: str | torch.device) -> Any:
    if device_type(device) != "cuda":
        return _MainMemory()
    from napari_lrmil.core.features.torch_encoding import CudaTransfer

    return CudaTransfer(device)


def default_batch_size(side: int) -> int:
    """Return the fastest batch size on a CPU for patches of `side` pixels: 4 at 256 px, 16 at 128 px."""
    return min(BATCH, max(1, PIXELS // side**2))


class BatchSize:
    """Batch size for encoding: fixed on CPU and MPS, tuned on CUDA, halved when memory runs out.

    On CUDA the size doubles while that raises the patches per second by a tenth. The first step that does not is
    reverted.

    Parameters
    ----------
    device
        Device that encodes.
    fixed
        Size on other devices than CUDA; None means `BATCH`.
    """

    def __init__(self, device: str | torch.device, fixed: int | None = None) -> None:
        is_cuda = device_type(device) == "cuda"
        self.size = BATCH if fixed is None or is_cuda else fixed
        self._settled = not is_cuda
        self._tried: list[float] = []  # patches per second, batches of the current size
        self._best = 0.0  # patches per second of the previous size

    def note(self, patches: int, seconds: float) -> None:
        """Record the time of a batch. The second batch of a size decides, as the first one also sets up kernels."""
        if self._settled or patches < self.size:
            return
        self._tried.append(patches / max(seconds, 1e-9))
        if len(self._tried) < 2:
            return
        rate, self._tried = max(self._tried), []
        if rate < GAIN * self._best:
            self.size, self._settled = self.size // 2, True
        elif 2 * self.size > LARGEST:
            self._settled = True
        else:
            self.size, self._best = 2 * self.size, rate

    def halve(self) -> None:
        """Halve the size and stop tuning."""
        self.size, self._settled = self.size // 2, True
