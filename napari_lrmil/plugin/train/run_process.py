"""Training run in a process of its own: start, follow through its folder, stop and resume.

The process is detached: it continues without the window, and any window can follow it. No Qt and no napari here.
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
from typing import Any, ClassVar
from weakref import WeakSet

from psygnal import Signal

from lrmil_training.config import TrainConfig, dump_config, load_config
from lrmil_training.runs.event_log import ALLOW_MISSING, CALL, CONFIG, EVENTS
from lrmil_training.runs.lock import clear_stop_request, is_stop_requested, request_stop
from napari_lrmil.core.atomic_files import raise_if_full, write_text
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.plugin.train.run_monitor import HeartbeatMonitor, JsonLinesTail, RunLogState, RunWriter

SETTINGS_FILE, OUTPUT_FILE = "settings.yaml", "output.txt"  # settings from the dock, and output of the process
TAIL_BYTES = 4096  # end of the output, which holds the error
_STARTED: dict[Path, subprocess.Popen[bytes]] = {}  # newest child of each run folder; it outlives its dock


@atexit.register
def _silence_running_children() -> None:
    for child in _STARTED.values():
        if child.poll() is None:
            child.returncode = 0  # it continues on purpose; Python would warn about a running child


class RunPhase(Enum):
    """Phase of a run."""

    NONE = "no run"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    BROKEN = "broken off"
    FINISHED = "finished"


@dataclass(frozen=True)
class TrainCommand:
    """Command of a training run.

    Attributes
    ----------
    cohort
        Cohort table.
    folder
        Run folder.
    config
        A YAML file.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    allow_missing
        Whether slides are used of which more than a third of the tissue is missing.
    """

    cohort: Path
    folder: Path
    config: Path
    device: str = "auto"
    allow_missing: bool = False

    @property
    def argv(self) -> list[str]:
        """Arguments of the process."""
        command = [sys.executable, "-m", "napari_lrmil", "train", str(self.cohort), "--out", str(self.folder)]
        command += ["--config", str(self.config), "--device", self.device]
        return [*command, "--allow-missing"] if self.allow_missing else command


def start_process(command: TrainCommand) -> subprocess.Popen[bytes]:
    """Start a detached process; its output goes to a file in the run folder.

    Raises
    ------
    LrmilError
        If the folder cannot be written to.
    """
    popen_options: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        flags = "DETACHED_PROCESS", "CREATE_NEW_PROCESS_GROUP"
        popen_options = {"creationflags": sum(getattr(subprocess, flag) for flag in flags)}
    environment = os.environ | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "2000", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONIOENCODING"] = "utf-8"  # Windows would write the output in its code page
    try:
        with (command.folder / OUTPUT_FILE).open("wb") as output:
            return subprocess.Popen(
                command.argv, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **popen_options
            )
    except OSError as error:
        raise _unwritable_error(command.folder, error) from error


def _unwritable_error(folder: Path, error: OSError) -> LrmilError:
    if folder.parent.exists():
        raise_if_full(folder, error)
    return LrmilError(f"{folder}: a run cannot be written there ({error.strerror}); choose another folder")


class TrainingRun:
    """A run folder and its process; the methods start, follow, stop and resume the run.

    Parameters
    ----------
    clock
        Returns seconds since 1970; a test passes a clock of its own.

    Attributes
    ----------
    folder
        The run folder; None if no run is open.
    log
        State from the event log.
    writer
        Process that writes to the folder; None if there is none.
    phase
        Phase of the run.
    reason
        Sentence on why the run broke off.
    foreign
        Sentence on why this version cannot resume the run; empty if it can.
    """

    changed = Signal()
    failed = Signal(str)
    finished = Signal(object)
    _instances: ClassVar[WeakSet[TrainingRun]] = WeakSet()

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._instances.add(self)
        self._close()

    def _close(self) -> None:
        self.folder: Path | None = None
        self.log = RunLogState()
        self.writer: RunWriter | None = None
        self.phase, self.reason, self.foreign = RunPhase.NONE, "", ""
        self._tail: JsonLinesTail | None = None
        self._heartbeat: HeartbeatMonitor | None = None
        self._last_state: Any = None

    # ------------------------------------------------------------ starting and opening

    @property
    def is_alive(self) -> bool:
        """Whether a process writes to the folder, as far as this window can see."""
        return self.phase in (RunPhase.STARTING, RunPhase.RUNNING, RunPhase.STOPPING)

    @property
    def is_ours(self) -> bool:
        """Whether this program started the running process, in this window or another."""
        return self._child is not None and self._child.poll() is None

    @classmethod
    def find_released(cls) -> Path | None:
        """Return the folder of the newest run in progress that this program started and no dock follows, or None."""
        followed = [run._child for run in cls._instances]
        return next((folder for folder in _list_alive() if _STARTED[folder] not in followed), None)

    @classmethod
    def find_started(cls) -> Path | None:
        """Return the folder of the newest run in progress that this program started, or None."""
        return next(iter(_list_alive()), None)

    def start(self, cohort: Path, folder: Path, config: TrainConfig, device: str) -> None:
        """Start a run in a folder.

        Raises
        ------
        LrmilError
            If the folder cannot be written to, or already holds a run.
        """
        require_no_run(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / SETTINGS_FILE, dump_config(config))
        except OSError as error:
            raise _unwritable_error(folder, error) from error
        self._start(TrainCommand(cohort, folder, folder / SETTINGS_FILE, device))

    def _start(self, command: TrainCommand) -> None:
        clear_stop_request(command.folder)
        child = start_process(command)
        self._watch(command.folder)
        _STARTED.pop(command.folder.resolve(), None)  # so that a resumed run is the newest
        self._child = _STARTED[command.folder.resolve()] = child
        self.phase, self.reason = RunPhase.STARTING, ""
        self.changed.emit()

    def open(self, folder: Path) -> None:
        """Follow an existing run, running or not; a process that this program started is its own again.

        Raises
        ------
        LrmilError
            If the folder holds no run.
        """
        if not any((folder / name).exists() for name in (CONFIG, EVENTS, SETTINGS_FILE)):
            raise LrmilError(f"{folder}: no training run is here; expected a folder with {CONFIG} and {EVENTS}")
        self.release()
        self._watch(folder)
        self._child = _find_alive_child(folder)
        self.foreign = _why_foreign(folder)
        self.poll()
        self.changed.emit()

    def _watch(self, folder: Path) -> None:
        self._close()
        self.folder = folder
        self._tail, self._heartbeat = JsonLinesTail(folder / EVENTS), HeartbeatMonitor(folder)

    def release(self) -> None:
        """Stop following the process, which continues."""
        self._child = None

    # ------------------------------------------------------------ stopping and resuming

    def stop(self) -> None:
        """Ask the process to end after the current batch."""
        if self.folder is None or not self.is_alive:
            return
        try:
            request_stop(self.folder)
        except OSError as error:
            raise _unwritable_error(self.folder, error) from error
        self.phase = RunPhase.STOPPING
        self.changed.emit()

    @property
    def resume_blocked_by(self) -> str:
        """Sentence on why the run cannot be resumed; empty if it can."""
        if self.folder is None:
            return "No run is open."
        if self.is_alive:
            return "The run is in progress."
        return self.foreign

    def resume(self, cohort: Path | None = None, device: str = "auto") -> None:
        """Continue from the last complete epoch, by the same command.

        Parameters
        ----------
        cohort, device
            Used if the folder does not state them, or if its table is not on this machine.

        Raises
        ------
        LrmilError
            If there is no table, or the folder cannot be written to.
        """
        if self.folder is None or self.resume_blocked_by:
            raise LrmilError(self.resume_blocked_by)
        folder, stored = self.folder, _read_stored_call(self.folder)
        # As seen from the folder; runs of earlier versions have an absolute path, which stays one.
        table = Path(os.path.normpath(folder / stored["cohort"])) if stored.get("cohort") else None
        if table is None or not table.exists():
            table = cohort
        if table is None:
            raise LrmilError(f"{folder}: its cohort table is not on this machine; open that table above, then resume")
        config = next((folder / name for name in (CONFIG, SETTINGS_FILE) if (folder / name).exists()), None)
        if config is None:
            raise LrmilError(f"{folder}: it has no {CONFIG}, so its settings are unknown; start a new run")
        foreign = self.foreign
        allow_missing = stored.get(ALLOW_MISSING) is True
        self._start(TrainCommand(table, folder, config, str(stored.get("device") or device), allow_missing))
        self.foreign = foreign

    # ------------------------------------------------------------ following

    def poll(self) -> None:
        """Read what is new in the folder, and emit signals if something changed."""
        if self.folder is None or self._tail is None or self._heartbeat is None:
            return
        before = self.phase
        # The exit code is read before the log, so that the log then holds everything the process wrote.
        code = self._child.poll() if self._child is not None else None
        self.writer = self._heartbeat.check()
        lines = self._tail.read()
        self.log.update(lines)
        if not self._tail.more:
            self.phase = self._find_phase(code)
        state = (self.phase, self.reason, self.writer and self.writer.is_alive)
        if lines or state != self._last_state:
            self._last_state = state
            self.changed.emit()
        if before is not self.phase and self.phase is RunPhase.FINISHED:
            self.finished.emit(self.folder)
        if before not in (self.phase, RunPhase.NONE) and self.phase is RunPhase.BROKEN:
            self.failed.emit(self.reason)

    def _find_phase(self, code: int | None) -> RunPhase:
        assert self.folder is not None
        if self._child is not None and code is None:
            if self.phase is RunPhase.STOPPING or is_stop_requested(self.folder):
                return RunPhase.STOPPING
            has_started = self.writer is not None or self.phase is RunPhase.RUNNING  # it may be about to end
            return RunPhase.RUNNING if has_started else RunPhase.STARTING
        if self._child is None and self.writer is not None and self.writer.is_alive:
            return RunPhase.STOPPING if is_stop_requested(self.folder) else RunPhase.RUNNING
        if self.log.finished and code in (None, 0, 3):  # 3: some slides failed, which the dock shows elsewhere
            return RunPhase.FINISHED
        if is_stop_requested(self.folder):
            return RunPhase.STOPPED
        self.reason = self._why_broken(code, self.writer)
        return RunPhase.BROKEN

    def _why_broken(self, code: int | None, writer: RunWriter | None) -> str:
        next_step = f"finished steps are stored, {self.log.resume_text}"
        if code is None:
            error = read_last_error(self.folder)
            if error and not writer:
                return error
            owner = writer.text if writer else "no process writes to it any more"
            return f"The run is not finished, and {owner}; {next_step}."
        if code < 0:
            return f"The training process was killed (signal {-code}); {next_step}."
        return read_last_error(self.folder) or f"The training process ended with exit code {code}; {next_step}."

    def progress_text(self) -> str:
        """Return the progress of the current stage, for display."""
        log = self.log
        progress = log.progress(self._clock() if self.is_alive else None)
        text = progress.text if progress else ""
        return f"Run {log.run} of {log.runs} · {text}" if log.runs and text else text


def _list_alive() -> list[Path]:
    """Return the folders of the runs in progress that this program started, newest first."""
    return [folder for folder, child in reversed(_STARTED.items()) if child.poll() is None]


def _find_alive_child(folder: Path) -> subprocess.Popen[bytes] | None:
    child = _STARTED.get(folder.resolve())
    return child if child is not None and child.poll() is None else None


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds a run, which can be resumed there but not replaced."""
    return (folder / CONFIG).exists()


def require_no_run(folder: Path) -> None:
    """Raise `LrmilError` if a folder holds a run."""
    if holds_run(folder):
        raise LrmilError(f"{folder}: the folder already holds a run; open it to resume it, or choose another folder")


def read_last_error(folder: Path | None) -> str:
    """Return the last error in the output of the process; empty if there is none."""
    if folder is None:
        return ""
    try:
        with (folder / OUTPUT_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    errors = re.findall(r"^error: (.+)$", text, flags=re.MULTILINE)
    return errors[-1].strip() if errors else ""


def _read_stored_call(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CALL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _why_foreign(folder: Path) -> str:
    """Return a sentence on why this version cannot use the folder's settings; empty if it can."""
    config = folder / CONFIG
    if not config.exists():
        return ""
    try:
        load_config(config)
    except LrmilError as error:
        return f"The run was made by another version of the program, or its settings are damaged ({error})."
    return ""
