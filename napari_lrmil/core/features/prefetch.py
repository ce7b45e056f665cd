"""Patches are read while others are encoded: a bounded queue between the slide and the device."""

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

BATCH = 32  # patches read at a time, and given to a CPU at once
LARGEST = 512  # patches given to a GPU at once at most: its memory is shared with others
PIXELS = 2**18  # given to a CPU at once where the batch is free to choose: what a layer puts out stays in its cache
AHEAD = 3  # batches read before they are needed: enough to bridge a slow one
GPU_READERS = 4  # threads that feed a GPU, where there are cores for them
GAIN = 1.1  # patches per second that a larger batch must bring, times those of the smaller one


@dataclass(frozen=True)
class Batch:
    """Pixels of consecutive patches.

    Attributes
    ----------
    pixels
        (B, h, w, 3) uint8, on the device where it is a CUDA device with room, else in memory.
    seconds
        What reading them took.
    """

    pixels: Tensor
    seconds: float


class PatchPrefetcher:
    """Batches of patches in order, read by threads, never more than `ahead` of them waiting.

    Use it in a ``with``: leaving it waits for the batches under way and reads no other.

    Parameters
    ----------
    read
        Called with rows, returns (B, h, w, 3) uint8 pixels of these; from several threads where `readers` are several.
    total
        How many patches there are.
    device
        Where the pixels will be encoded. For CUDA they are pinned and sent by the thread that read them, on a stream of
        their own, so that a transfer overlaps with the computation before it.
    readers
        Threads that read; None: one beside a CPU's computation, up to `GPU_READERS` for any other device.
    ahead
        Batches of `BATCH` patches that may wait; more only where more are taken at once.
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
        self._next = 0  # the first patch that nobody was sent to read
        self._waiting: deque[Future[_Sent]] = deque()
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __enter__(self) -> PatchPrefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, count: int) -> Batch | None:
        """Return the next `count` patches, rounded up to whole batches, or what is left; None where nothing is.

        Raises
        ------
        LrmilError
            Where a patch cannot be read.
        """
        wanted = -(-count // BATCH)
        self._send(max(self._ahead, wanted))
        parts: list[_Sent] = []
        while self._waiting and len(parts) < wanted:
            parts.append(self._waiting.popleft().result())
            self._send(max(self._ahead, wanted - len(parts)))  # its place in the queue is free
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
    """Pixels on their way to the device; `ready` is the event of their arrival, None where they are there."""

    pixels: Tensor
    seconds: float
    ready: Any = None

    def arrived(self) -> Tensor:
        """Return the pixels for use on the current stream, which waits for them; this thread does not."""
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
            there = pixels.pin_memory().to(device, non_blocking=True)
            return _Sent(there, seconds, stream.record_event())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return _Sent(pixels, seconds)  # the encoder sends it in parts that fit


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return one tensor of several; in memory where one of them did not fit the device."""
    if len({part.device for part in parts}) > 1:
        parts = [part.cpu() for part in parts]
    return torch.cat(list(parts))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device's memory ran out; Apple's says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


def default_batch_size(side: int) -> int:
    """Return how many patches of `side` pixels a CPU encodes fastest: 4 of 256, 16 of 128."""
    return min(BATCH, max(1, PIXELS // side**2))


class BatchSize:
    """How many patches to encode at once: found by trying on CUDA, told or `BATCH` elsewhere, halved out of memory.

    On CUDA it is doubled while that brings a tenth more patches per second; a step that does not is taken back.

    Parameters
    ----------
    device
        What encodes.
    told
        For what is no CUDA device; None: `BATCH`.
    """

    def __init__(self, device: torch.device, told: int | None = None) -> None:
        self.size = BATCH if told is None or device.type == "cuda" else told
        self._settled = device.type != "cuda"
        self._tried: list[float] = []  # patches per second of this size
        self._best = 0.0  # of the size before

    def note(self, patches: int, seconds: float) -> None:
        """Note what a batch took; the second one of a size decides, for the first one also sets kernels up."""
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
        """Go on with half as many, for good."""
        self.size, self._settled = self.size // 2, True
