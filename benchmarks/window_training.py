"""Blocking times of the window during a training run that the Train dock follows.

    python benchmarks/window_training.py --out DIR [--slides 24] [--seconds 60]

Needs a screen, as benchmarks/window.py does, whose way of measuring this is. A cohort of phantoms is made in `DIR`, the
run is started with the dock's own buttons, and the window is watched in spans of five seconds: before the run, while it
goes on and its curves grow, and while somebody pans over a slide meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from window import Heart, until, wait, wander

SPAN_S = 5.0
SETTINGS = """\
encoder: {teacher: demo}
baselines: []
stage3: {epochs: 0}
bootstrap: 100
teacher: {epochs: 400, patience: 400}
stage1: {epochs: 20}
"""


def main() -> None:
    """Measure and print medians of the longest block in a span."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder for slides and run")
    p.add_argument("--slides", type=int, default=24)
    p.add_argument("--seconds", type=float, default=60, help="how long each phase of the training is watched")
    args = p.parse_args()
    os.environ["NAPARI_ASYNC"] = "1"
    slides = args.out / "slides"
    if not (slides / "cohort.csv").exists():
        call = [sys.executable, "-m", "napari_lrmil", "phantom", slides, "--slides", args.slides, "--size", "2048x1536"]
        subprocess.run([str(part) for part in call], check=True)
    (args.out / "settings.yaml").write_text(SETTINGS)
    import torch  # noqa: F401  # before Qt

    for phase, blocks in measure(args.out, slides, args.seconds).items():
        spans = f"{len(blocks)} spans of {SPAN_S:g} s"
        each = " ".join(f"{block:.0f}" for block in blocks)
        print(f"| {phase} | {statistics.median(blocks):.0f} | {max(blocks):.0f} | {spans}: {each} |")


def measure(out: Path, slides: Path, seconds: float) -> dict[str, list[float]]:
    """Return the longest block in ms of every span, by phase."""
    import napari

    from napari_lrmil.core.user_settings import SettingsStore
    from napari_lrmil.plugin.train.widget import TrainWidget
    from napari_lrmil.plugin.viewer.layers import add_layers
    from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers

    viewer = napari.Viewer(show=True)
    viewer.window._qt_window.resize(1280, 800)
    dock = TrainWidget(viewer, SettingsStore(out / "remembered"))
    viewer.window.add_dock_widget(dock, name="Train (LRMIL)", area="right")
    add_layers(viewer, read_slide_layers(next(iter(sorted(slides.glob("*.tif")))), None))
    viewer.reset_view()
    wait(2)
    heart, spans = Heart(), max(1, round(seconds / SPAN_S))
    watch(heart, "no run, idle", 4)
    for _ in range(spans):
        with heart.phase("no run, panning"):
            wander(viewer)
    start(dock, slides, out)
    until(lambda: bool(dock.running.canvas.figure.axes), 600)
    watch(heart, "a run followed", spans, lambda: not dock.run.is_ours)
    for _ in range(spans):
        if dock.run.is_ours:
            with heart.phase("a run followed, and panning"):
                wander(viewer)
    still = dock.run.is_ours
    dock.running.stop.click()
    until(lambda: not dock.run.is_ours, 300)
    print(f"the run {'was still going on at the end' if still else 'ended while it was watched'}")
    heart._timer.stop()
    viewer.close()
    return heart.blocks


def watch(heart: Heart, phase: str, spans: int, ended: Any = lambda: False) -> None:
    """Record a number of spans, or stop when the run ends."""
    for _ in range(spans):
        if not ended():
            with heart.phase(phase):
                wait(SPAN_S)


def start(dock: Any, slides: Path, out: Path) -> None:
    """Choose slides, settings and folder with the dock's buttons, and start the run."""
    from qtpy.QtWidgets import QFileDialog

    def choose(dialog: str, answer: Any, button: Any) -> None:
        with mock.patch.object(QFileDialog, dialog, return_value=answer):
            button.click()

    choose("getOpenFileName", (str(slides / "cohort.csv"), ""), dock.cohort.open)
    choose("getOpenFileName", (str(out / "settings.yaml"), ""), dock.form.file)
    until(lambda: "slides checked" in dock.cohort.state.text(), 300)
    run = next(out / f"run-{i}" for i in range(1000) if not (out / f"run-{i}").exists())
    choose("getExistingDirectory", str(run), dock.running.choose)
    until(lambda: dock.running.start.isEnabled(), 120)
    dock.running.start.click()


if __name__ == "__main__":
    main()
