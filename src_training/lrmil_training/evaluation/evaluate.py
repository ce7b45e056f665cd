"""Evaluation of a run: metrics of each method on validation and test slides, with agreement, lesions and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from lrmil_training.data.cohort import CALIBRATION, SPLITS, Cohort, CohortSlide
from lrmil_training.evaluation.limits import fit_limits, measure_limits
from lrmil_training.evaluation.metrics import (
    Resampler,
    ScoredSlides,
    auroc_with_interval,
    classification_metrics,
    fit_temperature,
    paired_difference,
    unlabelled_auroc,
)
from lrmil_training.evaluation.patients import (
    PATIENTS,
    PatientBag,
    group_slides,
    mean_logits,
    measure_patients,
    scale_logits,
)
from lrmil_training.evaluation.significance import assess_non_inferiority, delong_test, smallest_class
from lrmil_training.evaluation.summary import AGREEMENT_METRICS
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.inference.teacher_comparison import read_lesions
from napari_lrmil.core.metrics.agreement import (
    lesion_auroc,
    lesion_shares,
    measure_agreement,
    pool_to_lr_grid,
)
from napari_lrmil.core.models.cohort_distance import CohortDistance
from napari_lrmil.core.models.limits import NetworkLimits
from napari_lrmil.core.models.patient_bag import ONE_BAG, bag_logits
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.patching.regions import RegionFile
from napari_lrmil.core.results.patient_answers import MEAN_OF_LOGITS

REFERENCE_METHOD = "teacher"  # agreement and non-inferiority are measured against it
LEVEL0_ORIGIN = Bounds(0, 0, 0, 0)  # files beside slides do not count from the corner of the scanned area
MEASURED_SPLITS = SPLITS[1:]


@dataclass(frozen=True)
class SlideResult:
    """Result of one method on one slide.

    Attributes
    ----------
    row
        The slide.
    grid
        Its nested grids.
    logits
        (C,) uncalibrated.
    attention
        (K,) on the HR grid if `high`, else (N,) on the LR grid.
    high
        Whether the method reads HR patches.
    pixels
        Native pixels decoded for the slide; None if they were not counted.
    cpu_seconds
        CPU time over all threads from opening the slide to its logits; None if it was not measured.
    cohort_distance
        Distance from the training slides; None if it was not measured.
    mass
        `attention_mass` of the slide, if the method's bags are those of patients; None if they are those of slides.
    """

    row: CohortSlide
    grid: NestedGrid
    logits: NDArray[np.float32]
    attention: NDArray[np.float32]
    high: bool
    pixels: int | None = None
    cpu_seconds: float | None = None
    cohort_distance: CohortDistance | None = None
    mass: float | None = None

    @property
    def lr_attention(self) -> NDArray[np.float64]:
        """(N,) attention on the LR grid."""
        return pool_to_lr_grid(self.grid, self.attention) if self.high else self.attention.astype(np.float64)


Results = Mapping[str, Sequence[SlideResult]]  # method -> slides
Temperatures = Mapping[str, float | None]


def fit_method_temperature(cohort: Cohort, results: Sequence[SlideResult]) -> float | None:
    """Return the calibration temperature of a method; None if validation slides do not determine it."""
    if not cohort.is_labelled:
        return None
    val = [r for r in results if r.row.split == "val"]
    if val and val[0].mass is not None:  # what was trained is the answer by patient
        bags = group_slides([r.row.patient for r in val], [cohort.target(r.row) for r in val]).labelled
        return fit_temperature(patient_logits(val, bags), np.array([bag.target for bag in bags]))
    logits = np.array([r.logits for r in val], dtype=np.float64)
    return fit_temperature(logits, np.array([cohort.target(r.row) for r in val]))


def patient_logits(results: Sequence[SlideResult], bags: Sequence[PatientBag]) -> NDArray[np.float64]:
    """Return (P, C) logits of patients: of one bag of all slides if the method has such bags, else the slides' mean."""
    logits, masses = np.array([r.logits for r in results]), [r.mass for r in results]
    if None in masses:
        return mean_logits(logits, bags)
    rows = [list(bag.rows) for bag in bags]
    return np.array([bag_logits(logits[r], [m for i in r if (m := masses[i]) is not None]) for r in rows])


def pooling_of(results: Sequence[SlideResult]) -> str:
    """Return how an answer by patient is made of the slides of a method."""
    return MEAN_OF_LOGITS if any(r.mass is None for r in results) else ONE_BAG


def fit_method_temperatures(cohort: Cohort, results: Results) -> dict[str, float | None]:
    """Return the calibration temperature of each method, see `fit_method_temperature`."""
    return {method: fit_method_temperature(cohort, slide_results) for method, slide_results in results.items()}


