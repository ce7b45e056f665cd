"""Tables and picture of benchmarks/phantom_patients.py: AUROC against training patients, with intervals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrmil_training.evaluation.metrics import Resampler, ScoredSlides, multiclass_auroc, percentile_interval
from napari_lrmil.core.phantom import LESION

METHODS = {
    "teacher": ("HR teacher", "#000000", "o"),
    "student": ("student, three stages", "#0072b2", "s"),
    "labels_only_finetuned": ("LR, labels only, fine-tuned", "#d55e00", "^"),
    "labels_only": ("LR, labels only, frozen encoder", "#009e73", "v"),
}  # label, colour that is distinguishable with colour vision deficiency, marker
DIFFERENCES = (("student", "labels_only_finetuned"), ("student", "teacher"), ("student", "labels_only"))
RESAMPLES = 1000
Cells = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Aurocs:
    """AUROC of a method, or a difference of two, for each draw of training patients."""

    values: NDArray[np.float64]  # (draws,)
    resampled: NDArray[np.float64]  # (resamples, draws), each resample of the test patients the same for all draws

    def __sub__(self, other: Aurocs) -> Aurocs:
        return Aurocs(self.values - other.values, self.resampled - other.resampled)

    @property
    def mean(self) -> float:
        """Mean over draws."""
        return float(self.values.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of the mean over resampled test patients; it does not cover the draws of training patients."""
        return percentile_interval(self.resampled.mean(axis=1)) or (float("nan"), float("nan"))


def read_cells(folder: Path) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Return recipe -> number of training patients -> cells, in the order of draws."""
    curves: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        curves[result["cell"]["recipe"]][result["cell"]["patients"]].append(result)
    return {recipe: dict(sorted(by_patients.items())) for recipe, by_patients in curves.items()}


def measure_aurocs(cells: Cells) -> dict[str, Aurocs]:
    """Return the AUROCs of the methods that all cells have; all are on the same resamples of the test patients."""
    slides = cells[0]["slides"]
    if any([s["slide"] for s in cell["slides"]] != [s["slide"] for s in slides] for cell in cells):
        raise SystemExit("the cells were tested on different slides; measure them again")
    targets = np.array([int(s["label"] == LESION) for s in slides])
    patients = tuple(s["patient"] for s in slides)
    resampler = Resampler(targets, patients, RESAMPLES)
    aurocs = {}
    for method in (m for m in METHODS if all(m in cell["slides"][0]["probabilities"] for cell in cells)):
        scored = [ScoredSlides(_probabilities(cell, method), targets, patients) for cell in cells]
        values = np.array([multiclass_auroc(s.probabilities, targets) for s in scored], dtype=float)
        aurocs[method] = Aurocs(values, np.stack([resampler.aurocs(s) for s in scored], axis=1))
    return aurocs


def _probabilities(cell: Mapping[str, Any], method: str) -> NDArray[np.float64]:
    lesion = np.array([s["probabilities"][method] for s in cell["slides"]])
    return np.stack([1 - lesion, lesion], axis=1)


def print_curves(folder: Path, expected: int) -> None:
    """Print a table of AUROCs and one of paired differences for each recipe."""
    curves = read_cells(folder)
    print(
        f"Measured: {sum(len(c) for by in curves.values() for c in by.values())} cells, of {expected} for each recipe."
    )
    names = {method: label for method, (label, *_) in METHODS.items()}
    for recipe, by_patients in curves.items():
        aurocs = {patients: measure_aurocs(cells) for patients, cells in by_patients.items()}
        print(f"\n### AUROC on new patients, recipe {recipe}\n")
        print(f"| training patients | draws | {' | '.join(names.values())} | CPU-seconds of the last attempt |")
        print("|---" * (len(names) + 3) + "|")
        for patients, cells in by_patients.items():
            figures = " | ".join(_text(aurocs[patients].get(method), "{:.3f}") for method in METHODS)
            print(f"| {patients} | {len(cells)} | {figures} | {np.median([c['cpu_seconds'] for c in cells]):.0f} |")
        print("\nPaired differences:\n")
        print(f"| training patients | {' | '.join(f'{names[a]}, less {names[b]}' for a, b in DIFFERENCES)} |")
        print("|---" * (len(DIFFERENCES) + 1) + "|")
        for patients, of in aurocs.items():
            pairs = [of[a] - of[b] if a in of and b in of else None for a, b in DIFFERENCES]
            print(f"| {patients} | {' | '.join(_text(pair, '{:+.3f}') for pair in pairs)} |")


def _text(aurocs: Aurocs | None, number: str) -> str:
    if aurocs is None:
        return "-"
    low, high = aurocs.interval
    return f"{number.format(aurocs.mean)} ({number.format(low)} to {number.format(high)})"


def draw_curves(folder: Path, out: Path) -> None:
    """Draw a panel for each recipe: a line for each method, with intervals over test patients and a dot per draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = read_cells(folder)
    if not curves:
        raise SystemExit(f"{folder} has no results yet; measure some cells first")
    figure = Figure(figsize=(1.2 + 4.6 * len(curves), 4.2), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axis, (recipe, by_patients) in zip(axes, curves.items(), strict=True):
        _draw_panel(axis, by_patients)
        axis.set_title(f"recipe {recipe}", fontsize=9)
    axes[0].set_ylabel("AUROC on new patients", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=2)
    figure.supxlabel("training patients; bar: 95 % interval over test patients, dot: a draw", fontsize=9)
    figure.savefig(out)


def _draw_panel(axis: Any, by_patients: Mapping[int, Cells]) -> None:
    patients = np.array([*by_patients], dtype=float)
    aurocs = [measure_aurocs(cells) for cells in by_patients.values()]
    for i, (method, (label, colour, marker)) in enumerate(METHODS.items()):
        curve = [(n, of[method]) for n, of in zip(patients, aurocs, strict=True) if method in of]
        if not curve:
            continue
        x = np.array([n for n, _ in curve]) * 1.035 ** (i - 1.5)  # side by side, so that no bar covers another
        middle, bounds = np.array([f.mean for _, f in curve]), np.array([f.interval for _, f in curve])
        style = {"color": colour, "marker": marker, "markersize": 5, "capsize": 2, "linewidth": 1.2}
        axis.errorbar(x, middle, np.abs(bounds.T - middle), label=label, **style)
        for place, (_, f) in zip(x, curve, strict=True):
            axis.plot([place] * len(f.values), f.values, ".", color=colour, alpha=0.5, markersize=4)
    axis.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.set_xticks(patients, [f"{n:.0f}" for n in patients])
    axis.minorticks_off()
    axis.set_ylim(None, 1.02)
    axis.grid(axis="y", alpha=0.3)
