"""Blocking times of the window: idle, panning, during the analysis of a slide, and in live view.

    python benchmarks/window.py SLIDE [--bundle demo] [--repeat 3] [--json OUT]

Needs a screen (or ``xvfb-run -a -s "-screen 0 1920x1200x24 +extension GLX"``). A timer of 2 ms ticks in the window's
event loop; a gap between two ticks is a block, in which the window answers nothing. Printed are the median over repeats
of the longest block of each phase, the time from opening to the first picture, and what the live view costs: the CPU-ms
of a move with it less those of the same move without it (where there is no GPU, drawing alone costs tens of them).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TICK_MS = 2
MOVES = 24
STEP_S = 0.06  # between two moves of a hand that pans
LONG_S = 600.0


class Heart:
    """Beats in the event loop, and keeps the longest pause between two beats of every phase."""

    def __init__(self) -> None:
        from qtpy.QtCore import QTimer

        self.blocks: dict[str, list[float]] = {}
        self._last: float | None = None
        self._longest = 0.0
        self._timer = QTimer()
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._beat)
        self._timer.start()

    def _beat(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self._longest = max(self._longest, now - self._last)
        self._last = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the longest block of the event loop inside the ``with`` block."""
        self._last, self._longest = None, 0.0
        yield
        self.blocks.setdefault(name, []).append(1000 * self._longest)


