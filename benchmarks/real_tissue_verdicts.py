"""Evaluation of the results of benchmarks/real_tissue.py: paired differences with intervals, and goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Cells = Sequence[dict[str, Any]]
CellsByKey = Mapping[tuple[str, str, str], Cells]  # kind, cohort, resolution -> cells
Read = Callable[[dict[str, Any]], float | None]
Rows = list[list[str]]
MARGIN = 0.03  # of AUROC, as in Method 3: "not worse" is a lower bound above -MARGIN
STUDENTS = ("student", "both")  # all three stages, and the first two
AGAINST = ("teacher", "labels_only", "labels_only_finetuned")
NATIVE = "2.5x"
COHORTS = ("default", "harder", "third")
UNCOVERED = "patient uncertainty not covered"
VERDICTS = {True: "met", False: "not met", None: "not measured"}


@dataclass(frozen=True)
class Difference:
    """Paired difference of test AUROC in one fold; each figure is the mean over its seeds.

    Attributes
    ----------
    value, low, high
        Difference and its 95 % bounds; None if no run has them.
    runs, held
        Number of runs with a bound, and of those whose lower bound is above -`MARGIN`.
    """

    value: float | None
    low: float | None
    high: float | None
    runs: int
    held: int

    @property
    def not_worse(self) -> bool | None:
        """Whether the lower bound is above -`MARGIN`; None without a bound."""
        return None if self.low is None else self.low > -MARGIN


def difference(cells: Cells, method: str, other: str) -> Difference:
    """Return the difference of `method` less `other` over the runs of one fold.

    A difference without spread has no interval. If both rank all slides correctly, resampling gives no information.
    """
    paired = [c["metrics"].get(method, {}).get("test", {}).get("paired", {}).get(other) or {} for c in cells]
    spread = [pair for pair in paired if pair.get("low") is not None and pair["high"] > pair["low"]]
    low, high = (mean([pair[key] for pair in spread]) for key in ("low", "high"))
    value = mean([pair.get("value") for pair in paired])
    return Difference(value, low, high, len(spread), sum(pair["low"] > -MARGIN for pair in spread))


def by_fold(cells: Cells) -> dict[int, Cells]:
    """Return the cells of each fold, in order."""
    return {f: [c for c in cells if c["cell"]["fold"] == f] for f in sorted({c["cell"]["fold"] for c in cells})}


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None, or None without any."""
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined else None


def over_folds(cells: Cells, read: Read) -> float | None:
    """Return the mean over folds of the mean over seeds, so that a fold with more seeds has no larger weight."""
    return mean([mean([read(c) for c in fold_cells]) for fold_cells in by_fold(cells).values()])


# ---------------------------------------------------------------- a headline table


def paired_rows(cells: Cells) -> Rows:
    """Return head and rows: a difference, its value and interval in each fold, and the mean over folds."""
    folds = by_fold(cells)
    rows = [["difference", *(f"fold {f}" for f in folds), "mean over folds"]]
    for method, other in _pairs(cells, AGAINST):
        differences = [difference(fold_cells, method, other) for fold_cells in folds.values()]
        texts = [_with_bounds(item) for item in differences]
        rows.append([f"{method} less {other}", *texts, signed(mean([item.value for item in differences]))])
    return rows


def not_worse_rows(cells: Cells) -> Rows:
    """Return head and rows: whether a student is not worse than the teacher, and in how many runs, per fold."""
    folds = by_fold(cells)
    rows = [["not worse than the teacher", *(f"fold {f}" for f in folds)]]
    for method, other in _pairs(cells, ("teacher",)):
        rows.append([method, *(_verdict(difference(fold_cells, method, other)) for fold_cells in folds.values())])
    return rows


def interval_note(cells: Cells) -> str | None:
    """Return a sentence on what was resampled for the intervals, as the cells state it; None if they do not."""
    intervals = {figures["test"]["auroc"].get("interval") for c in cells for figures in methods_of(c).values()} - {None}
    over_slides = {interval for interval in intervals if UNCOVERED in interval}
    if not intervals:
        return None
    if not over_slides:
        return f"Intervals are over {', '.join(sorted(intervals))}."
    some = "Intervals are" if over_slides == intervals else "Some intervals are over patients, others"
    return f"{some} over slides: {UNCOVERED}."


def seeds_of(cells: Cells, method: str) -> str:
    """Return the number of seeds of a row, per fold if they differ."""
    counts = [
        len({c["cell"]["seed"] for c in fold_cells if method in methods_of(c)})
        for fold_cells in by_fold(cells).values()
    ]
    return str(counts[0]) if len(set(counts)) == 1 else "/".join(map(str, counts))


def methods_of(cell: dict[str, Any]) -> dict[str, Any]:
    """Return the methods of a cell that were measured on test slides."""
    return {m: figures for m, figures in cell["metrics"].items() if isinstance(figures, dict) and "test" in figures}


def _pairs(cells: Cells, others: Sequence[str]) -> list[tuple[str, str]]:
    available = {m for c in cells for m in methods_of(c)}
    return [(m, o) for m in STUDENTS for o in others if {m, o} <= available]


