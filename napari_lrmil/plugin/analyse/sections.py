"""What if: leave regions out, keep only some, change the tissue mask; and back again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QComboBox,
    QGridLayout,
    QLabel,
    QProgressBar,
    QRadioButton,
    QSlider,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil.core.formatting import format_probability
from napari_lrmil.core.patching.roi import Kind
from napari_lrmil.core.visualize.overlay import ATTENTION_SCALES
from napari_lrmil.plugin.analyse.result_text import ResultText
from napari_lrmil.plugin.qt.section import Section, enable_unless, make_button, make_divider, make_label, make_row
from napari_lrmil.plugin.viewer.attention_layers import AttentionStyle

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.plugin.analyse.result_text import ResultText
    from napari_lrmil.plugin.session.session import Session


class WhatIfSection(Section):
    """Leaves drawn regions out of the bag, or all but them."""

    exclude_wanted = Signal()
    keep_wanted = Signal()
    undo_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("what-if", "What if… (without a region)", parent)
        self.exclude = make_button("Leave out", "")
        self.keep = make_button("Keep only", "")
        self.undo = make_button("Undo", "")
        self.told = make_label("what-if", small=True)
        for widget, wish in (
            (self.exclude, self.exclude_wanted),
            (self.keep, self.keep_wanted),
            (self.undo, self.undo_wanted),
        ):
            widget.clicked.connect(wish)
        self.add(self.exclude, self.keep, self.undo)
        self.add(self.told)

    def show_session(self, session: Session) -> None:
        """Show what is left out, and what can be done."""
        blocked = "Wait for the analysis, or cancel it." if session.is_busy else ""
        drawn = blocked or ("" if session.regions else "Draw a region first.")
        enable_unless(self.exclude, drawn, "Leave the drawn regions (a pen mark, a fold) out; answered at once")
        enable_unless(self.keep, drawn, "Leave out everything outside the drawn regions")
        enable_unless(
            self.undo, blocked or ("" if session.can_undo else "Nothing to take back."), "Take the last step back"
        )
        left = session.what_if
        parts = [f"{len(left.excluded)} left out"] if left.excluded else []
        parts += [f"only {len(left.included)} kept"] if left.included else []
        self.told.setText(f"Regions: {', '.join(parts)}." if parts else "Nothing is left out.")


class TissueSection(Section):
    """Shows the tissue mask as labels to paint on, and takes what was painted."""

    edit_wanted = Signal()
    use_wanted = Signal()
    back_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("tissue", "Where the tissue is (mask)", parent)
        self.edit, self.use = make_button("Edit mask", ""), make_button("Use it", "")
        self.back = make_button("As found", "")
        self.told = make_label("tissue", small=True)
        for widget, wish in ((self.edit, self.edit_wanted), (self.use, self.use_wanted), (self.back, self.back_wanted)):
            widget.clicked.connect(wish)
        self.add(self.edit, self.use, self.back)
        self.add(self.told)

    def show_session(self, session: Session, editing: bool) -> None:
        """Show what holds; `editing` tells whether the mask lies in the viewer."""
        ground = session.tissue_grid
        blocked = "Wait for the analysis, or cancel it." if session.is_busy else ""
        known = blocked or ("" if ground else "The tissue of the slide is not known yet.")
        enable_unless(
            self.edit, known or ("It is being edited." if editing else ""), "Paint tissue with 1, erase it with 0"
        )
        enable_unless(
            self.use, known or ("" if editing else "The mask is not being edited."), "Find the patches of this mask"
        )
        edited = ground is not None and ground.edited
        enable_unless(
            self.back, blocked or ("" if edited else "The mask is as it was found."), "Go back to the mask as found"
        )
        hand = "changed by hand" if edited else "found by colour"
        self.told.setText(f"{len(ground.grid.lr_index)} patches; mask {hand}." if ground else "")


BAR_STEPS = 1000
BAR_STYLE = """
QProgressBar {{ border: none; border-radius: 3px; min-height: 12px; max-height: 12px;
    background: rgba(128, 128, 128, 70); }}
QProgressBar::chunk {{ border-radius: 3px; background: {colour}; }}
"""
TOP_COLOUR, OTHER_COLOUR = "#e8892c", "#8a8f98"  # readable on dark and on light, and without colour vision


class ProbabilityBars(QWidget):  # type: ignore[misc]  # qtpy has no types
    """One row per class: its name, a bar, its probability. The most probable one stands out."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setColumnStretch(1, 1)
        self._values: dict[str, float] = {}

    def value(self) -> dict[str, float]:
        """Return what is shown."""
        return dict(self._values)

    def set_value(self, values: Mapping[str, float]) -> None:
        """Show probabilities, most probable first; none empties the widget."""
        self._values = dict(values)
        while (item := self._grid.takeAt(0)) is not None:
            item.widget().hide()  # gone at once; what is deleted later is still drawn until then
            item.widget().deleteLater()
        ranked = sorted(values.items(), key=lambda pair: -pair[1])
        for rank, (name, value) in enumerate(ranked):
            self._add_row(rank, name, value, TOP_COLOUR if rank == 0 else OTHER_COLOUR)

    def _add_row(self, row: int, name: str, value: float, colour: str) -> None:
        bar = QProgressBar()
        bar.setRange(0, BAR_STEPS)
        bar.setValue(round(value * BAR_STEPS))
        bar.setTextVisible(False)
        bar.setStyleSheet(BAR_STYLE.format(colour=colour))
        number = QLabel(format_probability(value))
        number.setToolTip(f"{name}: {value:.6f}")
        number.setAlignment(Qt.AlignmentFlag.AlignRight)
        for column, widget in enumerate((QLabel(name), bar, number)):
            widget.setAccessibleName(f"{name} {format_probability(value)}")
            self._grid.addWidget(widget, row, column)


