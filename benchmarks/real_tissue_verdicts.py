"""What the figures of benchmarks/real_tissue.py say: paired differences with intervals, and what was hoped for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Cells = Sequence[dict[str, Any]]
Found = Mapping[tuple[str, str, str], Cells]  # kind, cohort, resolution -> cells
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
    """The paired difference of test AUROC in one fold, each figure the mean over its seeds.

    Attributes
    ----------
    value, low, high
        Difference and its 95 % bounds; None where no run tells them.
    runs, held
        Runs whose bound is told, and those among them in which it lies above -`MARGIN`.
    """

    value: float | None
    low: float | None
    high: float | None
    runs: int
    held: int

    @property
    def not_worse(self) -> bool | None:
        """Whether the lower bound lies above -`MARGIN`; None where there is none."""
        return None if self.low is None else self.low > -MARGIN


def difference(cells: Cells, method: str, other: str) -> Difference:
    """Return what the runs of one fold say of `method` less `other`.

    A difference without any spread has no interval: where both rank all slides rightly, resampling tells nothing.
    """
    told = [c["metrics"].get(method, {}).get("test", {}).get("paired", {}).get(other) or {} for c in cells]
    spread = [one for one in told if one.get("low") is not None and one["high"] > one["low"]]
    low, high = (mean([one[key] for one in spread]) for key in ("low", "high"))
    value = mean([one.get("value") for one in told])
    return Difference(value, low, high, len(spread), sum(one["low"] > -MARGIN for one in spread))


def by_fold(cells: Cells) -> dict[int, Cells]:
    """Return the cells of each fold, in order."""
    return {f: [c for c in cells if c["cell"]["fold"] == f] for f in sorted({c["cell"]["fold"] for c in cells})}


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are known; None without any."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def over_folds(cells: Cells, read: Read) -> float | None:
    """Return the mean over folds of the mean over a fold's seeds, so that a fold with more seeds counts no more."""
    return mean([mean([read(c) for c in its]) for its in by_fold(cells).values()])


# ---------------------------------------------------------------- a headline table


def paired_rows(cells: Cells) -> Rows:
    """Return head and rows: a difference, its value and interval in each fold, the mean of the folds' values."""
    folds = by_fold(cells)
    rows = [["difference", *(f"fold {f}" for f in folds), "mean over folds"]]
    for method, other in _pairs(cells, AGAINST):
        found = [difference(its, method, other) for its in folds.values()]
        told = [_with_bounds(one) for one in found]
        rows.append([f"{method} less {other}", *told, signed(mean([one.value for one in found]))])
    return rows


def not_worse_rows(cells: Cells) -> Rows:
    """Return head and rows: in each fold whether a student is not worse than the teacher, and in how many runs."""
    folds = by_fold(cells)
    rows = [["not worse than the teacher", *(f"fold {f}" for f in folds)]]
    for method, other in _pairs(cells, ("teacher",)):
        rows.append([method, *(_verdict(difference(its, method, other)) for its in folds.values())])
    return rows


def interval_note(cells: Cells) -> str | None:
    """Return what the intervals leave out, where the cells say that they do."""
    told = {figures["test"]["auroc"].get("interval", "") for c in cells for figures in methods_of(c).values()}
    return f"Intervals are over slides: {UNCOVERED}." if any(UNCOVERED in one for one in told) else None


def seeds_of(cells: Cells, method: str) -> str:
    """Return how many seeds a row has, fold by fold where they differ."""
    counts = [len({c["cell"]["seed"] for c in its if method in methods_of(c)}) for its in by_fold(cells).values()]
    return str(counts[0]) if len(set(counts)) == 1 else "/".join(map(str, counts))


def methods_of(cell: dict[str, Any]) -> dict[str, Any]:
    """Return the methods of a cell that were measured on test slides."""
    return {m: its for m, its in cell["metrics"].items() if isinstance(its, dict) and "test" in its}


def _pairs(cells: Cells, others: Sequence[str]) -> list[tuple[str, str]]:
    there = {m for c in cells for m in methods_of(c)}
    return [(m, o) for m in STUDENTS for o in others if {m, o} <= there]


def _with_bounds(found: Difference) -> str:
    bounds = "" if found.low is None or found.high is None else f" ({signed(found.low)} to {signed(found.high)})"
    return f"{signed(found.value)}{bounds}"


