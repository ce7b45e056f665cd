"""A cohort ends although slides fail and workers die, and no slide is computed twice."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from napari_lrmil.core.cohort import (
    BackendChoice,
    CohortProgress,
    SlideJob,
    choose_backend,
    local_pool,
    parse_memory,
    run_cohort,
)
from napari_lrmil.core.cohort.backends import worker_environments
from napari_lrmil.core.cohort.local_pool import MODEL_LOAD_S, LocalProcesses, WorkerPace, another_worker_pays
from napari_lrmil.core.cohort.memory import exceeding_memory_mb, peak_memory_mb, process_memory_mb, total_memory_mb
from napari_lrmil.core.cohort.task import SerialBackend, run_task
from napari_lrmil.core.errors import ConfigError, DiskFullError, LrmilError
from napari_lrmil.core.events import Event, Failed, Notice, Partial, Progress
from support.cohort_tasks import (
    DONE,
    Logged,
    Raising,
    Unimportable,
    count_computed,
    finished_slides,
    make_jobs,
    run_to_end,
)

ROOMY = 4000.0  # MB


def two(memory_mb: float = ROOMY) -> LocalProcesses:
    return LocalProcesses([{}, {}], 1, memory_mb)


# ---------------------------------------------------------------- in this process


def test_failures_are_retried_once_at_the_end_and_permanent_ones_are_not(tmp_path: Path) -> None:
    progress, events = run_to_end(make_jobs("fails once", "no mpp", "good"), Logged(tmp_path), SerialBackend())
    assert (tmp_path / "log").read_text().splitlines() == ["fails once", "no mpp", "good", "fails once"]
    assert (progress.done, progress.reused, progress.retried) == (2, 0, 1)
    assert progress.rows == [("no mpp.svs", "open", f"{tmp_path / 'no mpp.seen'}: no resolution")]
    assert [event.job.name for event in outcomes(events)] == ["good", "fails once"]
    assert [event.subject for event in events if isinstance(event, Failed)] == ["no mpp.svs"]


def outcomes(events: list[Event]) -> list[Any]:
    return [event.result for event in events if isinstance(event, Partial)]


def test_progress_tells_how_long_the_rest_takes(tmp_path: Path) -> None:
    """Reused slides do not count for the pace."""
    (tmp_path / f"there.{DONE}").touch()
    _, events = run_to_end(make_jobs("there", "pauses", "good"), Logged(tmp_path), SerialBackend())
    steps = [event for event in events if isinstance(event, Progress) and event.unit == "slides"]
    assert [event.done for event in steps] == [0, 1, 2, 3]
    assert [event.seconds_left is None for event in steps] == [True, True, False, False]
    assert (steps[2].seconds_left or 0) >= 0.3 and steps[3].seconds_left == 0


def test_all_events_of_a_single_slide_are_shown_and_of_several_only_some(tmp_path: Path) -> None:
    _, alone = run_to_end(make_jobs("a"), Logged(tmp_path), SerialBackend())
    assert [type(event) for event in alone] == [Notice, Progress, Partial]
    _, events = run_to_end(make_jobs("b", "c"), Logged(tmp_path), SerialBackend())
    assert [event.stage for event in events if isinstance(event, Progress) and event.unit == "patches"] == [
        "b.svs · encode",
        "c.svs · encode",
    ]


def test_the_second_of_two_slides_of_one_name_is_refused(tmp_path: Path) -> None:
    slides = [SlideJob(Path("a/x.svs")), SlideJob(Path("b/x.tif")), SlideJob(Path("a/x.svs"))]
    for backend in (SerialBackend(), two()):
        progress, _ = run_to_end(slides, Logged(tmp_path), backend)
        assert [(name, step) for name, step, _ in progress.rows] == [("x.tif", "write"), ("x.svs", "write")]
        assert all("would overwrite those of a/x.svs" in reason for *_, reason in progress.rows)
    assert count_computed(tmp_path) == {"x": 1}


@pytest.mark.parametrize(
    ("kind", "step", "tries", "expected"),
    [
        ("open", "open", 2, "no slide"),
        ("no mpp", "open", 1, "no resolution"),
        ("glass", "tissue", 1, "no tissue"),
        ("overview", "tissue", 2, "could not be read"),
        ("region", "tissue", 1, "no regions"),
        ("tile", "read", 2, "could not be read"),
        ("encode", "encode", 2, "a single patch"),
        ("bug", "encode", 2, "RuntimeError: two lines; this was not expected"),
        ("write", "write", 2, "no such device"),
        ("bag", "write", 2, "x.h5: in the way"),
        ("memory", "encode", 2, "memory: "),
    ],
)
def test_a_failure_names_its_step_and_its_reason_on_one_line(kind: str, step: str, tries: int, expected: str) -> None:
    progress, _ = run_to_end(make_jobs("s"), Raising(kind), SerialBackend())
    ((name, at, reason),) = progress.rows
    assert (name, at, 1 + progress.retried) == ("s.svs", step, tries)
    assert expected in reason
    assert "\n" not in reason and "s.svs" not in reason
    assert pickle.loads(pickle.dumps(run_task(Raising(kind), make_jobs("s")[0], 1))).failure.reason == reason


def test_a_full_disk_ends_the_work_because_every_slide_would_fail(tmp_path: Path) -> None:
    failed: list[int] = []
    with pytest.raises(DiskFullError, match="no space is left"):
        run_to_end(
            make_jobs("a", "b"),
            Raising("full"),
            SerialBackend(),
            on_failure=lambda progress: failed.append(len(progress.failures)),
        )
    assert failed == [1]  # listed before the end


# ---------------------------------------------------------------- local processes


def test_a_dead_worker_costs_its_own_slide_a_second_try_and_no_other(tmp_path: Path) -> None:
    """One worker is killed once, another slide kills every worker: all others are computed once."""
    slides = make_jobs("a", "dies once", "b", "dies always", "c", "fails once", "d")
    progress, events = run_to_end(slides, Logged(tmp_path), two())
    assert finished_slides(tmp_path) == {"a", "b", "c", "d", "dies once", "fails once"}
    assert count_computed(tmp_path) == {
        "a": 1,
        "b": 1,
        "c": 1,
        "d": 1,
        "dies once": 2,
        "fails once": 2,
        "dies always": 2,
    }
    assert progress.rows == [
        (
            "dies always.svs",
            "worker",
            "the worker was ended by signal 9 while it had this slide, as when the memory of the machine runs out",
        )
    ]
    assert (progress.done, progress.retried) == (6, 3)
    assert sum(isinstance(event, Notice) for event in events) >= 6  # notices of workers are passed on
    retried = [event.subject for event in events if isinstance(event, Notice) and "tried once more" in event.message]
    assert sorted(retried) == ["dies always", "dies once"]
    assert (tmp_path / "threads").read_text() == "1"
    summary = progress.summary(two()).as_json()
    assert summary["failed"] == 1 and summary["slides"] == 7
    assert all(0 < worker["peak_memory_mb"] < ROOMY for worker in summary["workers"].values())


def test_nothing_is_computed_twice_after_a_restart(tmp_path: Path) -> None:
    run_to_end(make_jobs("a", "b"), Logged(tmp_path), two())
    progress, _ = run_to_end(make_jobs("a", "b", "c"), Logged(tmp_path), two())
    assert (progress.done, progress.reused) == (1, 2)
    assert count_computed(tmp_path) == {"a": 1, "b": 1, "c": 1}


def test_a_worker_that_holds_too_much_is_ended_and_its_slide_has_failed(tmp_path: Path) -> None:
    progress, _ = run_to_end(make_jobs("takes memory", "a", "b"), Logged(tmp_path), two(memory_mb=250))
    assert finished_slides(tmp_path) == {"a", "b"}
    ((name, step, reason),) = progress.rows
    assert (name, step) == ("takes memory.svs", "worker")
    assert re.fullmatch(r"memory: the worker held \d+ MB, and 250 MB are allowed; see --memory", reason)
    assert max(progress.worker_peak_mb.values()) >= 250


def test_workers_that_cannot_begin_are_reported_at_once() -> None:
    with pytest.raises(LrmilError, match="before it could begin"):
        run_to_end(make_jobs("a", "b", "c"), Unimportable(), two())


def test_closing_ends_the_workers(tmp_path: Path) -> None:
    """As after Ctrl-C: slides in progress are abandoned, and no process goes on writing."""
    before = set(psutil.Process().children(recursive=True))
    progress = CohortProgress()
    stream = run_cohort(make_jobs("a", "waits", "b"), Logged(tmp_path), two(), progress)
    for event in stream:
        if isinstance(event, Partial):
            break
    stream.close()
    # A worker is spawned by this process, or forked from the server, which stays.
    workers = [
        process
        for process in set(psutil.Process().children(recursive=True)) - before
        if process.ppid() != os.getpid() or "spawn_main" in " ".join(process.cmdline())
    ]
    assert not workers
    assert progress.done == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    """A restart would compete with one that still computes."""
    code = f"""
        from pathlib import Path
        from support.cohort_tasks import Logged
        from napari_lrmil.core.cohort import SlideJob, CohortProgress, run_cohort
        from napari_lrmil.core.cohort.local_pool import LocalProcesses
        jobs = [SlideJob(Path(f"waits {{i}}.svs")) for i in range(2)]
        if __name__ == "__main__":
            pool = LocalProcesses([{{}}, {{}}], 1, 4000.0)
            list(run_cohort(jobs, Logged(Path({str(tmp_path)!r})), pool, CohortProgress()))
    """
    script = tmp_path / "parent.py"
    script.write_text("\n".join(line[8:] for line in code.splitlines()))
    parent = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    while sum(count_computed(tmp_path).values()) < 2:
        assert parent.poll() is None
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert children and not psutil.wait_procs(children, timeout=240)[1]


@pytest.mark.parametrize(
    ("slides", "busy_s", "waiting", "expected"),
    [
        (0, 0.0, 1000, False),
        (0, 0.3, 8, True),  # the first slide takes 0.3 s or more: at least 2.4 s remain, of which a worker saves 1.2
        (0, 0.3, 6, False),  # it would save 0.9 s, which is less than its start of 1 s
        (10, 3.0, 8, True),
        (10, 3.0, 6, False),
        (10, 3.0, 0, False),
    ],
)
def test_a_second_worker_starts_if_it_saves_more_than_its_start(
    slides: int, busy_s: float, waiting: int, expected: bool
) -> None:
    pace = WorkerPace(began=101.0 - (1.0 - MODEL_LOAD_S), prepared=101.0, slides=slides)
    if slides:
        pace.busy_seconds = busy_s
    else:
        pace.slide_began = 101.0
    assert another_worker_pays([pace], waiting, 101.0 + busy_s) == expected


def test_each_further_worker_has_to_save_its_own_start() -> None:
    """The third of three saves a sixth of the work, the second half of it."""
    paces = [WorkerPace(100.0, 101.1 - MODEL_LOAD_S, None, 10, 10.0), WorkerPace(103.0, 103.1, None, 5, 5.0)]
    assert [waiting for waiting in range(5, 9) if another_worker_pays(paces, waiting, 120.0)] == [7, 8]
    assert not another_worker_pays([WorkerPace(100.0)], 1000, 200.0)  # its first slide has not begun


def test_workers_that_would_not_pay_are_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_pool, "another_worker_pays", lambda *_: False)
    progress, events = run_to_end(make_jobs("a", "b", "c"), Logged(tmp_path), LocalProcesses([{}] * 4, 1, ROOMY))
    assert (progress.done, len(progress.worker_slides)) == (3, 1)
    assert events[-1] == Notice("1 of 3 workers started: the rest would not have paid")


def test_slow_slides_start_every_worker(tmp_path: Path) -> None:
    progress, events = run_to_end(make_jobs("meets 1", "meets 2"), Logged(tmp_path), two())
    assert (progress.done, len(progress.worker_slides)) == (2, 2)
    assert not [event for event in events if isinstance(event, Notice) and "started" in event.message]


# ---------------------------------------------------------------- how many, and where


def test_each_worker_sees_one_gpu() -> None:
    assert worker_environments(2, 2, {}) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert worker_environments(2, 2, {"CUDA_VISIBLE_DEVICES": "3, GPU-1f"}) == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "GPU-1f"},
    ]
    assert worker_environments(2, 0, {"CUDA_VISIBLE_DEVICES": "3"}) == [{}, {}]


def test_a_worker_gets_its_device_before_its_task(tmp_path: Path) -> None:
    backend = LocalProcesses(worker_environments(2, 2, {}), 1, ROOMY)
    run_to_end(make_jobs("meets 1", "meets 2"), Logged(tmp_path), backend)
    assert {path.read_text() for path in tmp_path.glob(f"*.{DONE}")} == {"0", "1"}


@pytest.mark.parametrize(
    ("workers", "slides", "gpus", "expected"),
    [(None, 9, 0, 1), (4, 9, 0, 4), (4, 2, 0, 2), (None, 9, 3, 3), (8, 9, 3, 3), (None, 2, 3, 2), (None, 9, 1, 1)],
)
def test_as_many_workers_as_asked_for_but_one_for_a_gpu_and_one_for_a_slide(
    workers: int | None, slides: int, gpus: int, expected: int
) -> None:
    backend = choose_backend(BackendChoice(workers), slides=slides, gpus=gpus)
    assert backend.workers == expected
    assert isinstance(backend, SerialBackend) == (expected == 1)


def test_cores_and_memory_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    backend = choose_backend(BackendChoice(3), slides=9)
    assert isinstance(backend, LocalProcesses)
    assert backend.threads == 5
    assert 3 * backend.memory_mb == pytest.approx(0.9 * total_memory_mb())
    bounded = choose_backend(BackendChoice(1, memory_mb=500), slides=9)
    assert isinstance(bounded, LocalProcesses) and (bounded.workers, bounded.memory_mb) == (1, 500)


@pytest.mark.parametrize(
    ("text", "mb"),
    [("1500MB", 1500), ("2GB", 2000), ("1.5g", 1500), ("2 GiB", 2147.483648), ("64MiB", 67.108864), ("3000000", 3)],
)
def test_memory_is_read_as_people_write_it(text: str, mb: float) -> None:
    assert parse_memory(text) == pytest.approx(mb)


@pytest.mark.parametrize("text", ["", "MB", "much", "-2GB", "0", "1..5G", "1e999GB", "2 bananas"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 1500MB"):
        parse_memory(text)


def test_memory_is_measured() -> None:
    assert 10 < process_memory_mb(os.getpid()) <= peak_memory_mb() * 1.01 < total_memory_mb()
    assert process_memory_mb(2**22 + 1) == 0


def test_only_memory_above_the_limit_is_reported() -> None:
    resident = process_memory_mb(os.getpid())
    held = exceeding_memory_mb(os.getpid(), 1.0)
    assert held is not None and 10 < held <= process_memory_mb(os.getpid())
    assert exceeding_memory_mb(os.getpid(), 10 * resident) is None
    assert exceeding_memory_mb(2**22 + 1, 1.0) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux")
def test_memory_shared_with_the_process_that_it_was_forked_from_does_not_count() -> None:
    script = """
import os, signal
from napari_lrmil.core.cohort.memory import exceeding_memory_mb, process_memory_mb
held = b"x" * 300_000_000
reader, writer = os.pipe()
if (pid := os.fork()) == 0:
    os.write(writer, b"1")
    signal.pause()
os.read(reader, 1)
print(process_memory_mb(pid) > 300, exceeding_memory_mb(pid, 200.0))
os.kill(pid, signal.SIGKILL)
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "None"], done.stderr
