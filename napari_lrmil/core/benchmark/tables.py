"""Benchmark results as JSON and as Markdown tables."""

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
    """Ratio of the costs of two setups.

    Attributes
    ----------
    changed
        Part that differs: encoder, reader, runtime, resolution, or `EVERYTHING`.
    before, after
        Names of the setups.
    cpu, wall
        CPU-seconds and wall seconds of `before`, divided by those of `after`, without writing.
    patches
        Number of patches of `before`, divided by that of `after`.
    """

    changed: str
    before: str
    after: str
    cpu: float
    wall: float
    patches: float

    @property
    def share_of_patches(self) -> float:
        """Factor of CPU-seconds over factor of patches; 1 if a patch costs the same at both resolutions."""
        return self.cpu / self.patches


def speedup_factors(measurements: Sequence[Measurement]) -> list[SpeedupFactor]:
    """Return the factor of each measured change along the chain, and of all changes together.

    The factor of the resolution appears a second time if it was measured with torch and OpenSlide too.
    """
    by_setup = {measured.setup: measured for measured in measurements}
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
        before.analysis_cpu / after.analysis_cpu,
        before.analysis_wall / after.analysis_wall,
        before.patches / after.patches,
    )


def resolution_shares(measurements: Sequence[Measurement]) -> list[float]:
    """Return `SpeedupFactor.share_of_patches` of the resolution, with default and with reference setups."""
    names = (HR_STUDENT.name, HR_OPENSLIDE.name)
    return [f.share_of_patches for f in speedup_factors(measurements) if f.changed == LR.changed and f.before in names]


def benchmark_json(spec: MeasurementSpec, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return all measurements and factors, the specification, and the processor of this machine."""
    spec_fields = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(spec).items()}
    return {
        "version": __version__,
        "processor": cpu_name(),
        **spec_fields,
        "setups": [asdict(measured) for measured in measurements],
        "factors": [
            asdict(factor) | {"share_of_patches": factor.share_of_patches} for factor in speedup_factors(measurements)
        ],
    }


def cpu_name() -> str:
    """Return the name of this CPU and its vector instruction sets, if Linux reports them."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    instruction_sets = [
        name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in entries.get("flags", "")
    ]
    return f"{entries.get('model name', platform.machine())} ({', '.join(instruction_sets) or 'no vector units known'})"


def measurement_notes(spec: MeasurementSpec) -> str:
    """Return a paragraph on the machine, the method and the units of the tables."""
    return (
        f"{cpu_name()}; {spec.device}, {spec.threads} threads; medians of {spec.repeats} passes, one step "
        f"after the other, after a warm-up pass. If a slide has more than {spec.most_patches} patches, a sample "
        "is read and encoded, and its seconds are scaled up. MPix: native pixels read from the file. GFLOP: encoder "
        "and MIL; a multiplication and an addition count as two. write: all files with overlay.png; the factors "
        "leave it out. CPU over patches: factor of CPU-seconds over factor of patches."
    )


def told_notices(measurements: Sequence[Measurement]) -> list[str]:
    """Return what was said about missing and damaged tiles, each sentence once."""
    return list(dict.fromkeys(text for measured in measurements for text in measured.notices))


def step_table(measurements: Sequence[Measurement]) -> str:
    """Return one row per setup: patches, pixels, operations, CPU-seconds of each step, wall seconds, memory."""
    columns = ["setup", "patches", "MPix", "MB read", "GFLOP", *(f"{step}, CPU-s" for step in STEPS)]
    columns += ["sum, CPU-s", "sum, s", "peak MB", "reader and runtime"]
    rows = [_row(measured) for measured in measurements]
    return _markdown(columns, rows)


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


def factor_table(measurements: Sequence[Measurement]) -> str:
    """Return one row per change along the chain, with the factors that it saves."""
    columns = ["change", "from", "to", "CPU-seconds", "wall", "patches", "CPU over patches"]
    return _markdown(
        columns,
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
            for f in speedup_factors(measurements)
        ],
    )


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
    lines.insert(1, "|" + "---|" * len(columns))
    return "\n".join(lines)
