"""Training curves of a run in progress: loss terms, validation AUROC, agreement with the teacher.

matplotlib draws them, which is a dependency anyway. `pyqtgraph` is faster, but a curve changes only once per epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lrmil_training.report.plots import TERM_COLOURS
from lrmil_training.report.run_record import TrainingCurve
from napari_lrmil.plugin.qt.wheel import PLOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TERM_LABELS = {
    "ce": "labels",
    "bag": "teacher's probabilities",
    "soft": "teacher's attention",
    "hard": "top patches",
    "attn": "attended embedding",
}
CANVAS_HEIGHT_PX = 300
LEGEND_SHARE = 0.5  # height of the legend, as a share of the lines below it
DARK_THEME_COLOURS = {
    "#0072b2": "#56b4e9",
    "#56b4e9": "#9ad7f7",
    "#009e73": "#2fc79c",
    "#d55e00": "#f08a3c",
    "#3a3a3a": "#e8e8e8",
}


@dataclass(frozen=True)
class PlotTheme:
    """Colours of the window's theme for matplotlib.

    Attributes
    ----------
    paper
        Background.
    text
        Labels.
    faint
        Axes and auxiliary lines.
    """

    paper: str
    text: str
    faint: str

    @property
    def is_dark(self) -> bool:
        """Whether the background is darker than the text."""
        return _brightness(self.paper) < _brightness(self.text)

    def tint(self, colour: str) -> str:
        """Return a colour that contrasts with the background: on a dark theme, dark colours have lighter variants."""
        return DARK_THEME_COLOURS.get(colour, colour) if self.is_dark else colour


def _brightness(colour: str) -> float:
    return float(np.mean(to_rgb(colour)))


class CurveCanvas(FigureCanvasQTAgg):
    """Plot of one fit.

    Parameters
    ----------
    theme
        Colours.
    """

    def __init__(self, theme: PlotTheme) -> None:
        self._theme = theme
        figure = Figure(facecolor=theme.paper, dpi=96)
        super().__init__(figure)  # type: ignore[no-untyped-call]  # matplotlib's Qt backend is untyped
        self.setObjectName(PLOT)
        self.setFixedHeight(CANVAS_HEIGHT_PX)
        self.setMinimumWidth(200)

    def show_curve(self, curve: TrainingCurve) -> None:
        """Draw a fit."""
        figure = self.figure
        figure.clear()  # also resets the margins
        # Fixed margins: a layout engine takes as long as the drawing itself.
        figure.subplots_adjust(left=0.13, right=0.98, top=0.93, bottom=0.12, hspace=0.5)
        panels = _split_into_panels(curve)
        heights = [1.6 if len(lines) > 1 else 1.0 for lines in panels.values()]  # a legend needs room
        ratios = {"height_ratios": heights}
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            self._panel(axis, title, lines)
        axes[-1].set_xlabel("epoch", color=self._theme.text, fontsize=8, labelpad=2)
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        if curve.chosen is not None:
            for axis in axes:
                axis.axvline(curve.chosen + 1, color=self._theme.faint, lw=0.8, ls=":")
        self.draw_idle()  # type: ignore[no-untyped-call]

    def _panel(self, axis: Axes, title: str, lines: list[CurveLine]) -> None:
        axis.set_facecolor(self._theme.paper)
        for line in lines:
            axis.plot(
                [step + 1 for step in line.values],
                list(line.values.values()),
                color=self._theme.tint(line.colour),
                ls="--" if line.dashed else "-",
                marker="o" if len(line.values) < 3 else "",
                ms=3,
                lw=1.3,
                label=line.name or None,
            )
        axis.set_title(title, color=self._theme.text, fontsize=8, loc="left", pad=3)
        axis.tick_params(colors=self._theme.text, labelsize=7)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(self._theme.faint)
        if len(lines) > 1:
            low, high = axis.get_ylim()
            axis.set_ylim(low, high + LEGEND_SHARE * (high - low))
            legend = axis.legend(loc="upper right", fontsize=6.5, frameon=False, ncols=2, borderpad=0, handlelength=1.4)
            for text in legend.get_texts():
                text.set_color(self._theme.text)


@dataclass(frozen=True)
class CurveLine:
    """Line of a panel: epoch, from 0 -> value."""

    name: str
    values: Mapping[int, float]
    colour: str
    dashed: bool = False


def _split_into_panels(curve: TrainingCurve) -> dict[str, list[CurveLine]]:
    """Return panels of a fit as title -> lines."""
    series: Mapping[str, Any] = curve.series
    terms = sorted({name.split("/", 1)[1] for name in series if name.startswith("train/")})
    losses = []
    for i, term in enumerate(terms):
        for side in ("train", "val"):
            values = series.get(f"{side}/{term}")
            if values:  # training and validation share a legend entry: the title explains the dashes
                name = _term_label(term) if side == "train" else ""
                losses.append(CurveLine(name, values, TERM_COLOURS[i % len(TERM_COLOURS)], side == "val"))
    panels = {"Loss terms (dashed: validation)": losses}
    if "val/auroc" in series:
        panels["Validation AUROC"] = [CurveLine("AUROC", series["val/auroc"], TERM_COLOURS[0])]
    if "val/agreement" in series:
        title = "Agreement of attention (ρ, validation)"
        panels[title] = [CurveLine("ρ", series["val/agreement"], TERM_COLOURS[2])]
    return panels


def _term_label(term: str) -> str:
    if term.startswith("layer_"):
        return f"maps at {term.removeprefix('layer_')}"
    return TERM_LABELS.get(term, term)
