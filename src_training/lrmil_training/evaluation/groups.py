"""Figures by group of slides, such as the slides of each site: the same figures as over all slides, on each group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.data.cohort_file import read_table
from lrmil_training.data.patient_groups import count_patients
from lrmil_training.evaluation.evaluate import Results
from lrmil_training.evaluation.metrics import NO_LABELS, OVER_PATIENTS, explain_no_spread
from lrmil_training.evaluation.patients import PATIENTS
from napari_lrmil.core.csv_files import write_csv
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.formatting import format_count, shorten

BY = "by"  # key of the groups in metrics.json
GROUPS_TABLE = "groups.csv"
DISTANCE_QUARTILE = "distance quartile"
FEWEST_FOR_QUARTILES = 8  # slides
EMPTY = "(empty)"  # group of the slides whose cell is empty
GROUP_METRICS = ("balanced_accuracy", "f1", "ece", "brier", "lesion_auroc")
# Further figures, with intervals and without: name of the column -> keys in the figures of a method.
INTERVAL_FIGURES = {
    "sensitivity": ("operating_point", "sensitivity"),
    "specificity": ("operating_point", "specificity"),
    "coverage": ("prediction_sets", "empirical"),
    "patient_auroc": (PATIENTS, "auroc"),
}
SET_FIGURES = {"mean_set_size": ("prediction_sets", "mean_size"), "singletons": ("prediction_sets", "singletons")}

Measure = Callable[[Cohort, Results], dict[str, Any]]  # returns method -> split -> figures


@dataclass(frozen=True)
class Grouping:
    """Division of a cohort into groups of slides.

    Attributes
    ----------
    name
        What divides the slides, such as the column ``site``.
    values
        Slide -> name of its group.
    """

    name: str
    values: Mapping[str, str]

    def restrict(self, slides: set[str]) -> Grouping:
        """Return the division of these slides alone."""
        return replace(self, values={slide: value for slide, value in self.values.items() if slide in slides})

    def slides_by_group(self) -> dict[str, set[str]]:
        """Return group -> names of its slides, sorted by the name of the group; empty cells come last."""
        groups: dict[str, set[str]] = {}
        for slide, value in sorted(self.values.items(), key=lambda item: (item[1] == EMPTY, item[1])):
            groups.setdefault(value, set()).add(slide)
        return groups


def read_groupings(cohort: Cohort, columns: Sequence[str]) -> list[Grouping]:
    """Return the division of the cohort by each of some columns of its table.

    Parameters
    ----------
    cohort
        Slides as their table states them.
    columns
        Names of columns. Upper and lower case count only if two columns differ in nothing else.

    Raises
    ------
    CohortError
        If the table lacks a column.
    """
    if not columns:
        return []
    names = read_table(cohort.path).columns
    chosen = dict.fromkeys(_match_column(cohort.path, column, names) for column in columns)
    return [Grouping(name, {s.name: _read_cell(s, name) or EMPTY for s in cohort.slides}) for name in chosen]


def group_by_distance(results: Results) -> list[Grouping]:
    """Return the division of slides into quartiles by their distance from the training slides.

    Nothing is returned if no method has distances, or for fewer than `FEWEST_FOR_QUARTILES` slides.
    """
    distances = {r.row.name: r.cohort_distance.distance for rs in results.values() for r in rs if r.cohort_distance}
    if len(distances) < FEWEST_FOR_QUARTILES:
        return []
    ordered = sorted(distances, key=lambda name: (distances[name], name))
    values: dict[str, str] = {}
    for number, slides in enumerate(np.array_split(np.array(ordered, dtype=object), 4), start=1):
        place = {1: " (nearest)", 4: " (farthest)"}.get(number, "")
        span = f"{distances[slides[0]]:.2f} to {distances[slides[-1]]:.2f}"
        values |= dict.fromkeys(slides.tolist(), f"{number}{place}: {span}")
    return [Grouping(DISTANCE_QUARTILE, values)]


def _match_column(path: Path, column: str, names: Sequence[str]) -> str:
    if column in names:
        return column
    alike = [name for name in names if name.casefold() == column.strip().casefold()]
    if len(alike) == 1:
        return alike[0]
    raise CohortError(path, f"no column named '{shorten(column)}' to group by; the columns are {', '.join(names)}")


def _read_cell(slide: CohortSlide, column: str) -> str:
    """Return the cell of a slide in a column of its table."""
    match column:
        case "slide":
            return slide.name
        case "mpp":
            return "" if slide.mpp is None else f"{slide.mpp:g}"
        case "patient" | "label" | "split" | "site":
            return str(getattr(slide, column))
    return dict(slide.extra)[column]


def measure_groups(
    cohort: Cohort, results: Results, groupings: Sequence[Grouping], measure: Measure
) -> dict[str, list[dict[str, Any]]]:
    """Return name of the grouping -> its groups with their figures: the entry ``by`` of ``metrics.json``.

    Parameters
    ----------
    cohort
        Slides that could be read, all of one split.
    results
        Method -> results of these slides.
    groupings
        How to divide the slides. A group may have slides that could not be read; it is listed without figures if it
        has no other.
    measure
        Function that returns the figures of a cohort from its results.
    """
    return {
        grouping.name: [
            _measure_group(value, slides, cohort, results, measure)
            for value, slides in grouping.slides_by_group().items()
        ]
        for grouping in groupings
    }


def _measure_group(value: str, names: set[str], cohort: Cohort, results: Results, measure: Measure) -> dict[str, Any]:
    part = replace(cohort, slides=tuple(s for s in cohort.slides if s.name in names))
    counts = Counter(s.label for s in part.slides)
    entry: dict[str, Any] = {
        "value": value,
        "n_slides": len(part.slides),
        "n_patients": count_patients(s.patient for s in part.slides),
        "class_counts": {name: counts[name] for name in cohort.classes},
        "methods": {},
    }
    if part.slides:
        of_group = {method: [r for r in slides if r.row.name in names] for method, slides in results.items()}
        split = part.slides[0].split
        entry["methods"] = {m: _explain(splits[split]) for m, splits in measure(part, of_group).items()}
    return entry


def _explain(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a group; an undefined AUROC, or one without an interval, says why."""
    auroc = figures["auroc"]
    if auroc.get("reason") == NO_LABELS:
        return figures
    if PATIENTS in figures:
        figures = figures | {PATIENTS: _drop_empty_interval(figures[PATIENTS], "patient")}
    if auroc["value"] is not None:
        return _drop_empty_interval(figures, "slide")
    present = [name for name, count in figures["class_counts"].items() if count]
    absent = [name for name, count in figures["class_counts"].items() if not count]
    reason = f"one class only: {present[0]}" if len(present) == 1 else f"no slide of {', '.join(absent)}"
    return figures | {"auroc": auroc | {"reason": reason}}