def _with_bounds(item: Difference) -> str:
    bounds = "" if item.low is None or item.high is None else f" ({signed(item.low)} to {signed(item.high)})"
    return f"{signed(item.value)}{bounds}"


def _verdict(item: Difference) -> str:
    text = {True: "yes", False: "not shown", None: "cannot be told"}[item.not_worse]
    return f"{text} ({item.held} of {item.runs} runs)" if item.runs else text


def signed(value: float | None) -> str:
    """Return a difference with its sign."""
    return "-" if value is None else f"{value:+.3f}"


# ---------------------------------------------------------------- goals


@dataclass(frozen=True)
class Expectation:
    """Goal at native 2.5x, the measured figure, and whether the goal was met."""

    statement: str
    measured: str
    held: bool | None


def expectations(cells_by_key: CellsByKey, ceiling: float | None = None) -> list[Expectation]:
    """Return every goal; `ceiling` is the Spearman correlation of teachers with different seeds."""
    limit = "" if ceiling is None else f" (teacher against teacher {ceiling:.2f})"
    goals = [
        _gain(cells_by_key, "default", "both", "labels_only", 0.10),
        _not_worse(cells_by_key, "default", "both", "teacher"),
    ]
    for method in ("both", "student"):
        goals += [_not_worse(cells_by_key, cohort, method, "labels_only_finetuned") for cohort in COHORTS]
        goals += [_gain(cells_by_key, cohort, method, "labels_only_finetuned", 0.05) for cohort in COHORTS[1:]]
    parts = goals[2:7], goals[7:]
    goals.append(_either("both, or student, all of the statements against labels_only_finetuned", parts))
    for method in ("both", "student"):
        goals.append(_level(cells_by_key, method, "Spearman with the teacher", _spearman, 0.35, limit))
        goals.append(_level(cells_by_key, method, "lesion AUROC", lambda m: m["lesion_auroc"], 0.90, ""))
    return goals


def expectation_rows(goals: Sequence[Expectation]) -> Rows:
    """Return head and rows of the table."""
    return [["goal", "measured", ""], *([e.statement, e.measured, VERDICTS[e.held]] for e in goals)]


def _spearman(figures: dict[str, Any]) -> float | None:
    value: float | None = (figures.get("agreement") or {}).get("spearman")
    return value


def _gain(cells_by_key: CellsByKey, cohort: str, method: str, other: str, least: float) -> Expectation:
    """Return whether the paired difference, mean over folds and seeds, is at least `least`."""
    folds = by_fold(cells_by_key.get(("headline", cohort, NATIVE), ()))
    value = mean([difference(fold_cells, method, other).value for fold_cells in folds.values()])
    held = None if value is None else bool(value >= least - 1e-9)
    return Expectation(f"{method} at least {other} {least:+.2f}, {cohort}", _on(signed(value), folds), held)


def _not_worse(cells_by_key: CellsByKey, cohort: str, method: str, other: str) -> Expectation:
    """Return whether the lower bound is above -`MARGIN` in every fold."""
    folds = by_fold(cells_by_key.get(("headline", cohort, NATIVE), ()))
    differences = [difference(cells, method, other) for cells in folds.values()]
    defined = [item.not_worse for item in differences if item.not_worse is not None]
    bounds = (signed(item.low) if item.low is not None else "no spread" for item in differences)
    measured = "lower bounds " + ", ".join(bounds) if defined else "-"
    held = None if not defined else all(defined) if len(defined) == len(differences) or not all(defined) else None
    return Expectation(f"{method} not worse than {other}, {cohort}", _on(measured, folds), held)


def _level(cells_by_key: CellsByKey, method: str, name: str, read: Read, least: float, limit: str) -> Expectation:
    cells = cells_by_key.get(("headline", "default", NATIVE), ())
    value = over_folds(cells, lambda c: read(methods_of(c)[method]["test"]) if method in methods_of(c) else None)
    held = None if value is None else bool(value >= least)
    text = "-" if value is None else f"{value:.3f}{limit}"
    return Expectation(f"{method}, {name} at least {least:.2f}, default", _on(text, by_fold(cells)), held)


def _either(statement: str, parts: Sequence[Sequence[Expectation]]) -> Expectation:
    """Return whether all goals of any part are met; None if a missing measurement could still decide it."""
    held_by_part = [[e.held for e in goals] for goals in parts]
    held = (
        True
        if any(all(goals) for goals in held_by_part)
        else False
        if all(False in goals for goals in held_by_part)
        else None
    )
    return Expectation(statement, "; ".join(f"{goals.count(True)} of {len(goals)}" for goals in held_by_part), held)


def _on(measured: str, folds: Mapping[int, Cells]) -> str:
    """Return a figure with the numbers of runs and folds."""
    runs = sum(len(fold_cells) for fold_cells in folds.values())
    return measured if measured == "-" else f"{measured}; runs: {runs}, folds: {len(folds)}"