def describe_protocol(folds: int, seeds: int) -> dict[str, Any]:
    """Return the entry ``protocol`` of ``metrics.json``: how slides were split. No table mixes the two kinds."""
    kind = "k-fold cross-validation" if folds else "fixed split"
    return {"kind": kind, "folds": folds, "seeds": seeds}


def evaluate_methods(
    cohort: Cohort,
    results: Results,
    bootstrap: int,
    *,
    splits: Sequence[str] = MEASURED_SPLITS,
    temperatures: Temperatures | None = None,
) -> dict[str, Any]:
    """Return method -> split -> metrics, the content of ``metrics.json``.

    Parameters
    ----------
    cohort
        Slides, classes and splits.
    results
        Method -> results by slide; the same slides in the same order for all methods.
    bootstrap
        Number of bootstrap resamples for each interval.
    splits
        Splits to evaluate; those without slides are skipped.
    temperatures
        Method -> calibration temperature; fitted on validation slides if not given.
    """
    fitted = fit_method_temperatures(cohort, results) if temperatures is None else temperatures
    metrics: dict[str, Any] = {method: {} for method in results}
    for split in splits:
        if cohort.of(split):
            for method, values in _evaluate_split(cohort, results, split, bootstrap, fitted).items():
                metrics[method][split] = values
    return metrics


def add_limits(
    metrics: Mapping[str, Any],
    cohort: Cohort,
    results: Results,
    temperatures: Temperatures,
    limits: Mapping[str, NetworkLimits],
    *,
    chosen_on: str = "",
    level: str = "slide",
) -> None:
    """Add what `measure_limits` returns to the metrics of `evaluate_methods`, for the methods that have limits.

    Parameters
    ----------
    metrics
        Method -> split -> metrics; changed in place.
    cohort, results, temperatures
        See `evaluate_methods`.
    limits
        Method -> operating point and conformal scores.
    chosen_on
        Split on which the operating points were chosen; empty if it is none of this cohort.
    level
        What the limits are about, ``slide`` or ``patient``; see `ModelLimits`.
    """
    for method, network in limits.items() if cohort.is_labelled else ():
        for split, values in metrics[method].items():
            on_split = [r for r in results[method] if r.row.split == split]
            scored = SCORERS[level](cohort, on_split, temperatures[method])
            values |= measure_limits(scored, network, cohort.classes, chosen_here=split == chosen_on, level=level)


def _evaluate_split(
    cohort: Cohort, results: Results, split: str, bootstrap: int, temperatures: Temperatures
) -> dict[str, dict[str, Any]]:
    on_split = {method: [r for r in all_slides if r.row.split == split] for method, all_slides in results.items()}
    if not cohort.is_labelled:
        return {method: _evaluate_unlabelled(cohort, method, on_split) for method in on_split}
    scored = {method: score_slides(cohort, slides, temperatures[method]) for method, slides in on_split.items()}
    first = next(iter(scored.values()))
    resampler = Resampler(first.targets, first.patients, bootstrap)
    metrics = {}
    for method, slides in on_split.items():
        has_reference = _has_reference(method, on_split)
        metrics[method] = {
            "auroc": auroc_with_interval(scored[method], resampler),
            **classification_metrics(scored[method], cohort.classes),
            "calibrated": temperatures[method] is not None,
            **_compare_with_others(method, scored, resampler),
            "agreement": _mean_agreement(slides, on_split[REFERENCE_METHOD]) if has_reference else None,
            "lesion_auroc": _mean_of_defined([_slide_lesion_auroc(r) for r in slides]),
            "cost": _mean_cost(slides),
        }
    for method, figures in _evaluate_patients(cohort, on_split, bootstrap, temperatures).items():
        metrics[method][PATIENTS] = figures
    return metrics


def _evaluate_unlabelled(cohort: Cohort, method: str, on_split: Results) -> dict[str, Any]:
    """Return the metrics of a method on slides without labels: those of `_evaluate_split`, undefined but for a few."""
    slides = on_split[method]
    has_reference = _has_reference(method, on_split)
    undefined = dict.fromkeys(("balanced_accuracy", "f1", "ece", "brier"))
    return {
        "auroc": unlabelled_auroc([r.row.patient for r in slides]),
        **undefined,
        "per_class": {c: {"precision": None, "recall": None, "f1": None, "n": 0} for c in cohort.classes},
        "class_counts": dict.fromkeys(cohort.classes, 0),
        "calibrated": False,
        "paired": {},
        "delong": {},
        "non_inferiority": None,
        "agreement": _mean_agreement(slides, on_split[REFERENCE_METHOD]) if has_reference else None,
        "same_class": _share_of_same_class(slides, on_split[REFERENCE_METHOD]) if has_reference else None,
        "lesion_auroc": _mean_of_defined([_slide_lesion_auroc(r) for r in slides]),
        "cost": _mean_cost(slides),
    }


