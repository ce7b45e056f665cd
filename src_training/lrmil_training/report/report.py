"""A run's report: one HTML file without any request to the outside, made from what the run folder holds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_training.evaluation.significance import NON_INFERIORITY_MARGIN
from lrmil_training.report.plots import (
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
    class_names,
    count_by_split,
    method_label,
    probability_distance,
    read_run,
    read_training_curves,
    sort_by_probability_distance,
)
from lrmil_training.report.slide_pictures import draw_slide_pictures, write_thumbnails
from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.formatting import format_signed
from napari_lrmil.core.results.cohort_tables import FAILURE_COLUMNS, read_failures
from napari_lrmil.core.visualize.overlay import RESEARCH_USE
from napari_lrmil.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE, RUNS_FOLDER = "report.html", "runs"  # the page, and the folder of a series' single runs
TEMPLATE_FOLDER = Path(__file__).parent / "templates"
MAX_SLIDE_CARDS = 12  # slides with pictures; all are in the table below them
FEW_TEST_SLIDES = 30  # in a split, below which figures are more luck than measure
IMBALANCE_RATIO = 3.0  # times as many slides of the commonest class as of the rarest, from which it is said
REPORTED_PACKAGES = ("torch", "lightning", "numpy", "scipy", "scikit-learn", "openslide-python", "tifffile")

Context = dict[str, Any]


def write_report(folder: Path, cohort_csv: Path | None = None, *, title: str | None = None) -> Path:
    """Write ``report.html`` from the files of a run folder and return its path.

    What a broken-off run did not come to write is left out, and the report says that the run has not finished.

    Parameters
    ----------
    folder
        With ``config.yaml``, ``events.jsonl``, ``metrics.json``, ``slides.json``, and where there are
        ``thumbnails/<slide>.jpg`` and ``attention/<method>/<slide>.h5``.
    cohort_csv
        The run's cohort, from whose slides missing thumbnails are made; ``cohort.csv`` in the folder if not given.
    title
        What to call it; the configuration's name if not given.

    Raises
    ------
    LrmilError
        Where one of the files is there and cannot be understood.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    record = read_run(folder)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": format_metric,
        "signed": format_signed,
        "share": _format_share,
        "name": method_label,
    }
    page = environment.get_template("report.html.j2").render(
        _build_context(record, cohort_csv or folder / "cohort.csv") | ({"title": title} if title else {})
    )
    write_text(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def format_metric(value: float | None, digits: int = 3) -> str:
    """Return a figure for a table; a dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def _format_share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _build_context(record: RunRecord, cohort_csv: Path) -> Context:
    """Return all that the template shows."""
    main = record.splits[0] if record.splits else None
    colours = {m: method_colour(m, record.names) for m in record.names}
    return {
        "title": record.config.get("name") or record.folder.name,
        "research_use": RESEARCH_USE,
        "record": record,
        "colours": colours,
        "when": _run_times(record),
        "protocol": _describe_protocol(record),
        "cohort": count_by_split(record),
        "classes": class_names(record),
        "imbalance": _describe_imbalance(count_by_split(record)),
        "weighting": describe_class_weights(record),
        "splits": [_split_section(record, split) for split in record.splits if record.methods],
        "over_runs": [_series_section(record, split) for split in record.splits if record.summary],
        "parts": _single_runs(record.folder),
        "slides": _slide_section(record, main, cohort_csv) if main else None,
        "curves": [_curve_section(c) for c in read_training_curves(record.events)],
        "cost": _cost_rows(record, main),
        "failures": _failure_rows(record.folder),
        "versions": _package_versions(),
        "margin": NON_INFERIORITY_MARGIN,
    }


# ---------------------------------------------------------------- results


def _split_section(record: RunRecord, split: str) -> Context:
    """Return figures and plots of one split of a run with a fixed split."""
    figures = {m: record.methods[m][split] for m in record.names if split in record.methods.get(m, {})}
    first = next(iter(figures.values()))
    pairs = _paired_differences(figures)
    measured = [p for p in pairs if p["value"] is not None]
    n = first["auroc"]["n_slides"]
    return {
        "split": split,
        "figures": figures,
        "n_slides": n,
        "n_patients": first["auroc"]["n_patients"],
        "few": n < FEW_TEST_SLIDES,
        "interval": first["auroc"]["interval"],
        "pairs": pairs,
        "forest": _draw_optional(
            plot_forest(measured, record.names) if measured else None, 6.6, 0.75 + 0.27 * len(measured)
        ),
        "roc": _draw_optional(plot_roc(record, split), 4.1, 3.9),
        "reliability": _draw_optional(plot_reliability(record, split), 4.1, 3.9),
        "verdicts": {
            m: describe_non_inferiority(f["non_inferiority"]) for m, f in figures.items() if f.get("non_inferiority")
        },
        "agreement": _draw_optional(plot_agreement(record, split), 8.4, 1.0 + 0.36 * len(figures)),
    }


def _draw_optional(make: Callable[[Figure], None] | None, width: float, height: float) -> str | None:
    return None if make is None else render_svg_uri(make, width, height)


def _paired_differences(figures: Mapping[str, Mapping[str, Any]]) -> list[Context]:
    """Return the differences that a reader asks for: student less every other, then every other less the teacher."""
    asked = [("student", other) for other in figures if other != "student"]
    asked += [(method, "teacher") for method in figures if method not in ("student", "teacher")]
    return [
        {
            "method": method,
            "other": other,
            **figures[method]["paired"][other],
            "delong": (figures[method].get("delong") or {}).get(other),
        }
        for method, other in asked
        if other in figures.get(method, {}).get("paired", {})
    ]


def describe_non_inferiority(found: Mapping[str, Any]) -> str:
    """Return a non-inferiority result in words."""
    beyond = f" ({found['reason']})" if found.get("reason") else ""
    if found["holds"] is None:
        return f"cannot be told{beyond}"
    low = format_signed(found["low"])
    bound = f"the lower 95 % bound of the paired difference is {low}, margin {format_signed(-found['margin'])}"
    said = "not worse than the teacher" if found["holds"] else "not shown to be as good as the teacher"
    return f"{said}: {bound}{beyond}"


def _series_section(record: RunRecord, split: str) -> Context:
    """Return figures over folds and seeds: each run measured by itself, nothing pooled."""
    figures = {m: record.summary[m][split] for m in record.names if split in record.summary.get(m, {})}
    asked = [("student", other) for other in figures if other != "student"]
    pairs = [
        {"method": m, "other": o, **figures[m]["paired"][o]}
        for m, o in asked
        if o in figures.get(m, {}).get("paired", {})
    ]
    folds = (record.protocol or {}).get("folds")
    side = f"Cross-validated {split} figures" if folds else f"{split.capitalize()} figures on the fixed split"
    return {
        "split": split,
        "title": f"{side}, over {len(record.runs)} runs",
        "figures": figures,
        "pairs": pairs,
        "dots": render_svg_uri(plot_runs(record, split), 6.6, 0.8 + 0.42 * len(figures)),
    }


def _single_runs(folder: Path) -> list[tuple[str, bool]]:
    """Return the folders of a series' single runs, and whether each has a report of its own."""
    return [
        (path.name, (path / REPORT_FILE).exists()) for path in sorted(folder.glob(f"{RUNS_FOLDER}/*")) if path.is_dir()
    ]


def _cost_rows(record: RunRecord, split: str | None) -> list[Context]:
    """Return what a slide costs by method, and how many times less than the teacher."""
    found = {m: its[split]["cost"] for m, its in record.methods.items() if split is not None and split in its}
    teacher = found.get("teacher", {}).get("patches_per_slide")
    return [
        {"method": m, **found[m], "times": teacher / found[m]["patches_per_slide"] if teacher else None}
        for m in record.names
        if m in found
    ]


# ---------------------------------------------------------------- cohort, slides, training


def _describe_imbalance(rows: Sequence[Context]) -> str | None:
    """Return a sentence on classes of very unequal size; None where they are not."""
    totals: dict[str, int] = {}
    for row in rows:
        for label, count in row["classes"].items():
            totals[label] = totals.get(label, 0) + count
    if not totals:
        return None
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    (most, most_slides), (least, least_slides) = ranked[0], ranked[-1]
    told = f"{most_slides} slides of {most}, {least_slides} of {least}"
    if least_slides * IMBALANCE_RATIO <= most_slides:
        return f"The classes are imbalanced: {told}. Read balanced accuracy and the figures per class, not F1 alone."
    return f"The classes are of similar size: {told}."


def describe_class_weights(record: RunRecord) -> str | None:
    """Return how imbalance was handled in training, with each class's weight; None where the run does not say."""
    from lrmil_training.data.bags import class_weights

    how = record.config.get("class_weights")
    if how is None:
        return None
    if how != "balanced":
        return f"In training every slide counted alike (class_weights: {how})."
    told = "In training classes were weighted by inverse frequency (class_weights: balanced)"
    train = next((row["classes"] for row in count_by_split(record) if row["split"] == "train"), None)
    if not train:
        return f"{told}."
    weights = class_weights([i for i, count in enumerate(train.values()) for _ in range(count)], len(train), how)
    return f"{told}: {', '.join(f'{c} {w:.2f}' for c, w in zip(train, weights, strict=True))}."


def _slide_section(record: RunRecord, split: str, cohort_csv: Path) -> Context:
    """Return the slides of a split by distance of probabilities, the first of them with pictures."""
    ordered = sort_by_probability_distance(record, split)
    write_thumbnails(record.folder, cohort_csv, [s["slide"] for s in ordered[:MAX_SLIDE_CARDS]])
    beside = [m for m in ("teacher", "student") if m in record.names]
    rows: list[Context] = [{"slide": s, "apart": probability_distance(s)} for s in ordered]
    cards = [
        row | {"pictures": draw_slide_pictures(record.folder, row["slide"], beside)} for row in rows[:MAX_SLIDE_CARDS]
    ]
    return {"split": split, "cards": cards, "all": rows}


def _curve_section(curve: Any) -> Context:
    epochs = max(len(series) for series in curve.series.values())
    best = None if curve.chosen is None else curve.chosen + 1
    return {
        "title": curve.title,
        "epochs": epochs,
        "chosen": best,
        "plot": render_svg_uri(plot_training(curve), 7.4, 2.2),
    }


def _failure_rows(folder: Path) -> list[Mapping[str, str]]:
    return [dict(zip(FAILURE_COLUMNS, row, strict=True)) for row in read_failures(folder)]


# ---------------------------------------------------------------- the run itself


def _describe_protocol(record: RunRecord) -> str:
    """Return how slides were parted, in words."""
    told = record.protocol
    if told is None and record.folder.absolute().parent.name == RUNS_FOLDER:  # its split may be a fold's
        return f"one run of a series, {record.folder.name}"
    if told is None:
        return "fixed split" if not record.runs else f"{len(record.runs)} runs"
    seeds = f", {told['seeds']} seeds" if (told.get("seeds") or 1) > 1 else ""
    return (f"{told['folds']}-fold cross-validation" if told.get("folds") else str(told["kind"])) + seeds


def _run_times(record: RunRecord) -> Context:
    """Return when the run began and ended, how often it was begun, and whether it came to its end."""
    times = [line["time"] for line in record.events if "time" in line]
    attempts = {line.get("attempt", 0) for line in record.events}
    stages = [str(line["stage"]) for line in record.events if line.get("stage")]
    return {
        "began": _format_utc(times[0]) if times else None,
        "ended": _format_utc(times[-1]) if times else None,
        "hours": (times[-1] - times[0]) / 3600 if times else None,
        "attempts": len(attempts),
        "finished": record.finished,
        "last": stages[-1] if stages else None,
    }


def _format_utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) + " UTC"


def _package_versions() -> dict[str, str]:
    """Return the versions of the program that writes the report."""
    found = {"napari-lrmil": __version__, "Python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
