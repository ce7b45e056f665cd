"""Timers of a single shot."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QObject, QTimer


def single_shot(parent: QObject, delay_ms: int, callback: Callable[[], None]) -> QTimer:
    """Return a timer that calls back once for each start, and that ends with `parent`.

    Parameters
    ----------
    parent
        Owner of the timer.
    delay_ms
        Milliseconds after the last start; 0 waits for the events that the event loop has already.
    callback
        Called in the thread of the window.
    """
    timer = QTimer(parent)
    timer.setSingleShot(True)
    timer.setInterval(delay_ms)
    timer.timeout.connect(callback)
    return timer
