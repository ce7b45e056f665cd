"""Evaluation of the recipes of benchmarks/real_tissue.py: rows, paired differences over slides, and goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from real_tissue_cells import FOLDS
from real_tissue_recipes import FINETUNED, FROZEN, NEW, OLD, OUTLINES, SETTINGS, UNCOLOURED, students_of
from real_tissue_verdicts import Cells, Expectation, mean, signed

Float = NDArray[np.float64]
Read = Callable[[dict[str, Any]], float | None]
RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """One method of one recipe: the kind of cells it is measured in, and its name in their metrics."""

    label: str
    kind: str
    recipe: str
    method: str


OLD_TEACHER = Row("HR teacher, old recipe", "teacher", OLD, "teacher")
TEACHER = Row("HR teacher, new recipe", "teacher", NEW, "teacher")
UNCOLOURED_TEACHER = Row("HR teacher, new without colour", "teacher", UNCOLOURED, "teacher")
STUDENT = Row("student of three stages, new", "student", NEW, "student")
TUNED = Row("labels only, fine-tuned, new", "student", NEW, FINETUNED)
TWO_STAGES = Row("stages 1 and 2, new", "student", NEW, "both")
FROZEN_LABELS = Row("labels only, frozen, new", "student", NEW, FROZEN)
ROWS = (
    OLD_TEACHER,
    TEACHER,
    UNCOLOURED_TEACHER,
    STUDENT,
    TUNED,
    FROZEN_LABELS,
    TWO_STAGES,
    Row("stage 1 under the teacher's head, new", "student", NEW, "stage1_only"),
    Row("stages 1 and 2, uniform attention, new", "uniform", NEW, "student"),
    Row("HR teacher, new with outlines", "student", OUTLINES, "teacher"),
    Row("student of three stages, new with outlines", "student", OUTLINES, "student"),
    Row("labels only, fine-tuned, new with outlines", "student", OUTLINES, FINETUNED),
    Row("student of three stages, old", "student", OLD, "student"),
    Row("labels only, fine-tuned, old", "student", OLD, FINETUNED),
)
PAIRS = (
    (TEACHER, OLD_TEACHER),
    (UNCOLOURED_TEACHER, OLD_TEACHER),
    (STUDENT, TEACHER),
    (STUDENT, TUNED),
    (STUDENT, FROZEN_LABELS),
    (TWO_STAGES, TUNED),
)


def runs_of(cells: Cells, row: Row, setting: str) -> dict[tuple[int, int], dict[str, Any]]:
    """Return (fold, seed) -> cell for the cells that have a row in a setting. A teacher alone has no LR resolution."""
    cohort, _, resolution = students_of(setting, 0)
    return {
        (c["cell"]["fold"], c["cell"]["seed"]): c
        for c in cells
        if (c["cell"]["kind"], c["cell"]["recipe"], c["cell"]["cohort"]) == (row.kind, row.recipe, cohort)
        and (row.kind == "teacher" or c["cell"]["resolution"] == resolution)
        and row.method in c["metrics"]
    }


def fold_figures(cells: Cells, row: Row, setting: str, read: Read, split: str = "test") -> dict[int, list[float]]:
    """Return fold -> a figure of each seed; folds without any are left out."""
    figures: dict[int, list[float]] = {}
    for (fold, _), cell in sorted(runs_of(cells, row, setting).items(), key=lambda item: item[0]):
        value = read(cell["metrics"][row.method][split])
        if value is not None:
            figures.setdefault(fold, []).append(value)
    return figures


def auroc(figures: dict[str, Any]) -> float | None:
    """Return the AUROC among the figures of a split."""
    value: float | None = figures["auroc"]["value"]
    return value


def lesion_auroc(figures: dict[str, Any]) -> float | None:
    """Return how well attention ranks patches by their share of lesion."""
    value: float | None = figures["lesion_auroc"]
    return value


def spearman(figures: dict[str, Any]) -> float | None:
    """Return the correlation of a student's attention with its teacher's."""
    value: float | None = (figures.get("agreement") or {}).get("spearman")
    return value


def over_folds(figures: dict[int, list[float]]) -> float | None:
    """Return the mean over folds of the mean over seeds."""
    return mean([mean(values) for values in figures.values()])


# ---------------------------------------------------------------- paired differences


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two rows in AUROC on the same slides.

    Attributes
    ----------
    folds
        Fold -> mean over the seeds that both rows have.
    value, low, high
        Mean over folds, and its 95 % bounds. Slides are resampled within folds and classes, alike for all seeds.
    runs
        Number of pairs of runs.
    """

    folds: dict[int, float]
    value: float
    low: float
    high: float
    runs: int


def paired_difference(cells: Cells, row: Row, other: Row, setting: str) -> PairedDifference | None:
    """Return the difference of `row` less `other` over the folds and seeds that have both; None without any."""
    first, second = (runs_of(cells, r, setting) for r in (row, other))
    common = sorted(set(first) & set(second))
    if not common:
        return None
    folds, draws = {}, []
    for fold in sorted({fold for fold, _ in common}):
        pairs = [(first[key], second[key]) for key in common if key[0] == fold]
        values = [_resampled(a, row.method, fold) - _resampled(b, other.method, fold) for a, b in pairs]
        resampled = np.mean(values, axis=0)  # (1 + RESAMPLES,): the slides themselves come first
        folds[fold] = float(resampled[0])
        draws.append(resampled[1:])
    low, high = np.percentile(np.mean(draws, axis=0), [2.5, 97.5])
    return PairedDifference(folds, float(np.mean([*folds.values()])), float(low), float(high), len(common))


