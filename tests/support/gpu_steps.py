"""Steps for tests of the GPU check's worker: one that hangs, one that dies, one that fails, one that succeeds."""

from __future__ import annotations

import os
import threading
from typing import Any


def hang(context: Any) -> dict[str, Any]:
    threading.Event().wait()
    raise AssertionError("nothing sets the event")


def die(context: Any) -> dict[str, Any]:
    os._exit(3)


def fail(context: Any) -> dict[str, Any]:
    raise ValueError("on purpose")


def report_problem(context: Any) -> dict[str, Any]:
    return {"figure": 1.5, "problem": "the figure is too large"}


def succeed(context: Any) -> dict[str, Any]:
    return {"process": os.getpid()}