def _verdict(found: Difference) -> str:
    words = {True: "yes", False: "not shown", None: "cannot be told"}[found.not_worse]
    return f"{words} ({found.held} of {found.runs} runs)" if found.runs else words


def signed(value: float | None) -> str:
    """Return a difference with its sign."""
    return "-" if value is None else f"{value:+.3f}"


# ---------------------------------------------------------------- what was hoped for


@dataclass(frozen=True)
class Expectation:
    """A statement of what was hoped for at 2.5x as it is read, the measured figure, and whether it held."""

    statement: str
    measured: str
    held: bool | None


def expectations(found: Found, ceiling: float | None = None) -> list[Expectation]:
    """Return every statement; `ceiling` is the Spearman correlation of teachers of different seeds."""
    limit = "" if ceiling is None else f" (teacher against teacher {ceiling:.2f})"
    told = [_gain(found, "default", "both", "labels_only", 0.10), _not_worse(found, "default", "both", "teacher")]
    for method in ("both", "student"):
        told += [_not_worse(found, cohort, method, "labels_only_finetuned") for cohort in COHORTS]
        told += [_gain(found, cohort, method, "labels_only_finetuned", 0.05) for cohort in COHORTS[1:]]
    parts = told[2:7], told[7:]
    told.append(_either("both, or student, all of the statements against labels_only_finetuned", parts))
    for method in ("both", "student"):
        told.append(_level(found, method, "Spearman with the teacher", _spearman, 0.35, limit))
        told.append(_level(found, method, "lesion AUROC", lambda m: m["lesion_auroc"], 0.90, ""))
    return told


def expectation_rows(told: Sequence[Expectation]) -> Rows:
    """Return head and rows of the table."""
    return [["goal", "measured", ""], *([e.statement, e.measured, VERDICTS[e.held]] for e in told)]


def _spearman(figures: dict[str, Any]) -> float | None:
    value: float | None = (figures.get("agreement") or {}).get("spearman")
    return value


def _gain(found: Found, cohort: str, method: str, other: str, least: float) -> Expectation:
    """Return whether the paired difference, mean over folds and seeds, is at least `least`."""
    folds = by_fold(found.get(("headline", cohort, NATIVE), ()))
    value = mean([difference(its, method, other).value for its in folds.values()])
    held = None if value is None else bool(value >= least - 1e-9)
    return Expectation(f"{method} at least {other} {least:+.2f}, {cohort}", _on(signed(value), folds), held)


def _not_worse(found: Found, cohort: str, method: str, other: str) -> Expectation:
    """Return whether the lower bound lies above -`MARGIN` in every fold."""
    folds = by_fold(found.get(("headline", cohort, NATIVE), ()))
    its = [difference(cells, method, other) for cells in folds.values()]
    known = [one.not_worse for one in its if one.not_worse is not None]
    bounds = (signed(one.low) if one.low is not None else "no spread" for one in its)
    measured = "lower bounds " + ", ".join(bounds) if known else "-"
    held = None if not known else all(known) if len(known) == len(its) or not all(known) else None
    return Expectation(f"{method} not worse than {other}, {cohort}", _on(measured, folds), held)


def _level(found: Found, method: str, name: str, read: Read, least: float, limit: str) -> Expectation:
    cells = found.get(("headline", "default", NATIVE), ())
    value = over_folds(cells, lambda c: read(methods_of(c)[method]["test"]) if method in methods_of(c) else None)
    held = None if value is None else bool(value >= least)
    told = "-" if value is None else f"{value:.3f}{limit}"
    return Expectation(f"{method}, {name} at least {least:.2f}, default", _on(told, by_fold(cells)), held)


def _either(statement: str, parts: Sequence[Sequence[Expectation]]) -> Expectation:
    """Return whether all of one of the parts held; not measured where what is missing could still decide it."""
    wholes = [[e.held for e in its] for its in parts]
    held = True if any(all(its) for its in wholes) else False if all(False in its for its in wholes) else None
    return Expectation(statement, "; ".join(f"{its.count(True)} of {len(its)}" for its in wholes), held)


def _on(measured: str, folds: Mapping[int, Cells]) -> str:
    """Return a figure with the number of runs that it is from."""
    runs = sum(len(its) for its in folds.values())
    return measured if measured == "-" else f"{measured}; runs: {runs}, folds: {len(folds)}"
