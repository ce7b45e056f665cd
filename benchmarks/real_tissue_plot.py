"""Plot of the results of benchmarks/real_tissue.py: one point per run, one row per method.

python benchmarks/real_tissue_plot.py OUT.png [--results FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from real_tissue_table import COHORTS

ROWS = {  # from the bottom up
    "teacher": "HR teacher",
    "labels_only": "LR, labels only, frozen encoder",
    "labels_only_finetuned": "LR, labels only, fine-tuned",
    "stage1_only": "stage 1, teacher's head",
    "stage2_only": "stage 2 alone",
    "both": "stages 1 and 2",
    "student": "stages 1, 2 and 3",
}
FOLD_COLOURS = ("#0072b2", "#e69f00", "#009e73")  # distinguishable with colour vision deficiency
SPREAD = 0.22  # vertical distance between the points of two folds


def main() -> None:
    """Draw a panel for every cohort and resolution on which all methods were measured."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "real_tissue")
    args = p.parse_args()
    cells = [json.loads(file.read_text()) for file in sorted(args.results.glob("headline-*.json"))]
    panels = list(dict.fromkeys((c["cell"]["cohort"], c["cell"]["resolution"]) for c in cells))
    panels.sort(key=lambda panel: (panel[1], [*COHORTS].index(panel[0])))
    figure = Figure(figsize=(1.9 + 2.7 * len(panels), 3.7), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        draw(axis, [c for c in cells if (c["cell"]["cohort"], c["cell"]["resolution"]) == panel])
        axis.set_title(f"{COHORTS[panel[0]]}, {panel[1]}", fontsize=9)
    axes[0].set_yticks(range(len(ROWS)), ROWS.values(), fontsize=9)
    figure.supxlabel("AUROC on unseen patients; point: run, colour: fold, bar: mean", fontsize=9)
    figure.savefig(args.out)


def draw(axis: Any, cells: list[dict[str, Any]]) -> None:
    """Draw the runs of one panel."""
    for at, method in enumerate(ROWS):
        aurocs = [(c["cell"]["fold"], c["metrics"][method]["test"]["auroc"]["value"]) for c in cells]
        for fold, value in aurocs:
            axis.plot(value, at + SPREAD * (fold - 1), "o", color=FOLD_COLOURS[fold], markersize=5, alpha=0.8)
        by_fold = [[v for fold, v in aurocs if fold == wanted] for wanted in {fold for fold, _ in aurocs}]
        mean = sum(sum(values) / len(values) for values in by_fold) / len(by_fold)
        axis.plot([mean, mean], [at - 0.4, at + 0.4], color="black", linewidth=2)
    axis.axvline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xlim(0, 1.03)
    axis.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    main()
