"""Pictures of docs/tutorials/train.md: the Train dock at 1280 x 720, step by step, during a small run.

    python benchmarks/screenshots_train.py COHORT_FOLDER --work DIR [--out docs/images]   # train-*.jpg, report.jpg

`COHORT_FOLDER` is what ``napari-lrmil phantom COHORT_FOLDER --slides 60 --size 2560x1920`` made; the run goes into
`DIR`. Needs a screen, as screenshots.py does, chromium for the picture of the report, and some minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest import mock

from screenshots import fold, from_menu, open_view, picture
from screenshots_site import browser_picture
from window import until

LONG_S = 3600.0
REPORT_PX = 1100, 1500
SEEN_EPOCHS = 8  # epochs of the second distillation before the picture of the run


def main() -> None:
    """Train and save the pictures."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cohort", type=Path)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--out", type=Path, default=Path("docs/images"))
    args = p.parse_args()
    open_view(min(args.cohort.glob("*.tif")), lambda viewer: tour(viewer, args))


def tour(viewer: Any, args: argparse.Namespace) -> None:
    """Save a picture of each step."""
    from napari_lrmil.plugin.train.widget import TrainWidget

    dock = from_menu(viewer, TrainWidget, "Train (LRMIL)")
    choose("getOpenFileName", (str(args.cohort / "cohort.csv"), ""), dock.cohort.open)
    until(lambda: "All" in dock.cohort.state.text(), LONG_S)
    dock.cohort.propose.click()
    fold(dock, dock.cohort.name)
    picture(viewer, args.out / "train-slides.jpg", top=dock.cohort)
    dock.form.preset.value = "demo"
    fold(dock, dock.form.name)
    until(lambda: "licence" in dock.form.encoder_info.text(), LONG_S)
    picture(viewer, args.out / "train-settings.jpg", top=dock.form)
    run = next(args.work / f"run-{i}" for i in range(1000) if not (args.work / f"run-{i}").exists())
    choose("getExistingDirectory", str(run), dock.running.choose)
    until(lambda: dock.running.start.isEnabled(), LONG_S)
    dock.running.start.click()
    until(lambda: any(distilling(curve) for curve in dock.run.log.curves), LONG_S)
    picture(viewer, args.out / "train-run.jpg", top=dock.running)
    until(lambda: dock.outcome.use.isEnabled(), LONG_S)
    picture(viewer, args.out / "train-result.jpg", top=dock.outcome)
    browser_picture(run / "report.html", args.out / "report.jpg", REPORT_PX)


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
