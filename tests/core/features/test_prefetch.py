"""The queue between reading and encoding: in order, bounded, ended at once; and how many patches a device is given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.features.prefetch import (
    AHEAD,
    BATCH,
    GAIN,
    LARGEST,
    BatchSize,
    PatchPrefetcher,
    default_batch_size,
)

CPU = "cpu"
TOTAL = 7 * BATCH + 3


class Counted:
    """Patches whose every pixel is their number; it notes who asked for what."""

    def __init__(self, before: Callable[[slice], None] = lambda rows: None) -> None:
        self.rows: list[slice] = []
        self.threads: set[str] = set()
        self._before = before

    def __call__(self, rows: slice) -> np.ndarray:
        self.rows.append(rows)
        self.threads.add(threading.current_thread().name)
        self._before(rows)
        numbers = np.arange(rows.start, rows.stop, dtype=np.uint8)
        return np.broadcast_to(numbers[:, None, None, None], (len(numbers), 2, 3, 3)).copy()


def numbers(batch: Any) -> list[int]:
    return batch[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("readers", [1, 4])
def test_every_patch_comes_once_and_in_order_whoever_read_it(readers: int) -> None:
    slow_first = threading.Event()

    def wait(rows: slice) -> None:  # with several readers the first batch comes last
        if rows.start == 0 and readers > 1:
            slow_first.wait(240)
        elif rows.start == 2 * BATCH:
            slow_first.set()

    read = Counted(wait)
    found: list[int] = []
    with PatchPrefetcher(read, TOTAL, CPU, readers=readers) as queue:
        while (batch := queue.take(BATCH)) is not None:
            found += numbers(batch.pixels)
            assert batch.pixels.dtype == np.uint8 and batch.seconds >= 0
    assert found == [i % 256 for i in range(TOTAL)]
    assert sum(rows.stop - rows.start for rows in read.rows) == TOTAL
    assert threading.current_thread().name not in read.threads


def test_no_more_is_read_than_may_wait() -> None:
    """A slow encoder holds reading up, or a slide of a million patches would fill the memory."""
    read = Counted()
    with PatchPrefetcher(read, TOTAL, CPU) as queue:
        for taken in range(1, 4):
            queue.take(BATCH)
            queue._pool.submit(lambda: None).result()  # the one reader has come to the end of what was asked
            assert len(read.rows) == taken + AHEAD


def test_larger_batches_are_joined_from_several_reads() -> None:
    read = Counted()
    with PatchPrefetcher(read, TOTAL, CPU) as queue:
        batches = [queue.take(4 * BATCH), queue.take(4 * BATCH), queue.take(1)]
    assert [len(b.pixels) for b in batches if b is not None] == [4 * BATCH, 3 * BATCH + 3]
    assert batches[2] is None
    assert numbers(batches[0].pixels) == list(range(4 * BATCH))  # type: ignore[union-attr]  # it is there


def test_large_batches_are_read_ahead_whole() -> None:
    """A GPU that takes eight batches at once must not wait for five of them."""
    read = Counted()
    with PatchPrefetcher(read, 16 * BATCH, CPU) as queue:
        queue.take(8 * BATCH)
        queue._pool.submit(lambda: None).result()
        assert len(read.rows) == 16


def test_leaving_ends_after_the_batch_under_way() -> None:
    started, release = threading.Event(), threading.Event()

    def hold(rows: slice) -> None:
        if rows.start:
            started.set()
            release.wait(240)

    def release_once_cancelled(queue: PatchPrefetcher) -> None:
        while not all(future.cancelled() for future in list(queue._waiting)[1:]):
            time.sleep(0.001)
        release.set()

    read = Counted(hold)
    with PatchPrefetcher(read, TOTAL, CPU) as queue:
        queue.take(BATCH)
        started.wait(240)
        threading.Thread(target=release_once_cancelled, args=(queue,)).start()
    assert [rows.start for rows in read.rows] == [0, BATCH], "those that waited were never begun"


def test_an_error_comes_where_its_patches_would_have_come() -> None:
    def fail(rows: slice) -> None:
        if rows.start == 2 * BATCH:
            raise SlideError("a.svs", "the file seems damaged")

    with PatchPrefetcher(Counted(fail), TOTAL, CPU) as queue:
        for start in (0, BATCH):
            batch = queue.take(BATCH)
            assert batch is not None and numbers(batch.pixels) == list(range(start, start + BATCH))
        with pytest.raises(SlideError, match="seems damaged"):
            queue.take(BATCH)


# ---------------------------------------------------------------- how many at once


def tried(rates: dict[int, float]) -> tuple[list[int], int]:
    """Return the sizes of twenty batches on a device of these patches per second, and the last one."""
    size, sizes = BatchSize("cuda:1"), []
    for _ in range(20):
        sizes.append(size.size)
        size.note(size.size, size.size / rates[size.size])
    return sizes, size.size


def test_a_batch_grows_while_that_pays_and_the_last_step_is_taken_back() -> None:
    sizes, last = tried({32: 100.0, 64: 100 * GAIN + 1, 128: 150.0, 256: 151.0})
    assert sizes[:8] == [32, 32, 64, 64, 128, 128, 256, 256], "the first of a size sets kernels up and is not believed"
    assert last == 128 and set(sizes[8:]) == {128}


def test_a_batch_never_outgrows_what_others_need() -> None:
    sizes, last = tried({BATCH * 2**i: 100.0 * 2**i for i in range(9)})
    assert max(sizes) == last == LARGEST


def test_what_did_not_fit_is_not_tried_again() -> None:
    size = BatchSize("cuda:1")
    size.note(32, 1.0)
    size.note(32, 1.0)
    assert size.size == 64
    size.halve()
    for _ in range(9):
        size.note(32, 1e-3)
    assert size.size == 32


def test_a_cpu_stays_with_what_was_measured() -> None:
    size = BatchSize(CPU)
    for seconds in (1.0, 1.0, 0.1, 0.1):
        size.note(BATCH, seconds)
    assert size.size == BATCH


def test_a_batch_that_fits_a_cache_is_smaller_the_larger_its_patches_are() -> None:
    assert [default_batch_size(side) for side in (32, 64, 128, 224, 256, 512, 1024)] == [BATCH, BATCH, 16, 5, 4, 1, 1]
    assert BatchSize(CPU, 4).size == 4 and BatchSize(CPU).size == BATCH
    assert BatchSize("cuda:1", 4).size == BATCH, "a GPU finds out for itself"
