"""Prefetching of patches: threads read the next batches while the device encodes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
        (B, h, w, 3) uint8, on a CUDA device with enough memory, else in main memory.
    seconds
        Seconds of reading.
    """

    pixels: Tensor
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
        device: torch.device,
        *,
        readers: int | None = None,
        ahead: int = AHEAD,
    ) -> None:
        cores = 1 if device.type == "cpu" else min(GPU_READERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(readers or cores, "patches")
        self._pixels, self._total, self._device, self._ahead = read, total, device, ahead
        self._next = 0  # first patch that no read has been submitted for
        self._waiting: deque[Future[_Sent]] = deque()
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

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
        parts: list[_Sent] = []
        while self._waiting and len(parts) < batches:
            parts.append(self._waiting.popleft().result())
            self._send(max(self._ahead, batches - len(parts)))  # refill the free place in the queue
        if not parts:
            return None
        pixels = [part.arrived() for part in parts]
        return Batch(pixels[0] if len(pixels) == 1 else _joined(pixels), sum(part.seconds for part in parts))

    def _send(self, waiting: int) -> None:
        while len(self._waiting) < waiting and self._next < self._total:
            self._waiting.append(self._pool.submit(self._read, self._next))
            self._next += BATCH

    def _read(self, start: int) -> _Sent:
        began = time.perf_counter()
        pixels = torch.from_numpy(self._pixels(slice(start, min(start + BATCH, self._total))))
        return _sent(pixels, time.perf_counter() - began, self._device, self._stream)


@dataclass(frozen=True)
class _Sent:
    """Pixels in transfer to the device. `ready` is the CUDA event of their arrival, or None if they have arrived."""

    pixels: Tensor
    seconds: float
    ready: Any = None

    def arrived(self) -> Tensor:
        """Return the pixels for the current CUDA stream. The stream waits for the transfer, this thread does not."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.pixels.device)
            stream.wait_event(self.ready)
            self.pixels.record_stream(stream)
        return self.pixels


def _sent(pixels: Tensor, seconds: float, device: torch.device, stream: Any) -> _Sent:
    if stream is None:
        return _Sent(pixels, seconds)
    try:
        with torch.cuda.stream(stream):
            on_device = pixels.pin_memory().to(device, non_blocking=True)
            return _Sent(on_device, seconds, stream.record_event())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return _Sent(pixels, seconds)  # the encoder sends the pixels in parts that fit


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors, in main memory if one of them did not fit the device."""
    if len({part.device for part in parts}) > 1:
        parts = [part.cpu() for part in parts]
    return torch.cat(list(parts))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that device memory ran out. MPS reports it only in the message."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


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

    def __init__(self, device: torch.device, fixed: int | None = None) -> None:
        self.size = BATCH if fixed is None or device.type == "cuda" else fixed
        self._settled = device.type != "cuda"
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
