"""The figures of a report as self-contained SVG; a method has one colour and one marker in all of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_training.evaluation.significance import NON_INFERIORITY_MARGIN
from lrmil_training.report.run_record import RunRecord, TrainingCurve, method_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart without colour vision; the reference is the darkest.
METHOD_COLOURS = {
    "teacher": "#3a3a3a",
    "student": "#0072b2",
    "labels_only": "#e69f00",
    "labels_only_finetuned": "#d55e00",
    "stage1_only": "#009e73",
    "stage2_only": "#cc79a7",
    "both": "#56b4e9",
}
EXTRA_COLOURS = ("#882255", "#44aa99", "#999933", "#332288", "#aa4499", "#117733")  # after Paul Tol, for ablations
METHOD_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h", "*", "8")
TERM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#3a3a3a")
TEXT_COLOUR, FAINT_COLOUR = "#222222", "#c9ccd1"
PLOT_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.edgecolor": "#8a8f98",
    "axes.linewidth": 0.7,
    "axes.labelcolor": TEXT_COLOUR,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#555b66",
    "ytick.color": "#555b66",
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "lrmil",  # the same run gives the same file
}


def method_colour(method: str, methods: Sequence[str]) -> str:
    """Return the colour of a method among the run's."""
    others = [m for m in methods if m not in METHOD_COLOURS]
    return METHOD_COLOURS.get(method) or EXTRA_COLOURS[others.index(method) % len(EXTRA_COLOURS)]


def method_marker(method: str, methods: Sequence[str]) -> str:
    """Return the marker of a method, so that prints in grey can be read."""
    return METHOD_MARKERS[list(methods).index(method) % len(METHOD_MARKERS)]


def render_svg_uri(make: Callable[[Figure], None], width: float, height: float) -> str:
    """Return what `make` draws on a figure of that many inches, as the data address of an SVG."""
    return f"data:image/svg+xml;base64,{base64.b64encode(_render(make, width, height, 'svg')).decode()}"


def render_png(make: Callable[[Figure], None], width: float, height: float) -> bytes:
    """Return what `make` draws as a PNG."""
    return _render(make, width, height, "png")


def _render(make: Callable[[Figure], None], width: float, height: float, form: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(PLOT_STYLE):  # type: ignore[arg-type]  # its keys are literals in the stubs
        figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        make(figure)
        content = io.BytesIO()
        figure.savefig(content, format=form, metadata={"Date": None} if form == "svg" else None)
    return content.getvalue()


# ---------------------------------------------------------------- figures of a split


def plot_roc(record: RunRecord, split: str) -> Callable[[Figure], None] | None:
    """Return the ROC curves of all methods; None for more than two classes or without slides of both."""
    its = [s for s in record.slides if s["split"] == split]
    classes = list(next(iter(its[0]["methods"].values()))["probabilities"]) if its else []
    if len(classes) != 2 or len({s["label"] for s in its}) < 2:
        return None

    def make(figure: Figure) -> None:
        from sklearn.metrics import roc_curve

        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=FAINT_COLOUR, lw=0.8, ls="--")
        for method in _methods_present(record, its):
            rows = [s for s in its if method in s["methods"]]
            scores = [s["methods"][method]["probabilities"][classes[1]] for s in rows]
            x, y, _ = roc_curve([s["label"] == classes[1] for s in rows], scores)
            axis.plot(x, y, color=method_colour(method, record.names), label=method_label(method), clip_on=False)
        _set_unit_square(axis, "1 − specificity", "sensitivity", f"ROC, {classes[1]}")
        axis.legend(loc="lower right")

    return make


def plot_reliability(record: RunRecord, split: str) -> Callable[[Figure], None]:
    """Return the reliability diagram: share that was right against the mean probability of each bin."""

    def make(figure: Figure) -> None:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=FAINT_COLOUR, lw=0.8, ls="--")
        for method in (m for m in record.names if split in record.methods.get(m, {})):
            bins = record.methods[method][split].get("reliability") or []
            axis.plot(
                [b["confidence"] for b in bins],
                [b["accuracy"] for b in bins],
                color=method_colour(method, record.names),
                marker=method_marker(method, record.names),
                ms=4,
                lw=1,
                label=method_label(method),
                clip_on=False,
            )
        _set_unit_square(axis, "mean probability of the predicted class", "share that was right", "Reliability")
        axis.legend(loc="upper left")

    return make


def _set_unit_square(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel=x, ylabel=y, aspect="equal")
    axis.set_title(title)


def _methods_present(record: RunRecord, slides: Sequence[Mapping[str, Any]]) -> list[str]:
    there = {method for s in slides for method in s["methods"]}
    return [method for method in record.names if method in there]


