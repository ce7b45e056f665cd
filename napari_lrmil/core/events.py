"""Typed events of long work, the same for the command line, the window and the tests.

``wire_name`` is what ``events.jsonl`` calls an event. It does not follow the class: logs of earlier runs have it.
The names of the fields stand in that file too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `stage` are ready; `unit` says what is counted (patches, slides, epochs).

    `seconds_left` is there where whoever does the work knows better than the pace of the last minute tells.
    """

    wire_name: ClassVar[str] = "Progress"

    stage: str
    done: int
    total: int
    unit: str = "patches"
    seconds_left: float | None = None


@dataclass(frozen=True)
class StageDone:
    """A stage ended well after `seconds` of wall time."""

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
    """Something the user should know that does not stop the work; `subject` names the slide or file."""

    wire_name: ClassVar[str] = "Caution"

    message: str
    subject: str = ""


@dataclass(frozen=True)
class Partial:
    """Something to show before the work is done; `result` is of the kind that the work will end with."""

    wire_name: ClassVar[str] = "Partial"

    result: Any = None


@dataclass(frozen=True)
class Finished:
    """The work is done; `result` is what it made."""

    wire_name: ClassVar[str] = "Finished"

    result: Any = None


@dataclass(frozen=True)
class Failed:
    """The work, or one slide of it, failed at `step` for the reason in `message` (one sentence)."""

    wire_name: ClassVar[str] = "Failed"

    message: str
    subject: str = ""
    step: str = ""
    error: BaseException | None = field(default=None, repr=False, compare=False)


Event = Progress | StageDone | Metric | Notice | Partial | Finished | Failed
