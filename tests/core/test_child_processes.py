"""Child processes: messages both ways, how one ended, and that it ends with its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from napari_lrmil.core.processes import SINGLE_THREADED, Child, ChildEndedError, wait_for_any

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are forked from a server on Linux")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def _echo(pipe: Connection, mark: str) -> None:
    while True:
        try:
            pipe.send((mark, pipe.recv()))
        except EOFError:
            return


def _end(pipe: Connection, code: int) -> None:
    pipe.send("last")
    pipe.close()
    os._exit(code)


def _interrupted(pipe: Connection) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    pipe.send(sorted({"torch", "numpy"} & set(sys.modules)))


def test_messages_go_both_ways_and_children_are_told_apart() -> None:
    children = [Child("echo", _echo, mark) for mark in "ab"]
    try:
        children[1].send(1)
        assert wait_for_any(children) == [children[1]]
        assert children[1].receive() == ("b", 1)
        assert wait_for_any(children, 0.0) == []
        children[0].send(2)
        assert children[0].receive() == ("a", 2)
        assert {child.pid for child in children} == {process.pid for process in multiprocessing.active_children()}
    finally:
        for child in children:
            child.close()
    assert not multiprocessing.active_children()


def test_what_a_child_said_is_read_before_its_end_is_told() -> None:
    child = Child("ends", _end, 7)
    assert child.receive() == "last"
    with pytest.raises(ChildEndedError):
        child.receive()
    how = child.exit_text("it", " at once")
    assert how == "it ended with code 7 at once, as when the memory of the machine runs out"
    child.close()


@POSIX
def test_a_killed_child_is_told_with_the_signal() -> None:
    child = Child("echo", _echo, "a")
    child.kill()
    with pytest.raises(ChildEndedError):
        child.receive()
    assert child.exit_text("it") == "it was ended by signal 9, as when the memory of the machine runs out"
    child.close()


@POSIX
def test_a_child_survives_ctrl_c_and_begins_without_torch() -> None:
    """Its parent decides; and what torch reads as it is imported is set in the child."""
    child = Child("interrupted", _interrupted)
    assert child.receive() == []
    child.close()


# ---------------------------------------------------------------- children forked from a server


def _describe(pipe: Connection) -> None:
    """Send the modules, variables and threads of this process and of the one that it comes from, as they are now."""
    threads = [len(os.listdir(f"/proc/{pid}/task")) for pid in (os.getpid(), os.getppid())]
    pipe.send((set(sys.modules), dict(os.environ), os.getppid(), sys.path, threads))
    pipe.recv()


def _run(script: str, folder: Path) -> list[str]:
    """Run a script in a process of its own, as the server of this one may run already; return its lines."""
    (folder / "script.py").write_text(script)
    here = Path(__file__)
    paths = os.pathsep.join([*sys.path, str(here.parents[1]), str(here.parent)])
    variables = {name: value for name, value in os.environ.items() if name not in SINGLE_THREADED}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=variables | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SHARING = """
import os, sys
from napari_lrmil.core.processes import Child
from test_child_processes import _describe

if __name__ == "__main__":
    os.environ["SET_BEFORE"], path = "1", os.environ["PYTHONPATH"]
    first = Child("first", _describe, shared_imports=[{module!r}])
    modules, _, server, search_path, threads = first.receive()
    os.environ["SET_LATER"] = "1"
    second = Child("second", _describe, shared_imports=[{module!r}])
    _, variables, parent, *_ = second.receive()
    assert variables == dict(os.environ) and os.environ["PYTHONPATH"] == path
    assert search_path == sys.path
    first.close()
    second.close()
    print({module!r} in modules, server == parent, server == os.getpid(), threads[1], sep="\\n")
"""


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("module", ["napari_lrmil.core.cohort.predict_imports", "lrmil_training.data.features"])
def test_children_share_imports_of_a_server_that_has_one_thread(tmp_path: Path, module: str) -> None:
    """A second thread's locks would stay locked in a fork. Files of the working directory are no modules."""
    (tmp_path / "work").mkdir()
    for name in ("numpy.py", "openvino.py", "napari_lrmil.py", "typing.py"):
        (tmp_path / "work" / name).write_text("raise SystemExit('imported from the working directory')")
    script = SHARING.format(module=module).replace('"__main__":', '"__main__":\n    os.chdir("work")')
    assert _run(script, tmp_path) == ["True", "True", "False", "1"]


@LINUX
def test_a_server_with_a_second_thread_forks_no_child(tmp_path: Path) -> None:
    """The child is spawned, without the modules."""
    (tmp_path / "threaded.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    _, _, is_spawned, _ = _run(SHARING.format(module="threaded"), tmp_path)
    assert is_spawned == "True"


@LINUX
def test_a_killed_child_of_the_server_is_known_and_leaves_no_zombie() -> None:
    child = Child("echo", _echo, "a", shared_imports=["json"])
    child.send(1)
    assert child.receive() == ("a", 1)
    process = psutil.Process(child.pid)
    process.send_signal(signal.SIGKILL)
    with pytest.raises(ChildEndedError):
        child.receive()
    assert child.exit_text("it") == "it was ended by signal 9, as when the memory of the machine runs out"
    child.close()
    assert not process.is_running()


@LINUX
def test_a_child_starts_after_the_server_was_killed() -> None:
    """As by a machine without memory."""
    first = Child("echo", _echo, "a", shared_imports=["json"])
    server = psutil.Process(first.pid).parent()
    assert server is not None and server.pid != os.getpid()
    server.kill()
    first.close()
    second = Child("echo", _echo, "b", shared_imports=["json"])
    second.send(2)
    assert second.receive() == ("b", 2)
    second.close()
