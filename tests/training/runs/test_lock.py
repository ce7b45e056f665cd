"""Run lock: one writer per folder, and expiry; event log: lines and attempts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lrmil_training.runs.event_log import EventLog, read_events
from lrmil_training.runs.lock import (
    HEARTBEAT_S,
    LOCK_FILE,
    STOP_FILE,
    LockedError,
    LockOwner,
    _pid_namespace,
    acquire_run_lock,
    clear_stop_request,
    find_owner,
    is_stop_requested,
    owner_to_json,
    request_stop,
)
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Finished, Metric, Progress


def _write_lock(folder: Path, owner: LockOwner, age_s: float) -> None:
    (folder / LOCK_FILE).write_text(owner_to_json(owner))
    os.utime(folder / LOCK_FILE, (time.time() - age_s,) * 2)


def test_a_second_writer_gets_one_sentence(tmp_path: Path) -> None:
    """It names process, machine, start and what to do; the lock file is removed with the lock."""
    with acquire_run_lock(tmp_path / "run"):
        with pytest.raises(LockedError, match=rf"process {os.getpid()} on .* since 20.*; wait .* another folder"):
            acquire_run_lock(tmp_path / "run").__enter__()
        owner = find_owner(tmp_path / "run")
        assert owner is not None and owner.pid == os.getpid()
    assert not list((tmp_path / "run").iterdir())
    assert find_owner(tmp_path / "run") is None
    with acquire_run_lock(tmp_path / "run"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="there the heartbeat decides")
def test_a_killed_writer_leaves_no_lock_that_holds(tmp_path: Path) -> None:
    """A process of this machine can be looked up, so there is no wait for a heartbeat."""
    code = "import os, pathlib, sys; from lrmil_training.runs.lock import acquire_run_lock\n"
    code += "with acquire_run_lock(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / LOCK_FILE).exists()
    began = time.monotonic()
    with acquire_run_lock(tmp_path):
        assert time.monotonic() - began < 2 * HEARTBEAT_S  # else it has listened for a sign of life


def test_a_lock_of_another_machine_holds_while_its_heartbeat_goes_on(tmp_path: Path) -> None:
    """By the file's time or, if the clocks differ, by a new heartbeat; without either the lock is taken over."""
    other = LockOwner("elsewhere", 1, "", time.time() - 60, "theirs", 3)
    _write_lock(tmp_path, other, age_s=0)
    with pytest.raises(LockedError, match="process 1 on elsewhere"):
        acquire_run_lock(tmp_path).__enter__()
    _write_lock(tmp_path, other, age_s=1000)
    beat = threading.Timer(0.2, _write_lock, (tmp_path, replace(other, heartbeats=4), 1000))
    beat.start()
    with pytest.raises(LockedError):
        acquire_run_lock(tmp_path).__enter__()
    beat.join()
    with acquire_run_lock(tmp_path, heartbeat_s=0.1) as lock:
        assert lock.owner.pid == os.getpid()


def test_a_half_written_lock_of_old_is_no_lock(tmp_path: Path) -> None:
    """The next writer takes the folder over and leaves no file behind."""
    (tmp_path / LOCK_FILE).write_text('{"host": "a", "p')
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    assert find_owner(tmp_path) is None
    with acquire_run_lock(tmp_path) as lock:
        assert find_owner(tmp_path) == lock.owner
        assert lock.owner.pid == os.getpid()
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
        with pytest.raises(LockedError, match=f"process {os.getpid()} on "):
            acquire_run_lock(tmp_path).__enter__()
        lock.check()
    assert not list(tmp_path.iterdir())


def test_the_heartbeat_is_written_and_a_takeover_is_noticed(tmp_path: Path) -> None:
    """For example after the machine slept: the new lock stays, and the first holder gets an error."""
    with acquire_run_lock(tmp_path, heartbeat_s=0.05) as lock:
        while lock.owner.heartbeats < 2:
            time.sleep(0.01)
        owner = find_owner(tmp_path)
        assert owner is not None and replace(owner, heartbeats=0) == replace(lock.owner, heartbeats=0)
        lock.check()
        while not lock.lost:  # repeated, because a heartbeat that has begun replaces the file once more
            _write_lock(tmp_path, LockOwner("elsewhere", 7, "", 0.0, "theirs"), age_s=0)
            time.sleep(0.01)
        with pytest.raises(LrmilError, match="another process took the run over"):
            lock.check()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] == "theirs"


