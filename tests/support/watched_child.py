"""A child process with an empty home, watched for network calls, further processes and files outside the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

WATCHED = """
import json, os, sys
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg", "socket.bind")
STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system")
LISTINGS = ("uname", "fc-list", "ldconfig", "xdpyinfo")  # programs that list what this machine has, such as fonts
events = []
def watch(name, values):
    if name in NETWORK + STARTS and not any(program in str(values[0]) for program in LISTINGS):
        events.append(f"{name} {values}"[:300])
sys.addaudithook(watch)
CALL
import psutil
events += [f"child {process.cmdline()}" for process in psutil.Process().children(recursive=True)]
# Those of libraries in C, too, which no audit hook of Python sees.
events += [f"connection {place.laddr} {place.raddr}" for place in psutil.Process().net_connections("inet")]
for process in psutil.Process().children():
    process.kill()
print(json.dumps(events))
"""
COMMAND = """
from napari_lrmil.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def watch_child(code: str, home: Path, *arguments: object) -> list[str]:
    """Run code in a process with an empty home; return its network calls and processes, and new files in the home."""
    home.mkdir()
    # CI switches off some reports of OpenVINO; without it the process is as a user's.
    ours = ("CI", "DO_NOT_TRACK", "NAPARI_LRMIL_CONFIG", "NAPARI_CONFIG", "MPLCONFIGDIR")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_") and k not in ours}
    environment |= {"HOME": str(home), "NAPARI_LRMIL_CACHE": str(home / ".cache" / "napari-lrmil")}
    call = [sys.executable, "-c", WATCHED.replace("CALL", code), *map(str, arguments)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    files = [str(path.relative_to(home)) for path in home.rglob("*")]
    events: list[str] = json.loads(done.stdout.splitlines()[-1])
    return events + [name for name in files if not name.startswith(".cache")]
