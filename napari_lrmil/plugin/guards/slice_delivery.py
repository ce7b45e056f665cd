"""Delivery of napari's slices from its slicing thread to the window, without making Qt objects in that thread.

napari (0.9.2: ``QtViewer._on_slice_ready``) delivers with superqt's ``ensure_main_thread``. For every slice that makes
a Qt object with a connected signal in the slicing thread, and lets its receiver die there. PySide then disconnects it:
Qt holds one of the locks of its connections and asks for Python's interpreter lock. The window's thread may hold the
interpreter lock while it waits for Qt's, to make a widget, say. Both wait for ever, and the window is frozen. The
receiver may also die while the window calls it, which ends the process.
"""

from __future__ import annotations

from contextlib import suppress
from inspect import unwrap
from queue import Empty, SimpleQueue
from types import MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakMethod

from qtpy.compat import isalive
from qtpy.QtCore import QMetaObject, QObject, Qt, Slot

if TYPE_CHECKING:
    from napari.viewer import Viewer


class SliceMailbox(QObject):  # type: ignore[misc]  # qtpy has no types
    """Takes events in any thread and passes them on in the window's thread, in which it has to be made.

    Parameters
    ----------
    receiver
        Method of a Qt object that receives the events. It is not kept alive: after its end, events are dropped.
    """

    def __init__(self, receiver: MethodType) -> None:
        super().__init__()
        self._receiver = WeakMethod(receiver)
        self._events: SimpleQueue[Any] = SimpleQueue()

    def put(self, event: Any) -> None:
        """Let the window's thread receive an event soon."""
        self._events.put(event)
        with suppress(RuntimeError):  # this object ends with the program, the slicing thread a little later
            QMetaObject.invokeMethod(self, "deliver", Qt.ConnectionType.QueuedConnection)

    @Slot()  # type: ignore[untyped-decorator]
    def deliver(self) -> None:
        """Pass on all events that have come."""
        while True:
            try:
                event = self._events.get_nowait()
            except Empty:
                return
            receiver = self._receiver()
            if receiver is not None and isalive(receiver.__self__):  # the window may have been closed meanwhile
                receiver(event)


_mailboxes: WeakKeyDictionary[Viewer, SliceMailbox] = WeakKeyDictionary()


def guard_slice_delivery(viewer: Viewer) -> None:
    """Let slices of the viewer's layers reach its window through a `SliceMailbox`; a viewer is guarded once.

    Parameters
    ----------
    viewer
        A viewer with a window, or the proxy of one that napari hands to a plugin's widget.
    """
    viewer = unwrap(viewer)  # slicer and window are private: the proxy warns of them
    if viewer in _mailboxes:
        return
    ready = viewer._layer_slicer.events.ready
    receiver = getattr(viewer.window._qt_viewer, "_on_slice_ready", None)
    if receiver is None:  # a later napari delivers in another way
        return
    mailbox = _mailboxes[viewer] = SliceMailbox(receiver)
    ready.disconnect(receiver)
    ready.connect(mailbox.put)
