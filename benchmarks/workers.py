"""CPU and wall seconds of a cohort with one worker and with several, by the command line and with its start.

    python benchmarks/workers.py FOLDER [--copies 10] [--workers 1 2] [--rounds 3] [--against CHECKOUT]

FOLDER holds slides. `--copies` predicts each of them under several names, as a larger cohort. Runs with other numbers
of workers, and those of another checkout of this repository, take turns, because a busy machine has no constant speed.
A run before the first round fills the cache of converted networks.

CPU seconds are those of the command and all its descendants. The process that workers are forked from outlives the
command for a moment, so on Linux this script adopts and waits for it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from napari_lrmil.core.results.schema import PREDICTION
from napari_lrmil.core.slides.slide_files import has_slide_ending

PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Setting:
    """A checkout of this repository, and the number of workers. Without a checkout, the installed one."""

    workers: int
    checkout: Path | None = None

    @property
    def name(self) -> str:
        """Name of its row."""
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return workers if self.checkout is None else f"{workers}, {self.checkout.name}"

    def run(self, slides: Path, bundle: str, out: Path) -> tuple[float, float]:
        """Predict all slides, and return wall and CPU seconds."""
        call = [sys.executable, "-m", "napari_lrmil", "predict", str(slides), "--bundle", bundle, "--out", str(out)]
        call += ["--device", "cpu"] + (["--workers", str(self.workers)] if self.workers > 1 else [])
        environment = dict(os.environ)
        if self.checkout is not None:
            environment["PYTHONPATH"] = os.pathsep.join(map(str, (self.checkout, self.checkout / "src_training")))
        began, before = time.monotonic(), _children_cpu_seconds()
        done = subprocess.run(call, env=environment, cwd=out.parent, capture_output=True, text=True)
        wall = time.monotonic() - began
        if done.returncode:
            raise SystemExit(done.stderr)
        _wait_for_adopted()
        return wall, _children_cpu_seconds() - before


def main() -> None:
    """Run all settings in turn, and print the medians."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("slides", type=Path)
    p.add_argument("--copies", type=int, default=1)
    p.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--against", type=Path, help="another checkout, which is run with one worker")
    p.add_argument("--bundle", default="demo")
    args = p.parse_args()
    settings = [Setting(workers) for workers in args.workers]
    settings += [Setting(1, args.against.absolute())] if args.against else []
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    times: dict[Setting, list[tuple[float, float]]] = {setting: [] for setting in settings}
    with TemporaryDirectory() as folder:
        count = _link_slides(args.slides, Path(folder) / "slides", args.copies)
        for number in range(args.rounds + 1):
            for setting in settings:
                out = Path(folder) / f"{number} {setting.name}"
                measured = setting.run(Path(folder) / "slides", args.bundle, out)
                if len(list(out.glob(f"*/{PREDICTION}"))) != count:
                    raise SystemExit(f"{setting.name}: some slides have no result")
                times[setting] += [measured] if number else []
    _print(count, times)


def _link_slides(source: Path, folder: Path, copies: int) -> int:
    """Link each slide under several names, and return the number of links."""
    folder.mkdir()
    slides = sorted(filter(has_slide_ending, source.absolute().iterdir()))
    for number in range(copies):
        for slide in slides:
            (folder / f"{number}_{slide.name}").symlink_to(slide)
    return copies * len(slides)


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _wait_for_adopted() -> None:
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _print(count: int, times: dict[Setting, Sequence[tuple[float, float]]]) -> None:
    first_wall, first_cpu = map(median, zip(*next(iter(times.values())), strict=True))
    print(f"| {count} slides | CPU seconds | of the first row | wall seconds | pace |")
    print("|---|---|---|---|---|")
    for setting, rows in times.items():
        wall, cpu = map(median, zip(*rows, strict=True))
        print(f"| {setting.name} | {cpu:.2f} | {cpu / first_cpu:.2f} | {wall:.1f} | {first_wall / wall:.2f} |")


if __name__ == "__main__":
    main()
