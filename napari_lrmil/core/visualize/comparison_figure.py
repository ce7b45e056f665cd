"""Comparison figure ``compare.png``: both attention maps on one scale, their difference, and a scatter plot."""

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
from napari_lrmil.core.text_escapes import escape_mathtext
from napari_lrmil.core.visualize.figure_panels import show_attention, show_slide
from napari_lrmil.core.visualize.overlay import (
    ATTENTION_LEGEND,
    OPACITY,
    RESEARCH_USE,
    calibration_text,
    color_limits,
    make_heatmap,
    rasterize_patches,
    slide_thumbnail,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIFFERENCE_COLORMAP = "PuOr_r"  # purple, white, orange: distinguishable with colour blindness
DIFFERENCE_LEGEND = "student minus teacher, times the average"


def draw_comparison(path: Path, slide: Slide, prediction: Prediction, lesions: Sequence[Region] = ()) -> None:
    """Write a PNG of both networks' attention, their difference and a scatter plot.

    Parameters
    ----------
    path
        File, written atomically.
    lesions
        Annotated outlines to draw.

    Raises
    ------
    ValueError
        If the teacher did not run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    networks = [prediction.student, prediction.teacher]
    shared = shared_patches(prediction)
    thumbnail, box = slide_thumbnail(slide)
    aspect = thumbnail.shape[0] / thumbnail.shape[1]
    figure = Figure(figsize=(18.5, 4.2 * min(1.6, aspect) + 1.6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 4)
    for axis in axes[:3]:
        show_slide(axis, thumbnail, box, slide)
        _draw_outlines(axis, lesions)
    _draw_attention(axes[:2], [network for network in networks if network is not None])
    _draw_difference(axes[2], prediction.student, shared)
    _draw_scatter(axes[3], shared)
    agreement = format_agreement(prediction.agreement, len(prediction.grid.lr_index))
    figure.suptitle(escape_mathtext(f"{slide.name} · {agreement} · {prediction.bundle}"), fontsize=11)
    notes = [f"{RESEARCH_USE} {calibration_text(prediction)}.", *prediction.warnings]
    figure.supxlabel("\n".join(fill(sentence, 180) for sentence in notes), fontsize=8)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")


def _draw_attention(axes: Sequence[Axes], networks: Sequence[NetworkPrediction]) -> None:
    """Draw the attention of student and teacher on one colour scale."""
    low, high = color_limits(networks)
    for axis, title, network in zip(axes, ("Student (LR)", "Teacher (HR)"), networks, strict=True):
        axis.set_title(escape_mathtext(f"{title}: {format_probabilities(network.probabilities)}"), fontsize=10)
        image = show_attention(axis, make_heatmap(network), low, high)
    axes[0].figure.colorbar(image, ax=list(axes), shrink=0.8, label=ATTENTION_LEGEND, extend="max")


def difference_limit(shared: SharedPatches) -> float:
    """Return the colour limit of the difference on either side of 0; at least 1, or noise would fill the scale."""
    return max(1.0, float(np.percentile(np.abs(shared.difference), 99)))


def _draw_difference(axis: Axes, student: NetworkPrediction, shared: SharedPatches) -> None:
    values = np.full(len(student.attention), np.nan)  # NaN: not read by the teacher
    values[shared.rows] = shared.difference
    heat, limit = rasterize_patches(student, values), difference_limit(shared)
    # More opaque than attention, because the colours near 0 are pale.
    image = show_attention(axis, heat, -limit, limit, colours=DIFFERENCE_COLORMAP, opacity=max(OPACITY, 0.75))
    axis.set_title("Difference", fontsize=10)
    axis.figure.colorbar(image, ax=axis, shrink=0.8, label=DIFFERENCE_LEGEND, extend="both")


def _draw_scatter(axis: Axes, shared: SharedPatches) -> None:
    """Plot student against teacher attention, with the line of equality."""
    top = 1.05 * max(shared.student.max(), shared.teacher.max())
    axis.plot([0, top], [0, top], color="grey", linewidth=0.8, linestyle=":")
    axis.scatter(shared.teacher, shared.student, s=12, alpha=0.6, color="#0072b2", linewidths=0)
    axis.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    axis.set_xlabel("teacher's attention, times the average", fontsize=9)
    axis.set_ylabel("student's attention, times the average", fontsize=9)
    axis.set_title("One point per LR patch", fontsize=10)


def _draw_outlines(axis: Axes, lesions: Sequence[Region]) -> None:
    for ring in (ring for lesion in lesions for ring in shapely.get_rings(lesion.geometry)):
        axis.plot(*shapely.get_coordinates(ring).T, color="white", linewidth=2.2)  # a halo: visible on any tissue
        axis.plot(*shapely.get_coordinates(ring).T, color="#cc79a7", linewidth=1.2)
