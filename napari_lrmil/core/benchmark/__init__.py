"""What a slide costs, step by step, and what each part of the method saves: resolution, encoder, reader, runtime."""

from napari_lrmil.core.benchmark.measure import Measurement, MeasurementSpec, measure_all
from napari_lrmil.core.benchmark.pareto import cost_points, write_pareto
from napari_lrmil.core.benchmark.setups import BESIDE, CHAIN, HR_STUDENT, LR, TEACHER, TODAY, Setup
from napari_lrmil.core.benchmark.tables import (
    SpeedupFactor,
    benchmark_json,
    factor_table,
    how_measured,
    resolution_shares,
    speedup_factors,
    step_table,
)

__all__ = [
    "BESIDE",
    "CHAIN",
    "HR_STUDENT",
    "LR",
    "TEACHER",
    "TODAY",
    "Measurement",
    "MeasurementSpec",
    "Setup",
    "SpeedupFactor",
    "benchmark_json",
    "cost_points",
    "factor_table",
    "how_measured",
    "measure_all",
    "resolution_shares",
    "speedup_factors",
    "step_table",
    "write_pareto",
]
