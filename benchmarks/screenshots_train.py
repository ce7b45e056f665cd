"""Pictures of docs/tutorials/train.md: the Train dock at 1280 x 800, step by step, during a small run.

    python benchmarks/screenshots_train.py COHORT_FOLDER --work DIR [--out docs/images]

`COHORT_FOLDER` is what ``napari-lrmil phantom`` made; the run goes into `DIR`. Needs a screen, as screenshots.py does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from screenshots import fold, picture
from window import until, wait

LONG_S = 3600.0
SEEN_EPOCHS = 8  # epochs of the second distillation before the picture of the run


def main() -> None:
    """Train and save the pictures."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cohort", type=Path)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--out", type=Path, default=Path("docs/images"))
    args = p.parse_args()
    os.environ["NAPARI_LRMIL_CONFIG"] = tempfile.mkdtemp()
    import torch  # noqa: F401  # before Qt
    from napari import Viewer

    from napari_lrmil.core.user_settings import SettingsStore
    from napari_lrmil.plugin.train.widget import TrainWidget
    from napari_lrmil.plugin.viewer.layers import add_layers
    from napari_lrmil.plugin.viewer.reader import read_slide_layers

    viewer = Viewer(show=True)
    viewer.window._qt_window.resize(1280, 800)
    dock = TrainWidget(viewer, SettingsStore(args.work / "remembered"))
    viewer.window.add_dock_widget(dock, name="Train (LRMIL)", area="right")
    add_layers(viewer, read_slide_layers(min(args.cohort.glob("*.tif"))))
    wait(0.5)
    viewer.reset_view()
    tour(viewer, dock, args)
    viewer.close()


def tour(viewer: Any, dock: Any, args: argparse.Namespace) -> None:
    """Save a picture of each step."""
    choose("getOpenFileName", (str(args.cohort / "cohort.csv"), ""), dock.cohort.open)
    until(lambda: "All" in dock.cohort.state.text(), LONG_S)
    dock.cohort.propose.click()
    fold(dock, dock.cohort.name)
    picture(viewer, args.out / "train-slides.jpg")
    dock.form.preset.value = "demo"
    fold(dock, dock.form.name)
    until(lambda: "licence" in dock.form.encoder_info.text(), LONG_S)
    picture(viewer, args.out / "train-settings.jpg")
    run = next(args.work / f"run-{i}" for i in range(1000) if not (args.work / f"run-{i}").exists())
    choose("getExistingDirectory", str(run), dock.running.choose)
    until(lambda: dock.running.start.isEnabled(), LONG_S)
    dock.running.start.click()
    until(lambda: any(distilling(curve) for curve in dock.run.log.curves), LONG_S)
    picture(viewer, args.out / "train-run.jpg")
    until(lambda: dock.outcome.use.isEnabled(), LONG_S)
    picture(viewer, args.out / "train-result.jpg")


def distilling(curve: Any) -> bool:
    """Return whether a curve belongs to the second distillation and has enough epochs for a picture."""
    return curve.stage == "stage2" and max(map(len, curve.series.values()), default=0) > SEEN_EPOCHS


def choose(dialog: str, answer: Any, button: Any) -> None:
    """Press a button and answer its file dialog."""
    from qtpy.QtWidgets import QFileDialog

    with mock.patch.object(QFileDialog, dialog, return_value=answer):
        button.click()


if __name__ == "__main__":
    main()
