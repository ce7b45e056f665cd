"""Cohort with bad slides on a dask cluster of two local workers, one of them killed.

    python benchmarks/cohort.py --out FOLDER [--good 30] [--size 4096x3072] [--tissue-share 0.22] [--bundle demo]

The good slides are phantoms; ten bad ones lie among them (`bad_slides.py`). Every good slide is predicted alone first.
Then the cohort goes to the cluster: when a third of the good slides are done a worker is killed in the middle of a
slide; when two thirds are done the call is broken off, and started again. Every computation is counted: workers append
a line to a log when they begin with a slide and when its result is there. At last the command line is called on the
same folder, which should compute nothing and end with exit code 3. `workers.py` measures the gain of local workers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import psutil
from bad_slides import BAD, as_ordinary_user, make_bad_slides

from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.cohort import BackendChoice, CohortProgress, SlideJob, choose_backend, run_cohort
from napari_lrmil.core.cohort.predict_task import PredictTask
from napari_lrmil.core.cohort.task import Backend, SerialBackend
from napari_lrmil.core.events import Event, Partial
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.phantom import LESION, NORMAL, PhantomLook, PhantomSlide, write_slide
from napari_lrmil.core.results.schema import PREDICTION, CohortFile, PredictionFile
from napari_lrmil.core.slides.slide_files import has_slide_ending

ODD = "Präparat Nr. 1 – été"


@dataclass(frozen=True)
class Counted:
    """Prediction task that appends a line to a log at its start and at its end."""

    shared_imports: ClassVar = PredictTask.shared_imports
    task: PredictTask
    log: Path

    def prepare(self, threads: int) -> None:
        """See `PredictTask.prepare`."""
        self.task.prepare(threads)

    def __call__(self, work: SlideJob) -> Generator[Event, None, Any]:
        """Predict a slide; see `PredictTask`."""
        computing = False
        stream = self.task(work)
        while True:
            try:
                event = next(stream)
            except StopIteration as end:
                if computing and not end.value.is_reused:
                    self._say("done", work)
                return end.value
            if not computing and getattr(event, "stage", "") == "tissue":
                computing = True
                self._say("begun", work)
            yield event

    def _say(self, word: str, work: SlideJob) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{word}\t{os.getpid()}\t{work.name}\n")


def main() -> None:
    """Write the slides, run all parts, and print a table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder for slides and results; slides that are there stay")
    p.add_argument("--good", type=int, default=30)
    p.add_argument("--size", default="4096x3072", help="width x height in px at 20x")
    p.add_argument("--tissue-share", type=float, default=0.22)
    p.add_argument("--bundle", default="demo")
    p.add_argument("--port", type=int, default=18787, help="of the dask scheduler")
    args = p.parse_args()
    slides = args.out.absolute() / "slides"
    good = _good_slides(slides, args.good, tuple(map(int, args.size.split("x"))), args.tissue_share)
    if not (slides / "text.svs").exists():
        make_bad_slides(good[1], slides)
    every = sorted(filter(has_slide_ending, slides.iterdir()))
    run = args.out.absolute() / time.strftime("run_%Y%m%d_%H%M%S")
    figures = _on_cluster(run, good, every, args.bundle, args.port)
    write_json(run / "cohort.json", figures)
    _print(figures)


def _good_slides(folder: Path, count: int, size: tuple[int, ...], share: float) -> list[Path]:
    paths = []
    for number in range(count):
        name = ODD if number == 0 else f"good_{number:02d}"
        path = folder / f"{name}.tif"
        if not path.exists():
            kind = (NORMAL, LESION)[number % 2]
            look = PhantomLook(tissue_share=share)
            write_slide(folder, PhantomSlide(name, kind, number, (size[0], size[1])), look)
        paths.append(path)
    return paths


def _task(bundle: str, out: Path) -> PredictTask:
    model = Bundle(bundle)
    return PredictTask(
        bundle=model.path.absolute(), bundle_sha256=model.sha256, bundle_name=bundle, folder=out, device="cpu"
    )


# ---------------------------------------------------------------- the cluster


