"""A training run as the window sees it: a process of its own that writes to a folder, and what the folder tells.

The process is detached: it goes on without the window, and any window can follow it. No Qt and no napari here.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from psygnal import Signal

from lrmil_training.config import TrainConfig, dump_config, load_config
from lrmil_training.runs.event_log import CALL, CONFIG, EVENTS
from lrmil_training.runs.lock import clear_stop_request, is_stop_requested, request_stop
from napari_lrmil.core.atomic_files import raise_if_full, write_text
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.plugin.train.run_monitor import HeartbeatMonitor, JsonLinesTail, RunLogState, RunWriter

SETTINGS_FILE, OUTPUT_FILE = "settings.yaml", "output.txt"  # what the window asked for, and what the process said
TAIL_BYTES = 4096  # of the output, in which its last sentence lies
_RELEASED: list[subprocess.Popen[bytes]] = []  # children that outlive their dock; kept so that Python reaps them


@atexit.register
def _silence_released_children() -> None:
    for child in _RELEASED:
        if child.poll() is None:
            child.returncode = 0  # it runs on on purpose: Python would warn of it


class RunPhase(Enum):
    """How far a run is."""

    NONE = "no run"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    BROKEN = "broken off"
    FINISHED = "finished"


@dataclass(frozen=True)
class TrainCommand:
    """What a run is started with.

    Attributes
    ----------
    cohort
        The table.
    folder
        The run's.
    config
        A YAML file.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    cohort: Path
    folder: Path
    config: Path
    device: str = "auto"

    @property
    def words(self) -> list[str]:
        """The command line."""
        words = [sys.executable, "-m", "napari_lrmil", "train", str(self.cohort), "--out", str(self.folder)]
        return [*words, "--config", str(self.config), "--device", self.device]


def start_process(call: TrainCommand) -> subprocess.Popen[bytes]:
    """Start the process of a call, apart from this one; what it says goes to a file in the run folder.

    Raises
    ------
    LrmilError
        Where the folder cannot be written to.
    """
    detached: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        flags = "DETACHED_PROCESS", "CREATE_NEW_PROCESS_GROUP"
        detached = {"creationflags": sum(getattr(subprocess, flag) for flag in flags)}
    environment = os.environ | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "2000", "PYTHONUNBUFFERED": "1"}
    try:
        with (call.folder / OUTPUT_FILE).open("wb") as output:
            return subprocess.Popen(
                call.words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **detached
            )
    except OSError as error:
        raise _unwritable_error(call.folder, error) from error


def _unwritable_error(folder: Path, error: OSError) -> LrmilError:
    if folder.parent.exists():
        raise_if_full(folder, error)
    return LrmilError(f"{folder}: a run cannot be written there ({error.strerror}); choose another folder")


