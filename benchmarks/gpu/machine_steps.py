"""Steps that prepare: facts about the machine, phantom slides, and the tests marked ``gpu``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from steps import PROBLEM, Context
from wheels import ROOT

from napari_lrmil.core.benchmark.tables import cpu_name
from napari_lrmil.core.cohort.memory import total_memory_mb
from napari_lrmil.core.phantom import LESION, PhantomSlide, make_cohort, write_slide

SLIDE_PX = (2560, 20_000)  # side of the slide: small, full
COHORT_PX = (1024, 768)
COHORT_SLIDES = {"train": (4, 24), "val": (2, 16), "test": (2, 16)}  # small, full
PACKAGES = ("transformers", "lightning", "numpy", "openslide-bin", "imagecodecs", "pydantic")


def describe_machine(context: Context) -> dict[str, Any]:
    """Return the device's name and memory, and versions of what computes."""
    facts: dict[str, Any] = {
        "device": f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
        "memory_mb": round(total_memory_mb()),
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
        "reports CPU capabilities": hasattr(torch.cpu, "get_capabilities"),  # of torch; newer than 2.10
    }
    if context.kind != "cuda":
        return facts
    properties = torch.cuda.get_device_properties(0)
    return facts | {
        "device": torch.cuda.get_device_name(0),
        "gpu_memory_mb": round(properties.total_memory / 1e6),
        "multiprocessors": properties.multi_processor_count,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        "driver": _driver_version(),
    }


def _driver_version() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip()


# ---------------------------------------------------------------- slides


def slide_path(context: Context) -> Path:
    """Return the path of the large phantom slide."""
    return context.work / "slides" / "phantom.tif"


def cohort_table(context: Context) -> Path:
    """Return the table of the phantom cohort for training."""
    return context.work / "cohort" / "cohort.csv"


def paint_slides(context: Context) -> dict[str, Any]:
    """Paint the large slide and the cohort side by side in processes, unless they are there from an earlier call."""
    marks = [path.with_name(f"{path.name}.done") for path in (slide_path(context), cohort_table(context))]
    side = context.pick(*SLIDE_PX)
    if not all(mark.exists() for mark in marks):
        slide = PhantomSlide("phantom", LESION, 3, (side, side))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            job = pool.submit(write_slide, slide_path(context).parent, slide)
            for seed, (split, counts) in enumerate(COHORT_SLIDES.items()):
                folder, workers = cohort_table(context).parent, context.pick(1, min(8, os.cpu_count() or 1))
                for _ in make_cohort(folder, context.pick(*counts), COHORT_PX, seed, split=split, workers=workers):
                    pass
            job.result()
        for mark in marks:
            mark.touch()
    sizes = {"slide": f"{side} x {side} px", "slide_mb": slide_path(context).stat().st_size / 1e6}
    return sizes | {"cohort": sum(context.pick(*counts) for counts in COHORT_SLIDES.values())}


# ---------------------------------------------------------------- tests


def gpu_test_files() -> list[Path]:
    """Return the test files that hold tests marked ``gpu``; others need packages that the machine may lack."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in files if "\n@pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def run_gpu_tests(context: Context) -> dict[str, Any]:
    """Run the tests marked ``gpu``. Without a GPU they are only collected, which shows that their files import."""
    report = context.work / "gpu-tests.xml"
    # Warnings of another version of a library are no errors here, and its plugins of pytest may be missing.
    options = ["-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *options, f"--junitxml={report}", *gpu_test_files()]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, check=False, capture_output=True, text=True)
    if not report.exists():
        return {PROBLEM: f"pytest ended with code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"}
    outcomes = {
        case.attrib["name"]: {"outcome": _outcome_of(case)} for case in ElementTree.parse(report).iter("testcase")
    }
    failed = [name for name, row in outcomes.items() if not row["outcome"].startswith(("passed", "skipped"))]
    problem = {PROBLEM: f"failed: {', '.join(failed) or done.stdout[-2000:]}"} if failed or done.returncode else {}
    return outcomes | problem


def _outcome_of(case: ElementTree.Element) -> str:
    for kind in ("failure", "error", "skipped"):
        element = case.find(kind)
        if element is not None:
            return f"{kind}: {element.attrib.get('message', '')[:500]}"
    return "passed"
