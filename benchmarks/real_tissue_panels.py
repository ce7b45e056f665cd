"""Panels of the pictures of benchmarks/real_tissue.py: test AUROC, one point per run and one row per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FOLD_COLOURS = ("#0072b2", "#e69f00", "#009e73")  # distinguishable with colour vision deficiency
SPREAD = 0.22  # vertical distance between the points of two folds
X_LABEL = "AUROC on unseen patients; point: run, colour: fold, bar: mean"


def make_figure(panels: int, width: float, height: float) -> tuple[Any, Sequence[Any]]:
    """Return a figure of some size in inches, and the axes of its panels, which share their rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    figure.supxlabel(X_LABEL, fontsize=9)
    return figure, figure.subplots(1, panels, sharey=True, squeeze=False)[0]


def draw_row(axis: Any, at: int, values: Mapping[int, Sequence[float]], mean: float | None) -> None:
    """Draw the runs of one method, fold -> AUROCs, and their mean."""
    for fold, aurocs in values.items():
        places = [at + SPREAD * (fold - 1)] * len(aurocs)
        axis.plot(aurocs, places, "o", color=FOLD_COLOURS[fold], markersize=5, alpha=0.8)
    if mean is not None:
        axis.plot([mean, mean], [at - 0.4, at + 0.4], color="black", linewidth=2)


def finish_panel(axis: Any, title: str) -> None:
    """Set the title and the scale, which shows chance and a perfect ranking."""
    axis.set_title(title, fontsize=9)
    axis.axvline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xlim(0, 1.03)
    axis.grid(axis="x", alpha=0.3)
