"""Monitor of a run folder: new lines of the event log, progress, and the process that writes.

No Qt and no napari: `run_process` starts and stops runs, `run_panel` shows them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrmil_training.report.run_record import CurveReader, TrainingCurve
from lrmil_training.runs.lock import HEARTBEAT_S, LOCK_FILE, MAX_MISSED_HEARTBEATS, LockOwner, find_owner
from napari_lrmil.core.events import Failed, Finished, Notice, Progress, StageDone
from napari_lrmil.core.formatting import format_duration

MAX_READ_BYTES = 1 << 19  # per read: parsing half a megabyte of JSON blocks the window for a few hundredths of a second
SILENCE_LIMIT_S = HEARTBEAT_S * MAX_MISSED_HEARTBEATS
MAX_NOTICES = 20  # notices in memory; the dock shows fewer

LogLine = Mapping[str, Any]


class JsonLinesTail:
    """Reader of the new lines of a growing JSON-lines file; an incomplete last line waits for its end.

    Parameters
    ----------
    path
        The file; it need not exist yet.

    Attributes
    ----------
    broken
        Number of lines that are not JSON objects.
    more
        Whether the last read left complete lines unread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = 0
        self.more = False
        self._offset = 0

    def read(self, max_bytes: int = MAX_READ_BYTES) -> list[LogLine]:
        """Return the next complete lines, about `max_bytes` in all."""
        try:
            if self.path.stat().st_size < self._offset:  # the file is shorter: a new run in the same folder
                self._offset = 0
            with self.path.open("rb") as file:
                file.seek(self._offset)
                block = file.read(max_bytes)
                if b"\n" not in block and len(block) == max_bytes:
                    block += file.readline()
        except OSError:  # the file does not exist yet, or a network drive is unavailable for a moment
            self.more = False
            return []
        self.more = len(block) >= max_bytes
        complete, _, _ = block.rpartition(b"\n")
        self._offset += len(complete) + 1 if complete else 0
        return [line for line in map(self._parse, complete.splitlines()) if line is not None]

    def _parse(self, text: bytes) -> LogLine | None:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            self.broken += bool(text.strip())
            return None
        return line


