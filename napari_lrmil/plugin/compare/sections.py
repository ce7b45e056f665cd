"""Get the teacher's attention: of which part of the slide, into how many patches it looks, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QLabel,
    QProgressBar,
    QRadioButton,
    QSlider,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil.plugin.analyse.sections import DRAW_TIP, ROI_KIND_LABELS
from napari_lrmil.plugin.compare.comparison_model import BUDGET_KINDS, BudgetKind, TeacherBudget, why_comparison_blocked
from napari_lrmil.plugin.qt.section import Section, enable_unless, make_button, make_label, make_row
from napari_lrmil.plugin.viewer.attention_layers import CompareMode, CompareView

if TYPE_CHECKING:
    from napari_lrmil.core.inference.teacher_comparison import SharedPatches
    from napari_lrmil.plugin.compare.comparison_model import Comparison, LesionScores, TableRow
    from napari_lrmil.plugin.session.session import Session


RUN_LABEL = "Get teacher's attention"
LOAD_TIP = "Read what `compare` or `predict --teacher` stored about this slide"
BUDGET_LABELS: dict[BudgetKind, str] = {
    "all": "Everywhere",
    "top": "The student's top patches",
    "time": "As much as fits in",
}
BUDGET_TIP = "Where the teacher looks: at all patches, or at those to which the student gave most attention"
BUSY_REASON = "Wait for what is under way, or cancel it."


class TeacherRunForm(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Edits a `TeacherBudget`, tells the cost of each, and has one button that gets it."""

    kind_chosen = Signal(str)
    changed = Signal()
    drawing_wanted = Signal()
    get_wanted = Signal()
    cancel_wanted = Signal()
    load_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scopes, self._hows = QButtonGroup(self), QButtonGroup(self)
        self.kinds = {kind: QRadioButton(word) for kind, word in ROI_KIND_LABELS}
        for kind, radio in self.kinds.items():
            self._scopes.addButton(radio)
            radio.clicked.connect(lambda _=False, kind=kind: self.kind_chosen.emit(kind))
        self.hows = {how: QRadioButton(BUDGET_LABELS[how]) for how in BUDGET_KINDS}
        self.costs = {how: make_label(f"cost of {how}", small=True) for how in BUDGET_KINDS}
        self.top, self.seconds = _spin(1, 100_000, 20, ""), _spin(1, 86_400, 30, " s")
        for radio in self.hows.values():
            self._hows.addButton(radio)
            radio.clicked.connect(lambda *_: self.changed.emit())
        self.hows["top"].setChecked(True)
        self.top.valueChanged.connect(lambda _: self._spun("top"))
        self.seconds.valueChanged.connect(lambda _: self._spun("time"))
        self.get, self.load = make_button(RUN_LABEL, ""), make_button("Load stored…", LOAD_TIP)
        self.get.setMinimumHeight(30)
        self.draw = make_button("Draw", DRAW_TIP)
        self.draw.clicked.connect(self.drawing_wanted)
        self.get.clicked.connect(self._pressed)
        self.load.clicked.connect(self.load_wanted)
        self.progress, self.note = QProgressBar(), make_label("note")
        self._busy = False
        self._lay_out()

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(3)
        column.addWidget(make_row(*self.kinds.values(), self.draw))
        spins: dict[BudgetKind, QSpinBox] = {"top": self.top, "time": self.seconds}
        for how, radio in self.hows.items():
            column.addWidget(make_row(radio, spins[how]) if how in spins else radio)
            column.addWidget(self.costs[how])
            self.costs[how].setContentsMargins(22, 0, 0, 2)
        for part in (make_row(self.get, self.load), self.progress, self.note):
            column.addWidget(part)

    def value(self) -> TeacherBudget:
        """Return what is wished for."""
        how = next(how for how, radio in self.hows.items() if radio.isChecked())
        return TeacherBudget(how, self.top.value(), self.seconds.value())

    def _spun(self, how: BudgetKind) -> None:
        self.hows[how].setChecked(True)
        self.changed.emit()

    def _pressed(self) -> None:
        (self.cancel_wanted if self._busy else self.get_wanted).emit()

    def show_session(self, session: Session, loading: str, cancelling: bool) -> None:
        """Show what can be had at which cost, and how far it is; `loading` says what of the stored is being read."""
        self._busy = session.is_busy or bool(loading)
        self.kinds[session.roi_kind].setChecked(True)
        for kind, word in ROI_KIND_LABELS:
            tip = f"The teacher looks into the {'drawn regions' if kind == 'region' else word.lower()}"
            enable_unless(self.kinds[kind], BUSY_REASON if self._busy else "", tip)
        if not self._busy:
            asked, wish = session.planned_patches, self.value()
            for how, told in self.costs.items():
                told.setText(TeacherBudget(how, wish.top, wish.seconds).text(asked))
        barred = "" if self._busy else why_comparison_blocked(session, self.value())
        for widget in (*self.hows.values(), self.top, self.seconds):
            enable_unless(widget, BUSY_REASON if self._busy else session.teacher_blocked_by, BUDGET_TIP)
        enable_unless(self.load, BUSY_REASON if self._busy else _no_slide(session), LOAD_TIP)
        enable_unless(self.draw, BUSY_REASON if self._busy else _no_slide(session), DRAW_TIP)
        self.get.setText(("Cancelling…" if cancelling else "Cancel") if self._busy else RUN_LABEL)
        enable_unless(
            self.get,
            barred or ("The step under way ends first." if cancelling else ""),
            "Student and teacher, compared",
        )
        self._show_progress(session, loading)
        self.note.setText(barred)
        self.note.setVisible(bool(barred))

    def _show_progress(self, session: Session, loading: str) -> None:
        pace = session.progress
        self.progress.setVisible(self._busy)
        self.progress.setRange(0, 0 if loading else 100)
        self.progress.setValue(round(100 * pace.fraction) if pace else 0)
        self.progress.setFormat(loading or (pace.text if pace else "starting"))


