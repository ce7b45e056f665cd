"""Pictures of docs/tutorials/analyse.md and compare.md: the window at 1280 x 720, part by part, on a phantom slide.

    python benchmarks/screenshots.py SLIDE [--dock compare --cohort FOLDER] --out docs/images

Needs a screen (or ``xvfb-run -a -s "-screen 0 1920x1200x24 +extension GLX"``).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from window import until, wait

LONG_S = 300.0
AT_TOP = (
    "analyse-open",
    "analyse-attention",
    "analyse-live",
    "compare-open",
    "compare-side",
    "compare-wipe",
    "train-settings",
)  # shown without scrolling


def main() -> None:
    """Operate the docks and save the pictures."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("slide", type=Path)
    p.add_argument("--out", type=Path, default=Path("docs/images"))
    p.add_argument("--bundle", default="demo")
    p.add_argument("--dock", choices=("analyse", "compare"), default="analyse")
    p.add_argument("--cohort", type=Path, help="what `predict --teacher all` wrote about a few slides")
    args = p.parse_args()
    os.environ["NAPARI_LRMIL_CONFIG"] = tempfile.mkdtemp()
    import torch  # noqa: F401  # before Qt
    from napari import Viewer

    from napari_lrmil.plugin.analyse.widget import AnalyseWidget
    from napari_lrmil.plugin.launch import SLIDE_BACKGROUND, WINDOW_TITLE, hide_layer_panels
    from napari_lrmil.plugin.viewer.layers import add_layers
    from napari_lrmil.plugin.viewer.navigation import show_scale_bar_with_slides
    from napari_lrmil.plugin.viewer.reader import read_slide_layers

    viewer = Viewer(show=True, title=WINDOW_TITLE)
    viewer.window._qt_window.resize(1280, 720)
    dock = AnalyseWidget(viewer)
    viewer.window.add_dock_widget(dock, name=WINDOW_TITLE, area="right")
    dock.open_model(args.bundle)
    hide_layer_panels(viewer)
    viewer.canvas.background_color_override = SLIDE_BACKGROUND
    show_scale_bar_with_slides(viewer)
    add_layers(viewer, read_slide_layers(args.slide))
    wait(0.5)
    viewer.reset_view()
    until(lambda: dock.session.tissue_grid is not None, LONG_S)
    if args.dock == "compare":
        compare_tour(viewer, args.out, args.cohort)
    else:
        tour(viewer, dock, args.out)
    viewer.close()


def tour(viewer: Any, dock: Any, out: Path) -> None:
    """Save a picture of each part."""
    wait(1.0)
    picture(viewer, out / "analyse-open.jpg")
    dock.run_button.native.click()
    until(lambda: not dock.session.is_busy, LONG_S)
    fold(dock, "attention")
    picture(viewer, out / "analyse-attention.jpg")
    fold(dock, "evidence", "gallery")
    dock.result_view.evidence.show_box.click()
    until(lambda: all(not thumb.icon().isNull() for thumb in dock.result_view.gallery.thumbnails), LONG_S)
    picture(viewer, out / "analyse-evidence.jpg")
    dock.result_view.evidence.show_box.click()
    dock.result_view.gallery.thumbnails[0].click()
    viewer.scene.camera.zoom *= 5
    picture(viewer, out / "analyse-gallery.jpg")
    viewer.reset_view()
    draw(viewer, dock)
    fold(dock, "what-if", "tissue")
    dock.what_if.exclude.click()
    until(lambda: bool(dock.session.prediction.scope.excluded), LONG_S)
    picture(viewer, out / "analyse-what-if.jpg")
    dock.what_if.undo.click()
    dock.roi_form.kinds.buttons["view"].click()
    fold(dock, "navigation")
    viewer.scene.camera.zoom *= 3
    dock.roi_form.follow.click()
    wait(2.0)
    until(lambda: not dock.live_view.predictions.is_busy, LONG_S)
    picture(viewer, out / "analyse-live.jpg")


def compare_tour(viewer: Any, out: Path, cohort: Path | None) -> None:
    """Save a picture of each part of the Compare dock."""
    from qtpy.QtWidgets import QFileDialog

    from napari_lrmil.plugin.compare.widget import CompareWidget
    from napari_lrmil.plugin.qt.docks import open_dock

    dock = open_dock(viewer, CompareWidget, "Compare (LRMIL)")

    def show(name: str) -> None:
        until(lambda: not dock.analyse.result_view.is_adding_legends, LONG_S)
        picture(viewer, out / name)

    dock.form.budgets["all"].click()
    show("compare-open.jpg")
    dock.form.run_button.click()
    until(lambda: dock.session.prediction is not None and not dock.session.is_busy, LONG_S)
    fold(dock, "maps", "measures")
    until(lambda: bool(dock.measures.lesions.text()), LONG_S)
    show("compare-side.jpg")
    dock.maps.views["wipe"].click()
    dock.maps.pooled.click()
    show("compare-wipe.jpg")
    dock.maps.views["difference"].click()
    fold(dock, "maps", "scatter")
    wait(0.5)
    loop(dock.scatter)
    show("compare-difference.jpg")
    if cohort is not None:
        QFileDialog.getExistingDirectory = lambda *_, **__: str(cohort)
        fold(dock, "cohort")
        dock.cohort.folder_button.click()
        wait(0.5)
        until(lambda: dock.cohort.folder_button.text() != "Cancel", LONG_S)
        show("compare-cohort.jpg")


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


def picture(viewer: Any, path: Path) -> None:
    """Save the window with the unfolded parts visible."""
    from PIL import Image
    from qtpy.QtWidgets import QScrollArea

    wait(1.2)
    for scroll in viewer.window._qt_window.findChildren(QScrollArea):
        bar = scroll.verticalScrollBar()
        bar.setValue(0 if path.stem in AT_TOP else bar.maximum())
    wait(0.3)
    pixels = viewer.screenshot(canvas_only=False, flash=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert("RGB").save(path, quality=85)
    print(path)


if __name__ == "__main__":
    main()
