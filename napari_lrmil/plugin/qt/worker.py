"""Background threads whose events arrive in the window's thread. No other module of the plugin starts a thread.

The thread puts events into a queue and never touches Qt; a timer of the window's thread empties the queue. On Windows
torch has to be loaded before Qt. There `forward_events` could run in a spawned process with a process queue instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from queue import Empty, SimpleQueue

from qtpy.QtCore import QCoreApplication, QObject, QTimer

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, EventSource, Failed
from napari_lrmil.core.unexpected_errors import describe_error

POLL_MS = 30  # interval at which the window's thread empties the queue


def forward_events(source: EventSource, cancelled: threading.Event, emit: Callable[[Event], None]) -> None:
    """Pass on every event of `source` until it ends or is cancelled; an exception becomes a `Failed` event.

    Parameters
    ----------
    source
        Starts the work. It is called here, so an exception at the start becomes an event as well.
    cancelled
        Checked after every event; once it is set, no further event is passed on and the work is closed.
    emit
        Receives the events.
    """
    try:
        with closing(source()) as events:  # type: ignore[type-var]  # generators close
            for event in events:
                if cancelled.is_set():
                    return
                emit(event)
    except LrmilError as error:
        emit(Failed(str(error), error=error))
    except Exception as error:
        emit(Failed(describe_error(error), error=error))


class BackgroundWorker:
    """Work in a thread of its own; its events are delivered in the window's thread.

    Parameters
    ----------
    source
        Starts the work.
    on_event
        Called with every event.
    on_end
        Called once after the last event, also if the work failed or was cancelled.
    parent
        When it is deleted, the work is cancelled and no further event is delivered.
    """

    def __init__(
        self, source: EventSource, on_event: Callable[[Event], None], on_end: Callable[[], None], parent: QObject
    ) -> None:
        self._queue: SimpleQueue[Event | None] = SimpleQueue()  # None marks the end
        self._cancelled = threading.Event()
        self._on_event, self._on_end = on_event, on_end
        self._timer = QTimer(parent)
        self._timer.setInterval(POLL_MS)
        self._timer.timeout.connect(self._deliver)
        parent.destroyed.connect(self._cancelled.set)
        app = QCoreApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self._cancelled.set)
        # Not a daemon: the interpreter has to wait for the present batch, as torch crashes if it is cut off at exit.
        self._thread = threading.Thread(target=self._run, args=(source,), name="napari-lrmil")

    def start(self) -> None:
        """Start the thread and the delivery of events."""
        self._thread.start()
        self._timer.start()

    def cancel(self) -> None:
        """Request the end of the work after its present step; `on_end` is called as usual."""
        self._cancelled.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the thread, and return whether it has ended; events that are still queued are not delivered."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self, source: EventSource) -> None:
        try:
            forward_events(source, self._cancelled, self._queue.put)
        finally:
            self._queue.put(None)

    def _deliver(self) -> None:
        while True:
            try:
                event = self._queue.get_nowait()
            except Empty:
                return
            if event is None:
                self._timer.stop()
                self._timer.deleteLater()
                self._on_end()
                return
            self._on_event(event)


class LatestOnly:
    """Queue of length one: newly submitted work cancels the present work and starts after it.

    Parameters
    ----------
    on_event
        Receives the events of whichever work is running.
    parent
        When it is deleted, the work is cancelled.
    """

    def __init__(self, on_event: Callable[[Event], None], parent: QObject) -> None:
        self._on_event, self._parent = on_event, parent
        self._worker: BackgroundWorker | None = None
        self._next: EventSource | None = None

    @property
    def is_busy(self) -> bool:
        """Whether work is running."""
        return self._worker is not None

    def submit(self, source: EventSource | None) -> None:
        """Start the work now, or as soon as the present work has ended; None submits nothing."""
        if source is None:
            return
        if self._worker is not None:
            self._next = source  # replaces work that has not started yet
            self._worker.cancel()
            return
        self._worker = BackgroundWorker(source, self._on_event, self._start_next, self._parent)
        self._worker.start()

    def stop(self) -> None:
        """Cancel the present work and drop the work that waits."""
        self._next = None
        if self._worker is not None:
            self._worker.cancel()

    def _start_next(self) -> None:
        self._worker, source, self._next = None, self._next, None
        self.submit(source)
