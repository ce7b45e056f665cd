"""Plots of the report as self-contained SVG; each method has the same colour and marker in all of them.

A ``plot_…`` function takes results and returns a `Plot`, which draws them on a figure; `render_svg_uri` renders it.
"""

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

Plot = Callable[["Figure"], None]  # draws on an empty figure

# Okabe & Ito's palette, which colour-blind readers can distinguish; the teacher, the reference, is the darkest.
METHOD_COLOURS = {
    "teacher": "#3a3a3a",
    "student": "#0072b2",
    "labels_only": "#e69f00",
    "labels_only_finetuned": "#d55e00",
    "stage1_only": "#009e73",
    "stage2_only": "#cc79a7",
    "both": "#56b4e9",
}
EXTRA_COLOURS = (
    "#882255",
    "#44aa99",
    "#999933",
    "#332288",
    "#aa4499",
    "#117733",
)  # after Paul Tol, for ablations
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
    "svg.hashsalt": "lrmil",  # fixed, so that the same run gives the same bytes
}


def method_colour(method: str, methods: Sequence[str]) -> str:
    """Return the colour of a method; `methods` are all methods of the run."""
    others = [m for m in methods if m not in METHOD_COLOURS]
    return METHOD_COLOURS.get(method) or EXTRA_COLOURS[others.index(method) % len(EXTRA_COLOURS)]


def method_marker(method: str, methods: Sequence[str]) -> str:
    """Return the marker of a method, so that a print in grey is readable; `methods` are all methods of the run."""
    return METHOD_MARKERS[list(methods).index(method) % len(METHOD_MARKERS)]


def render_svg_uri(plot: Plot, width: float, height: float) -> str:
    """Return a plot as the data URI of an SVG; `width` and `height` are in inches."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(PLOT_STYLE):  # type: ignore[arg-type]  # the stubs declare its keys as literals
        figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        plot(figure)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(content.getvalue()).decode()}"


# ---------------------------------------------------------------- results on a split


def plot_roc(record: RunRecord, split: str) -> Plot | None:
    """Return the ROC curves of all methods; None for more than two classes, or if a class has no slide."""
    slides = [s for s in record.slides if s["split"] == split]
    classes = list(next(iter(slides[0]["methods"].values()))["probabilities"]) if slides else []
    if len(classes) != 2 or len({s["label"] for s in slides}) < 2:
        return None

    def draw(figure: Figure) -> None:
        from sklearn.metrics import roc_curve

        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=FAINT_COLOUR, lw=0.8, ls="--")
        for method in _methods_present(record, slides):
            rows = [s for s in slides if method in s["methods"]]
            scores = [s["methods"][method]["probabilities"][classes[1]] for s in rows]
            x, y, _ = roc_curve([s["label"] == classes[1] for s in rows], scores)
            axis.plot(x, y, color=method_colour(method, record.names), label=method_label(method), clip_on=False)
        _set_unit_square(axis, "1 − specificity", "sensitivity", f"ROC, {classes[1]}")
        axis.legend(loc="lower right")

    return draw


def plot_reliability(record: RunRecord, split: str) -> Plot:
    """Return the reliability diagram: accuracy against mean probability of each bin."""

    def draw(figure: Figure) -> None:
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
        _set_unit_square(axis, "mean probability of the predicted class", "accuracy", "Reliability")
        axis.legend(loc="upper left")

    return draw


def _set_unit_square(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel=x, ylabel=y, aspect="equal")
    axis.set_title(title)


def _methods_present(record: RunRecord, slides: Sequence[Mapping[str, Any]]) -> list[str]:
    present = {method for s in slides for method in s["methods"]}
    return [method for method in record.names if method in present]


def plot_forest(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Plot:
    """Return the forest plot of paired differences; `rows` have method, other, value, low and high."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.axvspan(-NON_INFERIORITY_MARGIN, 0, color="#eef1f5", lw=0)
        axis.axvline(0, color="#8a8f98", lw=0.8)
        axis.axvline(-NON_INFERIORITY_MARGIN, color="#8a8f98", lw=0.8, ls=":")
        for y, row in enumerate(reversed(rows)):
            line_colour = method_colour(row["other"], methods)
            if row["low"] is not None:
                axis.plot([row["low"], row["high"]], [y, y], color=line_colour, lw=2, solid_capstyle="butt")
            axis.plot(row["value"], y, marker=method_marker(row["other"], methods), color=line_colour, ms=6)
        axis.set_yticks(
            range(len(rows)), [f"{method_label(r['method'])} − {method_label(r['other'])}" for r in reversed(rows)]
        )
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("difference of AUROC (right of 0: the first is better)")

    return draw


