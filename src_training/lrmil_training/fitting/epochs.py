"""What an epoch is made of: its order, its randomness and its means, the same for one process and for several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import Sampler

from napari_lrmil.core.errors import LrmilError

_Value = TypeVar("_Value")


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and how many fit together; (0, 1) where one fits alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return the seed of an epoch, so that its randomness does not depend on the epochs before it."""
    return int(np.random.default_rng([seed, epoch, rank]).integers(2**31))


class EpochSampler(Sampler[int]):
    """Order of samples as a function of seed and epoch, shared out where several processes fit together.

    Lightning tells it the epoch. In training (`shuffle`) every process gets equally many samples, a few of them
    twice where they do not divide; in validation every sample is seen by exactly one process.

    Parameters
    ----------
    length
        How many samples there are.
    seed
        Of the stage.
    shuffle
        False for validation.
    """

    def __init__(self, length: int, seed: int, *, shuffle: bool = True) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of another epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rank, world = rank_and_world_size()
        if not self.shuffle:
            return iter(range(rank, self.length, world))
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return iter(np.resize(order, len(self) * world)[rank::world].tolist())  # resize starts over at the end

    def __len__(self) -> int:
        rank, world = rank_and_world_size()
        if self.length < world:
            raise LrmilError(
                f"{self.length} samples cannot be shared out among {world} processes; fit on fewer devices"
            )
        return -(-self.length // world) if self.shuffle else len(range(rank, self.length, world))


class EpochMeans:
    """Means of loss terms over an epoch, weighted by batch size and over all processes.

    Lightning's own ``log`` costs more in a step than a small bag does; adding up and logging once does not.

    Parameters
    ----------
    side
        Goes before the names, as in ``train/ce``.
    """

    def __init__(self, side: str) -> None:
        self.side = side
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None  # (terms + 1,), the last of them the number of samples

    def add(self, terms: Mapping[str, Tensor], size: int, batch: int) -> None:
        """Take in the terms of a batch of `size` samples.

        Raises
        ------
        LrmilError
            Where a term is not finite; see `require_finite`.
        """
        values = torch.stack([value.detach().float() for value in terms.values()])
        if not bool(torch.isfinite(values).all()):  # one look for all terms: each would wait for the device
            for name, value in terms.items():
                require_finite(name, value, batch)
        sums = torch.cat([values, values.new_ones(1)]) * size
        self._names, self._sums = tuple(terms), sums if self._sums is None else self._sums + sums

    def take(self) -> dict[str, float]:
        """Return ``side/term`` -> mean, and begin anew. All processes must call it, and each must have had a batch."""
        if self._sums is None:
            return {}
        if rank_and_world_size()[1] > 1:
            distributed.all_reduce(self._sums)
        *sums, size = self._sums.tolist()
        self._sums = None
        return {f"{self.side}/{name}": value / size for name, value in zip(self._names, sums, strict=True)}


def all_gather_rows(values: Sequence[_Value]) -> list[_Value]:
    """Return the values of all processes, in order of rank; those given where one process fits alone.

    All processes must call it. Tensors should be on the CPU.
    """
    world = rank_and_world_size()[1]
    if world == 1:
        return list(values)
    parts: list[Any] = [None] * world
    distributed.all_gather_object(parts, list(values))
    return [value for part in parts for value in part]


def average_buffers(module: torch.nn.Module) -> None:
    """Replace running statistics by their mean over all processes, each of which saw other samples."""
    world = rank_and_world_size()[1]
    if world == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer.div_(world)


def require_finite(term: str, value: Tensor, batch: int) -> None:
    """Raise `LrmilError` where a loss term is not finite: it says which, and the last good checkpoint stays."""
    if not torch.isfinite(value):
        seen = float(value.detach())
        raise LrmilError(f"the loss term '{term}' is {seen} at batch {batch}; lower the learning rate and start again")


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell a loader's data which epoch it is, so that augmentation is a function of seed, epoch and index."""
    loader.dataset.epoch = epoch
