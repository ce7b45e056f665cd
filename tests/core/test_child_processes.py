"""Child processes: messages both ways, how one ended, and that it ends with its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection

import pytest

from napari_lrmil.core.processes import Child, ChildEndedError, wait_for_any

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
