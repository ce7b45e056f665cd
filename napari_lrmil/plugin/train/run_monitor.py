"""What a run folder tells while it is written to: new lines of its log, how far it is, and who writes.

No Qt and no napari; `training_run.py` starts and ends runs, `sections/run.py` shows them.
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

MAX_READ_BYTES = 1 << 19  # of a log read at once: half a megabyte of JSON takes some hundredths of a second
SILENCE_LIMIT_S = HEARTBEAT_S * MAX_MISSED_HEARTBEATS
MAX_NOTICES = 20  # cautions and failures that are kept to be shown

LogLine = Mapping[str, Any]


class JsonLinesTail:
    """Reads what is new of a growing file of JSON lines; a last line without its end waits for the rest.

    Parameters
    ----------
    path
        The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = 0  # lines that are no JSON objects
        self.more = False  # whether the last reading left some for the next
        self._at = 0

    def read(self, most: int = MAX_READ_BYTES) -> list[LogLine]:
        """Return the next whole lines, of about `most` bytes at once."""
        try:
            if self.path.stat().st_size < self._at:  # another run in the same place
                self._at = 0
            with self.path.open("rb") as file:
                file.seek(self._at)
                block = file.read(most)
                if b"\n" not in block and len(block) == most:
                    block += file.readline()
        except OSError:  # not there yet, or a network drive that is away for a moment
            self.more = False
            return []
        self.more = len(block) >= most
        whole, _, _ = block.rpartition(b"\n")
        self._at += len(whole) + 1 if whole else 0
        return [line for line in map(self._parsed, whole.splitlines()) if line is not None]

    def _parsed(self, text: bytes) -> LogLine | None:
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
    """How far a stage is, and how fast this attempt goes.

    Attributes
    ----------
    stage, unit
        What is done, and what is counted.
    first
        Units that were done when this attempt came to the stage.
    done, total
        Of its units; a part of one counts as a part.
    seconds
        Since this attempt came to it.
    """

    stage: str
    unit: str
    first: float
    done: float
    total: float
    seconds: float

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def left(self) -> float | None:
        """Seconds left at this pace; an upper bound where a stage may stop early. None before anything is done."""
        made = self.done - self.first
        return self.seconds * (self.total - self.done) / made if made > 0 and self.seconds > 0 else None

    @property
    def reached(self) -> str:
        """The stage and how many of its units are done."""
        return f"{stage_label(self.stage)} · {int(self.done)} of {int(self.total)} {self.unit}"

    @property
    def text(self) -> str:
        """One line."""
        if self.left is None or self.left < 1:
            return self.reached
        most = "at most " if self.unit == "epochs" else "about "
        return f"{self.reached} · {most}{format_duration(self.left)} left"


def stage_label(stage: str) -> str:
    """Return a stage's name, or a fit's title, as people write it."""
    return re.sub(r"\bstage(\d)", r"stage \1", stage.replace("_", " "))