def _on_cluster(run: Path, good: Sequence[Path], every: Sequence[Path], bundle: str, port: int) -> dict[str, Any]:
    for path in good:  # one call per slide
        _all(run_cohort([SlideJob(path)], _task(bundle, run / "single"), SerialBackend(), CohortProgress()))
    together, log = run / "together", run / "log"
    log.touch()
    task, jobs = Counted(_task(bundle, together), log), [SlideJob(path) for path in every]
    with _cluster(port) as (address, workers):
        kill = len(good) // 3, lambda: _kill_busy(workers, log)
        first = _until(jobs, task, _engine(address), [kill], len(good) * 2 // 3)
        begun = _count(log)
        second = CohortProgress()
        _all(run_cohort(jobs, task, _engine(address), second))
        before = _when(together)
        arguments = [str(every[0].parent), "--bundle", bundle, "--out", str(together), "--device", "cpu"]
        call = [*_prefix(), sys.executable, "-m", "napari_lrmil", "predict", *arguments, "--scheduler", address]
        third = subprocess.run(call, capture_output=True, text=True)
        cohort_file = CohortFile.read(together)
    counts = _count(log)
    return {
        "slides": len(every),
        "good": len(good),
        "bad": len(BAD),
        "permissions_count": as_ordinary_user() is not None,
        "done_before_the_break": first.done,
        "retried_before_the_break": first.retried,
        "already_there_after_it": second.reused,
        "done_after_it": second.done,
        "failed": len(second.failures),
        "failures": second.rows,
        "begun_once": sum(n == 1 for n in counts["begun"].values()),
        "begun_twice": sorted(name for name, n in counts["begun"].items() if n > 1),
        "begun_before_the_break": begun["begun"].total(),
        "results_made_once": sum(n == 1 for n in counts["done"].values()),
        "results_made_twice": sorted(name for name, n in counts["done"].items() if n > 1),
        "largest_difference": _difference(run, good),
        "largest_difference_of_attention": _attention_apart(run, good),
        "command_line": _command_line_figures(third.returncode, cohort_file, together, before),
    }


def _command_line_figures(
    exit_code: int, cohort_file: CohortFile, folder: Path, before: dict[str, int]
) -> dict[str, int | None]:
    """Return the results of a second call on a finished folder, which must not touch any result."""
    return {
        "exit_code": exit_code,
        "already_there": cohort_file.already_there,
        "done": cohort_file.done,
        "failed": cohort_file.failed,
        "results_touched": sum(before[name] != when for name, when in _when(folder).items()),
        "lines_in_failures_csv": len((folder / "failures.csv").read_text(encoding="utf-8").splitlines()) - 1,
    }


def _engine(address: str) -> Backend:
    return choose_backend(BackendChoice(scheduler=address), slides=2)


def _prefix() -> list[str]:
    return as_ordinary_user() or []


@contextmanager
def _cluster(port: int) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Yield the address of a scheduler with two workers, and the nanny processes that restart them."""
    python_path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": python_path}
    address = f"tcp://127.0.0.1:{port}"
    calls = [
        ["dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", ":0"],
        *[["dask_worker", address, "--nthreads", "1", "--memory-limit", "4GB", "--no-dashboard"]] * 2,
    ]
    started = []
    try:
        for module, *arguments in calls:
            call = [*_prefix(), sys.executable, "-m", f"distributed.cli.{module}", *arguments]
            started.append(subprocess.Popen(call, env=environment, stderr=subprocess.DEVNULL))
        from distributed import Client

        with Client(address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)
        yield address, [psutil.Process(process.pid) for process in started[1:]]
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def _kill_busy(nannies: Sequence[psutil.Process], log: Path) -> None:
    """Kill a worker process that has begun a slide and not finished it."""
    children = {child.pid for nanny in nannies for child in nanny.children(recursive=True)}
    while True:
        lines = [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()]
        last = {int(pid): state for state, pid, _ in lines}
        busy = [pid for pid, state in last.items() if state == "begun" and pid in children]
        if busy:
            psutil.Process(busy[0]).kill()
            return
        time.sleep(0.002)


def _until(
    works: Sequence[SlideJob], task: Counted, engine: Backend, acts: list[tuple[int, Any]], stop: int
) -> CohortProgress:
    """Run until `stop` slides are done, then stop; run each act when its number of slides is done."""
    tally = CohortProgress()
    stream = run_cohort(works, task, engine, tally)
    for event in stream:
        if isinstance(event, Partial):
            while acts and tally.done >= acts[0][0]:
                acts.pop(0)[1]()
            if tally.done >= stop:
                break
    stream.close()
    return tally


def _count(log: Path) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {"begun": Counter(), "done": Counter()}
    for line in log.read_text(encoding="utf-8").splitlines():
        state, _, name = line.split("\t")
        counts[state][name] += 1
    return counts


def _when(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob(f"*/{PREDICTION}")}


def _difference(run: Path, good: Sequence[Path]) -> float:
    """Return the largest difference of a probability between single runs and the cohort."""
    largest = 0.0
    for path in good:
        single, together = (
            PredictionFile.read(run / kind / path.stem).probabilities for kind in ("single", "together")
        )
        largest = max(largest, *(abs(single[name] - together[name]) for name in single))
    return largest


def _attention_apart(run: Path, good: Sequence[Path]) -> float:
    """Return the largest attention difference of a patch to the single run, in multiples of the average."""
    largest = 0.0
    for path in good:
        single, together = (_attention(run / kind / path.stem / "attention.h5") for kind in ("single", "together"))
        largest = max(largest, float(np.abs(single - together).max()) * len(single))
    return largest


def _attention(path: Path) -> Any:
    with h5py.File(path) as file:
        return file["attention"][:]


def _all(events: Iterator[Event]) -> None:
    for _ in events:
        pass


def _print(f: dict[str, Any]) -> None:
    cli = f["command_line"]
    print(f"\n| {f['slides']} slides, {f['bad']} of them bad, two dask workers | |\n|---|---|")
    print(f"| done when the call was interrupted, after one worker was killed | {f['done_before_the_break']} |")
    print(f"| already there at the restart / done by it | {f['already_there_after_it']} / {f['done_after_it']} |")
    print(f"| reasons | {f['failed']} ({_steps(f['failures'])}) |")
    print(f"| slides begun once / more than once | {f['begun_once']} / {len(f['begun_twice'])}: {f['begun_twice']} |")
    print(f"| results made once / more than once | {f['results_made_once']} / {len(f['results_made_twice'])} |")
    apart = f"{f['largest_difference']:.1e}; {f['largest_difference_of_attention']:.1e} times the average"
    print(f"| largest difference from single runs: probability; attention of a patch | {apart} |")
    print(
        f"| the command line on the same folder | exit code {cli['exit_code']}, {cli['already_there']} already there, "
        f"{cli['done']} done, {cli['results_touched']} touched, {cli['lines_in_failures_csv']} lines of failures |"
    )


def _steps(rows: Sequence[Sequence[str]]) -> str:
    return ", ".join(f"{n} {step}" for step, n in Counter(step for _, step, _ in rows).items())


if __name__ == "__main__":
    main()
