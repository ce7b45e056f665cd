"""Event log of a run: one JSON line per event, which another process or machine can follow; names of run files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from napari_lrmil.core.atomic_files import raise_if_full
from napari_lrmil.core.events import Event, Finished

# Names in a run folder.
FEATURES, CHECKPOINTS, LOGS, BUNDLE = "features", "checkpoints", "logs", "bundle"
WITHOUT_ARTEFACTS = "without_artefacts"  # in the folder of features, those of runs with `exclude_artefacts`
EVENTS, METRICS, SLIDES, CONFIG, COHORT = (
    "events.jsonl",
    "metrics.json",
    "slides.json",
    "config.yaml",
    "cohort.sha256",
)
REPORT_FILE, RUNS_FOLDER = "report.html", "runs"  # the report, and the folder of the runs of a series
SELECTION = "selection.json"  # candidates for the teacher's recipe, measured on the inner folds, and the choice
WARNINGS = "warnings"  # key in metrics.json: what makes the figures of an evaluation doubtful
CALL = "call.json"  # path of the cohort table, the device, and options; the Train dock needs them to resume the run
ALLOW_MISSING = "allow_missing"  # of the call: slides were used of which more than a third of the tissue is missing


def event_to_json(event: Event) -> dict[str, Any]:
    """Return the JSON values of an event, as a line of ``events.jsonl`` holds them."""
    values = {k: v for k, v in event.__dict__.items() if k not in ("error", "seconds_left")}
    if isinstance(event, Finished):
        values = {"result": str(event.result)}
    return {"event": event.wire_name, **values}


def hide_folders(text: str, folders: Iterable[Path]) -> str:
    """Return text without the folders in front of names of files, and with ``~`` for the user's home.

    Text that is one of the folders becomes its name.
    """
    for folder in sorted(map(str, folders), key=len, reverse=True):
        if text == folder:
            return Path(folder).name
        text = text.replace(folder.rstrip(os.sep) + os.sep, "")
    home = str(Path.home())
    return text if home == os.sep else text.replace(home, "~")


class EventLog:
    """Writer of ``events.jsonl``: each event is one flushed line with ``seq``, ``attempt`` and ``time``.

    ``seq`` continues from attempt to attempt. An incomplete last line, left by a killed process, is removed.

    Parameters
    ----------
    folder
        The run folder, created if it does not exist.
    hidden
        Folders that are left out of messages, because they may name a user; None writes messages as they are.

    Attributes
    ----------
    attempt
        Number of this attempt at the run, from 0.
    """

    def __init__(self, folder: Path, hidden: Collection[Path] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / EVENTS
        _truncate_broken_line(path)
        last = max(read_events(path), key=lambda line: int(line.get("seq", -1)), default={})
        self.attempt = int(last.get("attempt", -1)) + 1
        self._next_seq = int(last.get("seq", -1)) + 1
        self._hidden = hidden
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def write(self, event: Event) -> None:
        """Append an event.

        Raises
        ------
        DiskFullError
            If no space is left on the disk.
        """
        values = event_to_json(event)
        if self._hidden is not None:
            values = {k: hide_folders(v, self._hidden) if isinstance(v, str) else v for k, v in values.items()}
        line = {"seq": self._next_seq, "attempt": self.attempt, "time": time.time(), **values}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise_if_full(self._path, error)
            raise
        self._next_seq += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: Path, *, attempt: int | None = None) -> list[dict[str, Any]]:
    """Return the lines of an event log; an incomplete last line is dropped.

    Parameters
    ----------
    path
        The log; the list is empty if the file does not exist.
    attempt
        Return the lines of this attempt only; of all attempts if None.
    """
    if not path.exists():
        return []
    complete, _, _ = path.read_bytes().rpartition(b"\n")
    lines = [json.loads(line) for line in complete.splitlines() if line]
    return [line for line in lines if attempt is None or line.get("attempt", 0) == attempt]


def _truncate_broken_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