def _share_of_same_class(results: Sequence[SlideResult], teacher: Sequence[SlideResult]) -> float:
    """Return the share of the slides to which a method gives the class that the teacher gives."""
    return float(np.mean([r.logits.argmax() == t.logits.argmax() for r, t in zip(results, teacher, strict=True)]))


def _evaluate_patients(
    cohort: Cohort, on_split: Results, bootstrap: int, temperatures: Temperatures
) -> dict[str, dict[str, Any]]:
    """Return method -> figures by patient; nothing if every patient has one slide."""
    rows = [r.row for r in next(iter(on_split.values()))]
    bags = group_slides([row.patient for row in rows], [cohort.target(row) for row in rows])
    if not bags.has_several_slides:
        return {}
    logits = {m: patient_logits(slides, bags.labelled) for m, slides in on_split.items()}
    pooling = pooling_of(next(iter(on_split.values())))
    return measure_patients(bags, logits, temperatures, cohort.classes, bootstrap, pooling)


def _has_reference(method: str, results: Mapping[str, Any]) -> bool:
    return method != REFERENCE_METHOD and REFERENCE_METHOD in results


def _compare_with_others(method: str, scored: Mapping[str, ScoredSlides], resampler: Resampler) -> dict[str, Any]:
    others = [other for other in scored if other != method]
    paired = {other: paired_difference(scored[method], scored[other], resampler) for other in others}
    verdict = None
    if _has_reference(method, scored):
        fewest = smallest_class(scored[method])
        verdict = assess_non_inferiority(paired[REFERENCE_METHOD], resampler.interval, fewest)
    tests = {other: delong_test(scored[method], scored[other]) for other in others}
    return {"paired": paired, "delong": tests, "non_inferiority": verdict}


def score_slides(cohort: Cohort, results: Sequence[SlideResult], temperature: float | None) -> ScoredSlides:
    """Return the calibrated probabilities of some slides by one method."""
    targets = np.array([cohort.target(r.row) for r in results])
    probabilities = np.array([_probabilities(r, temperature) for r in results])
    return ScoredSlides(probabilities, targets, tuple(r.row.patient for r in results))


def score_patients(cohort: Cohort, results: Sequence[SlideResult], temperature: float | None) -> ScoredSlides:
    """Return the calibrated probabilities of the patients of some slides, a row for each; see `patient_logits`.

    Patients whose slides have several labels are left out.
    """
    bags = group_slides([r.row.patient for r in results], [cohort.target(r.row) for r in results]).labelled
    logits = patient_logits(results, bags) if bags else np.empty((0, len(cohort.classes)))
    targets = np.array([bag.target for bag in bags], dtype=np.int64)
    return ScoredSlides(scale_logits(logits, temperature), targets, tuple(bag.patient for bag in bags))


SCORERS: dict[str, Callable[[Cohort, Sequence[SlideResult], float | None], ScoredSlides]] = {
    "slide": score_slides,
    "patient": score_patients,
}


def fit_method_limits(
    cohort: Cohort, results: Results, temperatures: Temperatures, sensitivity: float | None, level: str
) -> dict[str, NetworkLimits]:
    """Return method -> limits, from the validation and calibration slides of a run.

    Parameters
    ----------
    cohort, results, temperatures
        See `evaluate_methods`.
    sensitivity
        See `fit_limits`.
    level
        What had a label in training, ``slide`` or ``patient``.
    """
    limits: dict[str, NetworkLimits] = {}
    for method, slides in results.items() if cohort.is_labelled else ():
        val, calibration = (
            SCORERS[level](cohort, [r for r in slides if r.row.split == split], temperatures[method])
            for split in ("val", CALIBRATION)
        )
        is_aside = len(calibration.targets) > 0
        limits[method] = fit_limits(val, calibration if is_aside else None, cohort.classes, sensitivity)
    return limits


def _probabilities(result: SlideResult, temperature: float | None) -> NDArray[np.float64]:
    return np.asarray(softmax(result.logits.astype(np.float64) / (temperature or 1.0)), dtype=np.float64)


# ---------------------------------------------------------------- table of slides


