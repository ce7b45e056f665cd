"""Costs as JSON and as Markdown tables."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from napari_lrmil.core.benchmark.measure import STEPS, Measurement, MeasurementSpec
from napari_lrmil.core.benchmark.setups import BASELINE, CHAIN, HR_OPENSLIDE, HR_STUDENT, LR, LR_TORCH
from napari_lrmil.version import __version__

EVERYTHING = "everything"


@dataclass(frozen=True)
class SpeedupFactor:
    """How many times less one setup costs than another.

    Attributes
    ----------
    changed
        What differs: encoder, reader, runtime, resolution, or `EVERYTHING`.
    before, after
        Names of the setups.
    cpu, wall
        CPU-seconds and wall seconds, the former over the latter.
    patches
        Patches, likewise.
    """

    changed: str
    before: str
    after: str
    cpu: float
    wall: float
    patches: float

    @property
    def share_of_patches(self) -> float:
        """CPU-seconds saved over patches saved: 1 where a patch costs the same at either resolution."""
        return self.cpu / self.patches


def speedup_factors(found: Sequence[Measurement]) -> list[SpeedupFactor]:
    """Return the factor of each change along the chain, as far as it was measured, and that of all of them together.

    The resolution's comes a second time, for torch and OpenSlide, where both were measured.
    """
    by_setup = {measured.setup: measured for measured in found}
    pairs = [(b.changed, a, b) for a, b in pairwise(CHAIN)]
    pairs += [(LR.changed, HR_OPENSLIDE, LR_TORCH), (EVERYTHING, BASELINE, LR)]
    return [
        _factor(changed, by_setup[before], by_setup[after])
        for changed, before, after in pairs
        if before in by_setup and after in by_setup
    ]


def _factor(changed: str, before: Measurement, after: Measurement) -> SpeedupFactor:
    return SpeedupFactor(
        changed,
        before.setup.name,
        after.setup.name,
        before.cpu["total"] / after.cpu["total"],
        before.wall["total"] / after.wall["total"],
        before.patches / after.patches,
    )


def resolution_shares(found: Sequence[Measurement]) -> list[float]:
    """Return `Factor.share_of_patches` of the resolution, on the fast path and on the reference path."""
    names = (HR_STUDENT.name, HR_OPENSLIDE.name)
    return [f.share_of_patches for f in speedup_factors(found) if f.changed == LR.changed and f.before in names]


def benchmark_json(question: MeasurementSpec, found: Sequence[Measurement]) -> dict[str, Any]:
    """Return everything that was measured, what was asked, and the machine's processor."""
    told = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(question).items()}
    return {
        "version": __version__,
        "processor": cpu_name(),
        **told,
        "setups": [asdict(measured) for measured in found],
        "factors": [
            asdict(factor) | {"share_of_patches": factor.share_of_patches} for factor in speedup_factors(found)
        ],
    }


def cpu_name() -> str:
    """Return the name of this CPU, and whether it multiplies bfloat16 where it says so."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    abilities = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in facts.get("flags", "")]
    return f"{facts.get('model name', platform.machine())} ({', '.join(abilities) or 'no vector units known'})"


def measurement_notes(question: MeasurementSpec) -> str:
    """Return on what and how the figures of the tables were measured, and what they mean."""
    return (
        f"{cpu_name()}; {question.device}, {question.threads} threads; medians of {question.repeats} passes, one step "
        f"after the other, after one that loads everything. Of more than {question.most_patches} patches a sample "
        "was read and encoded, and the seconds scaled up. MPix: native pixels asked of the file. GFLOP: of encoder "
        "and MIL, a multiplication and an addition counted as two. CPU over patches: CPU-seconds saved over patches "
        "saved."
    )


def step_table(found: Sequence[Measurement]) -> str:
    """Return a row per setup: patches, pixels, operations, CPU-seconds of each step, wall seconds, memory."""
    heads = ["setup", "patches", "MPix", "MB read", "GFLOP", *(f"{step}, CPU-s" for step in STEPS)]
    heads += ["sum, CPU-s", "sum, s", "peak MB", "reader and runtime"]
    rows = [_row(measured) for measured in found]
    return _markdown(heads, rows)


def _row(measured: Measurement) -> list[str]:
    scaled = "" if measured.sampled == measured.patches else f" ({measured.sampled} measured)"
    return [
        measured.setup.name,
        f"{measured.patches:,}{scaled}",
        f"{measured.pixels / 1e6:,.1f}",
        "" if measured.read_bytes is None else f"{measured.read_bytes / 1e6:,.1f}",
        f"{measured.flops / 1e9:,.0f}",
        *(f"{measured.cpu[step]:,.3f}" for step in STEPS),
        f"{measured.cpu['total']:,.2f}",
        f"{measured.wall['total']:,.2f}",
        f"{measured.peak_mb:,.0f}",
        f"{measured.reader}, {measured.runtime.name} {measured.runtime.precision}",
    ]


def factor_table(found: Sequence[Measurement]) -> str:
    """Return a row per change along the chain: how many times less it costs."""
    heads = ["change", "from", "to", "CPU-seconds", "wall", "patches", "CPU over patches"]
    return _markdown(
        heads,
        [
            [
                f.changed,
                f.before,
                f.after,
                f"{f.cpu:.1f} times",
                f"{f.wall:.1f} times",
                f"{f.patches:.1f} times",
                f"{f.share_of_patches:.2f}" if f.changed == LR.changed else "",
            ]
            for f in speedup_factors(found)
        ],
    )


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (heads, *rows)]
    lines.insert(1, "|" + "---|" * len(heads))
    return "\n".join(lines)