def _drop_empty_interval(figures: dict[str, Any], noun: str) -> dict[str, Any]:
    """Return figures without an interval of the AUROC that a bootstrap of too few slides made, and with the reason.

    A class of one slide is the same slide in every resample. A few slides that do not vary either give an interval
    such as 1.000 to 1.000, which reads as certainty. With enough patients in every class the interval stays as it is.
    """
    auroc = figures["auroc"]
    if auroc["low"] is None or auroc["interval"] == OVER_PATIENTS:
        return figures
    single = [name for name, count in figures["class_counts"].items() if count == 1]
    total = sum(figures["class_counts"].values())
    if single:
        reason = f"1 {noun} of {single[0]}" if len(single) == 1 else f"1 {noun} of each of {', '.join(single)}"
    elif auroc["low"] == auroc["high"]:
        reason = f"every resample of {format_count(total, noun)} gives the same"
    else:
        return figures
    return figures | {"auroc": auroc | {"low": None, "high": None, "reason": f"no interval: {reason}"}}


def describe_auroc(auroc: Mapping[str, Any], noun: str = "slide") -> str:
    """Return an AUROC with its interval, or why either is undefined, as text; `noun` is as in `explain_no_spread`."""
    if auroc["value"] is None:
        return f"undefined ({auroc['reason']})" if auroc.get("reason") else "undefined"
    interval = auroc.get("reason", "") if auroc["low"] is None else f"{auroc['low']:.3f} to {auroc['high']:.3f}"
    interval = explain_no_spread(auroc, noun) or interval
    return f"{auroc['value']:.3f} ({interval})" if interval else f"{auroc['value']:.3f}"


def write_groups_table(folder: Path, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write ``groups.csv``, a row for each group and method; delete it if there are no groups."""
    if not groups:
        (folder / GROUPS_TABLE).unlink(missing_ok=True)
        return
    classes = next(iter(groups.values()))[0]["class_counts"]
    header = ["column", "value", "method", "n_slides", "n_patients", *(f"n_{name}" for name in classes)]
    rows = [row for column, entries in groups.items() for entry in entries for row in _table_rows(column, entry)]
    shares = [column for name in INTERVAL_FIGURES for column in (name, f"{name}_low", f"{name}_high")]
    figures = ["auroc", "low", "high", *GROUP_METRICS, *shares, *SET_FIGURES]
    write_csv(folder / GROUPS_TABLE, [[*header, *figures, "reason"], *rows])


def _table_rows(column: str, entry: Mapping[str, Any]) -> list[list[Any]]:
    counts = [entry["n_slides"], entry["n_patients"], *entry["class_counts"].values()]
    if not entry["methods"]:
        blank = [""] * (3 + len(GROUP_METRICS) + 3 * len(INTERVAL_FIGURES) + len(SET_FIGURES))
        return [[column, entry["value"], "", *counts, *blank, "no slide could be read"]]
    return [
        [
            *(column, entry["value"], method, *counts),
            *(_format_cell(figures["auroc"][key]) for key in ("value", "low", "high")),
            *(_format_cell(figures[name]) for name in GROUP_METRICS),
            *_limit_cells(figures),
            "; ".join(_reasons(figures)),
        ]
        for method, figures in entry["methods"].items()
    ]


def _reasons(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield why the AUROC or its interval is undefined, over slides and by patient."""
    for prefix, part in (("", figures), ("by patient: ", figures.get(PATIENTS, {}))):
        if reason := part.get("auroc", {}).get("reason"):
            yield f"{prefix}{reason}"


def _limit_cells(figures: Mapping[str, Any]) -> list[str]:
    """Return the cells of the limits and of the figures by patient; empty where a model or a group has none."""

    def read(keys: Sequence[str]) -> str:
        value: Any = figures
        for key in keys:
            value = value.get(key, {})
        return "" if value == {} else _format_cell(value)

    shares = [read((*keys, end)) for keys in INTERVAL_FIGURES.values() for end in ("value", "low", "high")]
    return [*shares, *(read(keys) for keys in SET_FIGURES.values())]


def _format_cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
