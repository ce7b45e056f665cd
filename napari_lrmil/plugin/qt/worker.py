"""Long work off the window's thread. Only this file knows that there is a second thread.

The thread puts events into a queue and never touches Qt; a timer of the window's thread empties it. On Windows, where
torch has to load before Qt, the same pump would run in a spawned process with a process queue in place of this one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from qtpy.QtCore import QCoreApplication, QObject, QTimer

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Failed

if TYPE_CHECKING:
    pass


POLL_MS = 30

Work = Callable[[], Iterator[Event]]


def forward_events(work: Work, cancelled: threading.Event, emit: Callable[[Event], None]) -> None:
    """Pass on every event of `work` until it ends or is cancelled; an exception becomes `Failed`.

    Parameters
    ----------
    work
        Starts the work; called here, so that starting may fail as well.
    cancelled
        Looked at after every event; once set nothing more is passed on and the work is closed.
    emit
        Takes an event.
    """
    try:
        with closing(work()) as events:  # type: ignore[type-var]  # generators close
            for event in events:
                if cancelled.is_set():
                    return
                emit(event)
    except LrmilError as error:
        emit(Failed(str(error), error=error))
    except Exception as error:
        emit(Failed(f"{type(error).__name__}: {error}; this was not expected, please report it", error=error))


class BackgroundWorker:
    """Work under way in a thread of its own; its events arrive in the window's thread.

    Parameters
    ----------
    work
        Starts the work.
    on_event
        Called with every event.
    on_end
        Called once after the last event, however the work ended.
    parent
        Deliveries end with it, and the work is cancelled.
    """

    def __init__(
        self, work: Work, on_event: Callable[[Event], None], on_end: Callable[[], None], parent: QObject
    ) -> None:
        self._queue: SimpleQueue[Event | None] = SimpleQueue()  # None: the end
        self._cancelled = threading.Event()
        self._on_event, self._on_end = on_event, on_end
        self._timer = QTimer(parent)
        self._timer.setInterval(POLL_MS)
        self._timer.timeout.connect(self._deliver)
        parent.destroyed.connect(self._cancelled.set)
        app = QCoreApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self._cancelled.set)
        # Not a daemon: the interpreter waits for the batch under way, for torch does not survive its end.
        self._thread = threading.Thread(target=self._run, args=(work,), name="napari-lrmil")

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._timer.start()

    def cancel(self) -> None:
        """Ask the work to end after the step under way; its end is told as any other."""
        self._cancelled.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the thread and return whether it has ended; what it still said stays undelivered."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self, work: Work) -> None:
        try:
            forward_events(work, self._cancelled, self._queue.put)
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
    """Works on one question at a time; a newer one cancels it and comes next.

    Parameters
    ----------
    handle
        Takes the events.
    parent
        Work ends with it.
    """

    def __init__(self, handle: Callable[[Event], None], parent: QObject) -> None:
        self._handle, self._parent = handle, parent
        self._run: BackgroundWorker | None = None
        self._next: Work | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a question is being worked on."""
        return self._run is not None

    def submit(self, work: Work | None) -> None:
        """Begin `work`, at once or when what is under way has let go; None asks nothing."""
        if work is None:
            return
        if self._run is not None:
            self._next = work
            self._run.cancel()
            return
        self._run = BackgroundWorker(work, self._handle, self._ended, self._parent)
        self._run.start()

    def stop(self) -> None:
        """Drop what is under way."""
        self._next = None
        if self._run is not None:
            self._run.cancel()

    def _ended(self) -> None:
        self._run, work, self._next = None, self._next, None
        self.submit(work)
