"""Epochs: sample order, seeds and means of loss terms, for one process or several."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import Sampler

from lrmil_training.fitting.plan import DivergedError
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.geometry import Int64

_Value = TypeVar("_Value")


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) for a single process."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return the seed of an epoch. It does not depend on earlier epochs, so a resumed fit equals an unbroken one."""
    return int(np.random.default_rng([seed, epoch, rank]).integers(2**31))


class EpochSampler(Sampler[int]):
    """Order of samples as a function of seed and epoch, divided between the processes of a fit.

    Lightning sets the epoch. In training (`shuffle`) all processes get the same number of samples; if the number does
    not divide, a few samples are used twice. In validation exactly one process gets each sample.

    Parameters
    ----------
    length
        Number of samples.
    seed
        Seed of the stage.
    shuffle
        False for validation.
    patients
        Samples of each patient, to draw every patient equally often; see `draw_by_patient`. Empty: each sample once.
    """

    def __init__(self, length: int, seed: int, *, shuffle: bool = True, patients: Sequence[Sequence[int]] = ()) -> None:
        self.length, self.seed, self.shuffle, self.patients = length, seed, shuffle, patients
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Switch to the order of another epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rank, world = rank_and_world_size()
        if not self.shuffle:
            return iter(range(rank, self.length, world))
        rng = np.random.default_rng([self.seed, self.epoch])  # the same in all processes
        order = draw_by_patient(rng, self.length, self.patients) if self.patients else rng.permutation(self.length)
        return iter(np.resize(order, len(self) * world)[rank::world].tolist())  # resize repeats from the start

    def __len__(self) -> int:
        rank, world = rank_and_world_size()
        if self.length < world:
            raise LrmilError(
                f"{self.length} samples cannot be shared out among {world} processes; fit on fewer devices"
            )
        return -(-self.length // world) if self.shuffle else len(range(rank, self.length, world))


def draw_by_patient(rng: np.random.Generator, length: int, patients: Sequence[Sequence[int]]) -> Int64:
    """Return (length,) samples in which the numbers of draws of two patients differ by one at most.

    Patients come in rounds, each in another order. A patient's own samples take turns, from a random one on.

    Parameters
    ----------
    rng
        Source of the draw.
    length
        Number of draws.
    patients
        Samples of each patient. A sample of several patients is in the list of each.
    """
    turns = [itertools.cycle(rng.permutation(np.asarray(samples)).tolist()) for samples in patients]
    rounds = -(-length // len(turns))
    order = np.concatenate([rng.permutation(len(turns)) for _ in range(rounds)])[:length]
    return np.array([next(turns[patient]) for patient in order.tolist()], dtype=np.int64)


class EpochMeans:
    """Means of loss terms over an epoch, weighted by batch size and over all processes.

    Lightning's ``log`` takes longer than the step of a small bag. Summing here and logging once per epoch avoids that.

    Parameters
    ----------
    side
        Prefix of the names, as in ``train/ce``.
    """

    def __init__(self, side: str) -> None:
        self.side = side
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None  # (terms + 1,); the last entry is the number of samples

    def add(self, terms: Mapping[str, Tensor], size: int, batch: int) -> None:
        """Add the terms of a batch of `size` samples.

        Raises
        ------
        LrmilError
            If a term is not finite; see `require_finite`.
        """
        values = torch.stack([value.detach().float() for value in terms.values()])
        if not bool(torch.isfinite(values).all()):  # one check for all terms: each check waits for the device
            for name, value in terms.items():
                require_finite(name, value, batch)
        sums = torch.cat([values, values.new_ones(1)]) * size
        self._names, self._sums = tuple(terms), sums if self._sums is None else self._sums + sums

    def take(self) -> dict[str, float]:
        """Return ``side/term`` -> mean and reset. All processes must call it, each after at least one batch."""
        if self._sums is None:
            return {}
        if rank_and_world_size()[1] > 1:
            distributed.all_reduce(self._sums)
        *sums, size = self._sums.tolist()
        self._sums = None
        return {f"{self.side}/{name}": value / size for name, value in zip(self._names, sums, strict=True)}


def all_gather_rows(values: Sequence[_Value]) -> list[_Value]:
    """Return the values of all processes in order of rank; for a single process, its own.

    All processes must call it. Tensors should be on the CPU.
    """
    world = rank_and_world_size()[1]
    if world == 1:
        return list(values)
    parts: list[Any] = [None] * world  # validation has different numbers of rows per process, so tensors do not fit
    distributed.all_gather_object(parts, list(values))
    return [value for part in parts for value in part]


def average_buffers(module: torch.nn.Module) -> None:
    """Replace running statistics by their mean over all processes, which used different samples."""
    world = rank_and_world_size()[1]
    if world == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer.div_(world)


def require_finite(term: str, value: Tensor, batch: int) -> None:
    """Raise `DivergedError` if a loss term is not finite. The last good checkpoint stays."""
    if not torch.isfinite(value):
        number = float(value.detach())
        raise DivergedError(
            f"the loss term '{term}' is {number} at batch {batch}; lower the learning rate and start again"
        )


def set_epoch(loader: Any, epoch: int) -> None:
    """Set the epoch of a loader's data set, so that augmentation is a function of seed, epoch and index."""
    loader.dataset.epoch = epoch
