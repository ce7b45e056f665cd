"""Pictures of the docs: the window at 1280 x 720 as the commands ``view`` and ``demo`` open it, part by part.

    python benchmarks/screenshots.py COHORT/SLIDE.tif [--dock analyse]          # analyse-*.jpg
    python benchmarks/screenshots.py COHORT/SLIDE.tif --dock compare            # compare-*.jpg
    python benchmarks/screenshots.py COHORT --dock worklist                     # worklist.jpg
    python benchmarks/screenshots.py [SLIDE] --dock demo [--name cmu-1]         # demo.jpg, or cmu-1.jpg

`COHORT` is what ``napari-lrmil phantom COHORT --slides 20 --size 4096x3072`` made. `SLIDE` of cmu-1.jpg is OpenSlide's
CMU-1-Small-Region.svs. Pictures go into --out. Settings of the user are neither read nor changed. Needs a screen (or
``xvfb-run -a -s "-screen 0 1920x1200x24 +extension GLX"``).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from window import until, wait

LONG_S = 300.0
WINDOW_PX = (1280, 720)
MAX_BYTES, QUALITIES = 150_000, range(90, 50, -2)  # of a picture; the first JPEG quality that is small enough is taken
LIST_SLIDES = 6  # of the worklist and of the cohort in Compare
REVIEWER = "Anna"
STROMA_UM = (1400.0, 1120.0)  # between the glands of the fifth phantom


def main() -> None:
    """Open the window, operate the docks and save the pictures."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("slide", type=Path, nargs="?", help="slide, or folder for the worklist")
    p.add_argument("--out", type=Path, default=Path("docs/images"))
    p.add_argument("--dock", choices=("analyse", "compare", "worklist", "demo"), default="analyse")
    p.add_argument("--name", default="demo", help="of the picture of --dock demo")
    args = p.parse_args()
    if args.slide is None and args.dock != "demo":
        p.error("name a slide or a folder")
    with tempfile.TemporaryDirectory() as work:
        if args.dock == "demo":
            open_demo(args.slide, Path(work), args.out / f"{args.name}.jpg")
        elif args.dock == "worklist":
            open_view(copy_slides(args.slide, Path(work)), lambda viewer: worklist_tour(viewer, args.out))
        elif args.dock == "compare":
            cohort = compare_cohort(args.slide.parent, Path(work))
            open_view(args.slide, lambda viewer: compare_tour(viewer, args.out, cohort))
        else:
            open_view(args.slide, lambda viewer: analyse_tour(viewer, args.out))


# ---------------------------------------------------------------- the window as a user starts it


def use_new_settings() -> None:
    """Take empty settings of napari and of the plugin, and make napari's first window as large as the pictures."""
    folder = tempfile.mkdtemp()
    os.environ["NAPARI_LRMIL_CONFIG"] = folder
    os.environ["NAPARI_CONFIG"] = str(Path(folder) / "napari.yaml")
    import torch  # noqa: F401  # before Qt
    from napari.settings import get_settings

    get_settings().application.window_size = WINDOW_PX


def open_view(path: Path | None, tour: Callable[[Any], None]) -> None:
    """Do what ``napari-lrmil view PATH`` does, with a tour in place of the user."""
    use_new_settings()
    from napari_lrmil.plugin.launch import open_viewer

    with toured(tour):
        open_viewer([path] if path is not None else [], None, None)


def open_demo(slide: Path | None, work: Path, picture_path: Path) -> None:
    """Do what ``napari-lrmil demo`` does, and save a picture once both networks have answered."""
    use_new_settings()
    from napari_lrmil.plugin.launch import run_demo

    def tour(viewer: Any) -> None:
        dock = analyse_dock(viewer)
        until(lambda: not dock.session.is_busy and dock.session.prediction is not None, LONG_S)
        picture(viewer, picture_path)

    with toured(tour):
        run_demo(work, slide, "demo", headless=False)


def toured(tour: Callable[[Any], None]) -> Any:
    """Let napari's event loop run only as long as a tour takes; then the window is closed."""
    import napari

    def run() -> None:
        viewer = napari.current_viewer()
        viewer.window._qt_window.resize(*WINDOW_PX)
        wait(0.5)
        viewer.reset_view()
        tour(viewer)
        viewer.close()

    return mock.patch.object(napari, "run", run)


def analyse_dock(viewer: Any) -> Any:
    """Return the Analyse dock of the window."""
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget
    from napari_lrmil.plugin.qt.docks import find_dock

    return find_dock(viewer, AnalyseWidget)


def from_menu(viewer: Any, kind: type, name: str) -> Any:
    """Open a dock as the menu Plugins does, and return it."""
    from napari_lrmil.plugin.qt.docks import find_dock

    viewer.window.add_plugin_dock_widget("napari-lrmil", name)
    return find_dock(viewer, kind)


