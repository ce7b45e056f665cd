"""What a slide costs, step by step, and what each part of the method saves: resolution, encoder, reader, runtime."""

from napari_lrmil.core.costs.chain import BESIDE, CHAIN, HR_STUDENT, LR, TEACHER, TODAY, Setup
from napari_lrmil.core.costs.factors import Factor, factors, resolution_shares
from napari_lrmil.core.costs.measure import Measured, Question, measure_all
from napari_lrmil.core.costs.pareto import points, write_pareto
from napari_lrmil.core.costs.tables import as_json, factor_table, how_measured, step_table

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
