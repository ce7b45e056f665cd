"""Connections between signals and the methods of a widget, removed when Qt deletes the widget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol
from weakref import WeakMethod

from qtpy.QtWidgets import QWidget


class Emitter(Protocol):
    """A psygnal signal or a napari event emitter."""

    def connect(self, callback: Callable[..., Any]) -> Any: ...  # noqa: D102
    def disconnect(self, callback: Callable[..., Any]) -> Any: ...  # noqa: D102


def connect_until_destroyed(widget: QWidget, connections: Sequence[tuple[Emitter, Callable[..., None]]]) -> None:
    """Connect emitters to bound methods of `widget`, and disconnect them when Qt deletes the widget.

    The viewer and the session outlive a dock. Python may keep the widget's object after Qt has deleted its C++ part,
    and a callback on such an object raises RuntimeError.

    Parameters
    ----------
    widget
        Owner of the callbacks.
    connections
        Pairs of an emitter and a bound method of `widget`.
    """
    for emitter, callback in connections:
        emitter.connect(callback)
    # Weak, because a strong reference in `destroyed` would keep the widget's Python object alive.
    weak_connections = [(emitter, WeakMethod(callback)) for emitter, callback in connections]
    widget.destroyed.connect(partial(_disconnect, weak_connections))


def _disconnect(connections: list[tuple[Emitter, WeakMethod[Any]]], _: Any = None) -> None:
    for emitter, weak_callback in connections:
        if (callback := weak_callback()) is not None:
            emitter.disconnect(callback)