@dataclass(frozen=True)
class TrainingStageProgress:
    """Progress of the current stage, and speed of this attempt.

    Attributes
    ----------
    stage, unit
        Name of the stage, and of its units.
    first
        Units that earlier attempts had finished.
    done, total
        Finished units, including fractions, and all units.
    seconds
        Time since this attempt started the stage.
    """

    stage: str
    unit: str
    first: float
    done: float
    total: float
    seconds: float

    @property
    def share(self) -> float:
        """Finished share, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def left(self) -> float | None:
        """Seconds left at this speed, an upper bound if the stage may stop early; None before the first unit."""
        finished = self.done - self.first
        if finished <= 0 or self.seconds <= 0:
            return None
        return self.seconds * (self.total - self.done) / finished

    @property
    def reached(self) -> str:
        """Stage and number of finished units."""
        return f"{stage_label(self.stage)} · {int(self.done)} of {int(self.total)} {self.unit}"

    @property
    def text(self) -> str:
        """One line: stage, finished units, time left."""
        if self.left is None or self.left < 1:
            return self.reached
        qualifier = "at most " if self.unit == "epochs" else "about "
        return f"{self.reached} · {qualifier}{format_duration(self.left)} left"


def stage_label(stage: str) -> str:
    """Return the display name of a stage or of a fit."""
    return re.sub(r"\bstage(\d)", r"stage \1", stage.replace("_", " "))


@dataclass
class RunLogState:
    """State of a run, accumulated from its event log.

    Attributes
    ----------
    attempt
        Number of the last attempt; earlier ones failed or were stopped.
    done
        Finished stages of this attempt, with their seconds.
    earlier
        Finished stages of earlier attempts, with the sum of their seconds.
    stage
        The current stage; empty if there is none.
    run, runs
        Number of the run in a series, and of all runs; 0 for a single run.
    notices, failures
        Notices, and slides that cannot be used with the reason.
    finished
        Whether the run has finished.
    patches
        Teacher patches that this attempt embedded.
    """

    attempt: int = 0
    done: dict[str, float] = field(default_factory=dict)
    earlier: dict[str, float] = field(default_factory=dict)
    stage: str = ""
    run: int = 0
    runs: int = 0
    notices: dict[str, None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    patches: int = 0
    last_time: float = 0.0

    def __post_init__(self) -> None:
        self._reader = CurveReader()
        self._started = self._first = self._done = self._total = self._part = 0.0
        self._unit = ""

    @property
    def curves(self) -> list[TrainingCurve]:
        """Training curves of all fits so far."""
        return self._reader.curves

    @property
    def spent(self) -> dict[str, float]:
        """Finished stages, with their seconds over all attempts."""
        return self.earlier | {stage: s + self.earlier.get(stage, 0.0) for stage, s in self.done.items()}

    def progress(self, now: float | None = None) -> TrainingStageProgress | None:
        """Return the progress of the current stage at `now`, or at the last line of the log; None without a stage."""
        if not self.stage:
            return None
        seconds = max(0.0, (self.last_time if now is None else now) - self._started)
        return TrainingStageProgress(self.stage, self._unit, self._first, self._done + self._part, self._total, seconds)

    @property
    def resume_text(self) -> str:
        """Clause on where *Resume* continues."""
        progress = self.progress()
        if progress is not None and progress.unit == "slides":
            return "Resume continues with the current slide"
        if self.curves:
            return "Resume continues from the last complete epoch"
        if self.spent:
            return f"Resume continues after {stage_label(list(self.spent)[-1])}"
        return "Resume starts again, because no step is complete yet"

    def update(self, lines: Iterable[LogLine]) -> None:
        """Apply new lines of the log; unknown events and fields of newer versions are ignored."""
        for line in lines:
            try:
                self._apply(line)
            except (KeyError, TypeError, ValueError):
                continue

    def _apply(self, line: LogLine) -> None:
        kind, now = line["event"], float(line.get("time", 0.0))
        attempt = int(line.get("attempt", 0))
        if attempt != self.attempt:
            self.earlier = self.spent
            self.attempt, self.done, self.stage, self.patches = attempt, {}, "", 0
        self.last_time, self.finished = now, kind == Finished.wire_name
        self._reader.add(line)
        match kind:
            case Progress.wire_name:
                self._apply_progress(str(line["stage"]), int(line["done"]), int(line["total"]), str(line["unit"]), now)
            case StageDone.wire_name:
                self.done[str(line["stage"])] = float(line["seconds"])
                self.stage = "" if self.stage == line["stage"] else self.stage
            case Notice.wire_name if len(self.notices) < MAX_NOTICES:
                self.notices[" ".join(filter(None, (line.get("subject", ""), line["message"])))] = None
            case Failed.wire_name:
                self.failures[str(line.get("subject", ""))] = str(line["message"])
            case Finished.wire_name:
                self.stage = ""

    def _apply_progress(self, stage: str, done: int, total: int, unit: str, now: float) -> None:
        if unit == "runs":
            self.run, self.runs, self.done = done + 1, total, {}
        elif unit == "patches":  # within a slide of the current stage
            self._part = done / total if total else 0.0
            if done == total and self.stage.startswith("HR"):
                self.patches += total
        else:
            if stage != self.stage:
                # An epoch is logged at its end, so the first one in the log counts as finished before this attempt.
                self._started, self._first = now, done
            self.stage, self._done, self._total, self._unit, self._part = stage, done, total, unit, 0.0
            if unit == "slides" and done == total:
                self.done[stage], self.stage = now - self._started, ""


@dataclass(frozen=True)
class RunWriter:
    """Process that writes to a run folder.

    Attributes
    ----------
    owner
        Process in the lock file.
    silent_s
        Seconds since its last heartbeat.
    """

    owner: LockOwner
    silent_s: float

    @property
    def is_alive(self) -> bool:
        """Whether its heartbeat is recent."""
        return self.silent_s < SILENCE_LIMIT_S

    @property
    def text(self) -> str:
        """One line: process, machine, and how long it has been silent."""
        since = "" if self.is_alive else f", silent for {format_duration(self.silent_s)}"
        return f"process {self.owner.pid} on {self.owner.host}{since}"


class HeartbeatMonitor:
    """Watcher of the lock file in a run folder; it counts changes, because the clocks of two machines may differ.

    Parameters
    ----------
    folder
        The run folder.
    clock
        Returns seconds; a test passes a clock of its own.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._last: LockOwner | None = None
        self._last_heartbeat = 0.0

    def check(self) -> RunWriter | None:
        """Return the process that writes; None if there is none, or if it has died on this machine."""
        owner, now = find_owner(self._folder), self._clock()
        if owner is None:
            self._last = None
            return None
        if self._last is None:
            self._last_heartbeat = now - min(self._age(), SILENCE_LIMIT_S)  # an old file may belong to a dead process
        elif owner != self._last:
            self._last_heartbeat = now
        self._last = owner
        return RunWriter(owner, now - self._last_heartbeat)

    def _age(self) -> float:
        try:
            return max(0.0, time.time() - (self._folder / LOCK_FILE).stat().st_mtime)
        except OSError:
            return 0.0