class SaveSection(Section):
    """Asks for what is to be kept."""

    all_wanted = Signal()
    view_wanted = Signal()
    report_wanted = Signal()
    command_wanted = Signal()
    stop_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("keep", "Save", parent)
        self.all = make_button("All files…", "")
        self.view, self.report = make_button("View (PNG)…", ""), make_button("Report…", "")
        self.command = make_button("Copy command line", "")
        self.told = make_label("command line", small=True)
        self.progress, self.stop = QProgressBar(), make_button("Cancel", "Nothing of what is being saved stays")
        self._state, self._saving = (False, False, ""), False
        for widget, wish in (
            (self.all, self.all_wanted),
            (self.view, self.view_wanted),
            (self.report, self.report_wanted),
            (self.command, self.command_wanted),
            (self.stop, self.stop_wanted),
        ):
            widget.clicked.connect(wish)
        self.add(self.all, self.view)
        self.add(self.report, self.command)
        self.add(self.progress, self.stop)
        self.add(self.told)
        self.show_saving("", None)

    def show_saving(self, text: str, share: float | None) -> None:
        """Show how far the writing is; None where nothing is being written."""
        self._saving = share is not None
        self.progress.parentWidget().setVisible(self._saving)
        self.progress.setFormat(text)
        self.progress.setValue(round(100 * (share or 0)))
        self.show_state(*self._state)

    def show_state(self, has_slide: bool, has_answer: bool, command: str) -> None:
        """Enable what can be kept, and show the command line."""
        self._state = has_slide, has_answer, command
        busy = "Something is being saved." if self._saving else ""
        none = busy or ("" if has_answer else "Nothing was analysed yet.")
        enable_unless(self.all, none, "Attention (HDF5, OME-TIFF), GeoJSON for QuPath, overlay, probabilities, report")
        enable_unless(self.report, none, "One HTML page: maps, probabilities, patches that counted, where it came from")
        view = busy or ("" if has_slide else "No slide is open.")
        enable_unless(self.view, view, "What is on the screen, with legend and scale bar")
        enable_unless(
            self.command, "" if has_answer else "Nothing was analysed yet.", "The call that gives the same numbers"
        )
        self.told.setText(command if has_answer else "")


class AttentionSection(Section):
    """Edits a `Look`."""

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("attention", "Where the model looked (attention)", parent)
        self.mode = QComboBox()
        for mode, words in ATTENTION_SCALES.items():
            self.mode.addItem(words, mode)
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setAccessibleName("Opacity of the attention")
        self.smooth = QCheckBox("Smooth")
        self.smooth.setToolTip("Let colours run into each other; a patch is what the model saw, so this adds nothing")
        self.set_value(AttentionStyle())
        self.mode.currentIndexChanged.connect(self.changed)
        self.opacity.valueChanged.connect(self.changed)
        self.smooth.toggled.connect(self.changed)
        self.add(QLabel("Shown"), self.mode)
        self.add(QLabel("Opacity"), self.opacity, self.smooth)

    def value(self) -> AttentionStyle:
        """Return how attention is to look."""
        return AttentionStyle(self.mode.currentData(), self.smooth.isChecked(), self.opacity.value() / 100)

    def set_value(self, look: AttentionStyle) -> None:
        """Show how attention looks."""
        self.mode.setCurrentIndex(self.mode.findData(look.mode))
        self.smooth.setChecked(look.smooth)
        self.opacity.setValue(round(100 * look.opacity))


class EvidenceSection(Section):
    """Chooses the class whose evidence is shown in place of the attention."""

    chosen = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("evidence", "What spoke for a class (evidence)", parent)
        self.shown = QCheckBox("Show for")
        self.shown.setToolTip("What each patch adds to the class's logit: blue against it, orange for it")
        self.of = QComboBox()
        self.total = make_label("evidence sum", small=True)
        self.shown.toggled.connect(self._choose)
        self.of.currentIndexChanged.connect(self._choose)
        self.add(self.shown, self.of)
        self.add(self.total)

    def value(self) -> str | None:
        """Return the class whose evidence is shown; None where none is."""
        return self.of.currentText() if self.shown.isChecked() and self.of.count() else None

    def show_answer(self, answer: ResultText | None) -> None:
        """Offer an answer's classes, and tell the chosen one's sum."""
        classes = list(answer.prediction.classes) if answer else []
        if classes != [self.of.itemText(i) for i in range(self.of.count())]:
            self.of.blockSignals(True)
            self.of.clear()
            self.of.addItems(classes)
            if answer:
                self.of.setCurrentText(answer.prediction.student.predicted)
            self.of.blockSignals(False)
        self.setEnabled(answer is not None)
        self.total.setText(answer.evidence_sum(self.of.currentText()) if answer else "")

    def _choose(self) -> None:
        self.chosen.emit(self.value())


