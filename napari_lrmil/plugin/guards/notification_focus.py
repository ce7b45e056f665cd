"""Keyboard focus while a notification of napari fades.

napari (0.9.2: ``NapariQtNotification.close``) gives the canvas the focus whenever a notification closes, also by itself
after four seconds. What the user types into a field at that moment then acts as keys of the canvas: digits zoom, and v
hides the slide.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QApplication

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari._qt.dialogs.qt_notification import NapariQtNotification

IS_GUARDED = "lrmil_keeps_focus"  # mark of the method that has taken the place of napari's


def guard_notification_focus() -> None:
    """Let closing notifications leave the focus where it is, unless it is in the notification itself."""
    try:
        from napari._qt.dialogs.qt_notification import NapariQtNotification
    except ImportError:  # a later napari, whose private modules may lie elsewhere
        return
    if not hasattr(NapariQtNotification.close, IS_GUARDED):
        NapariQtNotification.close = _keep_focus(NapariQtNotification.close)


def _keep_focus(close: Callable[[NapariQtNotification], None]) -> Callable[[NapariQtNotification], None]:
    @wraps(close)
    def close_in_place(notification: NapariQtNotification) -> None:
        focused = QApplication.focusWidget()
        if focused is None or focused is notification or notification.isAncestorOf(focused):
            close(notification)
            return
        notification.parent = lambda: None  # without a parent napari has nothing to focus
        try:
            close(notification)
        finally:
            del notification.parent

    setattr(close_in_place, IS_GUARDED, True)
    return close_in_place