def test_keys_of_the_lock_file_do_not_follow_the_names_of_fields(tmp_path: Path) -> None:
    """Programs of other versions read the file too."""
    with acquire_run_lock(tmp_path) as lock:
        values = json.loads((tmp_path / LOCK_FILE).read_text())
        assert list(values) == ["host", "pid", "space", "since", "token", "beats"]
        assert (values["space"], values["beats"]) == (lock.owner.pid_namespace, 0)


def test_of_many_who_take_over_one_succeeds(tmp_path: Path) -> None:
    """In ten rounds with four contenders each."""
    for _ in range(10):
        _write_lock(tmp_path, LockOwner("elsewhere", 7, "", 0.0, "theirs"), age_s=1000)
        held: list[int] = []
        go, end = threading.Barrier(4), threading.Event()

        def contend(held: list[int] = held, go: threading.Barrier = go, end: threading.Event = end) -> None:
            go.wait()
            try:
                with acquire_run_lock(tmp_path, heartbeat_s=0.3):
                    held.append(1)
                    end.wait()
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
    """Each line has number and attempt; an incomplete last line is dropped on reading and removed on writing."""
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


def _stale(**changes: object) -> str:
    """Return a lock of another machine, changed."""
    values = {"host": "elsewhere", "pid": 7, "space": "", "since": 1e9, "token": "t", "beats": 0}
    return json.dumps(values | changes)


@pytest.mark.parametrize(
    "content",
    ["", '{"host": "a"', "[1]", _stale(pid="7"), _stale(pid=10**30), _stale(pid=0), _stale(since=1e300), "[" * 9999],
)
def test_a_lock_that_no_process_would_write_is_taken_over_within_seconds(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    start = time.monotonic()
    with acquire_run_lock(tmp_path, heartbeat_s=0.05) as lock:
        assert not lock.lost
    assert time.monotonic() - start < 3


def test_a_time_in_the_future_is_no_sign_of_life(tmp_path: Path) -> None:
    """A clock that differs shows in the file's time; only heartbeats count then."""
    lock, guard = tmp_path / LOCK_FILE, tmp_path / f".{LOCK_FILE}.takeover"
    for file in (lock, guard):
        file.write_text(_stale())
        os.utime(file, (time.time() + 86_400,) * 2)
    start = time.monotonic()
    with acquire_run_lock(tmp_path, heartbeat_s=0.05):
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("name", [LOCK_FILE, f".{LOCK_FILE}.takeover"])
@pytest.mark.parametrize("kind", ["folder", "link", "pipe"] if os.name == "posix" else ["folder"])
def test_a_name_that_is_taken_by_no_file_is_one_sentence_at_once(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / LOCK_FILE).write_text(_stale(host=socket.gethostname(), space=_pid_namespace(), pid=2**31 - 2))
    (tmp_path / name).unlink(missing_ok=True)
    make: dict[str, Callable[[Path], object]] = {
        "folder": Path.mkdir,
        "link": lambda path: path.symlink_to("nowhere"),
        "pipe": lambda path: os.mkfifo(path),
    }
    make[kind](tmp_path / name)
    start = time.monotonic()
    with pytest.raises(LrmilError, match=f"is a {kind}.*; expected the lock file of a run; remove it"):
        acquire_run_lock(tmp_path).__enter__()
    assert time.monotonic() - start < 3


def test_a_run_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(LrmilError, match=r"cannot be made .*; choose another folder"):
            acquire_run_lock(folder).__enter__()


def test_a_folder_named_stop_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / STOP_FILE).mkdir()
    clear_stop_request(tmp_path)
    assert not is_stop_requested(tmp_path)


def test_keys_of_a_newer_version_are_left_out(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(_stale(newer=1))
    owner = find_owner(tmp_path)
    assert owner is not None and owner.host == "elsewhere"
