"""Fit of one stage: Lightning runs in a thread or in processes, and its metrics are yielded as events."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Generator
from typing import Any

import torch

from lrmil_training.fitting.checkpoints import discard_checkpoints, find_checkpoint, read_best
from lrmil_training.fitting.epochs import EpochMeans, EpochSampler, all_gather_rows, set_epoch
from lrmil_training.fitting.plan import SELECT, FitPlan
from lrmil_training.fitting.processes import run_in_processes
from lrmil_training.fitting.rank_worker import OutOfMemoryError
from lrmil_training.fitting.trainer import CancelledError, FitFactory, StateDict, can_scale, run_stage
from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Metric, Notice, StageDone
from napari_lrmil.core.features.torch_encoding import is_out_of_memory

__all__ = [
    "SELECT",
    "EpochMeans",
    "EpochSampler",
    "FitPlan",
    "all_gather_rows",
    "fit",
    "set_epoch",
]

MIN_SCALE = 1 / 64  # smallest share of the batch size that is tried when a GPU runs out of memory


def fit(make: FitFactory, plan: FitPlan) -> Generator[Event, None, StateDict]:
    """Fit a stage and return the state of its best epoch on validation.

    An unfinished stage with the same key is resumed after its last complete epoch, with the result of an unbroken fit.

    Parameters
    ----------
    make
        Returns module, training loader and validation loader; called with the stage's seed set. If it has an argument
        ``scale``, a share of the batch size, it is called again with half of it when a GPU runs out of memory.
    plan
        Epochs, seed, device, checkpoints.

    Raises
    ------
    LrmilError
        If the loss is not finite, a checkpoint cannot be written, or memory runs out; `StoppedError` if asked to stop.
    """
    if plan.is_done:
        yield StageDone(plan.stage, 0.0)
        return read_best(plan)
    began = time.perf_counter()
    plan.mark.unlink(missing_ok=True)  # of another key: a kill must not leave it beside a new checkpoint
    plan.folder.mkdir(parents=True, exist_ok=True)
    resume = find_checkpoint(plan)
    if resume is None:
        discard_checkpoints(plan)  # they are broken or of another key
    scale, initial = resume.scale if resume else 1.0, StateDict()
    while True:
        try:
            yield from _log_metrics(plan, _fit_once(make, plan, scale, initial))
            break
        except OutOfMemoryError:
            scale = _halve_scale(make, plan, scale)
        discard_checkpoints(plan)  # schedules count steps, so a smaller batch restarts the stage
        yield Notice(f"the device's memory ran out: {plan.stage} starts again with {scale:.3g} of the batch size")
    write_text(plan.mark, plan.key)  # after the best state: the mark vouches for it
    discard_checkpoints(plan)
    yield StageDone(plan.stage, time.perf_counter() - began)
    return read_best(plan)


def _fit_once(make: FitFactory, plan: FitPlan, scale: float, initial: StateDict) -> Generator[Event, None, None]:
    if plan.in_processes:
        return run_in_processes(make, plan, scale)
    return _run_in_thread(make, plan, scale, initial)


def _halve_scale(make: FitFactory, plan: FitPlan, scale: float) -> float:
    if not can_scale(make) or scale / 2 < MIN_SCALE:
        raise LrmilError(
            f"{plan.stage}: the memory of {plan.device} does not hold a single step; "
            "use another device, or smaller or fewer patches"
        )
    return scale / 2


def _log_metrics(plan: FitPlan, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
    """Yield the events, and pass the metrics among them to the loggers."""
    status = "failed"  # also if the consumer closes the stream before the end
    try:
        for event in events:
            if isinstance(event, Metric):
                for logger in plan.loggers:
                    logger.log_metrics({event.name: event.value}, event.step)
            yield event
        status = "success"
    finally:
        events.close()
        for logger in plan.loggers:
            logger.save()
            logger.finalize(status)


def _run_in_thread(make: FitFactory, plan: FitPlan, scale: float, initial: StateDict) -> Generator[Event, None, None]:
    """Fit in a thread, because Lightning's loop cannot yield, and yield the events that it queues."""
    events: queue.Queue[Event | BaseException | None] = queue.Queue()  # None marks the end
    cancel = threading.Event()
    arguments = (make, plan, scale, initial, events, cancel)
    thread = threading.Thread(target=_fit_thread_main, args=arguments, name=plan.stage, daemon=True)
    thread.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        cancel.set()  # if the consumer closed the stream; otherwise the thread has ended
        thread.join()


def _fit_thread_main(
    make: FitFactory, plan: FitPlan, scale: float, initial: StateDict, events: queue.Queue[Any], cancel: threading.Event
) -> None:
    try:
        run_stage(make, plan, scale, initial, events.put, cancel.is_set)
    except CancelledError:
        pass
    except BaseException as error:  # raised again in the consumer's thread
        # The frames of the traceback hold the batch. Without them its memory is free for a smaller batch.
        events.put(OutOfMemoryError(str(error)) if is_out_of_memory(error) else error)
    finally:
        gc.collect()  # module, trainer and callbacks refer to each other and hold memory of the device
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()
        events.put(None)
