"""Sections of the report, in the order of the page: values, sentences and plots for the template."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lrmil_training.data.validation_patients import few_validation_patients
from lrmil_training.evaluation.comparison_table import CHOSEN, Row, comparison_rows, series_rows
from lrmil_training.evaluation.metrics import FEW_TEST_SLIDES, NO_LABELS
from lrmil_training.evaluation.patients import PATIENTS
from lrmil_training.evaluation.significance import NON_INFERIORITY_MARGIN
from lrmil_training.report.plots import (
    Plot,
    method_colour,
    plot_agreement,
    plot_forest,
    plot_reliability,
    plot_roc,
    plot_runs,
    plot_training,
    render_svg_uri,
)
from lrmil_training.report.run_record import (
    RunRecord,
    TrainingCurve,
    class_names,
    count_by_split,
    probability_distance,
    read_run,
    read_training_curves,
    sort_by_probability_distance,
)
from lrmil_training.report.series import describe_series, mean_cost, name_spread
from lrmil_training.report.slide_pictures import draw_slide_pictures
from lrmil_training.runs.event_log import REPORT_FILE, RUNS_FOLDER
from napari_lrmil.core.formatting import format_count, format_signed
from napari_lrmil.core.results.cohort_tables import FAILURE_COLUMNS, read_failures
from napari_lrmil.core.visualize.overlay import RESEARCH_USE
from napari_lrmil.version import __version__

MAX_SLIDE_CARDS = 12  # slides with pictures; the table below them has all slides
IMBALANCE_RATIO = 3.0  # slides of the largest class per slide of the smallest, from which the report warns
REPORTED_PACKAGES = ("torch", "lightning", "numpy", "scipy", "scikit-learn", "openslide-python", "tifffile")

Section = dict[str, Any]


def build_sections(record: RunRecord) -> Section:
    """Return all values of the template."""
    counts = count_by_split(record)
    return {
        "title": record.config.get("name") or record.folder.name,
        "research_use": RESEARCH_USE,
        "record": record,
        "colours": {m: method_colour(m, record.names) for m in record.names},
        "distilled": record.config.get("distil", True),
        "times": _run_times(record),
        "protocol": _describe_protocol(record),
        "cohort": counts,
        "classes": class_names(record),
        "imbalance": _describe_imbalance(counts),
        "class_weights": describe_class_weights(record),
        "outlines": _describe_outlines(record),
        "few_patients": _few_patients(record),
        "selection": record.selection,
        "choices": _choices_of_runs(record.folder),
        "failures": _failure_rows(record.folder),
        "splits": [_split_section(record, split) for split in record.splits if record.methods],
        "groups": record.groups,
        "margin": NON_INFERIORITY_MARGIN,
        "series": [_series_section(record, split) for split in record.splits if record.summary],
        "single_runs": _single_runs(record.folder),
        "cost": _cost_rows(record),
        "slides": _slide_section(record) if record.splits else None,
        "curves": [_curve_section(c) for c in read_training_curves(record.events)],
        "versions": _package_versions(),
    }


# ---------------------------------------------------------------- header


def _run_times(record: RunRecord) -> Section:
    """Return start, end, number of attempts, the last stage, and whether the run has finished."""
    times = [line["time"] for line in record.events if "time" in line]
    attempts = {line.get("attempt", 0) for line in record.events}
    stages = [str(line["stage"]) for line in record.events if line.get("stage")]
    return {
        "start": _format_utc(times[0]) if times else None,
        "end": _format_utc(times[-1]) if times else None,
        "attempts": len(attempts),
        "finished": record.finished,
        "last_stage": stages[-1] if stages else None,
    }


def _format_utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) + " UTC"


def _describe_protocol(record: RunRecord) -> str:
    """Return how slides were split, as a phrase."""
    protocol = record.protocol
    if protocol is None and record.folder.absolute().parent.name == RUNS_FOLDER:  # its split may be that of a fold
        return f"one run of a series, {record.folder.name}"
    if protocol is None:
        return "fixed split" if not record.runs else format_count(len(record.runs), "run")
    seeds = f", {protocol['seeds']} seeds" if (protocol.get("seeds") or 1) > 1 else ""
    return (f"{protocol['folds']}-fold cross-validation" if protocol.get("folds") else str(protocol["kind"])) + seeds


# ---------------------------------------------------------------- cohort


def _describe_imbalance(rows: Sequence[Section]) -> str | None:
    """Return a sentence on the sizes of the classes; None without slides."""
    totals: dict[str, int] = {}
    for row in rows:
        for label, count in row["classes"].items():
            totals[label] = totals.get(label, 0) + count
    if not any(totals.values()):  # no slides, or none with a label
        return None
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    (largest, most_slides), (smallest, least_slides) = ranked[0], ranked[-1]
    counts = f"{format_count(most_slides, 'slide')} of {largest}, {least_slides} of {smallest}"
    if least_slides * IMBALANCE_RATIO <= most_slides:
        return f"The classes are imbalanced: {counts}. Read balanced accuracy and the metrics per class, not F1 alone."
    return f"The classes are of similar size: {counts}."


def describe_class_weights(record: RunRecord) -> str | None:
    """Return a sentence on class weights in training; None if the configuration does not state them."""
    from lrmil_training.data.bags import class_weights
    from lrmil_training.data.patient_groups import bags_by_patient, expected_draws, samples_by_patient

    scheme = record.config.get("class_weights")
    if scheme is None:
        return None
    if scheme != "balanced":
        return f"In training all slides had the same weight (class_weights: {scheme})."
    sentence = "In training classes were weighted by inverse frequency (class_weights: balanced)"
    train = next((row["classes"] for row in count_by_split(record) if row["split"] == "train"), None)
    if not train:
        return f"{sentence}."
    slides = [s for s in record.slides if s["split"] == "train"]
    if not any(s["label"] for s in slides):
        return None
    if record.config.get("bag") == "patient":  # a patient's slides are one bag
        slides = [slides[rows[0]] for rows in bags_by_patient([s["patient"] for s in slides]).values()]
        sentence = f"{sentence}, of patients (bag: patient)"
    targets = [list(train).index(s["label"]) for s in slides]
    draws = None
    if record.config.get("sampling") == "patient":  # as in `RunContext.class_weights`
        draws = expected_draws(samples_by_patient([s["patient"] for s in slides]), len(slides))
        sentence = f"{sentence}, of slides as often as they are drawn (sampling: patient)"
    weights = class_weights(targets, len(train), scheme, draws)
    return f"{sentence}: {', '.join(f'{c} {w:.2f}' for c, w in zip(train, weights, strict=True))}."


def _describe_outlines(record: RunRecord) -> str | None:
    """Return the last sentence of the log on outlines that teach; None without any."""
    from lrmil_training.data.lesion_targets import COUNTS, NO_EFFECT

    sentences = [str(line["message"]) for line in record.events if "message" in line]
    on_outlines = [text for text in sentences if text.startswith((COUNTS, NO_EFFECT))]
    return f"{on_outlines[-1][0].upper()}{on_outlines[-1][1:]}." if on_outlines else None


def _few_patients(record: RunRecord) -> str | None:
    """Return a sentence if validation of the run, or of a run of a series, has too few patients to rank methods."""
    runs = [record.slides] if record.slides else [read_run(path).slides for path in _run_folders(record.folder)]
    for slides in runs:
        if any(s["split"] == "train" for s in slides):  # otherwise no training, but an evaluation of one split
            labelled = [(str(s["label"]), str(s["patient"])) for s in slides if s["split"] == "val"]
            if sentence := few_validation_patients(labelled):
                return f"{sentence[0].upper()}{sentence[1:]}."
    return None


def _choices_of_runs(folder: Path) -> list[tuple[str, str]]:
    """Return the runs of a series with the recipe that each chose; empty without an inner cross-validation."""
    selections = [(path.name, read_run(path).selection) for path in _run_folders(folder)]
    return [(name, selection["choice"]) for name, selection in selections if selection]


def _failure_rows(folder: Path) -> list[Mapping[str, str]]:
    return [dict(zip(FAILURE_COLUMNS, row, strict=True)) for row in read_failures(folder)]


# ---------------------------------------------------------------- results on one split


def _split_section(record: RunRecord, split: str) -> Section:
    """Return metrics and plots of one split of a run with a fixed split."""
    metrics = {m: record.methods[m][split] for m in record.names if split in record.methods.get(m, {})}
    auroc = next(iter(metrics.values()))["auroc"]
    differences = _paired_differences(metrics)
    measured = [row for row in differences if row["value"] is not None]
    forest = plot_forest(measured, record.names) if measured else None
    verdicts = {m: values["non_inferiority"] for m, values in metrics.items() if values.get("non_inferiority")}
    return {
        "split": split,
        "metrics": metrics,
        "comparison": _comparison_rows(record, comparison_rows, {m: {split: values} for m, values in metrics.items()}),
        "patients": {m: values[PATIENTS] for m, values in metrics.items() if PATIENTS in values},
        "n_slides": auroc["n_slides"],
        "n_patients": auroc["n_patients"],
        "is_small": auroc["n_slides"] < FEW_TEST_SLIDES,
        "interval": auroc["interval"],
        "differences": differences,
        "forest": _render_optional(forest, 6.6, 0.75 + 0.27 * len(measured)),
        "roc": _render_optional(plot_roc(record, split), 4.1, 3.9),
        "has_labels": auroc.get("reason") != NO_LABELS,
        "reliability": _render_optional(plot_reliability(record, split), 4.1, 3.9),
        "verdicts": {m: describe_non_inferiority(result) for m, result in verdicts.items()},
        "agreement": _render_optional(plot_agreement(record, split), 8.4, 1.0 + 0.36 * len(metrics)),
    }


def _comparison_rows(
    record: RunRecord, make_rows: Callable[[Mapping[str, Any], str], list[Row]], metrics: Mapping[str, Any]
) -> list[Row]:
    """Return the rows of ``comparison.csv`` on one split; none if the run compares no aggregators."""
    if not record.config.get("compare"):
        return []
    is_chosen = record.config.get("selection", {}).get("aggregators")
    return make_rows(metrics, CHOSEN if is_chosen else record.config["teacher"]["aggregator"])


def _render_optional(plot: Plot | None, width: float, height: float) -> str | None:
    return None if plot is None else render_svg_uri(plot, width, height)


def _paired_differences(metrics: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """Return the differences student − other for every other method, then other − teacher."""
    pairs = [("student", other) for other in metrics if other != "student"]
    pairs += [(method, "teacher") for method in metrics if method not in ("student", "teacher")]
    return [
        {
            "method": method,
            "other": other,
            **metrics[method]["paired"][other],
            "delong": (metrics[method].get("delong") or {}).get(other),
        }
        for method, other in pairs
        if other in metrics.get(method, {}).get("paired", {})
    ]


def describe_non_inferiority(result: Mapping[str, Any]) -> str:
    """Return a result of `assess_non_inferiority` as a phrase."""
    reason = f" ({result['reason']})" if result.get("reason") else ""
    if result["holds"] is None:
        return f"undecided{reason}"
    low, margin = format_signed(result["low"]), format_signed(-result["margin"])
    bound = f"the lower 95 % bound of the paired difference is {low}, margin {margin}"
    verdict = "not worse than the teacher" if result["holds"] else "not shown to be as good as the teacher"
    return f"{verdict}: {bound}{reason}"


# ---------------------------------------------------------------- series of folds or seeds


def _series_section(record: RunRecord, split: str) -> Section:
    """Return the summary of folds and seeds on one split: each run has its own metrics, slides are never pooled."""
    metrics = {m: record.summary[m][split] for m in record.names if split in record.summary.get(m, {})}
    differences = [
        {"method": "student", "other": other, **metrics["student"]["paired"][other]}
        for other in metrics
        if other != "student" and other in metrics.get("student", {}).get("paired", {})
    ]
    folds = (record.protocol or {}).get("folds")
    name = f"Cross-validated {split} metrics" if folds else f"{split.capitalize()} metrics on the fixed split"
    return {
        "split": split,
        "comparison": _comparison_rows(record, series_rows, {m: {split: values} for m, values in metrics.items()}),
        "title": f"{name}, over {format_count(len(record.runs), 'run')}",
        "metrics": metrics,
        "spread": name_spread(record.runs),
        "notes": describe_series(record.runs, split),
        "differences": differences,
        "dots": render_svg_uri(plot_runs(record, split), 6.6, 0.8 + 0.42 * len(metrics)),
    }


def _single_runs(folder: Path) -> list[tuple[str, bool]]:
    """Return the folders of the runs of a series, each with whether it has its own report."""
    return [(path.name, (path / REPORT_FILE).exists()) for path in _run_folders(folder)]


def _run_folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob(f"{RUNS_FOLDER}/*")) if path.is_dir()]


# ---------------------------------------------------------------- cost, slides


def _cost_rows(record: RunRecord) -> list[Section]:
    """Return the cost of a slide by method on the first split, and the teacher's number of patches relative to it."""
    if not record.splits:
        return []
    split = record.splits[0]
    costs = {m: splits[split]["cost"] for m, splits in record.methods.items() if split in splits}
    costs |= {m: mean_cost(record.runs, m, split) for m, splits in record.summary.items() if split in splits}
    costs = {m: cost for m, cost in costs.items() if cost["patches_per_slide"] is not None}
    teacher = costs.get("teacher", {}).get("patches_per_slide")
    return [
        {"method": m, **costs[m], "ratio": teacher / costs[m]["patches_per_slide"] if teacher else None}
        for m in record.names
        if m in costs
    ]


