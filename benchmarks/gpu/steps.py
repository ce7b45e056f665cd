"""Steps of the GPU check, and the process that runs them under a time limit.

Only the standard library is imported here: the packages may have been installed a moment ago.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from record import DONE, FAILED, SKIPPED, TIMED_OUT, Outcome

NO_CUDA = "no CUDA device"
PROBLEM = "problem"  # key of a result that makes the step a failed one, with its figures


@dataclass(frozen=True)
class Context:
    """Settings of all steps.

    Attributes
    ----------
    work
        Folder of slides, runs and caches.
    device
        ``auto``, ``cpu`` or ``cuda``.
    small
        Small sizes, to try the script itself.
    """

    work: Path
    device: str
    small: bool

    @property
    def resolved(self) -> Any:
        """Device as the functions of the engine take it."""
        from napari_lrmil.core.features.devices import resolve_device

        return resolve_device(self.device)

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``."""
        return str(self.resolved).partition(":")[0]

    def pick(self, small: Any, full: Any) -> Any:
        """Return the first value for small sizes, the second one otherwise."""
        return small if self.small else full

    def synchronize(self) -> None:
        """Wait until the device has finished all work, so that a clock may be read."""
        import torch

        if self.kind == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes
    ----------
    name
        Name in the results.
    function
        Module and function, which takes the context and returns figures.
    limit_s
        Wall seconds after which the step is killed.
    needs_cuda
        True if the step is skipped without a CUDA device.
    own_process
        True if the step changes CUDA's state for the steps that follow, such as a limit of GPU memory.
    is_needed
        True if later steps need it, so that every call runs it.
    """

    name: str
    function: str
    limit_s: float
    needs_cuda: bool = False
    own_process: bool = False
    is_needed: bool = False

    def call(self, context: Context) -> dict[str, Any]:
        """Run the step in this process."""
        module, _, name = self.function.partition(":")
        function: Callable[[Context], dict[str, Any]] = getattr(importlib.import_module(module), name)
        return function(context)


# The most useful ones first: what comes last is lost if the time runs out.
STEPS = (
    Step("machine", "machine_steps:describe_machine", 60, is_needed=True),
    Step("slides", "machine_steps:paint_slides", 150, is_needed=True),
    Step("tests", "machine_steps:run_gpu_tests", 120),
    Step("whole-slide", "slide_steps:predict_slide", 90),
    Step("options", "training_options:train_with_options", 240),
    Step("inference-options", "inference_options:predict_with_options", 75),
    Step("encoding", "encoding_steps:measure_encoding", 100),
    Step("pipeline", "slide_steps:measure_pipeline", 80),
    Step("live-view", "slide_steps:measure_live_view", 60),
    Step("memory-prediction", "memory_steps:exhaust_prediction", 45, own_process=True),
    Step("two-processes", "slide_steps:predict_in_two_processes", 60),
    Step("training-cpu", "training_steps:train_on_cpu", 90),
    Step("training-float32", "training_steps:train_in_float32", 120, needs_cuda=True),
    Step("training-bfloat16", "training_steps:train_in_bfloat16", 90, needs_cuda=True),
    Step("training-cpu-seed1", "training_steps:train_other_seed", 90),
    Step("memory-training", "memory_steps:exhaust_training", 90, needs_cuda=True, own_process=True),
    Step("compiled", "encoding_steps:measure_compiled", 120, needs_cuda=True, own_process=True),
)


class Worker:
    """Process that runs one step after the other; it is replaced after a step that failed or was killed.

    Parameters
    ----------
    context
        Settings of all steps.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._process: Any = None
        self._pipe: Any = None

    def run(self, step: Step, limit_s: float, *, has_cuda: bool) -> Outcome:
        """Return the outcome of a step, which has `limit_s` wall seconds."""
        if step.needs_cuda and not has_cuda:
            return {"status": SKIPPED, "seconds": 0.0, "reason": NO_CUDA}
        in_own_process = step.own_process and has_cuda
        if in_own_process:
            self.close()
        began = time.monotonic()
        self._start()
        self._pipe.send(step)
        outcome: Outcome = {"status": TIMED_OUT, "reason": f"killed after {limit_s:.0f} s"}
        if self._pipe.poll(limit_s):
            try:
                outcome = self._pipe.recv()
            except EOFError:
                self._process.join()
                outcome = {"status": FAILED, "reason": f"the process ended with code {self._process.exitcode}"}
        if in_own_process or outcome["status"] != DONE:
            self.close()  # an error of CUDA spoils the process for later steps
        return outcome | {"seconds": time.monotonic() - began}

    def close(self) -> None:
        """Kill the process and all that it started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # if it was killed before it led a group
        self._process.join()
        self._pipe.close()
        self._process = None

    def _start(self) -> None:
        if self._process is not None:
            return
        spawn = multiprocessing.get_context("spawn")  # CUDA cannot be used in a fork
        self._pipe, end = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(end, self._context))  # no daemon: it has children itself
        self._process.start()
        end.close()


def serve(pipe: Connection, context: Context) -> None:
    """Run the steps that arrive through the pipe, and send their outcomes."""
    os.setsid()  # a group of its own, which `Worker.close` kills as a whole
    logging.getLogger("napari_lrmil").setLevel(logging.ERROR)  # hundreds of predictions would repeat the same notice
    while True:
        try:
            step = pipe.recv()
        except EOFError:
            return
        pipe.send(_outcome(step, context))


def _outcome(step: Step, context: Context) -> Outcome:
    try:
        _reset_memory()
        result = step.call(context)
    except Exception:  # recorded: the other steps go on
        return {"status": FAILED, "reason": traceback.format_exc()[-3000:], "memory": _memory()}
    status = {"status": FAILED, "reason": result[PROBLEM]} if PROBLEM in result else {"status": DONE}
    return status | {"result": result, "memory": _memory()}


def _reset_memory() -> None:
    torch = sys.modules.get("torch")  # a step that has not imported it used no GPU memory
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _memory() -> dict[str, float]:
    """Return peaks in MB: of this process since it began, and of its GPU memory during the step."""
    from napari_lrmil.core.cohort.memory import peak_memory_mb

    memory, torch = {"process_peak_mb": peak_memory_mb()}, sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        memory["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
        memory["gpu_reserved_mb"] = torch.cuda.max_memory_reserved() / 1e6
    return memory
