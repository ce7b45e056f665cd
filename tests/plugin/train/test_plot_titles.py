"""Titles of the plots of the Train dock fit into its least width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.window import require_screen

require_screen()

LEAST_WIDTH_PX = 316  # of a plot in a dock at its least width, font of 9 pt


def assert_titles_fit(canvas: Any) -> None:
    canvas.resize(LEAST_WIDTH_PX, canvas.height())
    canvas.draw()
    for axis in canvas.figure.axes:
        title = axis._left_title  # matplotlib has no public name for a title on the left
        right = title.get_window_extent(canvas.get_renderer()).x1
        assert right <= canvas.figure.bbox.x1, title.get_text()


def test_titles_of_the_curves_and_of_the_reliability_diagram_are_not_cut(qtbot: Any, tmp_path: Path) -> None:
    from lrmil_training.report.run_record import TrainingCurve
    from napari_lrmil.plugin.train.curves import CurveCanvas, PlotTheme
    from napari_lrmil.plugin.train.result_panel import ResultSection
    from napari_lrmil.plugin.train.result_table import MethodRow, RunResult

    theme = PlotTheme("#222222", "#eeeeee", "#888888")
    canvas = CurveCanvas(theme)
    qtbot.addWidget(canvas)
    names = ("train/hard", "val/hard", "val/auroc", "val/agreement")
    canvas.show_curve(TrainingCurve("stage2", 0, "", {name: {0: 0.5, 1: 0.6} for name in names}))
    assert len(canvas.figure.axes) == 3
    assert_titles_fit(canvas)
    section = ResultSection(theme)
    qtbot.addWidget(section)
    row = MethodRow("student", "LR student", "0.90", "0.80 to 1.00", "0.90", "0.70")
    section.show_result(RunResult(tmp_path, "test", (row,), {"student": [(0.2, 0.1), (0.8, 0.9)]}, ()))
    assert_titles_fit(section.reliability)
