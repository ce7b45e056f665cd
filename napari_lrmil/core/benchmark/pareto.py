"""AUROC against CPU-seconds for several models on one labelled cohort, and which of them no other beats in both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from napari_lrmil.core.atomic_files import atomic_write, write_json


@dataclass(frozen=True)
class CostPoint:
    """One model on a cohort.

    Attributes
    ----------
    name
        Of the model, and which of its networks.
    auroc, low, high
        With its interval, where the slides are enough for one.
    cpu_seconds
        For a slide.
    slides
        How many there were.
    """

    name: str
    auroc: float
    low: float | None
    high: float | None
    cpu_seconds: float
    slides: int


def cost_points(name: str, metrics: Path) -> list[CostPoint]:
    """Return a point for each network that an evaluation's ``metrics.json`` has an AUROC and a cost for."""
    found: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8"))
    made = []
    for method, sides in found.items():
        for its in sides.values():
            auroc, seconds = its["auroc"], its["cost"].get("cpu_seconds_per_slide")
            if auroc["value"] is not None and seconds:
                figures = (auroc["value"], auroc["low"], auroc["high"], seconds, auroc["n_slides"])
                made.append(CostPoint(f"{name}, {method}", *figures))
    return made


def pareto_front(found: Sequence[CostPoint]) -> list[CostPoint]:
    """Return the points that no other beats in AUROC and cost together, the cheapest first."""
    best: list[CostPoint] = []
    for point in sorted(found, key=lambda p: (p.cpu_seconds, -p.auroc)):
        if not best or point.auroc > best[-1].auroc:
            best.append(point)
    return best


def write_pareto(folder: Path, found: Sequence[CostPoint]) -> None:
    """Write ``pareto.json`` and ``pareto.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    best = pareto_front(found)
    write_json(folder / "pareto.json", {"points": [asdict(p) for p in found], "front": [p.name for p in best]})
    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for point in found:
        low, high = (point.auroc if end is None else end for end in (point.low, point.high))
        spread = [[max(0.0, point.auroc - low)], [max(0.0, high - point.auroc)]]
        axis.errorbar(point.cpu_seconds, point.auroc, yerr=spread, fmt="o", capsize=3, label=point.name)
    axis.step([p.cpu_seconds for p in best], [p.auroc for p in best], where="post", color="0.6", linewidth=1, zorder=0)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    seconds = [p.cpu_seconds for p in found]
    axis.set_xlim(min(seconds) / 1.6, max(seconds) * 1.6)
    lowest = min(p.auroc if p.low is None else p.low for p in found)
    axis.set_ylim(max(-0.02, min(0.5, lowest) - 0.03), 1.02)  # chance and a perfect ranking are in sight
    axis.set_xlabel("CPU-seconds for a slide, as predict runs it (fewer is better)")
    axis.set_ylabel("AUROC (more is better)")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8, title=f"{found[0].slides} slides", title_fontsize=8)
    figure.suptitle("What an answer costs, and how good it is · research use only", fontsize=11)
    with atomic_write(folder / "pareto.png") as partial:
        figure.savefig(partial, format="png")
