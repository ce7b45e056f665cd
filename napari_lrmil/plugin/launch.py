"""Launch of napari with slides and the Analyse dock, for the commands ``view`` and ``demo``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from napari_lrmil.core.errors import LrmilError, SlideError
from napari_lrmil.core.extras import require_extra
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.slides.place_link import PlaceLink, is_link, parse_link

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget

WINDOW_TITLE, ANALYSE_TITLE = "napari-lrmil", "Analyse (LRMIL)"
DEMO_WINDOW_PX = (1600, 900)
SLIDE_BACKGROUND = "#dcdcde"  # a little darker than empty glass, so that the edge of a slide is visible
XVFB_COMMAND = ("xvfb-run", "-a", "-s", "-screen 0 1920x1200x24 +extension GLX")
XVFB_PACKAGES = (
    "xvfb xauth libgl1 libgl1-mesa-dri libglx-mesa0 libegl1 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 "
    "libxcb-image0 libxcb-keysyms1 libxcb-render-util0 libxcb-shape0 libxcb-xkb1"
)


def open_viewer(paths: Sequence[Path], bundle: str | Path | None, mpp: float | None) -> None:
    """Open napari with slides and the Analyse dock; return when the window is closed.

    Parameters
    ----------
    paths
        Slides, or links to places on slides; the view goes to the last link. A table, or a folder that is not one slide
        itself, opens the Worklist dock instead.
    bundle
        Folder of the first model, or name of a shipped one; None takes what was chosen for the slides before.
    mpp
        µm per level-0 pixel, in place of what the slides state.

    Raises
    ------
    LrmilError
        If there is no screen, or a slide or the bundle cannot be opened.
    """
    require_extra("gui", "the window")
    if not has_display():
        raise LrmilError(
            "there is no screen to open a window on; use a machine with a screen, or the commands predict and demo"
        )
    links = [parse_link(str(path)) for path in paths if is_link(str(path))]
    paths = [parse_link(str(path)).slide if is_link(str(path)) else path for path in paths]
    for path in paths:
        if not path.exists():  # checked first, because loading napari takes seconds
            raise SlideError(path, "no such file; check the path")
    napari = _load_napari(asynchronous=True)
    viewer = napari.Viewer(title=WINDOW_TITLE, show_welcome_screen=False)
    with _closed_on_error(viewer):
        _add_analyse_dock(viewer, bundle)
        lists = [path for path in paths if _is_list(path)]
        _add_slides(viewer, [path for path in paths if path not in lists], mpp)
        _connect_worklist(viewer, lists)
        hide_layer_panels(viewer)
        if links:
            _go_to_link(viewer, links[-1])
    napari.run()


def _is_list(path: Path) -> bool:
    """Return whether a path is a table or a folder of slides, and not one slide."""
    from napari_lrmil.core.slides.slide_files import dicom_in, is_table
    from napari_lrmil.plugin.viewer.opening.reader import is_slide

    return is_table(path) or (path.is_dir() and (not is_slide(path) or len(dicom_in(path).slides) > 1))


def _connect_worklist(viewer: Viewer, paths: Sequence[Path]) -> None:
    """Open lists of slides in the Worklist dock now, and those that are dropped on the canvas later."""
    from napari_lrmil.plugin.viewer.opening.slide_drops import open_dropped_slides
    from napari_lrmil.plugin.worklist.widget import open_worklist

    open_dropped_slides(viewer, partial(open_worklist, viewer))
    if paths:
        open_worklist(viewer, paths)


@dataclass(frozen=True)
class DemoResult:
    """Result of a demo without a window: its picture, the folder of the slide's result files, and the prediction."""

    picture: Path
    folder: Path
    prediction: Prediction


def run_demo(out: Path, slide: Path | None, bundle: str | Path, headless: bool) -> DemoResult | None:
    """Run student and teacher on a slide and show both attention maps.

    Parameters
    ----------
    out
        Folder for the phantom slide, the result files and ``demo.png``.
    slide
        A slide; None writes and takes a phantom slide.
    bundle
        Folder of the model, or name of a shipped one.
    headless
        Whether to save ``demo.png`` and close the window; always so without a screen.

    Returns
    -------
    DemoResult or None
        None if a window was shown, or if the demo ran in a process of its own, which printed its result.

    Raises
    ------
    LrmilError
        If the slide or the bundle cannot be used, or no window can be drawn.
    """
    require_extra("gui", "the window")
    if slide is not None and not slide.exists():  # checked before the earlier picture is deleted
        raise SlideError(slide, "no such file; check the path")
    (out / "demo.png").unlink(missing_ok=True)  # else the picture of an earlier demo could pass for this one's
    if not has_display():
        _run_under_xvfb(out, slide, bundle)
        return None
    from napari_lrmil.plugin.viewer.opening.sample_data import write_sample_slide

    path = slide or write_sample_slide(out)
    napari = _load_napari(asynchronous=not headless)
    viewer = napari.Viewer(title=WINDOW_TITLE, show=True, show_welcome_screen=False)
    with _closed_on_error(viewer):
        dock = _add_analyse_dock(viewer, bundle, out)
        _add_slides(viewer, [path], None)
        hide_layer_panels(viewer)
        _start_run(dock)
        if headless:
            return _save_demo_picture(viewer, dock, out)
    napari.run()
    return None


