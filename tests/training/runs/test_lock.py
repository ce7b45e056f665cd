"""One writer a folder, and a lock that goes stale by itself; lines of the event log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lrmil_training.runs.event_log import EventLog, read_events
from lrmil_training.runs.lock import (
    LOCK_FILE,
    LockedError,
    LockOwner,
    acquire_run_lock,
    clear_stop_request,
    find_owner,
    is_stop_requested,
    request_stop,
)
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Finished, Metric, Progress


def _lay(folder: Path, owner: LockOwner, age: float) -> None:
    (folder / LOCK_FILE).write_text(json.dumps(asdict(owner)))
    os.utime(folder / LOCK_FILE, (time.time() - age,) * 2)


def test_a_second_writer_gets_one_sentence(tmp_path: Path) -> None:
    """Who, where, since when, and what to do; and the lock goes with its holder."""
    with acquire_run_lock(tmp_path / "run"):
        with pytest.raises(LockedError, match=rf"process {os.getpid()} on .* since 20.*; wait .* another folder"):
            acquire_run_lock(tmp_path / "run").__enter__()
        found = find_owner(tmp_path / "run")
        assert found is not None and found.pid == os.getpid()
    assert not list((tmp_path / "run").iterdir())
    assert find_owner(tmp_path / "run") is None
    with acquire_run_lock(tmp_path / "run"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="there the heartbeat decides")
def test_a_killed_writer_leaves_no_lock_that_holds(tmp_path: Path) -> None:
    """On this machine its process can be looked for: no need to wait."""
    code = "import os, pathlib, sys; from lrmil_training.runs.lock import acquire_run_lock\n"
    code += "with acquire_run_lock(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / LOCK_FILE).exists()
    began = time.monotonic()
    with acquire_run_lock(tmp_path):
        assert time.monotonic() - began < 2


def test_another_machine_is_believed_while_it_beats(tmp_path: Path) -> None:
    """By the file's time, or, where the clocks differ, by waiting for a beat; then it is taken over."""
    other = LockOwner("elsewhere", 1, "", time.time() - 60, "theirs", 3)
    _lay(tmp_path, other, age=0)
    with pytest.raises(LockedError, match="process 1 on elsewhere"):
        acquire_run_lock(tmp_path, beat_s=0.2).__enter__()
    _lay(tmp_path, other, age=1000)
    beat = threading.Timer(0.2, _lay, (tmp_path, replace(other, beats=4), 1000))
    beat.start()
    with pytest.raises(LockedError):
        acquire_run_lock(tmp_path, beat_s=0.5).__enter__()
    beat.join()
    with acquire_run_lock(tmp_path, beat_s=0.1) as held:
        assert held.owner.pid == os.getpid()


def test_a_half_written_lock_of_old_is_no_lock(tmp_path: Path) -> None:
    """It was never held: the next writer has the folder to itself, and leaves nothing behind."""
    (tmp_path / LOCK_FILE).write_text('{"host": "a", "p')
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    assert find_owner(tmp_path) is None
    with acquire_run_lock(tmp_path) as held:
        assert find_owner(tmp_path) == held.owner
        assert held.owner.pid == os.getpid()
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
        with pytest.raises(LockedError, match=f"process {os.getpid()} on "):
            acquire_run_lock(tmp_path).__enter__()
        held.check()
    assert not list(tmp_path.iterdir())


def test_it_beats_and_notices_that_it_was_taken_over(tmp_path: Path) -> None:
    """As after the machine slept: the other's lock stays, and the first holder is told."""
    with acquire_run_lock(tmp_path, beat_s=0.05) as held:
        time.sleep(0.3)
        assert find_owner(tmp_path) == held.owner
        assert held.owner.beats > 1
        held.check()
        _lay(tmp_path, LockOwner("elsewhere", 7, "", 0.0, "theirs"), age=0)
        time.sleep(0.3)
        with pytest.raises(LrmilError, match="another process took the run over"):
            held.check()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] == "theirs"


def test_of_many_who_take_over_one_succeeds(tmp_path: Path) -> None:
    """However the steps of two contenders interleave."""
    for _ in range(10):
        _lay(tmp_path, LockOwner("elsewhere", 7, "", 0.0, "theirs"), age=1000)
        held: list[int] = []
        go, end = threading.Barrier(4), threading.Event()

        def contend(held: list[int] = held, go: threading.Barrier = go, end: threading.Event = end) -> None:
            go.wait()
            try:
                with acquire_run_lock(tmp_path, beat_s=0.05):
                    held.append(1)
                    end.wait(2)
            except LockedError:
                held.append(0)

        threads = [threading.Thread(target=contend) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(held) < 4:
            time.sleep(0.01)
        end.set()
        for thread in threads:
            thread.join()
        assert sum(held) == 1


def test_stop_file(tmp_path: Path) -> None:
    """A request for an earlier process is cleared."""
    request_stop(tmp_path)
    assert is_stop_requested(tmp_path)
    clear_stop_request(tmp_path)
    clear_stop_request(tmp_path)
    assert not is_stop_requested(tmp_path)


def test_event_log_counts_on_and_drops_a_broken_end(tmp_path: Path) -> None:
    """Each line has its number and its attempt; what a killed process left half-written is dropped, then cut off."""
    with EventLog(tmp_path) as log:
        log.write(Progress("teacher", 1, 2, "epochs"))
        log.write(Metric("teacher", "val/auroc", 0.5, 1))
    path = tmp_path / "events.jsonl"
    with path.open("a") as file:
        file.write('{"seq": 2, "att')
    assert [line["seq"] for line in read_events(path)] == [0, 1]
    with EventLog(tmp_path) as log:
        log.write(Finished(tmp_path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["seq"], line["attempt"], line["event"]) for line in lines] == [
        (0, 0, "Progress"),
        (1, 0, "Metric"),
        (2, 1, "Finished"),
    ]
    assert lines[2]["result"] == str(tmp_path)
    assert [line["seq"] for line in read_events(path, attempt=1)] == [2]
    assert read_events(tmp_path / "none.jsonl") == []