# ---------------------------------------------------------------- slides and results


def copy_slides(cohort: Path, work: Path) -> Path:
    """Copy the first slides of a cohort, so that no result is written beside it."""
    folder = work / "slides"
    folder.mkdir()
    for slide in sorted(cohort.glob("*.tif"))[:LIST_SLIDES]:
        shutil.copy(slide, folder)
    return folder


def compare_cohort(cohort: Path, work: Path) -> Path:
    """Return a folder of results of both networks about the first slides of a cohort."""
    slides = sorted(cohort.glob("*.tif"))[:LIST_SLIDES]
    options = ["--bundle", "demo", "--teacher", "all", "--out", str(work / "results")]
    subprocess.run([sys.executable, "-m", "napari_lrmil", "predict", *map(str, slides), *options], check=True)
    return work / "results"


# ---------------------------------------------------------------- tours


def analyse_tour(viewer: Any, out: Path) -> None:
    """Save a picture of each part of the Analyse dock, in the order of the tutorial."""
    dock = analyse_dock(viewer)
    until(lambda: dock.session.tissue_grid is not None, LONG_S)
    picture(viewer, out / "analyse-open.jpg")
    dock.run_button.native.click()
    until(lambda: not dock.session.is_busy, LONG_S)
    picture(viewer, out / "analyse-attention.jpg")
    evidence, gallery = dock.result_view.evidence, dock.result_view.gallery
    fold(dock, "evidence", "gallery")
    evidence.show_box.click()
    until(lambda: all(not thumb.icon().isNull() for thumb in gallery.thumbnails), LONG_S)
    picture(viewer, out / "analyse-evidence.jpg", top=evidence)
    evidence.show_box.click()
    gallery.thumbnails[0].click()
    viewer.scene.camera.zoom *= 3
    picture(viewer, out / "analyse-gallery.jpg", top=gallery)
    viewer.reset_view()
    follow_view(viewer, dock)
    picture(viewer, out / "analyse-live.jpg", top=dock.results)
    dock.roi_form.follow.click()
    dock.roi_form.kinds.buttons["slide"].click()
    viewer.reset_view()
    dock.run_button.native.click()
    until(lambda: not dock.session.is_busy, LONG_S)
    draw(viewer, dock)
    fold(dock, "what-if")
    dock.what_if.exclude.click()
    until(lambda: bool(dock.session.prediction.scope.excluded), LONG_S)
    picture(viewer, out / "analyse-what-if.jpg", top=dock.what_if)


def follow_view(viewer: Any, dock: Any) -> None:
    """Zoom in and let the student follow the view."""
    fold(dock, "navigation")
    dock.roi_form.kinds.buttons["view"].click()
    viewer.scene.camera.zoom *= 1.6
    dock.roi_form.follow.click()
    wait(2.0)
    until(lambda: not dock.live_view.predictions.is_busy, LONG_S)


def compare_tour(viewer: Any, out: Path, cohort: Path) -> None:
    """Save a picture of each part of the Compare dock."""
    from qtpy.QtWidgets import QFileDialog

    from napari_lrmil.plugin.compare.widget import CompareWidget

    until(lambda: analyse_dock(viewer).session.tissue_grid is not None, LONG_S)
    dock = from_menu(viewer, CompareWidget, "Compare (LRMIL)")
    dock.form.budgets["all"].click()
    picture(viewer, out / "compare-open.jpg")
    dock.form.run_button.click()
    until(lambda: dock.session.prediction is not None and not dock.session.is_busy, LONG_S)
    fold(dock, "maps", "measures")
    until(lambda: bool(dock.measures.lesions.text()), LONG_S)
    picture(viewer, out / "compare-side.jpg", top=dock.maps)
    dock.maps.views["wipe"].click()
    dock.maps.pooled.click()
    fold(dock, "maps")
    picture(viewer, out / "compare-wipe.jpg", top=dock.maps)
    dock.maps.views["difference"].click()
    fold(dock, "maps", "scatter")
    wait(0.5)
    loop(dock.scatter)
    picture(viewer, out / "compare-difference.jpg", top=dock.scatter)
    dock.scatter.clear.click()
    dock.maps.views["side"].click()
    fold(dock, "cohort")
    with mock.patch.object(QFileDialog, "getExistingDirectory", return_value=str(cohort)):
        dock.cohort.folder_button.click()
    wait(0.5)
    until(lambda: dock.cohort.folder_button.text() != "Cancel", LONG_S)
    picture(viewer, out / "compare-cohort.jpg", top=dock.cohort)


