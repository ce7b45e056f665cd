"""A day's reading of a worklist, played by a script: open, run all, page, judge, annotate, kill, reopen, export.

    python benchmarks/worklist_reading.py --out DIR [--slides DIR] [--phantoms 40] [--write PAGE] [--json OUT]

Needs a screen (or ``xvfb-run -a -s "-screen 0 1920x1200x24 +extension GLX"``). The list holds phantoms, copies of the
slides in --slides, and broken ones. A first process reads it and kills itself (SIGKILL) with a verdict just given. What
it did is written to a journal before. A second process opens the list again. Lost is what the journal has and the files
or the second window lack.

For every page: CPU-milliseconds and milliseconds of the longest block of the event loop until the slide is complete,
and the same from the key to the frame with slide and stored answer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from real_tissue_table import put_between
from window import until, wait

BEGIN, END = "<!-- written by benchmarks/worklist_reading.py --write -->", "<!-- end of what it writes -->"
TICK_MS, LONG_S, PAUSE_S = 1, 1800.0, 0.5
REVIEWER, ANNOTATE_EVERY, BROKEN = "Reader", 4, 5
VERDICT_KEYS = ("agree", "disagree", "unsure")


class Heart:
    """Beats in the event loop: longest pause between two beats, in CPU-seconds of this thread and in seconds."""

    def __init__(self) -> None:
        from qtpy.QtCore import QTimer

        self._last: tuple[float, float] | None = None
        self.longest = [0.0, 0.0]
        self._timer = QTimer()
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._beat)
        self._timer.start()

    def _beat(self) -> None:
        now = time.thread_time(), time.perf_counter()
        if self._last is not None:
            self.longest = [max(old, n - last) for old, n, last in zip(self.longest, now, self._last, strict=True)]
        self._last = now

    def restart(self) -> None:
        """Forget the longest pause."""
        self._last, self.longest = None, [0.0, 0.0]


class Frames:
    """Notices the first frame that shows what is waited for."""

    def __init__(self, viewer: Any) -> None:
        self._is_shown: Callable[[], bool] = lambda: False
        self.drawn: tuple[float, float] | None = None  # seconds, and CPU-seconds of this thread
        viewer.window._qt_viewer.canvas._scene_canvas.events.draw.connect(self._on_drawn, position="last")

    def wait_for(self, is_shown: Callable[[], bool]) -> None:
        """Wait for another condition, which is looked at after each frame."""
        self._is_shown, self.drawn = is_shown, None

    def _on_drawn(self, _: Any) -> None:
        if self.drawn is None and self._is_shown():
            self.drawn = time.perf_counter(), time.thread_time()


# ---------------------------------------------------------------- the list


def call(*command: str) -> None:
    """Run a command of napari-lrmil."""
    program = [sys.executable, "-c", "from napari_lrmil.cli import main; main()"]
    subprocess.run([*program, *command], check=True, stdout=subprocess.DEVNULL)


def make_list(folder: Path, real: Path | None, phantoms: int) -> None:
    """Write phantoms, copies of real slides, and broken slides into a folder."""
    call("phantom", str(folder), "--slides", str(phantoms), "--size", "2560x1920")
    if real is not None:
        for path in sorted(real.iterdir()):
            for slide in sorted(path.iterdir()) if path.name == "derived" else [path]:
                copy = shutil.copytree if slide.is_dir() else shutil.copy
                copy(slide, folder / slide.name)
    whole = sorted(folder.glob("*.tif"))[0].read_bytes()
    for number in range(BROKEN):  # cut off, empty, or no slide at all
        content = (whole[: 5000 * number], b"", b"not a slide")[number % 3]
        (folder / f"broken-{number}.tif").write_bytes(content)


# ---------------------------------------------------------------- the window


def open_list(folder: Path) -> tuple[Any, Any]:
    """Return a window and its Worklist dock, with the list open and the first slide on the canvas."""
    os.environ["NAPARI_ASYNC"] = "1"  # as `napari-lrmil view` does
    import napari
    import torch  # noqa: F401  # before Qt

    from napari_lrmil.plugin.qt.docks import open_dock
    from napari_lrmil.plugin.worklist.widget import TITLE, WorklistWidget

    viewer = napari.Viewer(show=True)
    viewer.window._qt_window.resize(1280, 800)
    dock = open_dock(viewer, WorklistWidget, TITLE)
    dock.review.reviewer.setText(REVIEWER)
    dock.review.reviewer.editingFinished.emit()
    dock.open_paths([folder])
    until(lambda: is_settled(dock), LONG_S)
    return viewer, dock


def is_settled(dock: Any) -> bool:
    """Return whether the current slide is complete, or has failed, and the next one is prepared."""
    entry, pager = dock.current, dock.pager
    if entry is None or pager.is_busy or pager.is_completing or dock.analyse.result_view.is_adding_legends:
        return False
    return bool(pager.has_arrived or entry.problem)


def run_all(dock: Any) -> dict[str, float]:
    """Choose the demo model for the list, fill the list, and return seconds and CPU-seconds."""
    dock.analyse.open_model("demo")
    until(lambda: is_settled(dock) and dock.run_all.isEnabled(), LONG_S)
    began, cpu = time.perf_counter(), time.process_time()
    dock.run_all.click()
    until(lambda: not dock.filling.is_running and is_settled(dock), LONG_S)
    return {"run all, s": time.perf_counter() - began, "run all, CPU-s": time.process_time() - cpu}


def page(viewer: Any, dock: Any, heart: Heart, frames: Frames) -> dict[str, float] | None:
    """Page on; return the figures, None if the next slide has no stored answer."""
    index = dock.order.step(1)
    entry = dock.order.entries[index]
    heart.restart()
    has_answer = entry.answer is not None and not entry.problem
    began, cpu = time.perf_counter(), time.thread_time()
    frames.wait_for(partial(_is_shown, viewer, dock, entry.path))
    dock.step(1)
    if has_answer:
        until(lambda: frames.drawn is not None, LONG_S)
    drawn = frames.drawn or (began, cpu)
    answer = drawn[0] - began, drawn[1] - cpu
    until(lambda: dock.order.current == index and is_settled(dock), LONG_S)
    block = list(heart.longest)
    wait(PAUSE_S)
    if not has_answer:
        return None
    names = ("longest block, CPU-ms", "longest block, ms", "answer on the screen, ms", "answer on the screen, CPU-ms")
    return dict(zip(names, (1000 * v for v in (*block, *answer)), strict=True))


def _is_shown(viewer: Any, dock: Any, path: Path) -> bool:
    from napari_lrmil.plugin.viewer.layers import lrmil_layers

    prediction = dock.session.prediction
    if not dock.pager.has_arrived or prediction is None or prediction.path != path:
        return False
    maps = lrmil_layers(viewer, path, role="attention")
    return any(layer.visible for layer in maps) and all(layer.loaded for layer in maps)


# ---------------------------------------------------------------- the two processes


def read_list(folder: Path, journal: Path) -> None:
    """Read the whole list and die. Everything done is in the journal before."""
    viewer, dock = open_list(folder)
    figures: dict[str, Any] = {"slides": len(dock.order.entries)} | run_all(dock)
    heart, frames = Heart(), Frames(viewer)
    pages, done = [], []
    figures["failed"] = sum(entry.status.value == "failed" for entry in dock.order.entries)
    while True:
        done.append(judge(dock, len(done)))
        if len(done) % ANNOTATE_EVERY == 0 and dock.pager.has_arrived:
            done[-1]["annotations"] = annotate(viewer, dock)
        journal.write_text(json.dumps({"figures": figures, "pages": pages, "done": done}, indent=1))
        if dock.order.step(1) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        one = page(viewer, dock, heart, frames)
        pages += [one] if one is not None else []


def judge(dock: Any, number: int) -> dict[str, Any]:
    """Give a verdict on the current slide and return it; a slide without an answer can only be unsure."""
    from napari_lrmil.core.worklist.review import Verdict

    entry = dock.current
    verdict = Verdict(VERDICT_KEYS[number % 3] if entry.answer is not None else "unsure")
    dock.review.comment.setText(f"comment {number}")
    dock.review.buttons[verdict].click()
    return {"slide": entry.name, "verdict": verdict.value, "comment": f"comment {number}", "annotations": 0}


def annotate(viewer: Any, dock: Any) -> int:
    """Draw a region and return how many the slide has, once they are stored."""
    import numpy as np

    from napari_lrmil.core.worklist.annotation_file import annotation_path
    from napari_lrmil.plugin.viewer.layers import lrmil_layers

    until(lambda: not dock.pager.is_completing, 30)
    dock.review.draw.click()
    (layer,) = lrmil_layers(viewer, role="annotation")
    layer.add(np.array([[50.0, 50.0], [50.0, 150.0], [150.0, 150.0]]), shape_type="polygon")
    until(annotation_path(dock.results, dock.current.name, REVIEWER).exists, 30)
    return int(layer.nshapes)


def reopen(folder: Path, report: Path) -> None:
    """Open the list again; write states, verdicts and numbers of annotations as the window shows them."""
    viewer, dock = open_list(folder)
    rows = [
        {
            "slide": entry.name,
            "status": entry.status.value,
            "verdict": entry.review.verdict.value if entry.review else "",
            "comment": entry.review.comment if entry.review else "",
        }
        for entry in dock.order.entries
    ]
    report.write_text(json.dumps(rows, indent=1))
    dock.pager.stop()
    until(lambda: not dock.pager.is_busy, LONG_S)
    viewer.close()


# ---------------------------------------------------------------- what was lost


def losses(folder: Path, journal: dict[str, Any], shown: list[dict[str, str]]) -> Iterator[str]:
    """Yield a sentence for everything that was done and is gone."""
    by_name = {row["slide"]: row for row in shown}
    for done in journal["done"]:
        row = by_name.get(done["slide"], {})
        for field in ("verdict", "comment"):
            if row.get(field) != done[field]:
                yield f"{done['slide']}: {field} {done[field]!r} is {row.get(field)!r}"
        if done["annotations"]:
            path = folder / "predictions" / done["slide"] / f"annotations_{REVIEWER}.geojson"
            count = len(json.loads(path.read_text())["features"]) if path.exists() else 0
            if count != done["annotations"]:
                yield f"{done['slide']}: {count} of {done['annotations']} annotations"


def play(out: Path, real: Path | None, phantoms: int) -> dict[str, Any]:
    """Make the list, read it, kill the reader, reopen it, compare and export; return the figures."""
    folder, journal, shown = out / "slides", out / "journal.json", out / "reopened.json"
    make_list(folder, real, phantoms)
    environment = {**os.environ, "NAPARI_LRMIL_CONFIG": str(out / "settings")}
    stages = ["--stage", "read", str(folder), str(journal)], ["--stage", "reopen", str(folder), str(shown)]
    codes = [subprocess.run([sys.executable, __file__, *stage], env=environment).returncode for stage in stages]
    if codes != [-signal.SIGKILL, 0]:
        raise SystemExit(f"the processes ended with {codes}")
    read, rows = json.loads(journal.read_text()), json.loads(shown.read_text())
    call("review", str(folder / "predictions"))
    exported = len((folder / "predictions" / "review_slides.csv").read_text().splitlines()) - 1
    return summary(read, list(losses(folder, read, rows)), exported)


def summary(journal: dict[str, Any], lost: list[str], exported: int) -> dict[str, float | list[str]]:
    """Return the figures: counts, then median, smallest and largest of all pages with a stored answer."""
    figures: dict[str, float | list[str]] = {
        "slides in the list": journal["figures"]["slides"],
        "slides that failed": journal["figures"]["failed"],
        "run all, s": journal["figures"]["run all, s"],
        "run all, CPU-s": journal["figures"]["run all, CPU-s"],
        "verdicts given": len(journal["done"]),
        "annotations drawn": sum(done["annotations"] for done in journal["done"]),
        "lost by the kill": len(lost),
        "rows exported": exported,
        "pages with a stored answer": len(journal["pages"]),
    }
    for name in journal["pages"][0]:
        values = [one[name] for one in journal["pages"]]
        for kind, choose in (("median", statistics.median), ("smallest", min), ("largest", max)):
            figures[f"{name}, {kind}"] = choose(values)
    if lost:
        figures["lost"] = lost
    return figures


def main() -> None:
    """Play the reading, print and store the figures; or, with --stage, be one of the two readers."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, help="new folder for slides and results")
    p.add_argument("--slides", type=Path, help="folder with real slides")
    p.add_argument("--phantoms", type=int, default=40)
    p.add_argument("--write", type=Path, help="page whose table is put in its place")
    p.add_argument("--json", type=Path)
    p.add_argument("--stage", nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.stage:
        {"read": read_list, "reopen": reopen}[args.stage[0]](*map(Path, args.stage[1:]))
        return
    args.out.mkdir(parents=True)
    figures = play(args.out.absolute(), args.slides, args.phantoms)
    lines = [f"| {name} | {value if isinstance(value, list) else round(value)} |" for name, value in figures.items()]
    table = "\n".join(["| figure | value |", "|---|---|", *lines])
    print(table)
    if args.write:
        put_between(args.write, BEGIN, END, f"{table}\n")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
