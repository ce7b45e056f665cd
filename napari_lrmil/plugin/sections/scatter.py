"""Patch against patch: the student's attention over the teacher's, with a lasso."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QWidget

from napari_lrmil.plugin.sections.parts import Section, bar, button, label

if TYPE_CHECKING:
    from napari_lrmil.core.comparison import Shared

HEIGHT_PX = 240
POINT, PICKED, INK = "#9aa3ad", "#00d5f0", "#8a8f98"  # picked as their outlines on the slide; larger, too
HINT = "A point is a patch. Draw a loop round some: they light up on the slide."
DRAW = "Draw a region on the slide: its patches light up here. Two views cannot be drawn on, so Wipe is chosen"


class ScatterSection(Section):
    """Shows points, and tells which were picked."""

    picked = Signal(object)  # (M,) bool
    drawing_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("scatter", "Patch by patch (scatter)", parent)
        from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
        from matplotlib.figure import Figure
        from matplotlib.widgets import LassoSelector

        self._figure = Figure(layout="constrained", facecolor="none")
        self.canvas: Any = FigureCanvasQTAgg(self._figure)  # type: ignore[no-untyped-call]
        self.canvas.setFixedHeight(HEIGHT_PX)
        self.canvas.setStyleSheet("background: transparent")
        self.axes: Any = self._figure.add_subplot()
        self._points: NDArray[np.float64] = np.zeros((0, 2))  # teacher, student
        self._dots: Any = None
        self._lasso = LassoSelector(self.axes, self._looped, props={"color": PICKED, "linewidth": 1.2})
        self.draw, self.clear = button("Draw on the slide", DRAW), button("Clear", "")
        self.draw.clicked.connect(self.drawing_wanted)
        self.clear.clicked.connect(lambda: self._pick(np.zeros(len(self._points), dtype=np.bool_)))
        self.told = label("picked", HINT, small=True)
        self.add(self.canvas)
        self.add(self.draw, self.clear)
        self.add(self.told)
        self.show_points(None)

    def show_points(self, both: Shared | None) -> None:
        """Show what both networks give to the patches; None shows none."""
        self._points = np.zeros((0, 2)) if both is None else np.stack([both.teacher, both.student], axis=1)
        top = 1.05 * max(1.0, float(self._points.max())) if len(self._points) else 1.0
        for artist in (*self.axes.collections, *self.axes.lines[1:]):
            artist.remove()
        self._dots = self.axes.scatter(*self._points.T, s=14, alpha=0.8, linewidths=0, color=POINT)
        self.axes.axline((0, 0), slope=1, color=INK, linewidth=0.8, linestyle=":")
        self.axes.set(xlim=(0, top), ylim=(0, top), facecolor="none")
        self.axes.set_xlabel("teacher, times the average", color=INK, fontsize=8)
        self.axes.set_ylabel("student, times the average", color=INK, fontsize=8)
        self.axes.tick_params(colors=INK, labelsize=8)
        self.axes.spines[:].set_color(INK)
        self._lasso.set_active(both is not None)
        bar(self.draw, "" if both is not None else "The teacher did not look at this slide yet.", DRAW)
        self.light(np.zeros(len(self._points), dtype=np.bool_))

    def light(self, points: NDArray[np.bool_]) -> None:
        """Let some of the points light up."""
        self.lit = points
        colours, sizes = np.where(points, PICKED, POINT), np.where(points, 32, 14)
        if len(points):
            self._dots.set_facecolor(list(colours))
            self._dots.set_sizes(sizes)
        count = int(points.sum())
        self.told.setText(f"{count} of {len(points)} patches picked." if count else HINT)
        bar(self.clear, "" if count else "No patch is picked.", "Let no patch light up")
        self.canvas.draw_idle()
        self.fit()

    def _looped(self, corners: list[tuple[float, float]]) -> None:
        from matplotlib.path import Path

        if len(corners) > 2 and len(self._points):
            self._pick(np.asarray(Path(corners).contains_points(self._points), dtype=np.bool_))

    def _pick(self, points: NDArray[np.bool_]) -> None:
        self.light(points)
        self.picked.emit(points)
