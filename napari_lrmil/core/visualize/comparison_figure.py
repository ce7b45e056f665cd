"""One picture of student and teacher: both maps on one scale, where they differ, and patch against patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import shapely

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.formatting import format_agreement, format_probabilities
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.teacher_comparison import SharedPatches, shared_patches
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.overlay import (
    ATTENTION_LEGEND,
    OPACITY,
    RESEARCH_USE,
    calibration_text,
    color_limits,
    make_heatmap,
    rasterize_patches,
    show_attention,
    show_slide,
    slide_thumbnail,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIFFERENCE_COLORMAP = "PuOr_r"  # purple to orange through white: told apart without colour vision
DIFFERENCE_LEGEND = "student less teacher, times the average"


def draw_comparison(path: Path, slide: Slide, prediction: Prediction, lesions: Sequence[Region] = ()) -> None:
    """Write a PNG of both networks' attention, their difference and a scatter; the teacher must have run.

    Parameters
    ----------
    path
        Where; written whole or not at all.
    slide
        The slide, open.
    prediction
        What both networks said of it.
    lesions
        Outlines to draw where there are annotations.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    student, teacher, both = prediction.student, prediction.teacher, shared_patches(prediction)
    if teacher is None:
        raise ValueError("no comparison without a teacher's reading")
    thumbnail, box = slide_thumbnail(slide)
    shape = thumbnail.shape[0] / thumbnail.shape[1]
    figure = Figure(figsize=(18.5, 4.2 * min(1.6, shape) + 1.6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 4)
    low, high = color_limits([student, teacher])
    for axis in axes[:3]:
        show_slide(axis, thumbnail, box, slide)
        _outline(axis, lesions)
    for axis, title, reading in zip(axes, ("Student (LR)", "Teacher (HR)"), (student, teacher), strict=False):
        axis.set_title(f"{title}: {format_probabilities(reading.probabilities)}", fontsize=10)
        shown = show_attention(axis, make_heatmap(reading), low, high)
    figure.colorbar(shown, ax=list(axes[:2]), shrink=0.8, label=ATTENTION_LEGEND, extend="max")
    _difference(axes[2], student, both)
    _scatter(axes[3], both)
    agreement = format_agreement(prediction.agreement, len(prediction.grid.lr_index))
    figure.suptitle(f"{slide.name} · {agreement} · {prediction.bundle}", fontsize=11)
    told = [f"{RESEARCH_USE} {calibration_text(prediction)}.", *prediction.warnings]
    figure.supxlabel("\n".join(fill(sentence, 180) for sentence in told), fontsize=8)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")


def difference_limit(both: SharedPatches) -> float:
    """Return where the colours of a difference end, on either side of 0: noise does not fill the scale."""
    return max(1.0, float(np.percentile(np.abs(both.difference), 99)))


def _difference(axis: Axes, student: NetworkPrediction, both: SharedPatches) -> None:
    values = np.full(len(student.attention), np.nan)
    values[both.rows] = both.difference
    heat, limit = rasterize_patches(student, values), difference_limit(both)
    shown = show_attention(axis, heat, -limit, limit, colours=DIFFERENCE_COLORMAP, opacity=max(OPACITY, 0.75))
    axis.set_title("Where they differ", fontsize=10)
    axis.figure.colorbar(shown, ax=axis, shrink=0.8, label=DIFFERENCE_LEGEND, extend="both")


def _scatter(axis: Axes, both: SharedPatches) -> None:
    top = 1.05 * max(both.student.max(), both.teacher.max())
    axis.plot([0, top], [0, top], color="grey", linewidth=0.8, linestyle=":")
    axis.scatter(both.teacher, both.student, s=12, alpha=0.6, color="#0072b2", linewidths=0)
    axis.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    axis.set_xlabel("teacher's attention, times the average", fontsize=9)
    axis.set_ylabel("student's attention, times the average", fontsize=9)
    axis.set_title("A point is an LR patch", fontsize=10)


def _outline(axis: Axes, lesions: Sequence[Region]) -> None:
    for ring in (ring for lesion in lesions for ring in shapely.get_rings(lesion.geometry)):
        axis.plot(*shapely.get_coordinates(ring).T, color="white", linewidth=2.2)
        axis.plot(*shapely.get_coordinates(ring).T, color="#cc79a7", linewidth=1.2)
