"""Commands that are killed again and again until they finish, each time at an event or a file that they write."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

from lrmil_training.runs.event_log import EVENTS
from support.processes import ended, start_command

POLL_S = 0.001
OWN = (EVENTS, "lock")  # change all the time

Reached = Callable[["Attempt"], bool]


class Attempt:
    """One start of a command, as its folder shows it.

    Parameters
    ----------
    out
        Folder of the results.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._before = _files(out)
        # An incomplete last line is removed by the next attempt.
        self._log_start = self._log().rfind(b"\n") + 1

    def _log(self) -> bytes:
        path = self.out / EVENTS
        return path.read_bytes() if path.exists() else b""

    def lines(self) -> list[dict[str, Any]]:
        """Return the events of this attempt."""
        complete = self._log()[self._log_start :].rpartition(b"\n")[0]
        return [json.loads(line) for line in complete.splitlines()]

    def new_files(self) -> int:
        """Return how many files are new or replaced since the start, half-written ones included."""
        return len(_files(self.out) - self._before)


def _files(folder: Path) -> set[tuple[str, int]]:
    """Return (path, inode) of all files; a file that is replaced has another inode."""
    entries = ((entry, root) for root, _, names in os.walk(folder) for entry in names if entry not in OWN)
    found = set()
    for name, root in entries:
        try:
            found.add((os.path.join(root, name), os.stat(os.path.join(root, name)).st_ino))
        except FileNotFoundError:  # a half-written file that has got its name
            continue
    return found


@dataclass(frozen=True)
class KillPoint:
    """Moment to kill a command: named after its stage, for the count of kills."""

    stage: str
    is_reached: Reached


@dataclass
class Outcome:
    """Kills of one command.

    Attributes
    ----------
    kills
        Stage -> number of kills that hit it.
    attempts
        Number of starts.
    """

    kills: Counter[str] = field(default_factory=Counter)
    attempts: int = 0


def kill_until_done(words: Sequence[object], out: Path, points: Sequence[KillPoint], said: Path) -> Outcome:
    """Start a command, kill it at the first point, start it again, and so on; at last let it finish.

    After each kill all files with their final names are checked to be whole.
    """
    outcome = Outcome()
    for point in points:
        if not _kill_at(words, out, point, outcome, said):
            return outcome  # it finished before the point
        require_whole(out)
    outcome.attempts += 1
    process = start_command(*words, said=said)
    assert ended(process) == 0, said.read_text()
    return outcome


def _kill_at(words: Sequence[object], out: Path, point: KillPoint, outcome: Outcome, said: Path) -> bool:
    attempt = Attempt(out)
    process = start_command(*words, said=said)
    outcome.attempts += 1
    while not point.is_reached(attempt):
        process.join(POLL_S)
        if process.exitcode is not None:
            assert process.exitcode == 0, said.read_text()
            return False
    process.kill()
    if ended(process) == -signal.SIGKILL:
        outcome.kills[point.stage] += 1
    return True


def require_whole(folder: Path) -> None:
    """Raise if a file that is no half-written one by its name cannot be read."""
    for file in _whole_files(folder):
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".h5":
            with h5py.File(file) as content:
                assert list(content), file
        elif file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="numpy") as content:
                assert list(content.keys()), file
        else:
            assert file.stat().st_size > 0, file


def _whole_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and file.name not in OWN and not any(part.endswith(".partial") for part in parts):
            yield file


# ---------------------------------------------------------------- points


def files_written(stage: str, count: int) -> KillPoint:
    """Return the point where so many files are new, half-written ones included."""
    return KillPoint(stage, lambda attempt: attempt.new_files() >= count)


def logged(stage: str, is_it: Callable[[dict[str, Any]], bool], *, count: int = 1, files: int = 0) -> KillPoint:
    """Return the point where such an event is logged `count` times, and then so many files are written."""
    files_at_event: list[int] = []

    def is_reached(attempt: Attempt) -> bool:
        if not files_at_event:
            if sum(map(is_it, attempt.lines())) < count:
                return False
            files_at_event.append(attempt.new_files())
        return attempt.new_files() >= files_at_event[0] + files

    return KillPoint(stage, is_reached)


def mid_fit(stage: str, number: int) -> KillPoint:
    """Return a point within a fit: in an epoch, at its end, or while its checkpoint is written."""
    kind = ("Metric", "Progress", "Progress")[number % 3]
    return logged(stage, lambda line: (line["event"], line.get("stage")) == (kind, stage), files=number % 3 // 2)


def mid_features(number: int) -> KillPoint:
    """Return a point within the extraction of features: in a slide, or where one is done."""
    if number % 2:
        return logged("features", lambda line: line.get("unit") == "patches")
    return logged("features", lambda line: line.get("stage") == "HR features", count=2)


def mid_evaluation(number: int) -> KillPoint:
    """Return a point within the evaluation: after so many files that it writes."""
    return logged("evaluation", lambda line: line.get("stage") == "evaluation", files=number)