def _no_slide(session: Session) -> str:
    if session.slide is None or session.bundle is None:
        return "Choose a slide and a model in the Analyse dock first."
    return ""


def _spin(low: int, high: int, value: int, unit: str) -> QSpinBox:
    made = QSpinBox()
    made.setRange(low, high)
    made.setValue(value)
    made.setSuffix(unit)
    made.setAccessibleName("How many seconds" if unit else "How many patches")
    made.setFixedWidth(72)
    return made


COLUMN_ALIGNS, COLUMN_HEADS = ("left", "right", "right"), ("", "Student", "Teacher")
NO_TEACHER = "The teacher did not look at this slide yet."
AGREEMENT_TIP = (
    "ρ: rank correlation of the patches, 1 the same order · top-10 % overlap: of the tenth of patches with most "
    "attention, 1 the same · JS: Jensen-Shannon divergence, 0 the same, 1 nothing in common"
)


class MeasuresSection(Section):
    """Shows figures in a table."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("measures", "How far they agree (figures)", parent)
        self.agreement, self.lesions = make_label("agreement", NO_TEACHER, bold=True), make_label("lesions", small=True)
        self.agreement.setToolTip(AGREEMENT_TIP)
        self.table = make_label("figures")
        self.table.setTextFormat(Qt.TextFormat.RichText)
        self.table.setWordWrap(False)
        self._shown: tuple[TableRow, ...] = ()
        self.add(self.agreement)
        self.add(self.table)
        self.add(self.lesions)

    def value(self) -> dict[str, tuple[str, str]]:
        """Return the table as it is shown: name -> student, teacher."""
        return {figure.name: (figure.student, figure.teacher) for figure in self._shown}

    def show_comparison(self, comparison: Comparison | None, lesions: LesionScores | None) -> None:
        """Show what there is."""
        self.agreement.setText(comparison.agreement if comparison else NO_TEACHER)
        lines = (*comparison.figures, *(lesions.lines if lesions else ())) if comparison else ()
        self._shown = lines
        self.table.setText(_as_html(lines))
        self.table.setVisible(bool(lines))
        self.lesions.setText(lesions.text if comparison and lesions else "")
        self.lesions.setVisible(bool(comparison and lesions))
        self.fit_height()


def _as_html(lines: Sequence[TableRow]) -> str:
    """Return the lines as a table, numbers to the right."""
    heads = "".join(f"<th align='{side}'>{text}</th>" for side, text in zip(COLUMN_ALIGNS, COLUMN_HEADS, strict=True))
    rows = [heads]
    for line in lines:
        cells = zip(COLUMN_ALIGNS, map(escape, (line.name, line.student, line.teacher)), strict=True)
        rows.append("".join(f"<td align='{side}'>{text}</td>" for side, text in cells))
    return "<table width='100%' cellpadding='1'>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


VIEW_LABELS: dict[CompareView, tuple[str, str]] = {
    "side": ("Side by side", "Two views that move together, with one colour scale"),
    "wipe": ("Wipe", "Both maps on one slide: the student's left of the wipe, the teacher's right of it"),
    "difference": ("Difference", "Orange where the student looks more than its teacher, purple where it looks less"),
}
POOLED_TIP = (
    "The teacher's attention summed over the HR patches in each LR patch, as it is compared; else on its own grid"
)


class CompareModeSection(Section):
    """Edits a `CompareMode`."""

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("pairing", "See both (maps)", parent)
        self._group, self._there = QButtonGroup(self), False
        self.views = {view: QRadioButton(word) for view, (word, _) in VIEW_LABELS.items()}
        self.wipe, self.pooled = QSlider(Qt.Orientation.Horizontal), QCheckBox("Teacher pooled to LR patches")
        self.wipe.setAccessibleName("Columns of patches left of the wipe")
        self.wipe.valueChanged.connect(self._changed)
        self.pooled.toggled.connect(self._changed)
        for radio in self.views.values():
            self._group.addButton(radio)
            radio.toggled.connect(self._chosen)
        self.views["side"].setChecked(True)
        self.add(*self.views.values())
        self._line = make_row(QLabel("Student"), self.wipe, QLabel("Teacher"))
        self.add(self._line)
        self.add(self.pooled)
        self.show_columns(None)

    def value(self) -> CompareMode:
        """Return how the maps are to lie."""
        view = next(view for view, radio in self.views.items() if radio.isChecked())
        return CompareMode(view, self.wipe.value(), self.pooled.isChecked())

    def choose(self, view: CompareView) -> None:
        """Choose a view."""
        self.views[view].setChecked(True)

    def show_columns(self, columns: int | None) -> None:
        """Offer so many columns of LR patches to the wipe, which starts in the middle; None: there is no teacher."""
        self._there = columns is not None
        if columns is not None and columns != self.wipe.maximum():
            self.wipe.blockSignals(True)
            self.wipe.setRange(0, columns)
            self.wipe.setValue(columns // 2)
            self.wipe.blockSignals(False)
        self._enable()

    def _enable(self) -> None:
        barred = "" if self._there else NO_TEACHER
        for view, (_, tip) in VIEW_LABELS.items():
            enable_unless(self.views[view], barred, tip)
        wiping, differing = self.views["wipe"].isChecked(), self.views["difference"].isChecked()
        enable_unless(
            self.wipe, barred or ("" if wiping else "Choose Wipe first."), "Move the wipe by a column of LR patches"
        )
        enable_unless(
            self.pooled, barred or ("A difference is always on the LR grid." if differing else ""), POOLED_TIP
        )

    def _chosen(self, on: bool) -> None:
        if on:
            self._enable()
            self._changed()

    def _changed(self, _: object = None) -> None:
        self.changed.emit()


PLOT_HEIGHT_PX = 240
POINT_COLOUR, PICKED_COLOUR, AXES_COLOUR = (
    "#9aa3ad",
    "#00d5f0",
    "#8a8f98",
)  # picked as their outlines on the slide; larger, too
LASSO_HINT = "A point is a patch. Draw a loop round some: they light up on the slide."
DRAW_TO_PICK_TIP = (
    "Draw a region on the slide: its patches light up here. Two views cannot be drawn on, so Wipe is chosen"
)


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
        self.canvas.setFixedHeight(PLOT_HEIGHT_PX)
        self.canvas.setStyleSheet("background: transparent")
        self.axes: Any = self._figure.add_subplot()
        self._points: NDArray[np.float64] = np.zeros((0, 2))  # teacher, student
        self._dots: Any = None
        self._lasso = LassoSelector(self.axes, self._looped, props={"color": PICKED_COLOUR, "linewidth": 1.2})
        self.draw, self.clear = make_button("Draw on the slide", DRAW_TO_PICK_TIP), make_button("Clear", "")
        self.draw.clicked.connect(self.drawing_wanted)
        self.clear.clicked.connect(lambda: self._pick(np.zeros(len(self._points), dtype=np.bool_)))
        self.told = make_label("picked", LASSO_HINT, small=True)
        self.add(self.canvas)
        self.add(self.draw, self.clear)
        self.add(self.told)
        self.show_points(None)

    def show_points(self, both: SharedPatches | None) -> None:
        """Show what both networks give to the patches; None shows none."""
        self._points = np.zeros((0, 2)) if both is None else np.stack([both.teacher, both.student], axis=1)
        top = 1.05 * max(1.0, float(self._points.max())) if len(self._points) else 1.0
        for artist in (*self.axes.collections, *self.axes.lines[1:]):
            artist.remove()
        self._dots = self.axes.scatter(*self._points.T, s=14, alpha=0.8, linewidths=0, color=POINT_COLOUR)
        self.axes.axline((0, 0), slope=1, color=AXES_COLOUR, linewidth=0.8, linestyle=":")
        self.axes.set(xlim=(0, top), ylim=(0, top), facecolor="none")
        self.axes.set_xlabel("teacher, times the average", color=AXES_COLOUR, fontsize=8)
        self.axes.set_ylabel("student, times the average", color=AXES_COLOUR, fontsize=8)
        self.axes.tick_params(colors=AXES_COLOUR, labelsize=8)
        self.axes.spines[:].set_color(AXES_COLOUR)
        self._lasso.set_active(both is not None)
        enable_unless(
            self.draw, "" if both is not None else "The teacher did not look at this slide yet.", DRAW_TO_PICK_TIP
        )
        self.light(np.zeros(len(self._points), dtype=np.bool_))

    def light(self, points: NDArray[np.bool_]) -> None:
        """Let some of the points light up."""
        self.lit = points
        colours, sizes = np.where(points, PICKED_COLOUR, POINT_COLOUR), np.where(points, 32, 14)
        if len(points):
            self._dots.set_facecolor(list(colours))
            self._dots.set_sizes(sizes)
        count = int(points.sum())
        self.told.setText(f"{count} of {len(points)} patches picked." if count else LASSO_HINT)
        enable_unless(self.clear, "" if count else "No patch is picked.", "Let no patch light up")
        self.canvas.draw_idle()
        self.fit_height()

    def _looped(self, corners: list[tuple[float, float]]) -> None:
        from matplotlib.path import Path

        if len(corners) > 2 and len(self._points):
            self._pick(np.asarray(Path(corners).contains_points(self._points), dtype=np.bool_))

    def _pick(self, points: NDArray[np.bool_]) -> None:
        self.light(points)
        self.picked.emit(points)
