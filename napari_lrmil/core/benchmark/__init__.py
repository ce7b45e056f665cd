"""Cost of a slide per step, and the saving by each part of the method: resolution, encoder, reader, runtime."""

from napari_lrmil.core.benchmark.measure import Measurement, MeasurementSpec, measure_all
from napari_lrmil.core.benchmark.pareto import cost_points, write_pareto
from napari_lrmil.core.benchmark.setups import BASELINE, CHAIN, HR_STUDENT, LR, REFERENCE_SETUPS, TEACHER, Setup
from napari_lrmil.core.benchmark.tables import (
    SpeedupFactor,
    benchmark_json,
    factor_table,
    measurement_notes,
    resolution_shares,
    speedup_factors,
    step_table,
    told_notices,
)

__all__ = [
    "BASELINE",
    "CHAIN",
    "HR_STUDENT",
    "LR",
    "REFERENCE_SETUPS",
    "TEACHER",
    "Measurement",
    "MeasurementSpec",
    "Setup",
    "SpeedupFactor",
    "benchmark_json",
    "cost_points",
    "factor_table",
    "measure_all",
    "measurement_notes",
    "resolution_shares",
    "speedup_factors",
    "step_table",
    "told_notices",
    "write_pareto",
]
