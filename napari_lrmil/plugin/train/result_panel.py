"""Result of a finished run: table of teacher, student and baselines, reliability diagram, and the next steps."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QWidget

from lrmil_training.report.plots import method_colour, method_marker
from napari_lrmil.plugin.qt.section import enable_unless, make_button, make_label
from napari_lrmil.plugin.qt.steps import Step
from napari_lrmil.plugin.qt.wheel import PLOT
from napari_lrmil.plugin.train.curves import PlotTheme
from napari_lrmil.plugin.train.result_table import MethodRow, RunResult

PLOT_HEIGHT_PX = 250
METHODS_PER_TABLE = 3  # a dock is narrow
ROW_LABELS = {
    "auroc": "AUROC",
    "interval": "interval",
    "accuracy": "bal. accuracy",
    "agreement": "attention (ρ)",
    "patches": "patches",
    "pixels": "MPix",
    "seconds": "CPU s",
}
USE_TIP = "Open this model in the Analyse dock"
REPORT_TIP = "Open the page with all metrics, slides and curves in the browser"
NO_RESULT = "No run has finished yet."


class ResultSection(Step):
    """Step 4 of the dock: view of a `RunResult`."""

    use_wanted = Signal()
    report_wanted = Signal()

    def __init__(self, theme: PlotTheme, parent: QWidget | None = None) -> None:
        super().__init__("train result", "4 · Result", parent)
        self._theme = theme
        self.use, self.report = make_button("Use this model", USE_TIP), make_button("Report…", REPORT_TIP)
        self.table, self.notes = make_label("result table"), make_label("result notes", small=True)
        self.table.setTextFormat(Qt.TextFormat.RichText)
        figure = Figure(layout="constrained", facecolor=theme.paper, dpi=96)
        self.reliability: Any = FigureCanvasQTAgg(figure)  # type: ignore[no-untyped-call]  # matplotlib's Qt backend is untyped
        self.reliability.setObjectName(PLOT)
        self.reliability.setFixedHeight(PLOT_HEIGHT_PX)
        self.use.clicked.connect(lambda: self.use_wanted.emit())
        self.report.clicked.connect(lambda: self.report_wanted.emit())
        self.add(self.use, self.report)
        for part in (self.table, self.notes, self.reliability):
            self.add(part)
        self.show_result(None)

    def show_result(self, result: RunResult | None) -> None:
        """Show a result, or that there is none yet."""
        enable_unless(self.use, "" if result and result.bundle else NO_RESULT, USE_TIP)
        enable_unless(self.report, "" if result and result.report else NO_RESULT, REPORT_TIP)
        self.table.setText(_result_html(result) if result else NO_RESULT)
        self.notes.setText(" ".join(result.notes) if result else "")
        self.reliability.setVisible(bool(result and any(result.reliability.values())))
        if result and result.reliability:
            self._draw(result)

    def _draw(self, result: RunResult) -> None:
        figure, theme = self.reliability.figure, self._theme
        figure.clear()
        axis = figure.subplots()
        axis.set_facecolor(theme.paper)
        axis.plot([0, 1], [0, 1], color=theme.faint, lw=0.8, ls="--")
        methods = list(result.reliability)
        for row in (r for r in result.rows if result.reliability[r.method]):
            bins = result.reliability[row.method]
            tint = theme.tint(method_colour(row.method, methods))
            axis.plot(
                *zip(*bins, strict=True),
                color=tint,
                marker=method_marker(row.method, methods),
                ms=4,
                lw=1,
                label=row.name,
            )
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.set_xlabel("mean probability", color=theme.text, fontsize=8)
        axis.set_ylabel("accuracy", color=theme.text, fontsize=8)
        axis.set_title("Reliability (diagonal: calibrated)", color=theme.text, fontsize=8, loc="left")
        axis.tick_params(colors=theme.text, labelsize=7)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.faint)
        for text in axis.legend(fontsize=7, frameon=False).get_texts():
            text.set_color(theme.text)
        self.reliability.draw_idle()


def _result_html(result: RunResult) -> str:
    rows = result.rows
    blocks = [
        _method_table_html(rows[i : i + METHODS_PER_TABLE], result.spread)
        for i in range(0, len(rows), METHODS_PER_TABLE)
    ]
    caption = "attention: rank correlation with the teacher's attention. Patches, pixels and seconds: per slide"
    return f"<b>On the {escape(result.split)} slides</b>{''.join(blocks)}<i>{caption}</i>"


def _method_table_html(methods: Sequence[MethodRow], spread: str) -> str:
    """Return a table with one column per method; `spread` names the row below the AUROC."""
    head = "".join(f"<th align='right'>{escape(m.name)}</th>" for m in methods)
    lines = "".join(
        f"<tr><td>{label}</td>" + "".join(f"<td align='right'>{_cell_html(m, name)}</td>" for m in methods) + "</tr>"
        for name, label in (ROW_LABELS | {"interval": escape(spread)}).items()
    )
    return f"<table width='100%' cellspacing='3'><tr><td></td>{head}</tr>{lines}</table>"


def _cell_html(method: MethodRow, name: str) -> str:
    text = escape(getattr(method, name)).replace(" to ", "–").replace(" ", "&nbsp;")
    return f"<b>{text}</b>" if name == "auroc" else text
