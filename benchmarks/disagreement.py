"""Disagreement of student and teacher on real tissue: agreement on every test slide, pictures of the worst ones.

    python benchmarks/disagreement.py --work WORK [--write PAGE] [--pictures docs/images] [--csv FILE]

`WORK` is the folder of benchmarks/real_tissue.py: the script uses the first run of every fold at native 2.5x. The
pictures show patches and outlines but no pixels of the slides, whose licence forbids redistribution.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from real_tissue_table import put_between

from lrmil_training.evaluation.attention_files import AttentionMap, read_attention_map
from lrmil_training.report.slide_pictures import attention_limit
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.inference.teacher_comparison import SharedPatches, read_lesions
from napari_lrmil.core.visualize.comparison_figure import DIFFERENCE_COLORMAP, difference_limit
from napari_lrmil.core.visualize.overlay import COLORMAP

BEGIN, END = "<!-- written by benchmarks/disagreement.py --write -->", "<!-- end of what it writes -->"
RUNS = "headline-default-2.5x-fold{fold}-seed*"
MEASURES = ("spearman", "jaccard_top10", "js_divergence")
PICTURED = 3
GROUPS = ("malignant", "benign")
Values = NDArray[np.float64]


@dataclass(frozen=True)
class SlideFigures:
    """Agreement and predictions of student and teacher on one test slide."""

    fold: int
    run: str
    slide: str
    label: str
    n_patches: int
    spearman: float
    jaccard_top10: float
    js_divergence: float
    malignant_student: float
    malignant_teacher: float
    lesion_student: float | None
    lesion_teacher: float | None

    @property
    def differ(self) -> bool:
        """Whether the two predicted classes are different."""
        return (self.malignant_student >= 0.5) != (self.malignant_teacher >= 0.5)


def main() -> None:
    """Read the runs, print or write the table, draw the slides with the lowest rank correlation."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, required=True, help="folder for slides, features and runs")
    p.add_argument("--write", type=Path, help="page whose table is put in its place")
    p.add_argument("--pictures", type=Path, help="folder for a picture of each of the worst slides")
    p.add_argument("--csv", type=Path, help="file for a row per slide")
    args = p.parse_args()
    runs = {fold: _first_run(args.work, fold) for fold in range(3)}
    figures = [slide for fold, run in runs.items() if run for slide in read_figures(fold, run)]
    worst = sorted(figures, key=lambda slide: slide.spearman)[:PICTURED]
    text = table(figures)
    print(text)
    for slide in worst:
        print(slide)
    if args.csv:
        write_csv(args.csv, figures)
    if args.write:
        put_between(args.write, BEGIN, END, f"{text}\n")
    for place, slide in enumerate(worst, start=1):
        if args.pictures:
            draw(args.pictures / f"disagreement-{place}.png", args.work, slide)


def _first_run(work: Path, fold: int) -> Path | None:
    complete = [run for run in sorted((work / "runs").glob(RUNS.format(fold=fold))) if (run / "slides.json").exists()]
    return complete[0] if complete else None


def read_figures(fold: int, run: Path) -> list[SlideFigures]:
    """Return the figures of a run's test slides."""
    slides = json.loads((run / "slides.json").read_text())["slides"]
    return [_figures(fold, run.name, slide) for slide in slides if slide["split"] == "test"]


def _figures(fold: int, run: str, slide: dict[str, Any]) -> SlideFigures:
    student, teacher = slide["methods"]["student"], slide["methods"]["teacher"]
    return SlideFigures(
        fold,
        run,
        slide["slide"],
        slide["label"],
        slide["n_patches"],
        *(student["agreement"][name] for name in MEASURES),
        student["probabilities"]["malignant"],
        teacher["probabilities"]["malignant"],
        student["lesion_auroc"],
        teacher["lesion_auroc"],
    )


# ---------------------------------------------------------------- table


def table(figures: Sequence[SlideFigures]) -> str:
    """Return one row per fold and class: medians over the slides, and the number with different predictions."""
    lines = [
        "| fold | slides | | ρ, median (least to most) | top-10 % overlap | JS | lesion AUROC, student / teacher "
        "| different answers |",
        "|---|---|---:|---|---:|---:|---|---:|",
    ]
    for fold in sorted({slide.fold for slide in figures}):
        for label in GROUPS:
            group = [slide for slide in figures if (slide.fold, slide.label) == (fold, label)]
            if group:
                lines.append(_row(fold, label, group))
    return "\n".join(lines)


