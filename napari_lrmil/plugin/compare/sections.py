"""Widgets of the Compare dock, from top to bottom: form for a teacher run, maps, agreement table, scatter plot."""

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

from napari_lrmil.plugin.analyse.roi_form import DRAW_TIP, RoiKindButtons
from napari_lrmil.plugin.compare.comparison_model import BUDGET_KINDS, BudgetKind, TeacherBudget
from napari_lrmil.plugin.qt.section import Section, enable_unless, make_button, make_label, make_row
from napari_lrmil.plugin.qt.wheel import PLOT
from napari_lrmil.plugin.session.preconditions import NOT_DISTILLED, RUN_ACTIVE
from napari_lrmil.plugin.viewer.maps.attention_layers import CompareMode, CompareView

if TYPE_CHECKING:
    from napari_lrmil.core.inference.teacher_comparison import SharedPatches
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.plugin.compare.comparison_model import Comparison, LesionScores, TableRow
    from napari_lrmil.plugin.session.session import Session

NO_TEACHER = "The teacher has not been run on this slide."


def why_no_teacher(bundle: Bundle | None) -> str:
    """Return why a prediction of a model has no teacher beside it."""
    return NO_TEACHER if bundle is None or bundle.card.distilled else NOT_DISTILLED


# ---------------------------------------------------------------- teacher run

RUN_LABEL = "Run teacher"
LOAD_TIP = "Show a result of `compare` or `predict --teacher` for this slide, without computing"
BUDGET_LABELS: dict[BudgetKind, str] = {
    "all": "All patches",
    "top": "Student's top patches",
    "time": "As many as fit in",
}
BUDGET_TIP = "Patches that the teacher reads: all, or those with the most student attention"
COSTS_FOLLOW = "Numbers and times follow when the tissue of the slide is known. A run need not wait."
INDENT_PX = 22  # width of a radio button's circle, so that the cost stands below the label


