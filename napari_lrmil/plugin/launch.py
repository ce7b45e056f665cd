"""`view` and `demo`: open napari with slides and the dock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from napari_lrmil.core.errors import LrmilError, SlideError
from napari_lrmil.core.inference.teacher_patches import TeacherPatches

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_lrmil.plugin.analyse.widget import AnalyseWidget

WINDOW_TITLE = "napari-lrmil"
DEMO_WINDOW_PX = (1600, 900)
SLIDE_BACKGROUND = "#dcdcde"  # a little darker than glass, so that the edge of a slide shows
XVFB_COMMAND = ("xvfb-run", "-a", "-s", "-screen 0 1920x1200x24 +extension GLX")
XVFB_PACKAGES = (
    "xvfb xauth libgl1 libgl1-mesa-dri libglx-mesa0 libegl1 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 "
    "libxcb-image0 libxcb-keysyms1 libxcb-render-util0 libxcb-shape0 libxcb-xkb1"
)


def open_viewer(paths: Sequence[Path], bundle: str | Path | None, mpp: float | None) -> None:
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
        raise LrmilError(
            "there is no screen to open a window on; run it where there is one, or take the commands predict and demo"
        )
    for path in paths:
        if not path.exists():  # told before napari is loaded, which takes a while
            raise SlideError(path, "there is no such file; check the path")
    napari = _load_napari(asynchronous=True)
    viewer = napari.Viewer(title=WINDOW_TITLE)
    try:
        _add_analyse_dock(viewer, bundle)
        _add_slides(viewer, paths, mpp)
        hide_layer_panels(viewer)
    except BaseException:
        viewer.close()
        raise
    napari.run()


def run_demo(out: Path, slide: Path | None, bundle: str | Path, headless: bool) -> Path | None:
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
    (out / "demo.png").unlink(missing_ok=True)  # an earlier one must not be taken for this one's
    if not has_display():
        return _under_xvfb(out, slide, bundle)
    from napari_lrmil.plugin.viewer.sample_data import write_sample_slide

    path = slide or write_sample_slide(out)
    napari = _load_napari(asynchronous=not headless)
    viewer = napari.Viewer(title=WINDOW_TITLE, show=True)
    try:
        dock = _add_analyse_dock(viewer, bundle, out)
        _add_slides(viewer, [path], None)
        hide_layer_panels(viewer)
        _start_run(dock)
        if headless:
            return _save_demo_picture(viewer, dock, out / "demo.png")
    except BaseException:
        viewer.close()
        raise
    napari.run()
    return None


def has_display() -> bool:
    """Whether a window can be opened; only Linux may have no screen."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _load_napari(*, asynchronous: bool) -> ModuleType:
    """Return napari. torch comes first, or it does not load beside Qt on Windows."""
    os.environ["NAPARI_ASYNC"] = "1" if asynchronous else "0"
    import_module("torch")
    napari: ModuleType = import_module("napari")
    return napari


def _add_analyse_dock(viewer: Viewer, bundle: str | Path | None, out: Path | None = None) -> AnalyseWidget:
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget
    from napari_lrmil.plugin.session.session import Session

    if bundle is not None:
        Bundle(bundle)  # a wrong one ends the command, not just the choice
    dock = AnalyseWidget(viewer, Session(out=out))
    viewer.window.add_dock_widget(dock, name=WINDOW_TITLE, area="right")
    if bundle is not None:
        dock.open_model(bundle)
    return dock


def _add_slides(viewer: Viewer, paths: Sequence[Path], mpp: float | None) -> None:
    from napari_lrmil.core.user_settings import SettingsStore
    from napari_lrmil.plugin.viewer.layers import add_layers
    from napari_lrmil.plugin.viewer.reader import ask_mpp_with_estimate, read_slides

    cache = SettingsStore().load_settings().settings.tile_cache_mb << 20
    add_layers(viewer, read_slides(list(paths), mpp, ask=ask_mpp_with_estimate, cache_bytes=cache))
    viewer.canvas.overlays.scale_bar.visible = True
    viewer.canvas.background_color_override = SLIDE_BACKGROUND
    _show_whole_slide(viewer)


def _show_whole_slide(viewer: Viewer) -> None:
    """Let the window lay itself out, and the dock take up new layers, then show all of the slide."""
    from qtpy.QtWidgets import QApplication

    for _ in range(3):
        QApplication.processEvents()
    viewer.reset_view()


def hide_layer_panels(viewer: Viewer) -> None:
    """Leave the window to slide and dock; napari's Window menu brings its own panels back."""
    for panel in (viewer.window._qt_viewer.dockLayerList, viewer.window._qt_viewer.dockLayerControls):
        panel.setVisible(False)


def _start_run(dock: AnalyseWidget) -> None:
    if dock.session.run_blocked_by:
        raise LrmilError(dock.session.run_blocked_by)
    dock.session.choose_teacher(TeacherPatches.ALL)
    dock.run()


def _save_demo_picture(viewer: Viewer, dock: AnalyseWidget, path: Path) -> Path:
    """Wait for the run and its legend, and save what the window shows, whole or not at all."""
    from napari_lrmil.plugin.session.session import SessionState

    viewer.window._qt_window.resize(*DEMO_WINDOW_PX)
    _wait_for_result(dock)
    if dock.session.state is not SessionState.DONE:
        raise LrmilError(dock.session.message or "the analysis ended without a result")
    _show_whole_slide(viewer)
    save_screenshot(viewer, path)
    viewer.close()
    return path


def _wait_for_result(dock: AnalyseWidget) -> None:
    from qtpy.QtCore import QEventLoop

    loop = QEventLoop()
    dock.session.changed.connect(lambda: None if dock.session.is_busy else loop.quit())
    dock.reading.dressed.connect(loop.quit)
    while dock.session.is_busy or dock.reading.dressing:  # the session tells of more than its end
        loop.exec_()


def save_screenshot(viewer: Viewer, path: Path) -> None:
    """Save the whole window as PNG, whole or not at all."""
    from PIL import Image

    from napari_lrmil.core.atomic_files import atomic_write

    pixels = viewer.screenshot(canvas_only=False, flash=False)
    with atomic_write(path) as partial:
        Image.fromarray(pixels).convert("RGB").save(partial, format="PNG")


def _under_xvfb(out: Path, slide: Path | None, bundle: str | Path) -> Path:
    """Run the same demo again in a process with a virtual screen."""
    if not (shutil.which("xvfb-run") and shutil.which("xauth")):
        raise LrmilError(
            f"there is no screen, and no virtual one to draw on; install the Debian packages {XVFB_PACKAGES}"
        )
    demo_again = [sys.executable, "-m", "napari_lrmil", "demo", "--headless"]
    call = [*XVFB_COMMAND, *demo_again, "--out", str(out), "--bundle", str(bundle)]
    call += ["--slide", str(slide)] if slide else []
    environment = {k: v for k, v in os.environ.items() if k not in ("QT_QPA_PLATFORM", "WAYLAND_DISPLAY")}
    picture = out / "demo.png"
    code = subprocess.run(call, env=environment, check=False, stdout=subprocess.DEVNULL).returncode
    if code != 0 or not picture.is_file():
        raise LrmilError(f"drawing on a virtual screen ended with exit code {code}; see above for the reason")
    return picture
