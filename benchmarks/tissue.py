"""Tissue masks of 8 and 16 µm: their cost, and the patches that differ.

    python benchmarks/tissue.py SLIDE… [--runs 9] [--write docs/explanation/benchmarks/reading.md]

Patches are 256 px at 20x (HR) and 5x (LR). Both masks take turns, on an open slide. CPU-milliseconds include reading;
they are medians over the runs after the first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from real_tissue_table import put_between

from napari_lrmil.core.geometry import Int64, PatchPlan
from napari_lrmil.core.patching.grid import build_nested_grid
from napari_lrmil.core.patching.tissue import Tissue, TissueConfig, find_tissue
from napari_lrmil.core.slides.slide import Slide

BEGIN, END = "<!-- written by benchmarks/tissue.py --write -->", "<!-- end of what it writes -->"
PLAN = PatchPlan(0.5, 2.0, 256, 256)
FINE, COARSE = TissueConfig(mask_um=8.0), TissueConfig(mask_um=16.0)
HEAD = ("slide", "8 µm", "16 µm", "HR patches", "differ", "LR patches", "differ", "tissue in HR patches that differ")


def row(path: Path, runs: int) -> tuple[str, ...]:
    """Return a row of the table."""
    masks: dict[TissueConfig, Tissue] = {}
    seconds: dict[TissueConfig, list[float]] = {FINE: [], COARSE: []}
    with Slide(path) as slide:
        lattice = PLAN.lattice(slide.bounds, slide.mpp)
        for _ in range(runs + 1):  # the first one loads libraries
            for config, costs in seconds.items():
                began = time.process_time()
                masks[config] = find_tissue(slide, lattice, config)
                costs.append(time.process_time() - began)
    costs_ms = [f"{1e3 * float(np.median(costs[1:])):.1f} ms" for costs in seconds.values()]
    return (path.name, *costs_ms, *_compare(masks[FINE], masks[COARSE]))


def _compare(fine: Tissue, coarse: Tissue) -> tuple[str, ...]:
    grids = [build_nested_grid(mask.lattice, mask.shares(), FINE.min_share) for mask in (fine, coarse)]
    hr, lr = ([_cells(grid.hr_index) for grid in grids], [_cells(grid.lr_index) for grid in grids])
    hr_changes, lr_changes = hr[0] ^ hr[1], lr[0] ^ lr[1]
    shares = [float(fine.shares()[y, x]) for x, y in hr_changes]
    span = f"{min(shares):.0%} to {max(shares):.0%}" if shares else ""
    return str(len(hr[0])), str(len(hr_changes)), str(len(lr[0])), str(len(lr_changes)), span


def _cells(index: Int64) -> set[tuple[int, int]]:
    return {(x, y) for x, y in index.tolist()}


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return the rows as a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (HEAD, ("---",) * len(HEAD), *rows))


def main() -> None:
    """Print or write the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("slides", nargs="+", type=Path)
    p.add_argument("--runs", type=int, default=9)
    p.add_argument("--write", type=Path, help="page whose table is put in its place")
    args = p.parse_args()
    text = table([row(path, args.runs) for path in args.slides])
    print(text)
    if args.write:
        put_between(args.write, BEGIN, END, f"{text}\n")


if __name__ == "__main__":
    main()
