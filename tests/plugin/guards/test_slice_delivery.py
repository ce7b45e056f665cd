"""Slices that napari's thread hands to the window: no Qt object is made in that thread, and nothing freezes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from napari.settings import get_settings
from qtpy.QtCore import QObject
from shiboken6 import delete
from superqt.utils import _ensure_thread

from napari_lrmil.plugin.guards import slice_delivery
from napari_lrmil.plugin.guards.slice_delivery import SliceMailbox, guard_slice_delivery
from support.window import WAIT_MS

# One thread sends events, the other connects Qt objects. With superqt's `ensure_main_thread` in place of the mailbox,
# the process freezes or dies of a segmentation fault; to see it, leave "mailbox" out of the arguments.
MANY_EVENTS = """
import sys
import threading
from napari.utils.events import EventEmitter
from qtpy.QtCore import QCoreApplication, QObject, QTimer
from superqt import ensure_main_thread
from napari_lrmil.plugin.guards.slice_delivery import SliceMailbox

app, received, ready = QCoreApplication([]), [], EventEmitter(type_name="ready")

class Window(QObject):
    @ensure_main_thread
    def receive(self, event):
        received.append(event.value)

window = Window()
mailbox = SliceMailbox(window.receive)
ready.connect(mailbox.put if "mailbox" in sys.argv else window.receive)
thread = threading.Thread(target=lambda: [ready(value=number) for number in range(10_000)])
thread.start()
while thread.is_alive() or len(received) < 10_000:
    for _ in range(200):
        target = QObject()
        timer = QTimer(target)
        timer.timeout.connect(target.deleteLater)
    app.processEvents()
assert received == list(range(10_000))
print("all received")
"""


@pytest.fixture
def slicing_viewer(viewer: Any) -> Iterator[Any]:
    """Return a viewer that slices in a thread, as the windows of this project do."""
    experimental = get_settings().experimental
    before, experimental.async_ = experimental.async_, True
    yield viewer
    experimental.async_ = before


def test_slices_arrive_without_a_qt_object_of_the_slicing_thread(
    slicing_viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    make = _ensure_thread.CallCallable.__init__

    def note_thread(call: Any, *arguments: Any) -> None:
        threads.append(threading.current_thread())
        make(call, *arguments)

    monkeypatch.setattr(_ensure_thread.CallCallable, "__init__", note_thread)
    guard_slice_delivery(slicing_viewer)
    layer = slicing_viewer.add_image(np.zeros((64, 64)), contrast_limits=(0, 1))
    layer.data = np.ones((64, 64))
    qtbot.waitUntil(lambda: bool(layer.loaded) and layer.get_value((5, 5)) == 1.0, timeout=WAIT_MS)
    assert threads == []


@pytest.mark.filterwarnings("error::FutureWarning")  # napari's word about private attributes
def test_a_slice_is_delivered_once_however_napari_hands_the_viewer_out(viewer: Any) -> None:
    from napari.utils._proxies import PublicOnlyProxy

    for handed_out in (viewer, PublicOnlyProxy(viewer), viewer):
        guard_slice_delivery(handed_out)
    assert len(viewer._layer_slicer.events.ready.callbacks) == 1


def test_a_window_that_delivers_in_another_way_is_left_alone(viewer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks = list(viewer._layer_slicer.events.ready.callbacks)
    monkeypatch.setattr(slice_delivery, "_mailboxes", WeakKeyDictionary())  # as if this window were not guarded yet
    monkeypatch.setattr(type(viewer.window._qt_viewer), "_on_slice_ready", None)
    guard_slice_delivery(viewer)
    assert list(viewer._layer_slicer.events.ready.callbacks) == callbacks


def test_what_comes_after_the_window_is_dropped(qtbot: Any) -> None:
    class Window(QObject):  # type: ignore[misc]  # qtpy has no types
        def receive(self, event: object) -> None:
            raise AssertionError(event)

    window = Window()
    mailbox = SliceMailbox(window.receive)
    mailbox.put("late")
    delete(window)
    mailbox.deliver()
    del window
    mailbox.put("later")
    mailbox.deliver()


def test_many_slices_neither_freeze_nor_end_the_window() -> None:
    command = [sys.executable, "-X", "faulthandler", "-c", MANY_EVENTS, "mailbox"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "all received" in done.stdout, done.stderr
