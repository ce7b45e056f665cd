"""Processes that a test may kill, forked from one that has loaded torch and lightning: a fresh start takes seconds.

The one they are forked from does nothing else, so no thread and no state of the tests comes along.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_lrmil.core.events import Event, Progress

if TYPE_CHECKING:
    from napari_lrmil.core.slides.slide import Slide

PRELOADED = ["napari_lrmil.cli", "lrmil_training.train", "lrmil_training.fitting.processes", "support.fits"]


def forking() -> BaseContext:
    """Return where processes are forked from a prepared one, on Linux; elsewhere each starts from nothing."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a process that calls a function of a module."""
    process = forking().Process(target=work, args=arguments)
    process.start()
    return process


def start_command(*words: object, said: Path | None = None) -> BaseProcess:
    """Start ``napari-lrmil`` with these words; what it says goes to a file, or nowhere."""
    return start(_command, [str(word) for word in words], said)


def ended(process: BaseProcess) -> int:
    """Return the exit code of a process, once it has ended."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def run_command_up_to(words: Sequence[str], slide: str, reached: Path, said: Path) -> None:
    """Run ``napari-lrmil predict``, and wait for ever once the first patches of a slide are encoded; note that."""
    from napari_lrmil.core.cohort import predict_task

    predict = predict_task.predict

    def held(opened: Slide, *arguments: Any, **options: Any) -> Iterator[Event]:
        with closing(predict(opened, *arguments, **options)) as stream:
            for event in stream:
                yield event
                if opened.name == slide and isinstance(event, Progress) and event.unit == "patches":
                    reached.touch()
                    threading.Event().wait()

    predict_task.predict = held
    _command(list(words), said)


def _command(words: list[str], said: Path | None) -> None:
    with open(said or os.devnull, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    from napari_lrmil.cli import main

    sys.argv = ["napari-lrmil", *words]
    main()