class ResultsBox(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Shows a prediction; hidden where there is none."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.student, self.teacher = ProbabilityBars(), ProbabilityBars()
        self.student_title, self.teacher_title = make_label("student", bold=True), make_label("teacher", bold=True)
        self.calibration, self.basis = make_label("calibration", small=True), make_label("basis", small=True)
        self.agreement = make_label("agreement")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        parts = (make_divider(), self.student_title, self.student, self.teacher_title, self.teacher)
        for part in (*parts, self.calibration, self.basis, self.agreement):
            column.addWidget(part)
        self.setVisible(False)

    def show_prediction(self, prediction: Prediction | None) -> None:
        """Show what was found out, or nothing."""
        self.setVisible(prediction is not None)
        if prediction is None:
            return
        answer, teacher = ResultText(prediction), prediction.teacher
        self.student_title.setText(f"Student (LR), {prediction.student.target_mpp:g} µm per pixel")
        self.student.set_value(prediction.student.probabilities)
        self.teacher_title.setText(f"Teacher (HR), {teacher.target_mpp:g} µm per pixel" if teacher else "")
        self.teacher.set_value(teacher.probabilities if teacher else {})
        for widget in (self.teacher_title, self.teacher, self.agreement):
            widget.setVisible(teacher is not None)
        self.calibration.setText(answer.trust)
        self.basis.setText(answer.basis)
        self.agreement.setText(answer.agreement)


ROI_KIND_LABELS: tuple[tuple[Kind, str], ...] = (("slide", "Slide"), ("view", "View"), ("region", "Region"))
DRAW_TIP = "Draw a region on the slide: click corners, double-click to close"
IMPORT_TIP = "Regions from QuPath (GeoJSON) or ASAP (XML)"
EXPORT_TIP = "Write the drawn regions as GeoJSON for QuPath"
FOLLOW_TIP = "While the view moves the student answers for what is visible; what was seen before costs nothing"


class RoiForm(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Chooses the scope, and tells what a run of it would cost."""

    kind_chosen = Signal(str)
    follow_chosen = Signal(bool)
    drawing_wanted = Signal()
    import_wanted = Signal()
    export_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._group = QButtonGroup(self)
        self.kinds: dict[str, QRadioButton] = {}
        for kind, word in ROI_KIND_LABELS:
            self.kinds[kind] = QRadioButton(word)
            self._group.addButton(self.kinds[kind])
            self.kinds[kind].clicked.connect(lambda _=False, kind=kind: self.kind_chosen.emit(kind))
        self.follow = QCheckBox("Follow the view (live)")
        self.follow.clicked.connect(self.follow_chosen)
        self.draw, self.read, self.write = (
            make_button("Draw", DRAW_TIP),
            make_button("Import…", IMPORT_TIP),
            make_button("Export…", EXPORT_TIP),
        )
        wishes = ((self.draw, self.drawing_wanted), (self.read, self.import_wanted), (self.write, self.export_wanted))
        for widget, wish in wishes:
            widget.clicked.connect(wish)
        self.estimate = make_label("estimate")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(3)
        for part in (
            make_row(*self.kinds.values()),
            make_row(self.draw, self.read, self.write),
            self.follow,
            self.estimate,
        ):
            column.addWidget(part)

    def show_session(self, session: Session) -> None:
        """Show what is chosen, what cannot be, and the cost."""
        self.kinds[session.roi_kind].setChecked(True)
        self.follow.setChecked(session.follows_view)
        free = "Wait for the analysis, or cancel it." if session.is_busy else ""
        no_slide = free or ("" if session.slide else "Open a slide first.")
        for kind, word in ROI_KIND_LABELS:
            enable_unless(
                self.kinds[kind], free, f"Analyse the {'drawn regions' if kind == 'region' else word.lower()}"
            )
        enable_unless(self.draw, no_slide, DRAW_TIP)
        enable_unless(self.read, no_slide, IMPORT_TIP)
        enable_unless(self.write, "" if session.regions else "No region is drawn.", EXPORT_TIP)
        enable_unless(
            self.follow, "" if session.tissue_grid else "The tissue of the slide is not known yet.", FOLLOW_TIP
        )
        estimate = session.estimate
        self.estimate.setText(f"{session.scope.text}: {estimate.text}" if estimate else "")
        self.estimate.setVisible(estimate is not None)