def plot_runs(record: RunRecord, split: str) -> Plot:
    """Return the AUROC of every run as a dot, and mean ± sd as a bar; one row per method."""
    methods = [m for m in record.names if split in record.summary.get(m, {})]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for y, method in enumerate(reversed(methods)):
            auroc = record.summary[method][split]["auroc"]
            line_colour = method_colour(method, record.names)
            values = [run["value"] for run in auroc["runs"] if run["value"] is not None]
            spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
            axis.plot(
                values, y + spread, method_marker(method, record.names), color=line_colour, ms=4, alpha=0.75, mew=0
            )
            if auroc["mean"] is not None:
                sd = auroc["sd"] or 0.0
                axis.plot([auroc["mean"] - sd, auroc["mean"] + sd], [y - 0.32] * 2, color=line_colour, lw=2)
                axis.plot(auroc["mean"], y - 0.32, "|", color=line_colour, ms=9, mew=2)
        axis.set_yticks(range(len(methods)), [method_label(m) for m in reversed(methods)])
        axis.set_ylim(-0.7, len(methods) - 0.5)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("AUROC")

    return draw


def plot_agreement(record: RunRecord, split: str) -> Plot | None:
    """Return the agreement of attention with the teacher, a dot per slide; None if no slide has a value."""
    panels = (
        ("spearman", "Spearman ρ", (-1, 1)),
        ("jaccard_top10", "top-10 % overlap (Jaccard)", (0, 1)),
        ("js_divergence", "Jensen–Shannon divergence", (0, 1)),
    )
    slides = [s for s in record.slides if s["split"] == split]
    methods = [m for m in record.names if any((s["methods"].get(m) or {}).get("agreement") for s in slides)]
    if not methods:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (key, title, limits) in zip(axes, panels, strict=True):
            for y, method in enumerate(reversed(methods)):
                _plot_strip(axis, y, _agreement_values(slides, method, key), method_colour(method, record.names))
            axis.set_title(title)
            axis.set(xlim=limits, ylim=(-0.6, len(methods) - 0.4))
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
        axes[0].set_yticks(range(len(methods)), [method_label(m) for m in reversed(methods)])

    return draw


def _agreement_values(slides: Sequence[Mapping[str, Any]], method: str, key: str) -> list[float]:
    values = [((s["methods"].get(method) or {}).get("agreement") or {}).get(key) for s in slides]
    return [float(value) for value in values if value is not None]


def _plot_strip(axis: Axes, y: float, values: Sequence[float], dot_colour: str) -> None:
    """Draw a dot per slide, with random vertical offsets against overlap, and the median as a bar."""
    if values:
        offsets = np.random.default_rng(0).uniform(-0.2, 0.2, len(values))
        axis.plot(values, y + offsets, "o", color=dot_colour, ms=3.5, alpha=0.55, mew=0, clip_on=False)
        axis.plot([np.median(values)] * 2, [y - 0.32, y + 0.32], color=dot_colour, lw=2)


# ---------------------------------------------------------------- training


def plot_training(curve: TrainingCurve) -> Plot:
    """Return the loss terms of a fit and its validation metrics, with the epoch of the stored checkpoint."""
    terms = sorted({name.split("/", 1)[1] for name in curve.series if name.startswith("train/")})
    validation = [name for name in curve.series if name.startswith("val/") and name.split("/", 1)[1] not in terms]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for i, term in enumerate(terms):
            term_colour = TERM_COLOURS[i % len(TERM_COLOURS)]
            _plot_line(left, curve.series[f"train/{term}"], term_colour, term, "-")
            _plot_line(left, curve.series.get(f"val/{term}", {}), term_colour, "", "--")
        for i, name in enumerate(validation):
            _plot_line(right, curve.series[name], TERM_COLOURS[i % len(TERM_COLOURS)], name.split("/", 1)[1], "-")
        _use_log_scale_if_wide(
            left, [v for name, values in curve.series.items() if name.startswith("train/") for v in values.values()]
        )
        left.set_title("loss terms (dashed: validation)")
        right.set_title("validation")
        for axis in (left, right):
            _finish_axis(axis, curve.chosen)

    return draw


def _plot_line(axis: Axes, series: Mapping[int, float], line_colour: str, label: str, dashes: str) -> None:
    steps = sorted(series)
    if steps:
        marker, size = ("o", 3.5) if len(steps) < 4 else ("", None)  # a line of one point is invisible
        values = [series[s] for s in steps]
        epochs = [s + 1 for s in steps]
        axis.plot(epochs, values, color=line_colour, label=label or None, ls=dashes, marker=marker, ms=size)


def _use_log_scale_if_wide(axis: Axes, values: Sequence[float]) -> None:
    """Use a logarithmic scale if the values span more than a factor of 20: small terms would look flat."""
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
