"""`view` and `demo`: open napari with slides and the dock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.errors import LrmilError

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_lrmil.plugin.analyse import AnalyseWidget

TITLE = "napari-lrmil"
PICTURE_PX = (1600, 900)
XVFB = ("xvfb-run", "-a", "-s", "-screen 0 1920x1200x24 +extension GLX")
PACKAGES = "xvfb xauth libgl1 libgl1-mesa-dri libglx-mesa0 libegl1 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1"


def view(paths: Sequence[Path], bundle: str | Path | None, mpp: float | None) -> None:
    """Open napari with slides and the dock, and return when the window is closed.

    Parameters
    ----------
    paths
        Slides.
    bundle
        The model to choose at first; None takes the shipped one.
    mpp
        Micrometres per level-0 pixel, where the slides do not say.

    Raises
    ------
    LrmilError
        Where there is no screen, or a slide or the bundle cannot be opened.
    """
    if not has_display():
        raise LrmilError("there is no screen to open a window on; run it where there is one, or take the commands predict and demo")
    napari = _load_napari(asynchronous=True)
    viewer = napari.Viewer(title=TITLE)
    try:
        _dock(viewer, bundle)
        for path in paths:
            _open(viewer, path, mpp)
    except BaseException:
        viewer.close()
        raise
    napari.run()


def demo(out: Path, slide: Path | None, bundle: str | Path, headless: bool) -> Path | None:
    """Show where the student looks beside its teacher, on a phantom slide or on `slide`.

    Parameters
    ----------
    out
        Folder for the phantom slide, the prediction's files and ``demo.png``.
    slide
        A slide; None takes the phantom.
    bundle
        The model.
    headless
        Draw ``demo.png`` and return; as well where there is no screen.

    Returns
    -------
    Path or None
        The picture; None where a window was shown.

    Raises
    ------
    LrmilError
        Where the slide or the bundle cannot be used, or nothing can draw a window.
    """
    if not has_display():
        return _under_xvfb(out, slide, bundle)
    from napari_lrmil.plugin.sample_data import sample_slide

    path = slide or sample_slide(out)
    napari = _load_napari(asynchronous=not headless)
    viewer = napari.Viewer(title=TITLE, show=True)
    try:
        dock = _dock(viewer, bundle, out)
        _open(viewer, path, None)
        dock.session.choose_beside(True)
        dock.run()
        if headless:
            return _picture(viewer, dock, out / "demo.png")
    except BaseException:
        viewer.close()
        raise
    napari.run()
    return None


def has_display() -> bool:
    """Whether a window can be opened; only Linux may have no screen."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
