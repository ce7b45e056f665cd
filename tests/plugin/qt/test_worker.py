"""Background threads: events arrive in the window's thread, and a thread ends with its window."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Failed, Finished, Progress
from napari_lrmil.plugin.qt.worker import BackgroundWorker, forward_events
from support.window import WAIT_MS


def _collect(work: Any) -> list[Event]:
    events: list[Event] = []
    forward_events(work, threading.Event(), events.append)
    return events


def test_events_pass_in_order() -> None:
    assert _collect(lambda: iter_of(Progress("a", 1, 2), Finished(3))) == [Progress("a", 1, 2), Finished(3)]


def iter_of(*events: Event) -> Iterator[Event]:
    yield from events


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LrmilError("slide.svs: no tissue"), "slide.svs: no tissue"),
        (RuntimeError("CUDA error"), "RuntimeError: CUDA error"),
    ],
)
def test_every_exception_becomes_a_failure(error: Exception, message: str) -> None:
    def work() -> Iterator[Event]:
        yield Progress("a", 0, 1)
        raise error

    *_, last = _collect(work)
    assert isinstance(last, Failed) and last.message.startswith(message) and last.error is error


def test_work_that_cannot_even_begin_is_a_failure() -> None:
    def work() -> Iterator[Event]:
        raise LrmilError("no such slide")

    assert _collect(work) == [Failed("no such slide")]


def test_a_cancelled_run_closes_its_work_and_passes_nothing_on() -> None:
    cancelled, closed, events = threading.Event(), threading.Event(), []

    def work() -> Iterator[Event]:
        try:
            yield Progress("a", 0, 2)
            cancelled.set()
            yield Finished("late")
        finally:
            closed.set()

    forward_events(work, cancelled, events.append)
    assert closed.is_set() and events == [Progress("a", 0, 2)]


def test_events_arrive_in_the_windows_thread_and_the_end_is_told_once(qtbot: Any) -> None:
    from qtpy.QtCore import QObject

    parent, threads, ends = QObject(), [], []
    run = BackgroundWorker(
        lambda: iter_of(Finished(1)),
        lambda _: threads.append(threading.current_thread()),
        lambda: ends.append(1),
        parent,
    )
    run.start()
    qtbot.waitUntil(lambda: bool(ends), timeout=WAIT_MS)
    assert threads == [threading.main_thread()] and ends == [1]
    assert run.wait(WAIT_MS / 1000)


def test_the_work_ends_when_its_window_goes(qtbot: Any) -> None:
    from qtpy.QtCore import QObject

    parent, pause, events = QObject(), threading.Event(), []

    def work() -> Iterator[Event]:
        while True:
            pause.wait(0.01)
            yield Progress("a", 0, 1)

    run = BackgroundWorker(work, events.append, lambda: events.append(None), parent)
    run.start()
    qtbot.waitUntil(lambda: len(events) > 2, timeout=WAIT_MS)
    parent.deleteLater()
    del parent
    qtbot.waitUntil(lambda: run.wait(0), timeout=WAIT_MS)
    assert None not in events, "the end was delivered to a window that is gone"