class TrainingRun:
    """One run folder at a time: started, followed, stopped, gone on with.

    Parameters
    ----------
    clock
        Seconds since 1970; tests pass their own.

    Attributes
    ----------
    folder
        The run's; None where none was chosen.
    story
        What its log tells.
    writer
        Who writes to it, where somebody does.
    reason
        A sentence on why it broke off.
    foreign
        A sentence on why this version cannot go on with it; empty where it can.
    """

    changed = Signal()
    failed = Signal(str)
    finished = Signal(object)

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._close()

    def _close(self) -> None:
        self.folder: Path | None = None
        self.story = RunLogState()
        self.writer: RunWriter | None = None
        self.phase, self.reason, self.foreign = RunPhase.NONE, "", ""
        self._tail: JsonLinesTail | None = None
        self._heart: HeartbeatMonitor | None = None
        self._seen: Any = None

    # ------------------------------------------------------------ starting and opening

    @property
    def alive(self) -> bool:
        """Whether a process writes to the folder, as far as can be told."""
        return self.phase in (RunPhase.STARTING, RunPhase.RUNNING, RunPhase.STOPPING)

    @property
    def is_ours(self) -> bool:
        """Whether this window started the process that runs."""
        return self._child is not None and self._child.poll() is None

    def start(self, cohort: Path, folder: Path, config: TrainConfig, device: str) -> None:
        """Begin a run in a folder.

        Raises
        ------
        LrmilError
            Where the folder cannot be written to, or holds a run already.
        """
        require_no_run(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / SETTINGS_FILE, dump_config(config))
        except OSError as error:
            raise _unwritable_error(folder, error) from error
        self._begin(TrainCommand(cohort, folder, folder / SETTINGS_FILE, device))

    def _begin(self, call: TrainCommand) -> None:
        clear_stop_request(call.folder)
        child = start_process(call)
        self._look_at(call.folder)
        self._call, self._child = call, child
        self.phase, self.reason = RunPhase.STARTING, ""
        self.changed.emit()

    def open(self, folder: Path) -> None:
        """Follow a run that is there, running or not.

        Raises
        ------
        LrmilError
            Where the folder is none of a run.
        """
        if not any((folder / name).exists() for name in (CONFIG, EVENTS, SETTINGS_FILE)):
            raise LrmilError(f"{folder}: no training run is here; expected a folder with {CONFIG} and {EVENTS}")
        self.let_go()
        self._look_at(folder)
        self.foreign = _why_foreign(folder)
        self.poll()
        self.changed.emit()

    def _look_at(self, folder: Path) -> None:
        self._close()
        self.folder = folder
        self._tail, self._heart = JsonLinesTail(folder / EVENTS), HeartbeatMonitor(folder)

    def let_go(self) -> None:
        """Follow the process no longer; it goes on."""
        if self._child is not None and self._child.poll() is None:
            _RELEASED.append(self._child)
        self._child = None

    # ------------------------------------------------------------ stopping and going on

    def stop(self) -> None:
        """Ask the process to end after the batch."""
        if self.folder is None or not self.alive:
            return
        try:
            request_stop(self.folder)
        except OSError as error:
            raise _unwritable_error(self.folder, error) from error
        self.phase = RunPhase.STOPPING
        self.changed.emit()

    @property
    def resume_blocked_by(self) -> str:
        """Return a sentence on why the run cannot go on; empty where it can."""
        if self.folder is None:
            return "No run is open."
        if self.alive:
            return "The run is under way."
        return self.foreign

    def resume(self, cohort: Path | None = None, device: str = "auto") -> None:
        """Go on from the last whole epoch: the same call again.

        Parameters
        ----------
        cohort, device
            Taken where the folder does not say, or its table is not on this machine.

        Raises
        ------
        LrmilError
            Where the table is not known, or the folder cannot be written to.
        """
        if self.folder is None or self.resume_blocked_by:
            raise LrmilError(self.resume_blocked_by)
        folder, told = self.folder, _read_stored_call(self.folder)
        table = Path(told["cohort"]) if told.get("cohort") else None
        if table is None or not table.exists():
            table = cohort
        if table is None:
            raise LrmilError(f"{folder}: its cohort table is not on this machine; open that table above, then resume")
        config = next((folder / name for name in (CONFIG, SETTINGS_FILE) if (folder / name).exists()), None)
        if config is None:
            raise LrmilError(f"{folder}: it has no {CONFIG}, so its settings are not known; start a new run")
        foreign = self.foreign
        self._begin(TrainCommand(table, folder, config, str(told.get("device") or device)))
        self.foreign = foreign

    # ------------------------------------------------------------ following

    def poll(self) -> None:
        """Look for what is new; told only where something is."""
        if self.folder is None or self._tail is None or self._heart is None:
            return
        before = self.phase
        code = self._child.poll() if self._child is not None else None  # before the log: what it wrote last is in it
        self.writer = self._heart.look()
        lines = self._tail.read()
        self.story.update(lines)
        if not self._tail.more:
            self.phase = self._found(code)
        seen = (self.phase, self.reason, self.writer and self.writer.alive)
        if lines or seen != self._seen:
            self._seen = seen
            self.changed.emit()
        if before is not self.phase and self.phase is RunPhase.FINISHED:
            self.finished.emit(self.folder)
        if before not in (self.phase, RunPhase.NONE) and self.phase is RunPhase.BROKEN:
            self.failed.emit(self.reason)

    def _found(self, code: int | None) -> RunPhase:
        assert self.folder is not None
        if self._child is not None and code is None:
            if self.phase is RunPhase.STOPPING:
                return RunPhase.STOPPING
            begun = self.writer is not None or self.phase is RunPhase.RUNNING  # and it may be about to end
            return RunPhase.RUNNING if begun else RunPhase.STARTING
        if self._child is None and self.writer is not None and self.writer.alive:
            return RunPhase.STOPPING if is_stop_requested(self.folder) else RunPhase.RUNNING
        if self.story.finished and code in (None, 0, 3):  # 3: some slides failed, which is told elsewhere
            return RunPhase.FINISHED
        if is_stop_requested(self.folder):
            return RunPhase.STOPPED
        self.reason = self._why(code, self.writer)
        return RunPhase.BROKEN

    def _why(self, code: int | None, writer: RunWriter | None) -> str:
        kept = f"what was done is kept, {self.story.resumes}"
        if code is None:
            who = f"{writer.text}" if writer else "no process writes to it any more"
            said = read_last_error(self.folder)
            if said and not writer:
                return said
            return f"The run is not finished, and {who}; {kept}."
        if code < 0:
            return f"The training process was killed (signal {-code}); {kept}."
        return read_last_error(self.folder) or f"The training process ended with exit code {code}; {kept}."

    def pace_text(self) -> str:
        """Return how far the stage under way is, for people."""
        story = self.story
        pace = story.pace(self._clock() if self.alive else None)
        told = pace.text if pace else ""
        return f"Run {story.run} of {story.runs} · {told}" if story.runs and told else told


def holds_run(folder: Path) -> bool:
    """Return whether a run has begun in a folder: one is gone on with there, and none begun."""
    return (folder / CONFIG).exists()


def require_no_run(folder: Path) -> None:
    """Raise `LrmilError` where a folder holds a run."""
    if holds_run(folder):
        raise LrmilError(f"{folder}: a run lies there already; open it to go on with it, or choose another folder")


def read_last_error(folder: Path | None) -> str:
    """Return what the process said last, where that was an error; empty where it was not."""
    if folder is None:
        return ""
    try:
        with (folder / OUTPUT_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    told = re.findall(r"^error: (.+)$", text, flags=re.MULTILINE)
    return told[-1].strip() if told else ""


def _read_stored_call(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / CALL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _why_foreign(folder: Path) -> str:
    """Return a sentence where the folder's settings are not ours to go on with."""
    config = folder / CONFIG
    if not config.exists():
        return ""
    try:
        load_config(config)
    except LrmilError as error:
        return f"The run was made by another version of the program, or its settings are damaged ({error})."
    return ""
