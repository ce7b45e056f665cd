"""What a slide costs, step by step, and what each part of the method saves: resolution, encoder, reader, runtime."""

from napari_lrmil.core.benchmark.measure import Measured, Question, measure_all
from napari_lrmil.core.benchmark.pareto import points, write_pareto
from napari_lrmil.core.benchmark.setups import BESIDE, CHAIN, HR_STUDENT, LR, TEACHER, TODAY, Setup
from napari_lrmil.core.benchmark.tables import (
    Factor,
    as_json,
    factor_table,
    factors,
    how_measured,
    resolution_shares,
    step_table,
)

__all__ = [
    "BESIDE",
    "CHAIN",
    "HR_STUDENT",
    "LR",
    "TEACHER",
    "TODAY",
    "Factor",
    "Measured",
    "Question",
    "Setup",
    "as_json",
    "factor_table",
    "factors",
    "how_measured",
    "measure_all",
    "points",
    "resolution_shares",
    "step_table",
    "write_pareto",
]
