"""Plot of the results of benchmarks/real_tissue.py: one point per run, one row per method.

python benchmarks/real_tissue_plot.py OUT.png [--results FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from real_tissue_panels import draw_row, finish_panel, make_figure
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


def main() -> None:
    """Draw a panel for every cohort and resolution on which all methods were measured."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "real_tissue")
    args = p.parse_args()
    cells = [json.loads(file.read_text()) for file in sorted(args.results.glob("headline-*.json"))]
    panels = list(dict.fromkeys((c["cell"]["cohort"], c["cell"]["resolution"]) for c in cells))
    panels.sort(key=lambda panel: (panel[1], [*COHORTS].index(panel[0])))
    figure, axes = make_figure(len(panels), 1.9 + 2.7 * len(panels), 3.7)
    for axis, panel in zip(axes, panels, strict=True):
        draw(axis, [c for c in cells if (c["cell"]["cohort"], c["cell"]["resolution"]) == panel])
        finish_panel(axis, f"{COHORTS[panel[0]]}, {panel[1]}")
    axes[0].set_yticks(range(len(ROWS)), ROWS.values(), fontsize=9)
    figure.savefig(args.out)


def draw(axis: Any, cells: list[dict[str, Any]]) -> None:
    """Draw the runs of one panel."""
    for at, method in enumerate(ROWS):
        by_fold: dict[int, list[float]] = {}
        for c in cells:
            by_fold.setdefault(c["cell"]["fold"], []).append(c["metrics"][method]["test"]["auroc"]["value"])
        draw_row(axis, at, by_fold, sum(sum(values) / len(values) for values in by_fold.values()) / len(by_fold))


if __name__ == "__main__":
    main()
