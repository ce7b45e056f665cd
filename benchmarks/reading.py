"""Cost of reading patches and the tissue mask, with the tile reader and with OpenSlide.

    python benchmarks/reading.py SLIDE… [--mpp 0 2 4] [--runs 7] [--write docs/explanation/benchmarks/reading.md]

The patches of the tissue are read as in `predict`, from a newly opened slide, including the check of the tiles. The
readers take turns, so that other load on the machine affects both. Figures are medians over the runs after the first;
the ratio is the median of the ratios within a run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from real_tissue_table import put_between

from napari_lrmil.core.features.extraction import PatchSet
from napari_lrmil.core.geometry import BoxLevel0, PatchPlan
from napari_lrmil.core.patching.grid import NestedGrid, find_tissue_grid
from napari_lrmil.core.patching.tissue import TissueConfig, find_tissue
from napari_lrmil.core.slides.slide import Pixels, Slide
from napari_lrmil.core.slides.tile_reader import OPENSLIDE, TILES

BEGIN, END = "<!-- written by benchmarks/reading.py --write -->", "<!-- end of what it writes -->"
HR_MPP, PATCH_PX, BATCH = 0.5, 256, 64
HEAD = ("slide", "µm per px", "reader", "MPix", "MPix decoded", "MPix per CPU-s", "ratio", "tissue: read", "computed")


@dataclass(frozen=True)
class Cost:
    """Cost of one run over one slide with one reader: requested and decoded native pixels, CPU-seconds."""

    requested: int
    decoded: int
    seconds: float
    tissue_read: float
    tissue_computed: float

    @property
    def mpix_per_second(self) -> float:
        """Millions of requested native pixels per CPU-second."""
        return self.requested / 1e6 / self.seconds


class TimedSlide(Slide):
    """Slide that counts the CPU-seconds of reading its blocks."""

    blocks_seconds = 0.0

    def read_blocks(self, box: BoxLevel0, size: tuple[int, int]) -> Iterator[tuple[slice, slice, Pixels]]:
        """Yield the blocks of `Slide.read_blocks`, and add the time of reading them."""
        blocks = super().read_blocks(box, size)
        while True:
            began = time.process_time()
            block = next(blocks, None)
            self.blocks_seconds += time.process_time() - began
            if block is None:
                return
            yield block


def measure(path: Path, reader: str, plan: PatchPlan, grid: NestedGrid) -> Cost:
    """Read a slide's tissue mask, and then, opened anew, all LR patches of its grid."""
    with TimedSlide(path, reader=reader) as slide:
        began = time.process_time()
        find_tissue(slide, grid.lattice, TissueConfig())
        tissue = time.process_time() - began
        tissue_read = slide.blocks_seconds
    patches = PatchSet(grid.lr_corners, grid.lattice.lr_cell, plan.lr_patch_px)
    began = time.process_time()
    with Slide(path, reader=reader) as slide:
        for start in range(0, len(patches), BATCH):
            patches.read(slide, slice(start, start + BATCH))
        requested, decoded = slide.pixels_decoded, slide.tile_pixels_decoded
    return Cost(requested, decoded, time.process_time() - began, tissue_read, tissue - tissue_read)


def rows(path: Path, mpp: float, runs: int) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each reader."""
    with Slide(path, reader=OPENSLIDE) as slide:
        mpp = mpp or slide.mpp.mean
        plan = PatchPlan(min(HR_MPP, mpp), mpp, PATCH_PX, PATCH_PX)
        grid = find_tissue_grid(slide, plan, TissueConfig()).grid
    runs_of_reader: dict[str, list[Cost]] = {OPENSLIDE: [], TILES: []}
    for _ in range(runs + 1):  # the first one loads libraries
        for reader, costs in runs_of_reader.items():
            costs.append(measure(path, reader, plan, grid))
    pairs = zip(runs_of_reader[TILES][1:], runs_of_reader[OPENSLIDE][1:], strict=True)
    ratio = float(
        np.median([tiles_cost.mpix_per_second / openslide_cost.mpix_per_second for tiles_cost, openslide_cost in pairs])
    )
    for reader, costs in runs_of_reader.items():
        yield (
            path.name,
            f"{mpp:g}",
            reader,
            *_figures(costs[1:]),
            f"{ratio if reader == TILES else 1:.1f}",
            *_tissue(costs),
        )


def _figures(costs: Sequence[Cost]) -> tuple[str, str, str]:
    first = costs[0]
    speed = float(np.median([cost.mpix_per_second for cost in costs]))
    return f"{first.requested / 1e6:.1f}", f"{first.decoded / 1e6:.1f}" if first.decoded else "unknown", f"{speed:.0f}"


def _tissue(costs: Sequence[Cost]) -> tuple[str, str]:
    read, computed = (
        np.median([getattr(cost, name) for cost in costs[1:]]) for name in ("tissue_read", "tissue_computed")
    )
    return f"{1e3 * read:.0f} ms", f"{1e3 * computed:.0f} ms"


def table(rows_of_cells: Sequence[tuple[str, ...]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEAD, ("---",) * len(HEAD), *rows_of_cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print or write the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("slides", nargs="+", type=Path)
    p.add_argument(
        "--mpp", nargs="+", type=float, default=[0.0, 2.0, 4.0], help="µm per pixel of the patches; 0: level 0 as it is"
    )
    p.add_argument("--runs", type=int, default=7)
    p.add_argument("--write", type=Path, help="page whose table is put in its place")
    args = p.parse_args()
    text = table([row for path in args.slides for mpp in args.mpp for row in rows(path, mpp, args.runs)])
    print(text)
    if args.write:
        put_between(args.write, BEGIN, END, f"{text}\n")


if __name__ == "__main__":
    main()
