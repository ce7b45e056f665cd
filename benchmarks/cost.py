"""Patches, decoded pixels and CPU time of the LR student and of the HR teacher, on the same slides.

python benchmarks/cost.py SLIDE… [--bundle demo]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_lrmil.cli.console import show_progress
from napari_lrmil.cli.given_slides import expand_slides
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.threads import leave_core_free


@dataclass(frozen=True)
class Cost:
    """Patches, native pixels and CPU-seconds of one slide, for the student alone and for both."""

    name: str
    lr_patches: int
    hr_patches: int
    lr_pixels: int
    hr_pixels: int
    lr_cpu: float
    hr_cpu: float


def measure(path: Path, bundle: Bundle) -> Cost:
    """Run the student alone, then student and teacher; the teacher's CPU time is the difference."""
    student, lr_cpu = _run(path, bundle, TeacherPatches.NONE)
    both, both_cpu = _run(path, bundle, TeacherPatches.ALL)
    if both.teacher is None:
        raise RuntimeError("the teacher did not run")
    patches = len(both.grid.lr_index), len(both.grid.hr_index)
    return Cost(
        path.name, *patches, student.student.pixels_decoded, both.teacher.pixels_decoded, lr_cpu, both_cpu - lr_cpu
    )


def _run(path: Path, bundle: Bundle, teacher: TeacherPatches) -> tuple[Prediction, float]:
    began = time.process_time()
    with Slide(path) as slide:
        prediction: Prediction = show_progress(
            predict(slide, bundle, device=resolve_device("cpu"), teacher=teacher), path.name
        )
    return prediction, time.process_time() - began


def table(costs: Sequence[Cost]) -> str:
    """Return one row per slide, and the medians."""
    rows = [
        (c.name, c.lr_patches, c.hr_patches, c.lr_pixels / 1e6, c.hr_pixels / 1e6, c.lr_cpu, c.hr_cpu) for c in costs
    ]
    if len(costs) > 1:
        rows.append(("median", *(float(np.median([row[i] for row in rows])) for i in range(1, 7))))
    lines = [
        "| slide | LR patches | HR patches | ratio | LR MPix | HR MPix | ratio | LR CPU-s | HR CPU-s | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, lr, hr, lr_px, hr_px, lr_cpu, hr_cpu in rows:
        cells = f"{lr:g} | {hr:g} | {hr / lr:.1f} | {lr_px:.2f} | {hr_px:.2f} | {hr_px / lr_px:.1f}"
        lines.append(f"| {name} | {cells} | {lr_cpu:.2f} | {hr_cpu:.2f} | {hr_cpu / lr_cpu:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("slides", nargs="+", type=Path)
    p.add_argument("--bundle", default="demo")
    args = p.parse_args()
    leave_core_free()
    bundle = Bundle(args.bundle)
    slides = [path for path, _ in expand_slides(args.slides)]
    _run(slides[0], bundle, TeacherPatches.ALL)  # the first call loads weights and libraries
    print(table([measure(path, bundle) for path in slides]))


if __name__ == "__main__":
    main()