def build_slide_table(
    cohort: Cohort, results: Results, temperatures: Temperatures | None = None
) -> list[dict[str, Any]]:
    """Return a row per slide with the results of each method, the content of ``slides.json``.

    Parameters
    ----------
    cohort, results, temperatures
        See `evaluate_methods`.
    """
    fitted = fit_method_temperatures(cohort, results) if temperatures is None else temperatures
    by_slide = {method: {r.row.name: r for r in slides} for method, slides in results.items()}
    rows = []
    for slide in cohort.slides:
        of_slide = {method: slides[slide.name] for method, slides in by_slide.items() if slide.name in slides}
        if of_slide:
            teacher = of_slide.get(REFERENCE_METHOD)
            methods = {m: _slide_metrics(cohort, r, teacher, fitted[m]) for m, r in of_slide.items()}
            grid = next(iter(of_slide.values())).grid
            distance = next((r.cohort_distance for r in of_slide.values() if r.cohort_distance), None)
            rows.append(
                {
                    "slide": slide.name,
                    "patient": slide.patient,
                    "label": slide.label,
                    "split": slide.split,
                    **({"site": slide.site} if slide.site else {}),
                    **({"cohort_distance": asdict(distance)} if distance else {}),
                    "n_patches": len(grid.lr_index),
                    "n_hr_patches": len(grid.hr_index),
                    "methods": methods,
                }
            )
    return rows


def _slide_metrics(
    cohort: Cohort, result: SlideResult, teacher: SlideResult | None, temperature: float | None
) -> dict[str, Any]:
    agreement = None if teacher is None or teacher is result else _slide_agreement(result, teacher)
    return {
        "logits": _name_classes(cohort, result.logits),
        "probabilities": _name_classes(cohort, _probabilities(result, temperature)),
        "agreement": agreement,
        "lesion_auroc": _slide_lesion_auroc(result),
    }


def _name_classes(cohort: Cohort, values: NDArray[np.floating[Any]]) -> dict[str, float]:
    return dict(zip(cohort.classes, values.tolist(), strict=True))


def _mean_agreement(results: Sequence[SlideResult], teacher: Sequence[SlideResult]) -> dict[str, float | None]:
    """Return the mean agreement with the teacher; slides with an undefined value are left out of that mean."""
    agreements = [_slide_agreement(r, t) for r, t in zip(results, teacher, strict=True)]
    return {key: _mean_of_defined([agreement[key] for agreement in agreements]) for key in AGREEMENT_METRICS}


def _slide_agreement(result: SlideResult, teacher: SlideResult) -> dict[str, float | None]:
    """Return the agreement of a method's attention with the teacher's, both on the LR grid."""
    agreement = asdict(measure_agreement(result.grid, result.lr_attention, teacher.attention))
    return {key: agreement[key] for key in AGREEMENT_METRICS}


def _slide_lesion_auroc(result: SlideResult) -> float | None:
    """Return the AUROC of LR-grid attention for outlined lesions; None without outlines or if it is undefined."""
    lesions = _read_lesions(result.row)
    if not lesions.regions:
        return None
    areas = [region.geometry for region in lesions.regions]
    shares = lesion_shares(result.grid.lr_corners, result.grid.lattice.lr_cell, areas)
    return lesion_auroc(result.lr_attention, shares)


def note_lesion_files(cohort: Cohort) -> Cohort:
    """Return the cohort with a notice on what was left out, repaired or guessed in the lesion files of its slides.

    Raises
    ------
    RegionError
        If a lesion file cannot be read. Training finds this before any work.
    """
    warnings = (warning for row in cohort.slides for warning in _read_lesions(row).warnings)
    return replace(cohort, notices=(*cohort.notices, *warnings))


def _read_lesions(row: CohortSlide) -> RegionFile:
    """Return the lesions in the file beside a slide, which is in level-0 pixels; none if there is no file."""
    return read_lesions(row.path, LEVEL0_ORIGIN)


def _mean_cost(results: Sequence[SlideResult]) -> dict[str, float | None]:
    """Return mean patches, pixels and CPU time of a slide; only patches are independent of the machine."""
    patches = [len(r.grid.hr_index if r.high else r.grid.lr_index) for r in results]
    return {
        "patches_per_slide": float(np.mean(patches)),
        "patches_total": float(np.sum(patches)),
        "pixels_per_slide": _mean_if_complete([r.pixels for r in results]),
        "cpu_seconds_per_slide": _mean_if_complete([r.cpu_seconds for r in results]),
    }


def _mean_of_defined(values: Sequence[float | None]) -> float | None:
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined else None


def _mean_if_complete(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None if a value is missing: means over different slides are not comparable."""
    return None if None in values else _mean_of_defined(values)