def worklist_tour(viewer: Any, out: Path) -> None:
    """Run the list, give verdicts on the first slides, annotate one, and save the picture."""
    from napari_lrmil.core.worklist.review import Verdict
    from napari_lrmil.plugin.qt.docks import find_dock
    from napari_lrmil.plugin.worklist.widget import WorklistWidget

    dock = find_dock(viewer, WorklistWidget)

    def settle() -> None:
        pager = dock.pager
        until(lambda: pager.has_arrived and not pager.is_busy and not pager.is_completing, LONG_S)

    until(lambda: dock.current is not None, LONG_S)
    settle()
    until(dock.run_all.isEnabled, LONG_S)
    dock.run_all.click()
    until(lambda: not dock.filling.is_running, LONG_S)
    settle()
    dock.review.reviewer.setText(REVIEWER)
    dock.review.reviewer.editingFinished.emit()
    for verdict in (Verdict.AGREE, Verdict.AGREE, Verdict.UNSURE, Verdict.DISAGREE):
        dock.review.buttons[verdict].click()
        dock.step(1)
        settle()
    dock.review.buttons[Verdict.AGREE].click()
    for name, centre_um in (("Tumor", top_patch_um(dock.session)), ("Stroma", STROMA_UM)):
        annotate(viewer, dock, name, centre_um)
    viewer.layers.selection.clear()
    picture(viewer, out / "worklist.jpg")


def top_patch_um(session: Any) -> tuple[float, float]:
    """Return the centre of the LR patch with the most attention."""
    grid, attention = session.tissue_grid.grid, session.prediction.student.attention
    x, y = grid.lr_corners[np.argmax(attention)]
    width, height = grid.lattice.lr_cell
    return float((x + width / 2) * grid.lattice.mpp.x), float((y + height / 2) * grid.lattice.mpp.y)


def annotate(viewer: Any, dock: Any, name: str, centre_um: tuple[float, float]) -> None:
    """Draw a region of a class around a place on the shown slide."""
    from napari_lrmil.plugin.viewer.layers import lrmil_layers

    dock.review.annotation_class.setCurrentText(name)
    dock.review.draw.click()
    (layer,) = lrmil_layers(viewer, role="annotation")
    outline = np.array([(-120, -130), (90, -110), (130, 80), (-70, 120)]) + np.array(centre_um)
    layer.add(outline[:, ::-1], shape_type="polygon")
    wait(0.5)
    if dock.review.draw.isChecked():
        dock.review.draw.click()


def loop(scatter: Any) -> None:
    """Draw a loop around the points with clearly more attention from the student than from the teacher."""
    top = scatter.axes.get_xlim()[1]
    corners = [(0.05 * top, 0.1 * top), (0.05 * top, 0.98 * top), (0.93 * top, 0.98 * top)]  # above the diagonal
    pixels = scatter.axes.transData.transform(np.array(corners))
    from matplotlib.backend_bases import MouseEvent

    names = ["button_press_event", *["motion_notify_event"] * (len(pixels) - 1), "button_release_event"]
    for name, (x, y) in zip(names, [*pixels, pixels[-1]], strict=True):
        scatter.canvas.callbacks.process(name, MouseEvent(name, scatter.canvas, x, y, button=1))


def draw(viewer: Any, dock: Any) -> None:
    """Draw a region around the patch with the most attention."""
    x, y = dock.result_view.gallery.patches[0].centre_um
    dock.roi_form.draw.click()
    outline = np.array([(-300, -200), (250, -260), (330, 180), (-120, 300)]) + np.array([x, y])
    dock.viewer_actions.region_layer().add(outline[:, ::-1], shape_type="polygon")
    dock.viewer_actions.region_layer().mode = "pan_zoom"
    until(lambda: bool(dock.session.regions), LONG_S)


def fold(dock: Any, *names: str) -> None:
    """Unfold these parts of the dock and fold all others, with clicks on their titles as a user does."""
    for section in dock.sections:
        if section.isExpanded() != (section.name in names):
            section.toggleButton().click()


def picture(viewer: Any, path: Path, top: Any = None) -> None:
    """Save the window once its maps and legends are complete, with the part `top` at the top of its dock."""
    from PIL import Image
    from qtpy.QtWidgets import QScrollArea

    dock = analyse_dock(viewer)
    wait(1.2)
    until(lambda: dock is None or not dock.result_view.is_adding_legends, LONG_S)
    if top is not None:
        scroll = next(area for area in viewer.window._qt_window.findChildren(QScrollArea) if area.isAncestorOf(top))
        scroll.verticalScrollBar().setValue(top.mapTo(scroll.widget(), top.rect().topLeft()).y())
    until(lambda: all(layer.loaded for layer in viewer.layers), LONG_S)
    wait(0.5)
    image = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_jpeg(image))
    print(path, flush=True)


def as_jpeg(image: Any) -> bytes:
    """Return a picture as JPEG of the best quality that is small enough for the docs."""
    for quality in QUALITIES:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
        if file.tell() <= MAX_BYTES:
            break
    return file.getvalue()


if __name__ == "__main__":
    main()
