"""Folders in the user's home: the cache, and settings of other libraries that would lie outside it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "NAPARI_LRMIL_CACHE"
MATPLOTLIB_VARIABLE = "MPLCONFIGDIR"


def cache_folder() -> Path:
    """Return the folder that `CACHE_VARIABLE` names, or the user's cache folder."""
    import platformdirs

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("napari-lrmil", appauthor=False)


def keep_matplotlib_in_cache() -> None:
    """Let matplotlib use a folder in the cache, unless the user has set one or has one.

    matplotlib creates an empty folder for settings in the user's home as it is imported.
    """
    if not _matplotlib_folder().exists():
        os.environ.setdefault(MATPLOTLIB_VARIABLE, str(cache_folder() / "matplotlib"))


def _matplotlib_folder() -> Path:
    """Return the folder in which matplotlib looks for its settings."""
    if not sys.platform.startswith(("linux", "freebsd")):
        return Path.home() / ".matplotlib"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "matplotlib"


def keep_settings_in_cache() -> None:
    """Let napari and this program use settings in the cache, unless the user has set a place.

    For a picture of the demo, which is drawn without a window and leaves no settings behind.
    """
    folder = cache_folder() / "demo"
    os.environ.setdefault("NAPARI_CONFIG", str(folder / "napari.yaml"))
    os.environ.setdefault("NAPARI_LRMIL_CONFIG", str(folder))
