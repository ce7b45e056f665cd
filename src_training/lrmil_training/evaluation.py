"""Evaluation of a run: every method on validation and test slides, with intervals, agreement, lesions and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from lrmil_training.cohort import SPLITS, Cohort, CohortSlide
from lrmil_training.metrics import (
    Resampler,
    Scored,
    auroc_with_interval,
    classification,
    fit_temperature,
    paired_difference,
)
from napari_lrmil.core.compare import lesion_auroc, lesion_shares, measure_agreement, read_outlines, to_lr
from napari_lrmil.core.grid import NestedGrid

REFERENCE = "teacher"  # the method that agreement is measured against


@dataclass(frozen=True)
class SlideResult:
    """What one method says of one slide.

    Attributes
    ----------
    row
        The slide.
    grid
        Its nested grids.
    logits
        (C,) raw.
    attention
        (K,) on the HR grid where `high`, else (N,) on the LR grid.
    high
        Whether the method reads HR patches.
    """

    row: CohortSlide
    grid: NestedGrid
    logits: NDArray[np.float32]
    attention: NDArray[np.float32]
    high: bool

    @property
    def lr_attention(self) -> NDArray[np.float64]:
        """(N,) attention on the LR grid."""
        return to_lr(self.grid, self.attention) if self.high else self.attention.astype(np.float64)


Results = Mapping[str, Sequence[SlideResult]]  # method -> slides


def temperature_of(cohort: Cohort, results: Sequence[SlideResult]) -> float | None:
    """Return the calibration temperature of a method, fitted on validation slides; None where they cannot tell it."""
    val = [r for r in results if r.row.split == "val"]
    logits = np.array([r.logits for r in val], dtype=np.float64)
    return fit_temperature(logits, np.array([cohort.target(r.row) for r in val]))


def evaluate(cohort: Cohort, results: Results, bootstrap: int) -> dict[str, Any]:
    """Return the content of ``metrics.json``: method -> split -> figures."""
    metrics: dict[str, Any] = {method: {} for method in results}
    for split in SPLITS[1:]:
        if cohort.of(split):
            for method, figures in _split(cohort, results, split, bootstrap).items():
                metrics[method][split] = figures
    return metrics


def _split(cohort: Cohort, results: Results, split: str, bootstrap: int) -> dict[str, dict[str, Any]]:
    rows = {method: [r for r in its if r.row.split == split] for method, its in results.items()}
    scored = {m: _scored(cohort, its, temperature_of(cohort, results[m])) for m, its in rows.items()}
    first = next(iter(scored.values()))
    resampler = Resampler(first.targets, first.patients, bootstrap)
    found = {}
    for method, its in rows.items():
        others = [other for other in rows if other != method]
        found[method] = {
            "auroc": auroc_with_interval(scored[method], resampler),
            **classification(scored[method], cohort.classes),
            "paired": {other: paired_difference(scored[method], scored[other], resampler) for other in others},
            "agreement": None if method == REFERENCE else _agreement(its, rows[REFERENCE]),
            "lesion_auroc": _lesions(its),
            "cost": _cost(its),
        }
    return found


def _scored(cohort: Cohort, results: Sequence[SlideResult], temperature: float | None) -> Scored:
    logits = np.array([r.logits for r in results], dtype=np.float64)
    targets = np.array([cohort.target(r.row) for r in results])
    return Scored(softmax(logits / (temperature or 1.0), axis=1), targets, tuple(r.row.patient for r in results))


def _agreement(results: Sequence[SlideResult], teacher: Sequence[SlideResult]) -> dict[str, float | None]:
    """Return mean agreement with the teacher over slides; where a figure is undefined a slide does not count."""
    found = [
        asdict(measure_agreement(r.grid, r.lr_attention, t.attention)) for r, t in zip(results, teacher, strict=True)
    ]
    return {key: _mean([one[key] for one in found]) for key in ("spearman", "jaccard_top10", "js_divergence")}


def _lesions(results: Sequence[SlideResult]) -> float | None:
    """Return the mean over slides with outlines of how well attention on the LR grid finds them."""
    values = []
    for r in results:
        if r.row.lesions.exists() and (outlines := read_outlines(r.row.lesions)):
            lattice = r.grid.lattice
            values.append(lesion_auroc(r.lr_attention, lesion_shares(r.grid.lr_corners, lattice.lr_cell, outlines)))
    return _mean(values)


def _cost(results: Sequence[SlideResult]) -> dict[str, float]:
    """Return patches per slide that the method encodes: the part of the cost that does not depend on the machine."""
    patches = [len(r.grid.hr_index if r.high else r.grid.lr_index) for r in results]
    return {"patches_per_slide": float(np.mean(patches)), "patches_total": float(np.sum(patches))}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
