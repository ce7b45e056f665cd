"""Cost of a cohort: the tables of docs/explanation/scale.md, from the figures of benchmarks/speed.py and cohort.py.

    python benchmarks/scale.py [--results benchmarks/results] [--write docs/explanation/scale.md]

Nothing is measured here. The first slide of the speed benchmark stands for all slides.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from real_tissue_table import put_between

BEGIN, END = "<!-- written by benchmarks/scale.py --write -->", "<!-- end of what it writes -->"
COHORTS = (10_000, 1_000_000)
CORES = 64  # of a typical cluster node
LINKS = {  # sustained MB per second, from data sheets
    "one hard disk": 150,
    "network of 1 Gbit/s": 115,
    "SATA SSD": 500,
    "network of 10 Gbit/s": 1_150,
    "NVMe SSD": 3_000,
}
SETUPS = ("LR, predict defaults", "HR, fast runtime", "baseline pipeline")


def main() -> None:
    """Print the tables, and write them with --write."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    p.add_argument("--write", type=Path)
    args = p.parse_args()
    speed = json.loads((args.results / "speed.json").read_text(encoding="utf-8"))
    page = render_page(speed["measured"][0])
    print(page)
    if args.write:
        put_between(args.write, BEGIN, END, page)


def render_page(measured: dict[str, Any]) -> str:
    """Return all tables of one slide and model."""
    setups = {setup["setup"]["name"]: setup for setup in measured["setups"]}
    shown = [setups[name] for name in SETUPS if name in setups]
    slide = Path(measured["slide"]).name
    lines = [
        f"One core of {measured['processor']}; {slide} stands for a slide, {measured['model']} for the model.",
        "",
    ]
    return "\n".join([*lines, *costs(shown), "", *steps(shown[0]), "", *stores(shown), ""])


def costs(shown: list[dict[str, Any]]) -> list[str]:
    """Return one row per setup: slides per hour, bytes, and the cost of cohorts."""
    heads = ["", "slides an hour and core", "MB read per slide"]
    heads += [f"{n:,} slides: core-hours | on {CORES} cores | TB read" for n in COHORTS]
    rows = []
    for setup in shown:
        seconds, size = cpu(setup), setup["read_bytes"]
        row = [setup["setup"]["name"], f"{3600 / seconds:,.0f}", f"{size / 1e6:,.0f}"]
        for count in COHORTS:
            hours = count * seconds / 3600
            row += [f"{hours:,.0f}", span(hours / CORES), f"{count * size / 1e12:,.2f}"]
        rows.append(row)
    return table(heads, rows)


def steps(setup: dict[str, Any]) -> list[str]:
    """Return the CPU-seconds of a slide per step."""
    seconds = {step: s for step, s in setup["cpu"].items() if step != "total"}
    row = [f"{s:.3f} s ({100 * s / setup['cpu']['total']:.0f} %)" for s in seconds.values()]
    return table([f"{setup['setup']['name']}: {step}" if i == 0 else step for i, step in enumerate(seconds)], [row])


def stores(shown: list[dict[str, Any]]) -> list[str]:
    """Return the number of cores that each store can supply before it becomes the bottleneck."""
    heads = ["store", "MB/s", *(f"cores it feeds: {setup['setup']['name']}" for setup in shown)]
    rate = [setup["read_bytes"] / 1e6 / cpu(setup) for setup in shown]  # MB per second and core
    rows = [[name, f"{most:,}", *(f"{most / value:,.0f}" for value in rate)] for name, most in LINKS.items()]
    return table(heads, [*rows, ["MB/s that a core asks for", "", *(f"{value:,.1f}" for value in rate)]])


def cpu(setup: dict[str, Any]) -> float:
    """Return the CPU-seconds of a slide in `predict` if measured, otherwise the sum over the steps."""
    return float(setup["whole_cpu"] or setup["cpu"]["total"])


def span(hours: float) -> str:
    """Return a duration as text."""
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.0f} h" if hours < 72 else f"{hours / 24:,.0f} days"


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table; a head can cover several columns."""
    columns = " | ".join(heads).count("|") + 1
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return [lines[0], "|" + "---|" * columns, *lines[1:]]


if __name__ == "__main__":
    main()
