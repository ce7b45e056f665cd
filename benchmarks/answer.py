"""What an answer costs: the CPU-seconds of whole calls, as a user starts them, with all files written.

    python benchmarks/answer.py --work DIR [--slide SLIDE.svs] [--before CHECKOUT] [--repeats 5] [--write PAGE]

Every figure is that of a new process with its children, as the system counts it. Slides of 10,000 to 40,000 px are made
in DIR once. With --before, each call alternates with that of another checkout of this repository, in the same
environment, so that both meet the same load of the machine. Run it on a quiet machine; ratios count, seconds do not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from real_tissue_table import put_between

BEGIN, END = "<!-- written by benchmarks/answer.py --write -->", "<!-- end of what it writes -->"
HERE = Path(__file__).resolve().parents[1]
SIDES = (10_000, 20_000, 40_000)
SMALL, SMALL_SIZE = 20, "4096x3072"
TISSUE_SHARE = 0.22  # of the large phantoms, as of many resection slides
WARM = """
import sys, time, tempfile
from pathlib import Path
from napari_lrmil import load_bundle, open_slide, predict
from napari_lrmil.core.results.writer import write_prediction
bundle, times = load_bundle("demo"), []
for _ in range(4):
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        with open_slide(sys.argv[1]) as slide:
            prediction = predict(slide, bundle, device="cpu")
            middle = time.process_time()
            write_prediction(Path(folder), slide, prediction)
        times.append((middle - began, time.process_time() - began))
print(*(sorted(column)[1] for column in zip(*times[1:])))
"""


@dataclass(frozen=True)
class Cost:
    """CPU-seconds and wall seconds of one call."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Row:
    """One question, with the medians of this checkout and of the one before."""

    question: str
    now: Cost
    before: Cost | None


class Checkout:
    """A checkout of this repository whose calls are measured."""

    def __init__(self, folder: Path, work: Path, name: str) -> None:
        self.folder, self.out = folder, work / "out" / name
        path = f"{folder}{os.pathsep}{folder / 'src_training'}"
        kept = {"NAPARI_LRMIL_CACHE": str(work / "cache" / name), "NAPARI_LRMIL_CONFIG": str(work / "config" / name)}
        self.environment: Mapping[str, str] = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"} | kept

    def run(self, *arguments: str) -> tuple[Cost, str]:
        """Run Python with `arguments`; return its cost and its output."""
        usage, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        # The working directory comes first on the path of `python -m`: it must be the checkout.
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
        return Cost(cpu, time.perf_counter() - began), done.stdout

    def predict(self, *arguments: str) -> Cost:
        """Run ``predict`` with the demo, computing every slide anew."""
        call = ("-m", "napari_lrmil", "predict", *arguments, "--bundle", "demo", "--device", "cpu", "--no-resume")
        return self.run(*call, "--out", str(self.out))[0]


def measure(checkouts: Sequence[Checkout], slides: Mapping[str, Path], small: Path, repeats: int) -> list[Row]:
    """Return all rows; the calls of the checkouts alternate."""
    calls = {f"cold: {name}": (str(path),) for name, path in slides.items()}
    # Several workers are descendants of a server, whose seconds do not come back: benchmarks/workers.py counts them.
    calls[f"{SMALL} slides of {SMALL_SIZE.replace('x', ' x ')} px, 1 worker"] = (str(small),)
    rows = []
    for question, arguments in calls.items():
        for checkout in checkouts:
            checkout.predict(*arguments)  # converts the network and fills the page cache
        costs = [[checkout.predict(*arguments) for checkout in checkouts] for _ in range(repeats)]
        rows.append(_row(question, costs))
    for name, path in slides.items():
        outputs = [[c.run("-c", WARM, str(path))[1].split() for c in checkouts] for _ in range(repeats)]
        for column, label in enumerate(("warm", "warm, with files")):
            costs = [[Cost(float(text[column]), 0.0) for text in texts] for texts in outputs]
            rows.append(_row(f"{label}: {name}", costs))
    return rows


def _row(question: str, costs: Sequence[Sequence[Cost]]) -> Row:
    """Return the medians of the repeats, each of which has a cost per checkout."""
    medians = [Cost(median(c.cpu for c in each), median(c.wall for c in each)) for each in zip(*costs, strict=True)]
    row = Row(question, medians[0], medians[1] if len(medians) > 1 else None)
    print(render([row]).splitlines()[-1], flush=True)
    return row


def render(rows: Sequence[Row]) -> str:
    """Return the table in Markdown."""
    lines = ["| call | CPU-s | wall, s | CPU-s before | now over before |", "|---|---|---|---|---|"]
    for row in rows:
        wall = f"{row.now.wall:.1f}" if row.now.wall else ""
        before = f"{row.before.cpu:.2f} | {row.now.cpu / row.before.cpu:.2f}" if row.before else " | "
        lines.append(f"| {row.question} | {row.now.cpu:.2f} | {wall} | {before} |")
    return "\n".join(lines)


def slow_imports(checkout: Checkout, slide: Path) -> str:
    """Return the slowest top-level packages of a cold ``predict``, with their own seconds, by ``-X importtime``."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "napari_lrmil", "predict", str(slide), "--no-resume",
         "--out", str(checkout.out)],
        cwd=checkout.folder, env=checkout.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds: dict[str, float] = {}
    for line in done.stderr.splitlines():
        if line.startswith("import time:") and line.split("|")[0].split(":")[1].strip().isdigit():
            package = line.split("|")[2].strip().partition(".")[0]
            seconds[package] = seconds.get(package, 0.0) + int(line.split("|")[0].split(":")[1]) / 1e6
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:12]
    return ", ".join(f"{package} {spent:.2f}" for package, spent in longest)


def make_slides(checkout: Checkout, work: Path) -> tuple[dict[str, Path], Path]:
    """Make the phantoms that are missing; return the large slides by name, and the folder of the small ones."""
    slides, small = {}, work / "small"
    for side in SIDES:
        folder = work / f"phantom{side}"
        if not (folder / "cohort.csv").exists():
            size = ("--size", f"{side}x{side}", "--tissue-share", str(TISSUE_SHARE), "--variant", "svs")
            checkout.run("-m", "napari_lrmil", "phantom", str(folder), "--slides", "1", *size)
        slides[f"phantom of {side:,} px"] = next(folder.glob("*.svs"))
    if not (small / "cohort.csv").exists():
        checkout.run("-m", "napari_lrmil", "phantom", str(small), "--slides", str(SMALL), "--size", SMALL_SIZE)
    return slides, small / "cohort.csv"


def main() -> None:
    """Print the table, and write it with --write."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--slide", type=Path)
    p.add_argument("--before", type=Path)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--write", type=Path)
    args = p.parse_args()
    work = args.work.resolve()
    checkouts = [Checkout(HERE, work, "now")]
    slides, small = make_slides(checkouts[0], work)
    if args.slide:
        slides = {args.slide.name: args.slide.resolve()} | slides
    if args.before:
        checkouts.append(Checkout(args.before.resolve(), work, "before"))
    rows = measure(checkouts, slides, small, args.repeats)
    imports = f"Imports of a cold call, own seconds: {slow_imports(checkouts[0], next(iter(slides.values())))}."
    page = f"{render(rows)}\n\n{imports}"
    print(page)
    (work / "answer.json").write_text(json.dumps([asdict(row) for row in rows], indent=2), encoding="utf-8")
    if args.write:
        put_between(args.write, BEGIN, END, page)


if __name__ == "__main__":
    main()
