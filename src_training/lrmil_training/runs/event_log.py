"""The events of a run as lines of a file, which another process or machine can follow."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from napari_lrmil.core.atomic_files import raise_if_full
from napari_lrmil.core.events import Event, Finished

EVENTS = "events.jsonl"  # file name in a run folder


def event_to_json(event: Event) -> dict[str, Any]:
    """Return an event as one line of ``events.jsonl`` has it."""
    values = {k: v for k, v in event.__dict__.items() if k not in ("error", "seconds_left")}
    if isinstance(event, Finished):
        values = {"result": str(event.result)}
    return {"event": event.wire_name, **values}


class EventLog:
    """Append events to ``events.jsonl``, each a flushed line with ``seq``, ``attempt`` and ``time``.

    Numbers go on from attempt to attempt. A line that a killed process left without an end is cut off.

    Parameters
    ----------
    folder
        The run's.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / EVENTS
        _truncate_broken_line(path)
        last = max(read_events(path), key=lambda line: int(line.get("seq", -1)), default={})
        self.attempt = int(last.get("attempt", -1)) + 1
        self._next = int(last.get("seq", -1)) + 1
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def write(self, event: Event) -> None:
        """Append an event."""
        line = {"seq": self._next, "attempt": self.attempt, "time": time.time(), **event_to_json(event)}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise_if_full(self._path, error)
            raise
        self._next += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: Path, *, attempt: int | None = None) -> list[dict[str, Any]]:
    """Return the lines of an event log, of one attempt or of all; a broken last line is dropped.

    A file that does not exist has none.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    lines = [json.loads(line) for line in whole.splitlines() if line]
    return [line for line in lines if attempt is None or line.get("attempt", 0) == attempt]


def _truncate_broken_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


FEATURES, CHECKPOINTS, LOGS, BUNDLE = "features", "checkpoints", "logs", "bundle"
METRICS, SLIDES, CONFIG, COHORT = "metrics.json", "slides.json", "config.yaml", "cohort.sha256"
CALL = "call.json"  # which table and which device, so that whoever opens the folder can go on with it