def _resampled(cell: dict[str, Any], method: str, fold: int) -> Float:
    """Return the AUROC of a run: first on its test slides, then on class-stratified resamples of them."""
    slides = sorted(cell["slides"], key=lambda s: str(s["slide"]))  # the same order in all cells of a fold
    scores = np.array([s["probabilities"][method] for s in slides])
    is_malignant = np.array([s["label"] == "malignant" for s in slides])
    positive, negative = scores[is_malignant][:, None], scores[~is_malignant][None, :]
    ranked = (positive > negative) + 0.5 * (positive == negative)  # (P, N)
    rng = np.random.default_rng(fold)  # equal for all rows and seeds of a fold, which makes differences paired
    weights = [
        np.vstack([np.full(n, 1 / n), rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n]) for n in ranked.shape
    ]
    return np.asarray(np.einsum("bp,pn,bn->b", weights[0], ranked, weights[1], optimize=True), dtype=np.float64)


# ---------------------------------------------------------------- goals


def recipe_goals(cells: Cells) -> list[Expectation]:
    """Return every goal of the recipes, with its figure and whether it held."""
    teacher = fold_figures(cells, TEACHER, "default", auroc)
    return [
        _difference_goal(cells, TEACHER, OLD_TEACHER, "default", 0.10),
        _every_fold(teacher, TEACHER.label, 0.65),
        _level(teacher, f"{TEACHER.label}: mean AUROC at least 0.78, default", 0.78),
        _level(fold_figures(cells, TEACHER, "harder", auroc), f"{TEACHER.label}: mean at least 0.62, harder", 0.62),
        *(_difference_goal(cells, STUDENT, TEACHER, setting, -0.03) for setting in SETTINGS),
        *(_not_below(cells, STUDENT, TUNED, setting) for setting in SETTINGS),
        _better_in_two(cells, STUDENT, TUNED, 0.05),
        _level(
            fold_figures(cells, STUDENT, "default", lesion_auroc), "student: lesion AUROC at least 0.85, default", 0.85
        ),
        _level(fold_figures(cells, STUDENT, "default", spearman), "student: ρ at least 0.45, default", 0.45),
    ]


def _difference_goal(cells: Cells, row: Row, other: Row, setting: str, least: float) -> Expectation:
    difference = paired_difference(cells, row, other, setting)
    is_held = None if difference is None else _decided(difference.folds, bool(difference.value >= least - 1e-9))
    statement = f"{row.label} less {other.label} at least {least:+.2f}, {setting}"
    return Expectation(statement, format_difference(difference), is_held)


def _not_below(cells: Cells, row: Row, other: Row, setting: str) -> Expectation:
    """Return whether zero or more lies within the interval of the difference."""
    difference = paired_difference(cells, row, other, setting)
    is_held = None if difference is None else _decided(difference.folds, bool(difference.high >= 0))
    statement = f"{row.label} not below {other.label} beyond noise, {setting}"
    return Expectation(statement, format_difference(difference), is_held)


def _better_in_two(cells: Cells, row: Row, other: Row, least: float) -> Expectation:
    """Return whether the difference is at least `least` in two of the three settings."""
    differences = [paired_difference(cells, row, other, setting) for setting in SETTINGS]
    complete = [d.value for d in differences if d and len(d.folds) == len(FOLDS)]
    count, missing = sum(value >= least - 1e-9 for value in complete), len(SETTINGS) - len(complete)
    is_held = True if count >= 2 else False if count + missing < 2 else None
    measured = f"{count} of {len(complete)} settings" if complete else "-"
    return Expectation(f"{row.label} better than {other.label} by {least:.2f} in two settings", measured, is_held)


def _every_fold(figures: dict[int, list[float]], label: str, least: float) -> Expectation:
    means = [float(np.mean(values)) for values in figures.values()]
    # One fold below decides, whatever the others are.
    is_held = None if not means else False if min(means) < least else _decided(figures, True)
    measured = ", ".join(f"{value:.3f}" for value in means) or "-"
    return Expectation(f"{label}: no fold below {least:.2f}, default", measured, is_held)


def _level(figures: dict[int, list[float]], statement: str, least: float) -> Expectation:
    value = over_folds(figures)
    is_held = None if value is None else _decided(figures, bool(value >= least))
    return Expectation(statement, "-" if value is None else f"{value:.3f} ({_extent(figures)})", is_held)


def _decided(folds: dict[int, Any], is_held: bool) -> bool | None:
    """Return the verdict, or None if a fold was not measured."""
    return is_held if len(folds) == len(FOLDS) else None


def _extent(figures: dict[int, list[float]]) -> str:
    return f"runs: {sum(map(len, figures.values()))}, folds: {len(figures)}"


def format_difference(difference: PairedDifference | None) -> str:
    """Return a difference with bounds and extent, or a dash."""
    if difference is None:
        return "-"
    bounds = f"{signed(difference.low)} to {signed(difference.high)}"
    return f"{signed(difference.value)} ({bounds}; runs: {difference.runs}, folds: {len(difference.folds)})"


def measured_rows(cells: Cells, setting: str) -> Iterator[Row]:
    """Yield the rows that were measured on the slides of a setting, in order."""
    yield from (row for row in ROWS if runs_of(cells, row, setting))


def permuted_aurocs(cells: Cells) -> Sequence[float]:
    """Return the teacher's AUROC in every run with permuted labels."""
    values = [auroc(c["metrics"]["teacher"]["test"]) for c in cells if c["cell"]["kind"] == "permuted"]
    return [value for value in values if value is not None]
