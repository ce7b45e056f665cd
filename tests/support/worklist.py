"""The Worklist dock in tests: what waits for its slides, pages and presses its keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari_lrmil.core.user_settings import SettingsStore
from support.window import WAIT_MS

MakeWorklist = Callable[..., Any]
NAMES = ("a", "b", "c")


def settled(dock: Any) -> bool:
    """Return whether the current slide is on the canvas or has failed, with its answer, and the next is prepared."""
    entry = dock.current
    is_shown = dock.pager.has_arrived and entry.answer is not None
    return bool(is_shown or entry.problem) and not dock.pager.is_busy and not dock.pager.is_completing


def page(dock: Any, qtbot: Any, by: int = 1) -> str:
    """Page on, wait, and return the name of the slide."""
    before = dock.order.current
    (dock.next if by > 0 else dock.previous).click()
    qtbot.waitUntil(lambda: dock.order.current != before and settled(dock), timeout=WAIT_MS)
    return str(dock.current.name)


def press(dock: Any, key: str) -> None:
    """Press a key in the window. Without a window manager no window is active, so Qt delivers no shortcut."""
    from qtpy.QtGui import QKeySequence
    from qtpy.QtWidgets import QShortcut

    (shortcut,) = [one for one in dock.findChildren(QShortcut) if one.key() == QKeySequence(key)]
    shortcut.activated.emit()


def open_again(
    dock: Any, make_worklist: MakeWorklist, viewer: Any, folder: Path, qtbot: Any, reviewer: str = "Anna"
) -> Any:
    """Open a list as a program does that was killed: nothing but the files is left of the first dock."""
    qtbot.waitUntil(lambda: settled(dock), timeout=WAIT_MS)
    for widget in (dock, dock.analyse):
        viewer.window.remove_dock_widget(widget)
    viewer.layers.clear()
    SettingsStore().remember_blind(True)
    return make_worklist(folder, reviewer=reviewer)