class TeacherRunForm(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Region of interest, `TeacherBudget` with the expected cost of each choice, and buttons to run or load.

    Attributes
    ----------
    budgets
        One radio button per kind of budget.
    costs
        One label per kind of budget, with its number of patches and expected time.
    """

    kind_chosen = Signal(str)
    changed = Signal()
    draw_requested = Signal()
    run_requested = Signal()
    cancel_requested = Signal()
    load_requested = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.kinds = RoiKindButtons()
        self.draw = make_button("Draw", DRAW_TIP)
        self._budget_group = QButtonGroup(self)
        self.budgets = {kind: QRadioButton(BUDGET_LABELS[kind]) for kind in BUDGET_KINDS}
        self.costs = {kind: make_label(f"cost of {kind}", small=True) for kind in BUDGET_KINDS}
        for radio in self.budgets.values():
            self._budget_group.addButton(radio)
        self.budgets["top"].setChecked(True)
        self.top, self.seconds = _make_spin(1, 100_000, 20, ""), _make_spin(1, 86_400, 30, " s")
        self.run_button, self.load = make_button(RUN_LABEL, ""), make_button("Load results…", LOAD_TIP)
        self.run_button.setMinimumHeight(30)
        self.progress, self.note = QProgressBar(), make_label("note")
        self._is_busy = False
        self._connect()
        self._lay_out()

    def _connect(self) -> None:
        self.kinds.kind_chosen.connect(self.kind_chosen)
        self.draw.clicked.connect(self.draw_requested)
        for radio in self.budgets.values():
            radio.clicked.connect(lambda *_: self.changed.emit())
        self.top.valueChanged.connect(lambda _: self._choose_budget("top"))
        self.seconds.valueChanged.connect(lambda _: self._choose_budget("time"))
        self.run_button.clicked.connect(self._run_or_cancel)
        self.load.clicked.connect(self.load_requested)

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(3)
        column.addWidget(make_row(make_label("region of interest", "Region of interest"), self.draw))
        column.addWidget(self.kinds)
        column.addWidget(make_label("patches of the teacher", "Patches that the teacher reads"))
        spins: dict[BudgetKind, QSpinBox] = {"top": self.top, "time": self.seconds}
        for kind, radio in self.budgets.items():
            column.addWidget(make_row(radio, spins[kind]) if kind in spins else radio)
            column.addWidget(self.costs[kind])
            self.costs[kind].setContentsMargins(INDENT_PX, 0, 0, 2)
        for part in (make_row(self.run_button, self.load), self.progress, self.note):
            column.addWidget(part)

    def value(self) -> TeacherBudget:
        """Return the chosen budget."""
        kind = next(kind for kind, radio in self.budgets.items() if radio.isChecked())
        return TeacherBudget(kind, self.top.value(), self.seconds.value())

    def _choose_budget(self, kind: BudgetKind) -> None:
        self.budgets[kind].setChecked(True)
        self.changed.emit()

    def _run_or_cancel(self) -> None:
        (self.cancel_requested if self._is_busy else self.run_requested).emit()

    def show_session(self, session: Session, loading: str, is_cancelling: bool) -> None:
        """Show the choices, their expected cost and the progress.

        Parameters
        ----------
        session
            The session of the Analyse dock.
        loading
            Step of loading a stored result; empty if none is being loaded.
        is_cancelling
            Whether a run is ending after a cancel.
        """
        self._is_busy = session.is_busy or bool(loading)
        busy = RUN_ACTIVE if self._is_busy else ""
        self.kinds.show_kind(session.roi_kind, busy, "The teacher reads")
        no_slide = "" if session.slide and session.bundle else "Choose a slide and a model in the Analyse dock first."
        enable_unless(self.draw, busy or no_slide, DRAW_TIP)
        enable_unless(self.load, busy or no_slide, LOAD_TIP)
        for widget in (*self.budgets.values(), self.top, self.seconds):
            enable_unless(widget, busy or session.teacher_blocked_by, BUDGET_TIP)
        if not self._is_busy:  # during a run the numbers stay as they were when it started
            self._show_costs(session)
        self._show_run_button(session, is_cancelling)
        self._show_progress(session, loading)

    def _show_costs(self, session: Session) -> None:
        planned, budget = session.planned_patches, self.value()
        blocked = session.teacher_blocked_by if session.slide and session.bundle else ""
        if planned is None and session.slide and session.bundle:
            blocked = blocked or session.run_blocked_by or COSTS_FOLLOW
        for kind, label in self.costs.items():
            cost = TeacherBudget(kind, budget.top, budget.seconds).text(planned) if planned is not None else ""
            reason = blocked if kind == "all" else ""  # once, below the first choice
            label.setText(reason if blocked else cost)

    def _show_run_button(self, session: Session, is_cancelling: bool) -> None:
        blocked = "" if self._is_busy else self.value().blocked_by(session)
        busy_label = "Cancelling…" if is_cancelling else "Cancel"
        self.run_button.setText(busy_label if self._is_busy else RUN_LABEL)
        ending = "The current step ends first." if is_cancelling else ""
        tip = "Cancel the run" if self._is_busy else "Run student and teacher and compare their attention (Ctrl+R)"
        enable_unless(self.run_button, blocked or ending, tip)
        self.note.setText(blocked)
        self.note.setVisible(bool(blocked))

    def _show_progress(self, session: Session, loading: str) -> None:
        progress = session.progress
        self.progress.setVisible(self._is_busy)
        self.progress.setRange(0, 0 if loading else 100)  # 0 to 0 is Qt's bar without a known end
        self.progress.setValue(round(100 * progress.fraction) if progress else 0)
        self.progress.setFormat(loading or (progress.text if progress else "starting"))


def _make_spin(low: int, high: int, value: int, unit: str) -> QSpinBox:
    spin = QSpinBox()
    spin.setRange(low, high)
    spin.setValue(value)
    spin.setSuffix(unit)
    spin.setAccessibleName("Number of seconds" if unit else "Number of patches")
    spin.setFixedWidth(72)
    return spin


# ---------------------------------------------------------------- maps

VIEW_LABELS: dict[CompareView, tuple[str, str]] = {
    "side": ("Side by side", "Two linked views with one colour scale"),
    "wipe": ("Wipe", "Both maps on one slide: the student's on one side of a line, the teacher's on the other"),
    "difference": ("Difference", "Orange: the student has more attention than the teacher. Purple: it has less"),
}
SIDE_HIDES = "Regions, annotations and lines are hidden in two views. Wipe and Difference show them."
POOLED_TIP = "Sum the teacher's attention over the HR patches in each LR patch, as the figures do. Off: its own grid"


class CompareModeSection(Section):
    """Editor of a `CompareMode`: layout of both maps, position of the wipe, grid of the teacher's map."""

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("maps", "Attention maps", parent)
        self._group, self._no_teacher = QButtonGroup(self), NO_TEACHER
        self.views = {view: QRadioButton(label) for view, (label, _) in VIEW_LABELS.items()}
        self.wipe, self.pooled = QSlider(Qt.Orientation.Horizontal), QCheckBox("Teacher pooled to LR patches")
        self.wipe.setAccessibleName("Columns of patches that show the student")
        self.hidden = make_label("hidden layers", SIDE_HIDES, small=True)
        self.wipe_row = make_row(QLabel("Student"), self.wipe, QLabel("Teacher"))
        self.wipe.valueChanged.connect(self._emit_changed)
        self.pooled.toggled.connect(self._emit_changed)
        for radio in self.views.values():
            self._group.addButton(radio)
            radio.toggled.connect(self._on_view_toggled)
        self.views["side"].setChecked(True)
        self.add(*self.views.values())
        self.add(self.hidden)
        self.add(self.wipe_row)
        self.add(self.pooled)
        self.show_columns(None)

    def value(self) -> CompareMode:
        """Return the chosen mode."""
        view = next(view for view, radio in self.views.items() if radio.isChecked())
        return CompareMode(view, self.wipe.value(), self.pooled.isChecked())

    def choose(self, view: CompareView) -> None:
        """Choose a view."""
        self.views[view].setChecked(True)

    def show_columns(self, columns: int | None, no_teacher: str = NO_TEACHER) -> None:
        """Set the range of the wipe and put it in the middle.

        Parameters
        ----------
        columns
            Number of columns of LR patches; None disables the section, because no teacher ran.
        no_teacher
            Why none ran.
        """
        self._no_teacher = "" if columns is not None else no_teacher
        if columns is not None and columns != self.wipe.maximum():
            self.wipe.blockSignals(True)  # the maps are drawn with the new range afterwards, once
            self.wipe.setRange(0, columns)
            self.wipe.setValue(columns // 2)
            self.wipe.blockSignals(False)
        self._enable()

    def _enable(self) -> None:
        blocked = self._no_teacher
        for view, (_, tip) in VIEW_LABELS.items():
            enable_unless(self.views[view], blocked, tip)
        self.hidden.setVisible(self.views["side"].isChecked() and not blocked)
        self.wipe_row.setVisible(self.views["wipe"].isChecked())  # napari draws a disabled slider like a live one
        enable_unless(self.wipe, blocked, "Move the wipe by one column of LR patches")
        is_fixed = "A difference is always on the LR grid." if self.views["difference"].isChecked() else ""
        enable_unless(self.pooled, blocked or is_fixed, POOLED_TIP)

    def _on_view_toggled(self, is_on: bool) -> None:
        if is_on:  # a click toggles two radio buttons: the old one off, the new one on
            self._enable()
            self._emit_changed()

    def _emit_changed(self, _: object = None) -> None:
        self.changed.emit()


# ---------------------------------------------------------------- agreement

COLUMN_ALIGNS, COLUMN_HEADS = ("left", "right", "right"), ("", "Student", "Teacher")
AGREEMENT_TIP = (
    "ρ: rank correlation of the patches; 1 is the same order · top-10 % overlap: of the tenth of patches with the most "
    "attention; 1 is the same · JS: Jensen-Shannon divergence; 0 is the same, 1 is nothing in common"
)


class MeasuresSection(Section):
    """Agreement of both networks in one line, and a table with the figures of each."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("measures", "Agreement", parent)
        self.agreement, self.lesions = make_label("agreement", NO_TEACHER, bold=True), make_label("lesions", small=True)
        self.agreement.setToolTip(AGREEMENT_TIP)
        self.caution = make_label("caution of the agreement")
        self.cost_caution = make_label("caution of the cost", small=True)
        self.table = make_label("figures")
        self.table.setTextFormat(Qt.TextFormat.RichText)
        self.table.setWordWrap(False)
        self._rows: tuple[TableRow, ...] = ()
        self.add(self.agreement)
        self.add(self.caution)
        self.add(self.table)
        self.add(self.cost_caution)
        self.add(self.lesions)

    def value(self) -> dict[str, tuple[str, str]]:
        """Return the shown table: name of a figure -> (student, teacher)."""
        return {row.name: (row.student, row.teacher) for row in self._rows}

    def show_comparison(
        self, comparison: Comparison | None, lesions: LesionScores | None, no_teacher: str = NO_TEACHER
    ) -> None:
        """Show a comparison and the scores of lesions; None hides what is missing, `no_teacher` says why."""
        self.agreement.setText(comparison.agreement if comparison else no_teacher)
        caution = comparison.caution if comparison else ""
        self.caution.setText(f"⚠ {caution}" if caution else "")
        self.caution.setVisible(bool(caution))
        cost_caution = comparison.cost_caution if comparison else ""
        self.cost_caution.setText(cost_caution)
        self.cost_caution.setVisible(bool(cost_caution))
        rows = (*comparison.table_rows, *(lesions.table_rows if lesions else ())) if comparison else ()
        self._rows = rows
        self.table.setText(_as_html(rows))
        self.table.setVisible(bool(rows))
        self.lesions.setText(lesions.text if comparison and lesions else "")
        self.lesions.setVisible(bool(comparison and lesions))


def _as_html(rows: Sequence[TableRow]) -> str:
    """Return rows as an HTML table with right-aligned numbers."""
    heads = zip(COLUMN_ALIGNS, COLUMN_HEADS, strict=True)
    html_rows = ["".join(f"<th align='{align}'>{text}</th>" for align, text in heads)]
    for row in rows:
        cells = zip(COLUMN_ALIGNS, map(escape, (row.name, row.student, row.teacher)), strict=True)
        html_rows.append("".join(f"<td align='{align}'>{text}</td>" for align, text in cells))
    body = "".join(f"<tr>{html_row}</tr>" for html_row in html_rows)
    return f"<table width='100%' cellpadding='1'>{body}</table>"


# ---------------------------------------------------------------- scatter plot

PLOT_HEIGHT_PX = 240
POINT_COLOUR, PICKED_COLOUR, AXES_COLOUR = "#9aa3ad", "#00d5f0", "#8a8f98"  # picked: as the outlines on the slide
POINT_AREA, PICKED_AREA = 14, 32  # points²; larger too, because colour alone is not enough for everyone
NO_PATCH_DRAWN = (
    "No compared patch is half covered by the drawn regions. Draw a larger one, or one that lies inside a patch."
)
LASSO_HINT = "Each point is a patch. Draw a loop around points to outline their patches on the slide."
DRAW_TO_PICK_TIP = (
    "Draw a region on the slide to mark its patches here. The maps change to Wipe: two views cannot be drawn on"
)


class ScatterSection(Section):
    """Scatter plot of both networks' attention, one point per patch, with a lasso.

    Attributes
    ----------
    picked_points
        (M,) mask of the marked points.
    points_picked
        Emitted with that mask when the user picks points.
    """

    points_picked = Signal(object)
    draw_requested = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("scatter", "Scatter plot", parent)
        from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
        from matplotlib.figure import Figure
        from matplotlib.widgets import LassoSelector

        self._figure = Figure(layout="constrained", facecolor="none")
        self.canvas: Any = FigureCanvasQTAgg(self._figure)  # type: ignore[no-untyped-call]
        self.canvas.setFixedHeight(PLOT_HEIGHT_PX)
        self.canvas.setObjectName(PLOT)
        self.canvas.setStyleSheet("background: transparent")
        self.axes: Any = self._figure.add_subplot()
        self._points: NDArray[np.float64] = np.zeros((0, 2))  # teacher, student
        self._dots: Any = None
        self._lasso = LassoSelector(self.axes, self._on_lasso, props={"color": PICKED_COLOUR, "linewidth": 1.2})
        self.draw, self.clear = make_button("Draw on the slide", DRAW_TO_PICK_TIP), make_button("Clear", "")
        self.draw.clicked.connect(self.draw_requested)
        self.clear.clicked.connect(lambda: self._pick(self._no_points()))
        self.status = make_label("picked", LASSO_HINT, small=True)
        self.add(self.canvas)
        self.add(self.draw, self.clear)
        self.add(self.status)
        self.show_points(None)

    def _no_points(self) -> NDArray[np.bool_]:
        return np.zeros(len(self._points), dtype=np.bool_)

    def show_points(self, shared: SharedPatches | None, no_teacher: str = NO_TEACHER) -> None:
        """Plot the attention of both networks; None empties the plot, `no_teacher` says why."""
        self._points = np.zeros((0, 2)) if shared is None else np.stack([shared.teacher, shared.student], axis=1)
        limit = 1.05 * max(1.0, float(self._points.max())) if len(self._points) else 1.0
        for artist in (*self.axes.collections, *self.axes.lines[1:]):  # the first line is the lasso
            artist.remove()
        self._dots = self.axes.scatter(*self._points.T, s=POINT_AREA, alpha=0.8, linewidths=0, color=POINT_COLOUR)
        # The diagonal is agreement.
        self.axes.axline((0, 0), slope=1, color=AXES_COLOUR, linewidth=0.8, linestyle=":")
        self._style_axes(limit)
        self._lasso.set_active(shared is not None)
        enable_unless(self.draw, "" if shared is not None else no_teacher, DRAW_TO_PICK_TIP)
        self.show_picked(self._no_points())

    def _style_axes(self, limit: float) -> None:
        self.axes.set(xlim=(0, limit), ylim=(0, limit), facecolor="none")
        self.axes.set_xlabel("teacher, times the average", color=AXES_COLOUR, fontsize=8)
        self.axes.set_ylabel("student, times the average", color=AXES_COLOUR, fontsize=8)
        self.axes.tick_params(colors=AXES_COLOUR, labelsize=8)
        self.axes.spines[:].set_color(AXES_COLOUR)

    def show_picked(self, is_picked: NDArray[np.bool_], hint: str = LASSO_HINT) -> None:
        """Mark points.

        Parameters
        ----------
        is_picked
            (M,) mask.
        hint
            Text if no point is marked.
        """
        self.picked_points = is_picked
        if len(is_picked):
            self._dots.set_facecolor(list(np.where(is_picked, PICKED_COLOUR, POINT_COLOUR)))
            self._dots.set_sizes(np.where(is_picked, PICKED_AREA, POINT_AREA))
        count = int(is_picked.sum())
        self.status.setText(f"{count} of {len(is_picked)} patches picked." if count else hint)
        enable_unless(self.clear, "" if count else "No patch is picked.", "Unmark all patches")
        self.canvas.draw_idle()

    def _on_lasso(self, corners: list[tuple[float, float]]) -> None:
        from matplotlib.path import Path

        if len(corners) > 2 and len(self._points):
            self._pick(np.asarray(Path(corners).contains_points(self._points), dtype=np.bool_))

    def _pick(self, is_picked: NDArray[np.bool_]) -> None:
        self.show_picked(is_picked)
        self.points_picked.emit(is_picked)
