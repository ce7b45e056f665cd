"""A real napari window for tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

MakeDock = Callable[..., Any]
HAS_SCREEN = not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY"))


def require_screen() -> None:
    """Skip where there is no screen; Qt would end the whole process."""
    if not HAS_SCREEN:
        pytest.skip(
            "no screen: run under xvfb-run -a -s '-screen 0 1920x1200x24 +extension GLX'", allow_module_level=True
        )


def open_window() -> Any:
    """Open a real napari window."""
    import napari

    from napari_lrmil.plugin.viewer.gl_context import guard_layer_removal

    opened = napari.Viewer(show=True)
    guard_layer_removal(opened)  # a test without a dock removes layers too
    opened.window._qt_window.resize(1280, 800)
    return opened
