"""Check of the CUDA paths on a machine with a GPU and without network: tests, speed, memory, training.

    python benchmarks/gpu/run.py collect --out WHEELS            # where there is a network
    python benchmarks/gpu/run.py run --wheels WHEELS --out OUT   # on the machine with the GPU, eight minutes a call
    python benchmarks/gpu/run.py table OUT/results.json [--write PAGE]

The machine needs Python 3.12, a CUDA build of torch, and the packages of `wheels.PROVIDED`. Steps run one after the
other, each with a time limit. A step that fails or hangs is recorded and does not stop the others. ``OUT`` receives
``results.json`` (see `record`) and ``table.md``, both rewritten after each step. A second call with the same ``OUT``
repeats only the steps that are not done. Slides and runs go to ``--work``, which can be large.

On a machine without a GPU, ``run --out OUT --small --device cpu`` runs every step that needs none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from record import SKIPPED, Record, render_table
from steps import STEPS, Context, Step, Worker
from wheels import MISSING, ROOT, collect, install

BEGIN, END = "<!-- written by benchmarks/gpu/run.py table --write -->", "<!-- end of the GPU tables -->"
MINUTES = 8.0
LEAST_S = 5.0  # seconds that must be left for a step to begin


def _parse_arguments(words: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    c = commands.add_parser("collect", help="download the wheels that the machine lacks")
    c.add_argument("--out", type=Path, required=True, help="folder of the wheels")
    r = commands.add_parser("run", help="run the steps")
    r.add_argument("--wheels", type=Path, help="folder of the wheels; without it, the packages are installed already")
    r.add_argument("--out", type=Path, required=True, help="folder of results.json and table.md")
    r.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "napari-lrmil-gpu", help="slides and runs"
    )
    r.add_argument("--device", default="auto", help="auto, cpu or cuda")
    r.add_argument("--small", action="store_true", help="small sizes, to try the script itself")
    r.add_argument("--minutes", type=float, default=MINUTES, help="no step begins or goes on later than this")
    names = [step.name for step in STEPS]
    r.add_argument("--steps", nargs="+", choices=names, default=names, help="some steps only")
    t = commands.add_parser("table", help="print the table of a result file")
    t.add_argument("results", type=Path)
    t.add_argument("--write", type=Path, help="page to put the table into")
    return p.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Run one of the three commands."""
    args = _parse_arguments(words)
    if args.command == "collect":
        print(f"{len(MISSING)} wheels, {collect(args.out):.1f} MB, in {args.out}")
    elif args.command == "run":
        _run(args)
    else:
        _write_table(args)


def _write_table(args: argparse.Namespace) -> None:
    table = render_table(json.loads(args.results.read_text(encoding="utf-8")))
    print(table)
    if args.write:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from real_tissue_table import put_between

        put_between(args.write, BEGIN, END, table)


def _run(args: argparse.Namespace) -> None:
    end = time.monotonic() + 60 * args.minutes
    work = args.work / ("small" if args.small else "full")  # a phantom of one size must not serve the other
    if args.wheels:
        install(args.wheels, work / "site")
    _set_environment(work, [work / "site"] if args.wheels else [])
    context = Context(work, args.device, args.small)
    record, worker = Record(args.out, "small" if args.small else "full"), Worker(context)
    try:
        for step in STEPS:
            if step.name in args.steps or step.is_needed:
                _run_step(step, record, worker, end)
    finally:
        worker.close()
    print(f"{args.out}: results.json, table.md", flush=True)


def _set_environment(work: Path, sites: list[Path]) -> None:
    """Let this process and its children import the wheels and the repository, and keep caches in the work folder."""
    folders = [str(path.resolve()) for path in (*sites, ROOT, ROOT / "src_training")]
    sys.path[:0] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {"NAPARI_LRMIL_CACHE": str(work / "cache"), "NAPARI_LRMIL_CONFIG": str(work / "config")}
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"}
    work.mkdir(parents=True, exist_ok=True)


def _run_step(step: Step, record: Record, worker: Worker, end: float) -> None:
    """Run a step, unless an earlier call has done it or the time is up, and record the outcome."""
    if not step.is_needed and record.is_done(step.name):
        print(f"{step.name}: done by an earlier call", flush=True)
        return
    left = end - time.monotonic()
    if left < LEAST_S:
        outcome = {"status": SKIPPED, "seconds": 0.0, "reason": "no time left; call again to go on"}
    else:
        outcome = worker.run(step, min(step.limit_s, left), has_cuda="cuda" in record.machine)
    if step.name == "machine":
        record.machine = outcome.get("result", {})
    record.store(step.name, outcome)
    reason = str(outcome.get("reason", ""))
    print(f"{step.name}: {outcome['status']}, {outcome['seconds']:.1f} s {reason}", flush=True)


if __name__ == "__main__":
    main()