def slides_with_pictures(record: RunRecord) -> list[str]:
    """Return the names of the slides that the report shows with pictures."""
    if not record.splits:
        return []
    return [s["slide"] for s in sort_by_probability_distance(record, record.splits[0])[:MAX_SLIDE_CARDS]]


def _slide_section(record: RunRecord) -> Section:
    """Return the slides of the first split, sorted by `probability_distance`; the first of them have pictures."""
    split = record.splits[0]
    methods = [m for m in ("teacher", "student") if m in record.names]
    slides = sort_by_probability_distance(record, split)
    rows: list[Section] = [{"slide": s, "distance": probability_distance(s)} for s in slides]
    cards = [
        row | {"pictures": draw_slide_pictures(record.folder, row["slide"], methods)} for row in rows[:MAX_SLIDE_CARDS]
    ]
    return {"split": split, "cards": cards, "all": rows}


# ---------------------------------------------------------------- training, versions


def _curve_section(curve: TrainingCurve) -> Section:
    epochs = max(len(series) for series in curve.series.values())
    chosen = None if curve.chosen is None else curve.chosen + 1
    return {
        "title": curve.title,
        "epochs": epochs,
        "chosen": chosen,
        "plot": render_svg_uri(plot_training(curve), 7.4, 2.2),
    }


def _package_versions() -> dict[str, str]:
    """Return the versions of the packages that write the report, not of those that trained."""
    versions = {"napari-lrmil": __version__, "Python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
