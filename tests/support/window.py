"""Real napari windows for tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

MakeDock = Callable[..., Any]
WAIT_MS = 240_000  # until something has happened, on however busy a machine; a test may take 300 s
HAS_SCREEN = not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY"))


def require_screen() -> None:
    """Skip the test if there is no screen, because Qt would abort the whole process."""
    if not HAS_SCREEN:
        pytest.skip(
            "no screen: run under xvfb-run -a -s '-screen 0 1920x1200x24 +extension GLX'", allow_module_level=True
        )


def timers_rest(widget: Any) -> bool:
    """Return whether no single-shot timer of a widget runs, so that it has followed every change up to now."""
    from qtpy.QtCore import QTimer

    return not any(timer.isSingleShot() and timer.isActive() for timer in widget.findChildren(QTimer))


def open_window() -> Any:
    """Open a real napari window."""
    import napari

    from napari_lrmil.plugin.guards import guard_viewer

    viewer = napari.Viewer(show=True)
    guard_viewer(viewer)  # tests without a dock remove layers too
    viewer.window._qt_window.resize(1280, 800)
    return viewer