@dataclass
class RunLogState:
    """What the lines of a log add up to.

    Attributes
    ----------
    attempt
        The last; earlier ones broke off or were stopped.
    done
        Stages that ended in this attempt, with their seconds.
    earlier
        Seconds that earlier attempts spent on stages that ended in them.
    stage
        The one under way, if there is one.
    run, runs
        Which run of a series, where it is one.
    cautions, failures
        What the user should know, and slides that could not be used.
    finished
        Whether the last line says so.
    """

    attempt: int = 0
    done: dict[str, float] = field(default_factory=dict)
    earlier: dict[str, float] = field(default_factory=dict)
    stage: str = ""
    run: int = 0
    runs: int = 0
    cautions: dict[str, None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    patches: int = 0  # that were embedded in this attempt, of the teacher
    last_time: float = 0.0

    def __post_init__(self) -> None:
        self._reader = CurveReader()
        self._began = self._first = self._done = self._total = self._part = 0.0
        self._unit = ""

    @property
    def curves(self) -> list[TrainingCurve]:
        """Every fit so far."""
        return self._reader.curves

    @property
    def spent(self) -> dict[str, float]:
        """Stages that have ended, with the seconds that all attempts spent on them."""
        return self.earlier | {stage: s + self.earlier.get(stage, 0.0) for stage, s in self.done.items()}

    def pace(self, now: float | None = None) -> TrainingStageProgress | None:
        """Return how far the stage under way is; until `now`, else until the last line."""
        if not self.stage:
            return None
        seconds = max(0.0, (self.last_time if now is None else now) - self._began)
        return TrainingStageProgress(self.stage, self._unit, self._first, self._done + self._part, self._total, seconds)

    @property
    def resumes(self) -> str:
        """Return what *Resume* does after this, as a clause."""
        pace = self.pace()
        if pace is not None and pace.unit == "slides":
            return "Resume goes on with the slide it was at"
        if self.curves:
            return "Resume goes on from the last whole epoch"
        if self.spent:
            return f"Resume goes on after {stage_label(list(self.spent)[-1])}"
        return "Resume begins again, for nothing was done yet"

    def update(self, lines: Iterable[LogLine]) -> None:
        """Take further lines; what a newer version may say beyond what is known here is passed over."""
        for line in lines:
            try:
                self._apply(line)
            except (KeyError, TypeError, ValueError):
                continue

    def _apply(self, line: LogLine) -> None:
        kind, at = line["event"], float(line.get("time", 0.0))
        attempt = int(line.get("attempt", 0))
        if attempt != self.attempt:
            self.earlier = self.spent
            self.attempt, self.done, self.stage, self.patches = attempt, {}, "", 0
        self.last_time, self.finished = at, kind == Finished.wire_name
        self._reader.add(line)
        match kind:
            case Progress.wire_name:
                self._progress(str(line["stage"]), int(line["done"]), int(line["total"]), str(line["unit"]), at)
            case StageDone.wire_name:
                self.done[str(line["stage"])] = float(line["seconds"])
                self.stage = "" if self.stage == line["stage"] else self.stage
            case Notice.wire_name if len(self.cautions) < MAX_NOTICES:
                self.cautions[" ".join(filter(None, (line.get("subject", ""), line["message"])))] = None
            case Failed.wire_name:
                self.failures[str(line.get("subject", ""))] = str(line["message"])
            case Finished.wire_name:
                self.stage = ""

    def _progress(self, stage: str, done: int, total: int, unit: str, at: float) -> None:
        if unit == "runs":
            self.run, self.runs, self.done = done + 1, total, {}
        elif unit == "patches":  # within a slide of the stage under way
            self._part = done / total if total else 0.0
            if done == total and self.stage.startswith("HR"):
                self.patches += total
        else:
            if stage != self.stage:
                # Epochs tell when they end, so the first that is told has been made by this attempt, or before it.
                self._began, self._first = at, done
            self.stage, self._done, self._total, self._unit, self._part = stage, done, total, unit, 0.0
            if unit == "slides" and done == total:
                self.done[stage], self.stage = at - self._began, ""


@dataclass(frozen=True)
class RunWriter:
    """Who writes to a run folder.

    Attributes
    ----------
    owner
        As the lock file names it.
    silent_s
        Seconds since its last sign of life.
    """

    owner: LockOwner
    silent_s: float

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately."""
        return self.silent_s < SILENCE_LIMIT_S

    @property
    def text(self) -> str:
        """One line."""
        since = "" if self.alive else f", which has not been heard of for {format_duration(self.silent_s)}"
        return f"process {self.owner.pid} on {self.owner.host}{since}"


class HeartbeatMonitor:
    """Watches the lock file of a run folder; another machine's clock need not agree with ours.

    Parameters
    ----------
    folder
        The run's.
    clock
        Seconds; tests pass their own.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._last: LockOwner | None = None
        self._heard = 0.0

    def look(self) -> RunWriter | None:
        """Return who writes; None where nobody does, or whoever did has died on this machine."""
        owner, now = find_owner(self._folder), self._clock()
        if owner is None:
            self._last = None
            return None
        if self._last is None:
            self._heard = now - min(self._age(), SILENCE_LIMIT_S)  # an old file may be that of a writer long gone
        elif owner != self._last:
            self._heard = now
        self._last = owner
        return RunWriter(owner, now - self._heard)

    def _age(self) -> float:
        try:
            return max(0.0, time.time() - (self._folder / LOCK_FILE).stat().st_mtime)
        except OSError:
            return 0.0
