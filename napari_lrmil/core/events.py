"""Typed events of long work, the same for the command line, the window and the tests.

``wire_name`` is the name of an event in ``events.jsonl``. It stays when a class is renamed, because the logs of earlier
runs contain it. Field names are part of that file too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `stage` are ready. `unit` names what is counted: patches, slides or epochs.

    `seconds_left` is set if the work itself has a better estimate than the pace of the last minute.
    """

    wire_name: ClassVar[str] = "Progress"

    stage: str
    done: int
    total: int
    unit: str = "patches"
    seconds_left: float | None = None


@dataclass(frozen=True)
class StageDone:
    """A stage has ended without error after `seconds` of wall time."""

    wire_name: ClassVar[str] = "StageDone"

    stage: str
    seconds: float


@dataclass(frozen=True)
class Metric:
    """A named figure of a training stage, at `step` (an epoch unless the stage says otherwise)."""

    wire_name: ClassVar[str] = "Metric"

    stage: str
    name: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class Notice:
    """A warning that does not stop the work. `subject` names the slide or file."""

    wire_name: ClassVar[str] = "Caution"

    message: str
    subject: str = ""


@dataclass(frozen=True)
class Partial:
    """An intermediate result to show. `result` has the type of the final one."""

    wire_name: ClassVar[str] = "Partial"

    result: Any = None


@dataclass(frozen=True)
class Finished:
    """The work is done. `result` is its outcome."""

    wire_name: ClassVar[str] = "Finished"

    result: Any = None


@dataclass(frozen=True)
class Failed:
    """The work, or one slide of it, failed at `step`. `message` states the reason in one sentence."""

    wire_name: ClassVar[str] = "Failed"

    message: str
    subject: str = ""
    step: str = ""
    error: BaseException | None = field(default=None, repr=False, compare=False)


Event = Progress | StageDone | Metric | Notice | Partial | Finished | Failed
EventSource = Callable[[], Iterator[Event]]  # starts work when it is called, and yields its events
