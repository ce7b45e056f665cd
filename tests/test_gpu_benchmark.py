"""The GPU check: what travels to the machine, what a failing step does, and all that runs without a GPU."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run.py"
IMPORTERS = ("napari_lrmil/core", "napari_lrmil/api.py", "src_training", "benchmarks/gpu")
OPTIONS = ("options", "inference-options")
NEEDS_CUDA = {"training-float32", "training-bfloat16", "memory-training", "compiled"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return what imports the check's modules by name."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def python_files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def imported_distributions() -> set[str]:
    """Return the distributions that engine, training, the check and the GPU tests import, inside functions too."""
    files = [path for place in IMPORTERS for path in python_files(ROOT / place)]
    files += [path for path in (ROOT / "tests").rglob("test_*.py") if "\n@pytest.mark.gpu" in path.read_text("utf-8")]
    names = {name.partition(".")[0] for path in files for name in imported_modules(path)}
    distributions = packages_distributions()
    return {normalised(distribution) for name in names for distribution in distributions.get(name, ())}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def required_names(requirements: list[str]) -> set[str]:
    """Return the names of requirements without a condition; others are of extras or of other systems."""
    return {normalised(re.split(r"[^\w.-]", text)[0]) for text in requirements if ";" not in text}


# ---------------------------------------------------------------- wheels


def test_every_import_is_on_the_machine_or_travels(gpu: Any) -> None:
    wheels = gpu.import_module("wheels")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = ("distributed", "encoders", "openvino", "ome", "lazyslide", "dicom", "dev")
    optional = required_names([text for group in groups for text in project["optional-dependencies"][group]])
    optional.add("dask")  # for clusters, which a test of one GPU does not start
    optional.add("pydicom")  # highdicom brings it
    needed = imported_distributions() - optional - {"napari-lrmil"}
    assert needed - wheels.PROVIDED - set(wheels.MISSING) == set()


def test_what_travels_needs_nothing_that_stays_behind(gpu: Any) -> None:
    wheels = gpu.import_module("wheels")
    needed = {name for wheel in wheels.MISSING for name in required_names(requires(wheel) or [])}
    assert needed - wheels.PROVIDED - set(wheels.MISSING) == set()
    assert [re.fullmatch(r"[\w-]+==[\w.]+", pin) is not None for pin in wheels.pinned()] == [True] * len(wheels.MISSING)


def test_a_folder_without_wheels_is_refused(gpu: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no wheels; make them with: .*collect"):
        gpu.import_module("wheels").install(tmp_path, tmp_path / "site")


def test_too_many_megabytes_are_refused(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And wheels of an earlier call go: two versions of a package would stop the installation."""
    wheels = gpu.import_module("wheels")
    (tmp_path / "old-1.0-py3-none-any.whl").touch()

    def download(command: list[str], **_: Any) -> Any:
        (tmp_path / "large.whl").write_bytes(bytes(2_000_000))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(wheels.subprocess, "run", download)
    assert wheels.collect(tmp_path) == pytest.approx(2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["large.whl"]
    monkeypatch.setattr(wheels, "MAX_MB", 1.0)
    with pytest.raises(SystemExit, match=r"2.0 MB, more than 1 MB"):
        wheels.collect(tmp_path)


# ---------------------------------------------------------------- record


def test_only_steps_of_the_same_device_and_size_count_as_done(gpu: Any, tmp_path: Path) -> None:
    record = gpu.import_module("record")
    first = record.Record(tmp_path, "full")
    first.machine = {"device": "NVIDIA A", "torch": "2.11"}
    first.store("good", {"status": "done", "seconds": 1.0, "result": {"patches_per_s": 12345.6}})
    first.store("bad", {"status": "failed", "seconds": 2.0, "reason": "Traceback\nValueError: a | b"})
    for device, size, expected in (
        ("NVIDIA A", "full", True),
        ("NVIDIA B", "full", False),
        ("NVIDIA A", "small", False),
    ):
        second = record.Record(tmp_path, size)
        second.machine = {"device": device}
        assert (second.is_done("good"), second.is_done("bad"), second.is_done("new")) == (expected, False, False)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.startswith("**NVIDIA A**, torch 2.11.\n")
    assert "| bad | failed: ValueError: a / b | 2.0 |" in table and "patches_per_s: 12346." in table


def test_trainings_stand_side_by_side(gpu: Any) -> None:
    """The CPU's is the measure of the others; AUROC of few slides jumps, so only loss terms are compared."""
    runs = {
        "training-cpu": {"seconds": 9.0, "teacher val/auroc": 0.0, "teacher val/ce": 0.5},
        "training-bfloat16": {"seconds": 3.0, "teacher val/auroc": 1.0, "teacher val/ce": 0.51},
    }
    steps = {name: {"status": "done", "seconds": 1.0, "result": result} for name, result in runs.items()}
    table = gpu.import_module("record").render_table({"machine": {}, "steps": steps})
    assert "| teacher val/ce | 0.5 | 0.51 |" in table
    assert "training-bfloat16: loss terms at most 2 % from training-cpu (teacher val/ce)." in table


# ---------------------------------------------------------------- options


def short_run(ce: float = 0.5, name: str = "teacher val/ce", chosen: str = "block_15: held-out 0.7") -> dict[str, Any]:
    metrics = {"student": {"test": {"auroc": {"value": 0.75}}}}
    notices = [f"the inner cross-validation chose {chosen}"]
    return {"figures": {name: ce, "stage3 val/ce": 0.7}, "metrics": metrics, "notices": notices}


def test_a_training_is_compared_with_the_cpus(gpu: Any) -> None:
    """Not by its held-out AUROC, and not in a stage with dropout, whose numbers are the device's."""
    compare = gpu.import_module("training_options").compare_runs
    expected, close = short_run(), {"gap": pytest.approx(0.1), "of": "teacher val/ce", "auroc_gap": 0.0}
    assert compare(short_run(0.55, chosen="block_15: held-out 0.8"), expected, ()) == close
    assert compare(short_run(0.65), expected, ())["outcome"] == "teacher val/ce is 0.3 of its value from the CPU's"
    assert compare(short_run(0.65), expected, ("teacher ",))["gap"] == 0
    assert "nan" in compare(short_run(float("nan")), expected, ())["outcome"]
    assert compare(short_run(name="stage1 val/ce"), expected, ())["outcome"] == "no teacher val/ce"
    assert compare(short_run(chosen="block_14: 1"), expected, ())["outcome"] == "block_14 and not block_15"


def test_other_answers_are_infinitely_far(gpu: Any) -> None:
    options = gpu.import_module("inference_options")
    answers, compare = options.Answers, options.largest_difference
    expected = answers({"a": {"normal": 0.25, "lesion": 0.75}, "a, attention": {"0": 1.0, "1": 0.0}}, ())
    other = answers({"a": {"normal": 0.5, "lesion": 0.5}, "a, attention": {"0": 0.0, "1": 1.0}}, ())
    assert compare(other, expected, attention=False) == 0.25 and compare(other, expected, attention=True) == 1.0
    assert compare(answers({}, ()), expected, attention=False) == float("inf")


# ---------------------------------------------------------------- worker


@pytest.mark.slow
def test_a_step_that_hangs_dies_or_fails_leaves_the_others_alone(gpu: Any, tmp_path: Path) -> None:
    steps = gpu.import_module("steps")
    worker = steps.Worker(steps.Context(tmp_path, "cpu", True))

    def run(name: str, limit_s: float = 240.0, **settings: Any) -> dict[str, Any]:
        step = steps.Step(name, f"support.gpu_steps:{name}", limit_s, **settings)
        outcome: dict[str, Any] = worker.run(step, limit_s, has_cuda=False)
        return outcome

    try:
        first, second = run("succeed"), run("succeed")
        assert first["status"] == second["status"] == "done"
        assert first["result"] == second["result"], "one process serves several steps"
        assert run("hang", 0.2)["status"] == "timed out"
        dead, failed, doubtful = run("die"), run("fail"), run("report_problem")
        assert (dead["status"], dead["reason"]) == ("failed", "the process ended with code 3")
        assert failed["status"] == "failed" and failed["reason"].endswith("ValueError: on purpose\n")
        assert (doubtful["status"], doubtful["reason"]) == ("failed", "the figure is too large")
        assert doubtful["result"]["figure"] == 1.5
        skipped = run("fail", needs_cuda=True)
        assert (skipped["status"], skipped["reason"]) == ("skipped", "no CUDA device")
        assert run("succeed")["result"] != first["result"], "a failure costs the process"
    finally:
        worker.close()


# ---------------------------------------------------------------- without a GPU


@pytest.mark.slow
def test_everything_that_needs_no_gpu_runs_on_the_cpu(gpu: Any, tmp_path: Path) -> None:
    # The other seed is one more training of the same kind, and the options have a test of their own.
    left_out = {"training-cpu-seed1", *OPTIONS}
    names = [step.name for step in gpu.import_module("steps").STEPS if step.name not in left_out]
    words = ["--out", tmp_path / "out", "--work", tmp_path / "work", "--small", "--device", "cpu", "--steps"]
    assert "done by an earlier call" not in call(*words, *names)
    content = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    outcomes = {name: (step["status"], step.get("reason", "")) for name, step in content["steps"].items()}
    expected = {name: ("skipped", "no CUDA device") if name in NEEDS_CUDA else ("done", "") for name in names}
    assert outcomes == expected
    results = {name: step.get("result", {}) for name, step in content["steps"].items()}
    assert {row["outcome"][:7] for row in results["tests"].values()} == {"skipped"}
    assert results["memory-prediction"]["notices"] > 0
    assert results["whole-slide"]["LR, cpu, auto"]["rank"] >= 0.999
    assert results["encoding"]["demo student, batch 8, float16"] == {"skipped": "no CUDA device"}
    assert any(name.startswith("stage3") for name in results["training-cpu"])
    assert "encoding: done by an earlier call" in call(*words, "encoding")


@pytest.mark.slow
def test_every_option_runs_on_the_cpu(tmp_path: Path) -> None:
    """Each training and prediction that the check compares on a GPU; a step with one row that fails is a failed one."""
    words = ["--out", tmp_path / "out", "--work", tmp_path / "work", "--small", "--device", "cpu", "--steps"]
    call(*words, *OPTIONS)
    steps = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["steps"]
    outcomes = {name: (steps[name]["status"], steps[name].get("reason", "")) for name in OPTIONS}
    assert outcomes == dict.fromkeys(OPTIONS, ("done", ""))
    assert all(row["cpu_s"] > 0 for row in steps["options"]["result"].values())
    rows = steps["inference-options"]["result"]
    assert rows["cascade, cpu, auto"]["apart"] < 1e-3 and rows["numbers of patches"]["slowest_ms"] > 0


def call(*words: object) -> str:
    """Return what the script prints for ``run``."""
    command = [sys.executable, str(SCRIPT), "run", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