def plot_forest(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Callable[[Figure], None]:
    """Return paired differences with intervals; `rows` have method, other, value, low and high."""

    def make(figure: Figure) -> None:
        axis = figure.subplots()
        axis.axvspan(-NON_INFERIORITY_MARGIN, 0, color="#eef1f5", lw=0)
        axis.axvline(0, color="#8a8f98", lw=0.8)
        axis.axvline(-NON_INFERIORITY_MARGIN, color="#8a8f98", lw=0.8, ls=":")
        for y, row in enumerate(reversed(rows)):
            ink = method_colour(row["other"], methods)
            if row["low"] is not None:
                axis.plot([row["low"], row["high"]], [y, y], color=ink, lw=2, solid_capstyle="butt")
            axis.plot(row["value"], y, marker=method_marker(row["other"], methods), color=ink, ms=6)
        axis.set_yticks(
            range(len(rows)), [f"{method_label(r['method'])} − {method_label(r['other'])}" for r in reversed(rows)]
        )
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("difference of AUROC (right: the first is better)")

    return make


def plot_runs(record: RunRecord, split: str) -> Callable[[Figure], None]:
    """Return every run's AUROC as a dot, and mean ± sd as a bar, a row per method."""
    methods = [m for m in record.names if split in record.summary.get(m, {})]

    def make(figure: Figure) -> None:
        axis = figure.subplots()
        for y, method in enumerate(reversed(methods)):
            found = record.summary[method][split]["auroc"]
            ink = method_colour(method, record.names)
            values = [one["value"] for one in found["runs"] if one["value"] is not None]
            spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
            axis.plot(values, y + spread, method_marker(method, record.names), color=ink, ms=4, alpha=0.75, mew=0)
            if found["mean"] is not None:
                sd = found["sd"] or 0.0
                axis.plot([found["mean"] - sd, found["mean"] + sd], [y - 0.32] * 2, color=ink, lw=2)
                axis.plot(found["mean"], y - 0.32, "|", color=ink, ms=9, mew=2)
        axis.set_yticks(range(len(methods)), [method_label(m) for m in reversed(methods)])
        axis.set_ylim(-0.7, len(methods) - 0.5)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("AUROC")

    return make


def plot_agreement(record: RunRecord, split: str) -> Callable[[Figure], None] | None:
    """Return how each slide's attention agrees with the teacher's; None where no slide tells it."""
    told = (("spearman", "Spearman ρ", (-1, 1)), ("jaccard_top10", "top-10 % overlap (Jaccard)", (0, 1)))
    panels = [*told, ("js_divergence", "Jensen–Shannon divergence", (0, 1))]
    its = [s for s in record.slides if s["split"] == split]
    methods = [m for m in record.names if any((s["methods"].get(m) or {}).get("agreement") for s in its)]
    if not methods:
        return None

    def make(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (key, title, limits) in zip(axes, panels, strict=True):
            for y, method in enumerate(reversed(methods)):
                _plot_strip(axis, y, _agreement_values(its, method, key), method_colour(method, record.names))
            axis.set_title(title)
            axis.set(xlim=limits, ylim=(-0.6, len(methods) - 0.4))
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
        axes[0].set_yticks(range(len(methods)), [method_label(m) for m in reversed(methods)])

    return make


def _agreement_values(slides: Sequence[Mapping[str, Any]], method: str, key: str) -> list[float]:
    found = [((s["methods"].get(method) or {}).get("agreement") or {}).get(key) for s in slides]
    return [float(value) for value in found if value is not None]


def _plot_strip(axis: Axes, y: float, values: Sequence[float], ink: str) -> None:
    """Draw a dot per slide, spread so that none hides another for good, and the median as a bar."""
    if values:
        offsets = np.random.default_rng(0).uniform(-0.2, 0.2, len(values))
        axis.plot(values, y + offsets, "o", color=ink, ms=3.5, alpha=0.55, mew=0, clip_on=False)
        axis.plot([np.median(values)] * 2, [y - 0.32, y + 0.32], color=ink, lw=2)


# ---------------------------------------------------------------- training


def plot_training(curve: TrainingCurve) -> Callable[[Figure], None]:
    """Return a stage's loss terms beside its validation figures, with the epoch that was kept."""
    terms = sorted({name.split("/", 1)[1] for name in curve.series if name.startswith("train/")})
    beside = [name for name in curve.series if name.startswith("val/") and name.split("/", 1)[1] not in terms]

    def make(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for i, term in enumerate(terms):
            ink = TERM_COLOURS[i % len(TERM_COLOURS)]
            _plot_line(left, curve.series[f"train/{term}"], ink, term, "-")
            _plot_line(left, curve.series.get(f"val/{term}", {}), ink, "", "--")
        for i, name in enumerate(beside):
            _plot_line(right, curve.series[name], TERM_COLOURS[i % len(TERM_COLOURS)], name.split("/", 1)[1], "-")
        _use_log_scale_if_wide(
            left, [v for name, its in curve.series.items() if name.startswith("train/") for v in its.values()]
        )
        left.set_title("loss terms (dashed: validation)")
        right.set_title("validation")
        for axis in (left, right):
            _finish_axis(axis, curve.chosen)

    return make


def _plot_line(axis: Axes, series: Mapping[int, float], ink: str, label: str, dashes: str) -> None:
    steps = sorted(series)
    if steps:
        only = {"marker": "o", "ms": 3.5} if len(steps) < 4 else {}
        values = [series[s] for s in steps]
        axis.plot([s + 1 for s in steps], values, color=ink, label=label or None, ls=dashes, **only)  # type: ignore[arg-type]


def _use_log_scale_if_wide(axis: Axes, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) / min(values) > 20:
        axis.set_yscale("log")


def _finish_axis(axis: Axes, chosen: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    if chosen is not None and axis.lines:
        axis.axvline(chosen + 1, color="#8a8f98", lw=0.8, ls=":")
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best", ncols=2)
