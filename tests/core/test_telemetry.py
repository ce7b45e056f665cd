"""Nothing phones home: no connection, no process that stays, no file in the user's home outside the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide

WATCHED = """
import json, os, sys
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg", "socket.bind")
STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system")
events = []
def watch(name, values):
    if name in NETWORK + STARTS and "uname" not in str(values):
        events.append(f"{name} {values}"[:300])
sys.addaudithook(watch)
CALL
import psutil
events += [f"child {process.cmdline()}" for process in psutil.Process().children(recursive=True)]
for process in psutil.Process().children():
    process.kill()
print(json.dumps(events))
"""
IMPORT = "from napari_lrmil.core.runtimes import openvino; openvino.version()"
PREDICT = """
from napari_lrmil.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")


def _watch(code: str, home: Path, *arguments: object) -> list[str]:
    """Run code in a process with an empty home; return its network calls and processes, and new files in the home."""
    home.mkdir()
    # CI switches off some reports of OpenVINO; without it the process is as a user's.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_") and k not in ("CI", "DO_NOT_TRACK")}
    environment |= {"HOME": str(home), "NAPARI_LRMIL_CACHE": str(home / ".cache" / "napari-lrmil")}
    call = [sys.executable, "-c", WATCHED.replace("CALL", code), *map(str, arguments)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    files = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    events: list[str] = json.loads(done.stdout.splitlines()[-1])
    return (
        events
        + [name for name in files if not name.startswith(".cache")]
        + [path.name for path in home.iterdir() if path.name != ".cache"]
    )


@needs_openvino
def test_openvino_is_imported_without_its_reports(tmp_path: Path) -> None:
    assert _watch(IMPORT, tmp_path / "home") == []


def test_the_watch_sees_a_process_a_connection_and_a_file(tmp_path: Path) -> None:
    code = """
import socket, subprocess
from pathlib import Path
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9))
(Path.home() / "intel").mkdir()
"""
    events = _watch(code, tmp_path / "home")
    assert {event.split()[0] for event in events} == {"subprocess.Popen", "socket.sendto", "child", "intel"}


@needs_openvino
@pytest.mark.slow
def test_a_prediction_leaves_the_home_as_it_was(tmp_path: Path) -> None:
    slide = write_slide(tmp_path, PhantomSlide("slide", LESION, 3, (2560, 1920)))
    words = ("predict", slide, "--out", tmp_path / "out", "--device", "cpu", "--runtime", "openvino")
    assert _watch(PREDICT, tmp_path / "home", *words) == []