def main() -> None:
    """Measure, print, and store the medians with --json."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("slide", type=Path)
    p.add_argument("--bundle", default="demo")
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--mpp", type=float)
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    os.environ["NAPARI_ASYNC"] = "1"  # as `napari-lrmil view` does
    import torch  # noqa: F401  # before Qt

    figures = [once(args.slide, args.bundle, args.mpp) for _ in range(args.repeat)]
    medians = {name: statistics.median(run[name] for run in figures if name in run) for name in figures[0]}
    print(f"{args.slide.name}, model {args.bundle}, medians of {args.repeat}\n")
    print("| figure | ms |\n|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.0f} |")
    if args.json:
        args.json.write_text(json.dumps({"slide": args.slide.name, "median": medians, "all": figures}, indent=1))


def once(path: Path, bundle: str, mpp: float | None) -> dict[str, float]:
    """Open a window, go through all phases, close it, and return milliseconds."""
    import napari
    from qtpy.QtWidgets import QApplication

    from napari_lrmil.plugin.analyse.widget import AnalyseWidget

    viewer = napari.Viewer(show=True)
    viewer.window._qt_window.resize(1280, 800)
    dock = AnalyseWidget(viewer)
    viewer.window.add_dock_widget(dock, name="napari-lrmil", area="right")
    dock.open_model(bundle)
    QApplication.processEvents()
    milliseconds = {"first picture after opening": 1000 * first_picture(viewer, path, mpp)}
    until(lambda: dock.session.tissue_grid is not None and not dock.live_view.tissue.is_busy, LONG_S)
    heart = Heart()
    for phase, act in phases(viewer, dock).items():
        with heart.phase(phase):
            act()
        milliseconds[f"longest block, {phase}"] = heart.blocks[phase][-1]
    milliseconds |= live(viewer, dock, heart)
    heart._timer.stop()
    viewer.close()
    return milliseconds


def first_picture(viewer: Any, path: Path, mpp: float | None) -> float:
    """Return seconds from opening a slide until the canvas has drawn it."""
    from napari_lrmil.plugin.viewer.layers import add_layers
    from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers

    drawn: list[float] = []
    canvas = viewer.window._qt_viewer.canvas._scene_canvas
    began = time.perf_counter()
    layers = add_layers(viewer, read_slide_layers(path, mpp))
    viewer.reset_view()
    canvas.events.draw.connect(lambda _: drawn.append(time.perf_counter()))
    until(lambda: bool(drawn) and all(layer.loaded for layer in layers), 60)
    wait(0.3)  # time to draw the tiles that were loaded last
    return drawn[-1] - began


def phases(viewer: Any, dock: Any) -> dict[str, Callable[[], None]]:
    """Return what is done while the heart is watched."""
    return {
        "idle": lambda: wait(2.0),
        "panning and zooming": lambda: wander(viewer),
        "first analysis of a slide": lambda: analyse(dock),
        "analysing it again": lambda: analyse(dock),
        "analysing it, and panning": lambda: analyse(dock, viewer),
        "cancelling": lambda: cancel(dock),
    }


def wander(viewer: Any) -> None:
    """Zoom in, pan across the slide, zoom out."""
    camera, (_, y, x) = viewer.scene.camera, viewer.scene.camera.center
    whole = camera.zoom
    for i in range(MOVES):
        camera.zoom = whole * (1 + 7 * min(i, MOVES - i) / MOVES)
        camera.center = (0, y * (0.8 + 0.4 * i / MOVES), x * (1.2 - 0.4 * i / MOVES))
        wait(STEP_S)
    camera.zoom, camera.center = whole, (0, y, x)
    wait(0.5)


def analyse(dock: Any, viewer: Any = None) -> None:
    """Analyse the slide from nothing, and wait for the answer."""
    dock.session.cache.clear()
    dock.run()
    if viewer is not None:
        wander(viewer)
    until(lambda: not dock.session.is_busy, LONG_S)
    wait(0.3)


def cancel(dock: Any) -> None:
    """Begin an analysis and cancel it."""
    dock.session.cache.clear()
    dock.run()
    wait(0.4)
    dock.cancel()
    until(lambda: not dock.session.is_busy, LONG_S)


def live(viewer: Any, dock: Any, heart: Heart) -> dict[str, float]:
    """Follow the view: a new one, one a column of patches further, the first again; CPU-ms and the longest block."""
    dock.session.cache.clear()
    lattice = dock.session.tissue_grid.grid.lattice
    x, y = dock.session.tissue_grid.grid.lr_corners.mean(axis=0) * (lattice.mpp.x, lattice.mpp.y)
    steps = {"a new view": 0.0, "a column further": lattice.lr_um, "back, seen before": 0.0}
    viewer.scene.camera.zoom = viewer.canvas.size[1] / (8 * lattice.lr_um)  # eight patches across

    def move(shift: float) -> float:
        viewer.scene.camera.center = (0, y + 100 * lattice.lr_um, x)  # away first, so that every step is a move
        wait(0.6)
        return cpu_of(lambda: arrive(viewer, dock, (x + shift, y)))

    for shift in steps.values():  # the tiles of the screen are read here
        move(shift)
    without = {name: move(shift) for name, shift in steps.items()}
    viewer.scene.camera.center = (0, y + 100 * lattice.lr_um, x)  # or the first view would be seen before it is new
    wait(0.6)
    with heart.phase("live view"):
        dock.roi_form.follow.click()
        costs = {f"CPU, live view, {name}": move(shift) - without[name] for name, shift in steps.items()}
        dock.roi_form.follow.click()
    return costs | {"longest block, live view": heart.blocks["live view"][-1]}


def arrive(viewer: Any, dock: Any, centre: tuple[float, float]) -> None:
    """Move the view and wait until it is drawn and answered."""
    viewer.scene.camera.center = (0, centre[1], centre[0])
    wait(0.4)
    until(lambda: not dock.live_view.predictions.is_busy, LONG_S)
    wait(0.4)


def cpu_of(act: Callable[[], None]) -> float:
    """Return CPU-milliseconds of the process while something is done."""
    began = time.process_time()
    act()
    return 1000 * (time.process_time() - began)


def wait(seconds: float) -> None:
    """Let the event loop run."""
    from qtpy.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    QTimer.singleShot(int(1000 * seconds), loop.quit)
    loop.exec_()


def until(is_ready: Callable[[], bool], seconds: float) -> None:
    """Let the event loop run until a condition is true; exit after `seconds`."""
    end = time.monotonic() + seconds
    while not is_ready():
        if time.monotonic() > end:
            raise SystemExit("gave up waiting")
        wait(0.01)


if __name__ == "__main__":
    main()