def has_display() -> bool:
    """Return whether a window can be opened; only Linux may lack a screen."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def _closed_on_error(viewer: Viewer) -> Iterator[None]:
    """Close the window if the block fails; an open one would keep the process from ending."""
    try:
        yield
    except BaseException:
        viewer.close()
        raise


def _load_napari(*, asynchronous: bool) -> ModuleType:
    """Import torch, then napari: on Windows torch fails to load after Qt.

    Parameters
    ----------
    asynchronous
        Whether napari reads tiles in threads. A screenshot must wait for them, so the headless demo reads at once.
    """
    os.environ["NAPARI_ASYNC"] = "1" if asynchronous else "0"
    import_module("torch")
    napari: ModuleType = import_module("napari")
    return napari


def _add_analyse_dock(viewer: Viewer, bundle: str | Path | None, out: Path | None = None) -> AnalyseWidget:
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget
    from napari_lrmil.plugin.session.session import Session

    if bundle is not None:
        Bundle(bundle)  # raises for a wrong folder; the dock itself would show a message and go on
    dock = AnalyseWidget(viewer, Session(out=out))
    viewer.window.add_dock_widget(dock, name=ANALYSE_TITLE, area="right")
    if bundle is not None:
        dock.open_model(bundle)
    return dock


def _add_slides(viewer: Viewer, paths: Sequence[Path], mpp: float | None) -> None:
    from napari_lrmil.core.user_settings import SettingsStore
    from napari_lrmil.plugin.viewer.layers import add_layers
    from napari_lrmil.plugin.viewer.opening.reader import ask_mpp_with_estimate, read_slide_layers

    cache = SettingsStore().load_settings().settings.tile_cache_mb << 20
    add_layers(viewer, read_slide_layers(list(paths), mpp, ask=ask_mpp_with_estimate, cache_bytes=cache))
    viewer.canvas.overlays.scale_bar.visible = True
    viewer.canvas.background_color_override = SLIDE_BACKGROUND
    _show_whole_slide(viewer)


def _show_whole_slide(viewer: Viewer) -> None:
    """Process layout and layer events of the window and the dock, then fit the shown slide into the view."""
    from qtpy.QtWidgets import QApplication

    from napari_lrmil.plugin.viewer.layers import lrmil_layers

    for _ in range(3):  # an event may post another one
        QApplication.processEvents()
    viewer.reset_view(layers=[layer for layer in lrmil_layers(viewer, role="slide") if layer.visible] or None)


def _go_to_link(viewer: Viewer, link: PlaceLink) -> None:
    from napari_lrmil.plugin.viewer.navigation.places import go_to_link

    go_to_link(viewer, link, viewer.window._qt_window.devicePixelRatioF())


def hide_layer_panels(viewer: Viewer) -> None:
    """Hide napari's layer list and layer controls, which its Window menu brings back."""
    for panel in (viewer.window._qt_viewer.dockLayerList, viewer.window._qt_viewer.dockLayerControls):
        panel.setVisible(False)


def _start_run(dock: AnalyseWidget) -> None:
    if dock.session.run_blocked_by:
        raise LrmilError(dock.session.run_blocked_by)
    dock.session.choose_teacher(TeacherPatches.ALL)
    dock.run()


def _save_demo_picture(viewer: Viewer, dock: AnalyseWidget, out: Path) -> DemoResult:
    """Wait for the result and its legends, save a picture of the window, and close it."""
    from napari_lrmil.plugin.session.run_state import SessionState

    viewer.window._qt_window.resize(*DEMO_WINDOW_PX)
    _wait_for_result(dock)
    prediction = dock.session.prediction
    if dock.session.state is not SessionState.DONE or prediction is None:
        raise LrmilError(dock.session.message or "the analysis ended without a result")
    _show_whole_slide(viewer)
    picture = out / "demo.png"
    _save_screenshot(viewer, picture)
    viewer.close()
    return DemoResult(picture, out / prediction.slide, prediction)


def _wait_for_result(dock: AnalyseWidget) -> None:
    from qtpy.QtCore import QEventLoop

    loop = QEventLoop()
    dock.session.changed.connect(lambda: None if dock.session.is_busy else loop.quit())
    dock.result_view.legends_added.connect(loop.quit)
    while dock.session.is_busy or dock.result_view.is_adding_legends:  # `changed` also ends the loop during legends
        loop.exec_()


def _save_screenshot(viewer: Viewer, path: Path) -> None:
    """Save a picture of the whole window as PNG; an earlier file stays complete if writing fails."""
    from PIL import Image

    from napari_lrmil.core.atomic_files import atomic_write

    pixels = viewer.screenshot(canvas_only=False, flash=False)
    with atomic_write(path) as partial:
        Image.fromarray(pixels).convert("RGB").save(partial, format="PNG")


def _run_under_xvfb(out: Path, slide: Path | None, bundle: str | Path) -> None:
    """Run the same demo in a process with a virtual screen. It prints its own result."""
    if not (shutil.which("xvfb-run") and shutil.which("xauth")):
        raise LrmilError(
            f"there is no screen, and no virtual one can be started; install the Debian packages {XVFB_PACKAGES}"
        )
    demo = [sys.executable, "-m", "napari_lrmil", "demo", "--headless"]
    command = [*XVFB_COMMAND, *demo, "--out", str(out), "--bundle", str(bundle)]
    command += ["--slide", str(slide)] if slide else []
    environment = {k: v for k, v in os.environ.items() if k not in ("QT_QPA_PLATFORM", "WAYLAND_DISPLAY")}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code != 0 or not (out / "demo.png").is_file():
        raise LrmilError(f"the demo on a virtual screen ended with exit code {code}; see above for the reason")
