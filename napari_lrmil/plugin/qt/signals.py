"""Listening to what outlives a widget, until the widget goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol
from weakref import WeakMethod

from qtpy.QtWidgets import QWidget


class Emitter(Protocol):
    """A signal of psygnal, or an event emitter of napari."""

    def connect(self, callback: Callable[..., Any]) -> Any: ...  # noqa: D102
    def disconnect(self, callback: Callable[..., Any]) -> Any: ...  # noqa: D102


def connect_until_destroyed(widget: QWidget, heard: Sequence[tuple[Emitter, Callable[..., None]]]) -> None:
    """Connect bound methods of `widget`, and disconnect them when Qt deletes it, though Python may still know it."""
    for emitter, callback in heard:
        emitter.connect(callback)
    widget.destroyed.connect(partial(_stop, [(emitter, WeakMethod(callback)) for emitter, callback in heard]))


def _stop(heard: list[tuple[Emitter, WeakMethod[Any]]], _: Any = None) -> None:
    for emitter, callback in heard:
        if (alive := callback()) is not None:
            emitter.disconnect(alive)