def _row(fold: int, label: str, group: Sequence[SlideFigures]) -> str:
    rho = [slide.spearman for slide in group]
    overlap, divergence = (float(np.median([getattr(slide, name) for slide in group])) for name in MEASURES[1:])
    lesions = [(slide.lesion_student, slide.lesion_teacher) for slide in group if slide.lesion_student is not None]
    auroc_text = " / ".join(f"{value:.2f}" for value in np.median(lesions, axis=0)) if lesions else "—"
    return (
        f"| {fold} | {label} | {len(group)} | {np.median(rho):.2f} ({min(rho):.2f} to {max(rho):.2f}) | {overlap:.2f} "
        f"| {divergence:.2f} | {auroc_text} | {sum(slide.differ for slide in group)} |"
    )


def write_csv(path: Path, figures: Sequence[SlideFigures]) -> None:
    """Write a row per slide."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(SlideFigures.__dataclass_fields__)
        for slide in figures:
            rows.writerow([f"{v:.4f}" if isinstance(v, float) else v for v in slide.__dict__.values()])


# ---------------------------------------------------------------- pictures


def draw(path: Path, work: Path, slide: SlideFigures) -> None:
    """Draw both attention maps of a slide on one colour scale, their difference, and a scatter plot of patches."""
    folder = work / "runs" / slide.run / "attention"
    student, teacher = (read_attention_map(folder / name / f"{slide.slide}.h5") for name in ("student", "teacher"))
    if student is None or teacher is None:
        raise SystemExit(f"{folder}: no attention of {slide.slide}; the run was cut short")
    pooled = pooled_to(student, teacher)
    both = SharedPatches(
        np.arange(len(pooled.coords)), *(len(side.coords) * side.attention for side in (student, pooled))
    )
    figure = Figure(figsize=(14, 4.1), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 4)
    file = work / "cohorts" / "default" / f"fold_{slide.fold}" / f"{slide.slide}.tif"
    lesions = read_lesions(file, Bounds(0, 0, 0, 0)).regions
    top, reach = attention_limit([student, pooled]), difference_limit(both)
    sides = zip(axes[:2], (both.student, both.teacher), strict=True)
    maps = [_cells(axis, student, values, (0, top), COLORMAP) for axis, values in sides]
    difference = _cells(axes[2], student, both.difference, (-reach, reach), DIFFERENCE_COLORMAP)
    for axis in axes[:3]:
        for part in shapely.get_parts([lesion.geometry for lesion in lesions]):
            axis.plot(*shapely.get_coordinates(part.exterior).T, color="#cc79a7", linewidth=1.6)
    axes[0].set_title(f"Student (LR): malignant {slide.malignant_student:.2f}", fontsize=10)
    axes[1].set_title(f"Teacher (HR), pooled: malignant {slide.malignant_teacher:.2f}", fontsize=10)
    axes[2].set_title("Student minus teacher", fontsize=10)
    figure.colorbar(maps[0], ax=list(axes[:2]), shrink=0.7, label="attention, times the average", extend="max")
    figure.colorbar(difference, ax=axes[2], shrink=0.7, label="times the average", extend="both")
    axes[3].scatter(both.teacher, both.student, s=14, alpha=0.6, color="#0072b2", linewidths=0)
    axes[3].set(xlabel="teacher's attention, times the average", ylabel="student's attention, times the average")
    axes[3].set_title("A point is an LR patch", fontsize=10)
    figure.suptitle(
        f"fold {slide.fold}, {slide.slide}, {slide.label}: ρ {slide.spearman:.2f}, {slide.n_patches} LR patches"
    )
    figure.savefig(path)


def pooled_to(student: AttentionMap, teacher: AttentionMap) -> AttentionMap:
    """Return the teacher's attention summed over each of the student's patches."""
    size = np.array(student.patch_level0)
    place = {(int(x), int(y)): row for row, (x, y) in enumerate(student.coords)}
    origin = student.coords.min(axis=0)
    corners = origin + (teacher.coords - origin) // size * size
    rows = [place[int(x), int(y)] for x, y in corners]
    sums = np.bincount(rows, weights=teacher.attention, minlength=len(student.coords))
    return AttentionMap(student.coords, student.patch_level0, sums.astype(np.float32))


def _cells(axis: Any, attention_map: AttentionMap, values: Values, limits: tuple[float, float], colours: str) -> Any:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    cells = [Rectangle((float(x), float(y)), *attention_map.patch_level0) for x, y in attention_map.coords]
    shown = PatchCollection(cells, cmap=colours, linewidths=0)
    shown.set_array(values)
    shown.set_clim(*limits)
    axis.add_collection(shown)
    axis.autoscale_view()
    axis.set_aspect("equal")
    axis.invert_yaxis()
    axis.set_axis_off()
    return shown


if __name__ == "__main__":
    main()
