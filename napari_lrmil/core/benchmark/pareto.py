"""Pareto front of AUROC and CPU-seconds, for several models on one labelled cohort."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from napari_lrmil.core.atomic_files import atomic_write, write_json
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.text_escapes import escape_mathtext


@dataclass(frozen=True)
class CostPoint:
    """AUROC and cost of one network on a cohort.

    Attributes
    ----------
    name
        Name of the model, and of the network in it.
    auroc, low, high
        AUROC and the limits of its interval; the limits are None if there are too few slides.
    cpu_seconds
        CPU-seconds per slide.
    slides
        Number of slides.
    """

    name: str
    auroc: float
    low: float | None
    high: float | None
    cpu_seconds: float
    slides: int


def cost_points(name: str, metrics: Path) -> list[CostPoint]:
    """Return a point for each network with an AUROC and a cost in the ``metrics.json`` of an evaluation."""
    methods: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8"))
    # By column or distance: parts of the cohort, which have no cost of their own.
    methods = {name: entry for name, entry in methods.items() if name not in ("by", "warnings")}
    points = []
    for method, networks in methods.items():
        for metrics_of_network in networks.values():
            auroc, seconds = metrics_of_network["auroc"], metrics_of_network["cost"].get("cpu_seconds_per_slide")
            if auroc["value"] is not None and seconds:
                figures = (auroc["value"], auroc["low"], auroc["high"], seconds, auroc["n_slides"])
                points.append(CostPoint(f"{name}, {method}", *figures))
    return points


def pareto_front(points: Sequence[CostPoint]) -> list[CostPoint]:
    """Return the points that no other point dominates in both AUROC and cost, the cheapest first."""
    best: list[CostPoint] = []
    for point in sorted(points, key=lambda p: (p.cpu_seconds, -p.auroc)):
        if not best or point.auroc > best[-1].auroc:
            best.append(point)
    return best


def write_pareto(folder: Path, points: Sequence[CostPoint]) -> None:
    """Write ``pareto.json`` and ``pareto.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    front = pareto_front(points)
    write_json(folder / "pareto.json", {"points": [asdict(p) for p in points], "front": [p.name for p in front]})
    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for point in points:
        low, high = (point.auroc if end is None else end for end in (point.low, point.high))
        spread = [[max(0.0, point.auroc - low)], [max(0.0, high - point.auroc)]]
        axis.errorbar(
            point.cpu_seconds, point.auroc, yerr=spread, fmt="o", capsize=3, label=escape_mathtext(point.name)
        )
    axis.step(
        [p.cpu_seconds for p in front], [p.auroc for p in front], where="post", color="0.6", linewidth=1, zorder=0
    )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    seconds = [p.cpu_seconds for p in points]
    axis.set_xlim(min(seconds) / 1.6, max(seconds) * 1.6)
    lowest = min(p.auroc if p.low is None else p.low for p in points)
    axis.set_ylim(max(-0.02, min(0.5, lowest) - 0.03), 1.02)  # shows 0.5 (chance) and 1 (a perfect ranking)
    axis.set_xlabel("CPU-seconds per slide, predict defaults (lower is better)")
    axis.set_ylabel("AUROC (higher is better)")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8, title=format_count(points[0].slides, "slide"), title_fontsize=8)
    figure.suptitle("Cost and AUROC of a prediction · research use only", fontsize=11)
    with atomic_write(folder / "pareto.png") as partial:
        figure.savefig(partial, format="png")
