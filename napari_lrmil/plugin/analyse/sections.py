"""Widgets of the Analyse dock, from top to bottom: class probabilities and the foldable sections below them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QGridLayout,
    QLabel,
    QProgressBar,
    QSlider,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil.core.formatting import format_probability
from napari_lrmil.core.patching.roi import WORDS
from napari_lrmil.core.text_escapes import escape_qt
from napari_lrmil.core.visualize.overlay import ATTENTION_SCALES
from napari_lrmil.plugin.analyse.result_text import ResultText, knows_tissue, tissue_caution
from napari_lrmil.plugin.qt.section import Section, enable_unless, make_button, make_divider, make_label
from napari_lrmil.plugin.session.preconditions import RUN_ACTIVE, TISSUE_UNKNOWN
from napari_lrmil.plugin.session.scope_text import count_regions
from napari_lrmil.plugin.viewer.attention_layers import AttentionStyle

if TYPE_CHECKING:
    from napari.layers import Labels

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.card import Card
    from napari_lrmil.plugin.session.analyse_state import AnalyseState
    from napari_lrmil.plugin.session.session import Session

BAR_STEPS = 1000  # a progress bar counts in whole numbers; 1000 shows 0.1 %
BAR_STYLE = """
QProgressBar {{ border: none; border-radius: 3px; min-height: 12px; max-height: 12px;
    background: rgba(128, 128, 128, 70); }}
QProgressBar::chunk {{ border-radius: 3px; background: {colour}; }}
"""
TOP_COLOUR, OTHER_COLOUR = "#e8892c", "#8a8f98"  # readable on dark and on light, and without colour vision
NO_RESULT = "There is no result yet."
BRUSH_RANGE = (1, 60)  # pixels of the tissue mask
MASK_OPEN, MASK_CLOSED = "The mask is being edited.", "The mask is not being edited."
ABOUT_MODEL = "about the model "  # start of a notice that says what a model is; it is no caution about an answer

# ---------------------------------------------------------------- probabilities


class ProbabilityBars(QWidget):  # type: ignore[misc]  # qtpy has no types
    """One row per class: name, bar and probability. The most probable class has a colour of its own."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setColumnStretch(1, 1)
        self._values: dict[str, float] = {}

    def value(self) -> dict[str, float]:
        """Return the shown probabilities, by class."""
        return dict(self._values)

    def set_value(self, values: Mapping[str, float], *, highlight: bool = True) -> None:
        """Show probabilities (0 to 1, by class), highest first; an empty mapping clears the rows.

        Parameters
        ----------
        values
            The probabilities.
        highlight
            Whether the most probable class has a colour of its own.
        """
        self._values = dict(values)
        while (item := self._grid.takeAt(0)) is not None:
            item.widget().hide()  # deleteLater alone leaves the old row on the screen until the event loop runs
            item.widget().deleteLater()
        ranked = sorted(values.items(), key=lambda pair: -pair[1])
        for rank, (name, value) in enumerate(ranked):
            self._add_row(rank, name, value, TOP_COLOUR if rank == 0 and highlight else OTHER_COLOUR)

    def _add_row(self, row: int, name: str, value: float, colour: str) -> None:
        bar = QProgressBar()
        bar.setRange(0, BAR_STEPS)
        bar.setValue(round(value * BAR_STEPS))
        bar.setTextVisible(False)
        bar.setStyleSheet(BAR_STYLE.format(colour=colour))
        label, number = QLabel(name), QLabel(format_probability(value))
        label.setTextFormat(Qt.TextFormat.PlainText)
        number.setToolTip(escape_qt(f"{name}: {value:.6f}"))
        number.setAlignment(Qt.AlignmentFlag.AlignRight)
        for column, widget in enumerate((label, bar, number)):
            widget.setAccessibleName(f"{name} {format_probability(value)}")
            self._grid.addWidget(widget, row, column)


class ResultsBox(QWidget):  # type: ignore[misc]  # qtpy has no types
    """The answer: class, probabilities, cautions, limits and basis; without one, why there is none.

    Attributes
    ----------
    note
        Failure, reason that blocks a run, and cautions.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.headline, self.note = make_label("answer", bold=True), make_label("note")
        self.model_caution = make_label("model caution")
        self.student, self.teacher = ProbabilityBars(), ProbabilityBars()
        self.student_title, self.teacher_title = make_label("student", small=True), make_label("teacher", small=True)
        self.calibration, self.basis = make_label("calibration", small=True), make_label("basis", small=True)
        self.agreement, self.about = make_label("agreement"), make_label("about the model", small=True)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(3)
        top = (self.headline, self.student_title, self.student, self.model_caution, self.note)
        teacher = (self.teacher_title, self.teacher, self.agreement)
        for part in (*top, self.calibration, self.basis, *teacher, self.about):
            column.addWidget(part)
        column.addWidget(make_divider())

    def show_state(self, state: AnalyseState, card: Card | None) -> None:
        """Show the answer of a state, or why there is none.

        Parameters
        ----------
        state
            State of the dock.
        card
            Card of the chosen model; None without one.
        """
        about = [text for text in state.warnings if text.startswith(ABOUT_MODEL)]
        is_about_tissue = card is None or knows_tissue(card)  # else the caution says it, and the tooltip the rest
        _set_text(self.about, "\n".join(text[0].upper() + text[1:] for text in about if is_about_tissue))
        self.model_caution.setToolTip(escape_qt(card.about if card is not None else ""))
        self._show_note(state)
        self._show_prediction(state.prediction, card)
        if state.prediction is None:
            self.headline.setText("No answer yet." if not state.message else "No answer.")

    def _show_note(self, state: AnalyseState) -> None:
        """Show the last error, the reason that blocks a run, and the cautions about the answer."""
        blocked = "" if state.is_busy else state.run_blocked
        lines = list(dict.fromkeys(filter(None, (state.message, blocked))))  # both may be the same sentence
        lines += [f"⚠ {text}" for text in state.warnings if not text.startswith(ABOUT_MODEL)]
        _set_text(self.note, "\n".join([*lines, *state.canvas_notes]))

    def _show_prediction(self, prediction: Prediction | None, card: Card | None) -> None:
        is_about_tissue = card is None or knows_tissue(card)
        caution = f"⚠ {tissue_caution(card)}" if prediction is not None and card is not None else ""
        _set_text(self.model_caution, "" if is_about_tissue else caution)
        for title, bars, name, network in (
            (self.student_title, self.student, "Student (LR)", prediction.student if prediction else None),
            (self.teacher_title, self.teacher, "Teacher (HR)", prediction.teacher if prediction else None),
        ):
            _set_text(title, f"{name}, {network.target_mpp:g} µm per pixel" if network else "")
            bars.setVisible(network is not None)
            bars.set_value(network.probabilities if network else {}, highlight=is_about_tissue)
        text = ResultText(prediction) if prediction is not None else None
        self.headline.setText(text.headline if text else "")
        _set_text(self.calibration, " ".join(filter(None, (text.limits, text.trust, text.distance))) if text else "")
        _set_text(self.basis, text.basis if text else "")
        _set_text(self.agreement, text.agreement if text else "")


def _set_text(label: QLabel, text: str) -> None:
    """Set the text of a label, and hide it without text."""
    label.setText(text)
    label.setVisible(bool(text))


# ---------------------------------------------------------------- maps


class AttentionSection(Section):
    """Editor of an `AttentionStyle`: scale, opacity and smoothing of the attention map."""

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("attention", "Attention", parent)
        self.mode = QComboBox()
        for mode, label in ATTENTION_SCALES.items():
            self.mode.addItem(label, mode)
        self.mode.setAccessibleName("Scale of the attention")
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setAccessibleName("Opacity of the attention")
        self.smooth = QCheckBox("Smooth")
        self.smooth.setToolTip("Interpolate the colours between patches. This adds no information")
        self.set_value(AttentionStyle())
        self.mode.currentIndexChanged.connect(self.changed)
        self.opacity.valueChanged.connect(self.changed)
        self.smooth.toggled.connect(self.changed)
        self.add(QLabel("Scale"), self.mode)
        self.add(QLabel("Opacity"), self.opacity, self.smooth)

    def value(self) -> AttentionStyle:
        """Return the chosen style."""
        return AttentionStyle(self.mode.currentData(), self.smooth.isChecked(), self.opacity.value() / 100)

    def set_value(self, style: AttentionStyle) -> None:
        """Show a style."""
        self.mode.setCurrentIndex(self.mode.findData(style.mode))
        self.smooth.setChecked(style.smooth)
        self.opacity.setValue(round(100 * style.opacity))


class EvidenceSection(Section):
    """Choice of a class whose evidence map replaces the attention map.

    Attributes
    ----------
    class_changed
        Emitted with the class name, or None if no evidence is shown.
    """

    class_changed = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("evidence", "Evidence for a class", parent)
        self.show_box = QCheckBox("Show for")
        self.show_box.setToolTip("What each patch adds to the logit of the class: orange raises it, blue lowers it")
        self.class_box = QComboBox()
        self.class_box.setAccessibleName("Class of the evidence")
        self.sum_label = make_label("evidence sum", small=True)
        self.show_box.toggled.connect(self._emit_class)
        self.class_box.currentIndexChanged.connect(self._emit_class)
        self.add(self.show_box, self.class_box)
        self.add(self.sum_label)

    def value(self) -> str | None:
        """Return the class whose evidence is shown; None if none is."""
        return self.class_box.currentText() if self.show_box.isChecked() and self.class_box.count() else None

    def show_result(self, text: ResultText | None) -> None:
        """List the classes of a result and show the evidence sum of the chosen one; None disables the section."""
        classes = list(text.prediction.classes) if text else []
        if classes != [self.class_box.itemText(i) for i in range(self.class_box.count())]:
            self.class_box.blockSignals(True)  # else every change of the list would draw the evidence again
            self.class_box.clear()
            self.class_box.addItems(classes)
            if text:
                self.class_box.setCurrentText(text.prediction.student.predicted)
            self.class_box.blockSignals(False)
        self.setEnabled(text is not None)
        self.sum_label.setText(text.evidence_sum(self.class_box.currentText()) if text else "")

    def _emit_class(self) -> None:
        self.class_changed.emit(self.value())


# ---------------------------------------------------------------- changes to the bag of patches


class WhatIfSection(Section):
    """Buttons that exclude the drawn regions from the bag of patches, or keep only them."""

    exclude_requested = Signal()
    keep_requested = Signal()
    undo_requested = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("what-if", "What if… (exclude regions)", parent)
        self.exclude = make_button("Exclude", "")
        self.keep_only = make_button("Keep only", "")
        self.undo = make_button("Undo", "")
        self.status = make_label("what-if", small=True)
        for button, signal in (
            (self.exclude, self.exclude_requested),
            (self.keep_only, self.keep_requested),
            (self.undo, self.undo_requested),
        ):
            button.clicked.connect(signal)
        self.add(self.exclude, self.keep_only, self.undo)
        self.add(self.status)

    def show_session(self, session: Session) -> None:
        """Show how many regions are excluded or kept, and enable the possible steps."""
        busy = RUN_ACTIVE if session.is_busy else ""
        no_region = busy or ("" if session.regions else "Draw a region first.")
        enable_unless(self.exclude, no_region, "Exclude the drawn regions, such as a pen mark, and predict again")
        enable_unless(self.keep_only, no_region, "Exclude everything outside the drawn regions and predict again")
        no_step = busy or ("" if session.can_undo else "There is nothing to undo.")
        enable_unless(self.undo, no_step, "Undo the last step")
        what_if = session.what_if
        parts = [f"{count_regions(len(what_if.excluded))} excluded"] if what_if.excluded else []
        parts += [f"only {count_regions(len(what_if.included))} kept"] if what_if.included else []
        steps = ", ".join(parts) or "no region is excluded"
        self.status.setText(f"Answers for: {WORDS[session.scope.kind]}; {steps}.")


class TissueSection(Section):
    """Buttons that edit the tissue mask on the slide: brush, eraser and their size, apply, reset.

    Attributes
    ----------
    tool_chosen
        Emitted with ``paint`` or ``erase``.
    size_chosen
        Emitted with the diameter of the brush in pixels of the mask.
    """

    edit_requested = Signal()
    apply_requested = Signal()
    reset_requested = Signal()
    tool_chosen = Signal(str)
    size_chosen = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("tissue", "Tissue mask", parent)
        self.edit, self.apply = make_button("Edit mask", ""), make_button("Apply mask", "")
        self.reset = make_button("Reset mask", "")
        self.paint = make_button("Paint", "Add tissue: drag over the slide")
        self.erase = make_button("Erase", "Remove tissue: drag over the slide")
        for tool in (self.paint, self.erase):
            tool.setCheckable(True)
        self.size, self.size_label = QSlider(Qt.Orientation.Horizontal), make_label("brush size")
        self.size.setRange(*BRUSH_RANGE)
        self.size.setAccessibleName("Diameter of the brush")
        self.status = make_label("tissue", small=True)
        self._connect()
        self.add(self.edit)
        self.add(self.paint, self.erase)
        self.add(self.size, self.size_label)
        self.add(self.apply, self.reset)
        self.add(self.status)

    def _connect(self) -> None:
        for button, signal in (
            (self.edit, self.edit_requested),
            (self.apply, self.apply_requested),
            (self.reset, self.reset_requested),
        ):
            button.clicked.connect(signal)
        self.paint.clicked.connect(lambda: self.tool_chosen.emit("paint"))
        self.erase.clicked.connect(lambda: self.tool_chosen.emit("erase"))
        self.size.valueChanged.connect(self.size_chosen)

    def show_session(self, session: Session, layer: Labels | None) -> None:
        """Show the state of the mask and enable the possible steps.

        Parameters
        ----------
        session
            The session with the tissue mask.
        layer
            The labels layer in which the mask is edited; None if it is not being edited.
        """
        tissue_grid, is_editing = session.tissue_grid, layer is not None
        busy = RUN_ACTIVE if session.is_busy else ""
        no_tissue = busy or ("" if tissue_grid else TISSUE_UNKNOWN)
        is_edited = tissue_grid is not None and tissue_grid.edited
        self.show_tools(layer)
        enable_unless(
            self.edit,
            no_tissue or (MASK_OPEN if is_editing else ""),
            "Show the mask on the slide and change it by hand",
        )
        enable_unless(self.apply, no_tissue or ("" if is_editing else MASK_CLOSED), "Use the mask as it is painted now")
        unchanged = "" if is_edited or is_editing else "The mask is not edited."
        enable_unless(self.reset, busy or unchanged, "Discard all edits: go back to the mask found by colour")
        origin = "edited by hand" if is_edited else "found by colour"
        n = len(tissue_grid.grid.lr_index) if tissue_grid else 0
        self.status.setText(f"{n:,} {'patch' if n == 1 else 'patches'}; mask {origin}." if tissue_grid else "")

    def show_tools(self, layer: Labels | None) -> None:
        """Show tool and size of the brush of a labels layer; None hides them."""
        for row in (self.paint.parentWidget(), self.size.parentWidget()):
            row.setVisible(layer is not None)
        if layer is None:
            return
        self.paint.setChecked(layer.mode == "paint" and layer.selected_label != 0)
        self.erase.setChecked(layer.mode == "erase" or (layer.mode == "paint" and layer.selected_label == 0))
        self.size.blockSignals(True)  # it shows the layer's value here
        self.size.setValue(round(layer.brush_size))
        self.size.blockSignals(False)
        self.size_label.setText(f"Size {layer.brush_size * layer.scale[-1]:,.0f} µm")


# ---------------------------------------------------------------- export


class SaveSection(Section):
    """Buttons that export the result, the view or the command line, with the progress of an export."""

    all_requested = Signal()
    view_requested = Signal()
    report_requested = Signal()
    command_requested = Signal()
    cancel_requested = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("keep", "Save", parent)  # settings files store the section as "keep"
        self.all_files = make_button("All files…", "")
        self.view, self.report = make_button("View (PNG)…", ""), make_button("Report…", "")
        self.command = make_button("Copy command line", "")
        self.command_label = make_label("command line", small=True)
        self.progress, self.cancel = QProgressBar(), make_button("Cancel", "Stop saving and keep the earlier files")
        self._state, self._is_saving = (False, False, ""), False
        for button, signal in (
            (self.all_files, self.all_requested),
            (self.view, self.view_requested),
            (self.report, self.report_requested),
            (self.command, self.command_requested),
            (self.cancel, self.cancel_requested),
        ):
            button.clicked.connect(signal)
        self.add(self.all_files, self.view)
        self.add(self.report, self.command)
        self.add(self.progress, self.cancel)
        self.add(self.command_label)
        self.show_progress("", None)

    def show_progress(self, text: str, fraction: float | None) -> None:
        """Show the progress of an export.

        Parameters
        ----------
        text
            Text in the bar.
        fraction
            0 to 1; None if nothing is being saved.
        """
        self._is_saving = fraction is not None
        self.progress.parentWidget().setVisible(self._is_saving)
        self.progress.setFormat(text)
        self.progress.setValue(round(100 * (fraction or 0)))
        self.show_state(*self._state)

    def show_state(self, has_slide: bool, has_result: bool, command: str) -> None:
        """Enable the possible exports and show the command line.

        Parameters
        ----------
        has_slide
            Whether a slide is open.
        has_result
            Whether there is a result.
        command
            Command line that gives the same numbers.
        """
        self._state = has_slide, has_result, command
        busy = "Something is being saved." if self._is_saving else ""
        no_result = "" if has_result else NO_RESULT
        for button, tip in (
            (self.all_files, "Attention (HDF5, OME-TIFF), GeoJSON for QuPath, overlay, probabilities, report"),
            (self.report, "One HTML page: maps, probabilities, top patches, and how they were computed"),
        ):
            enable_unless(button, busy or no_result, tip)
        no_view = busy or ("" if has_slide else "No slide is open.")
        enable_unless(self.view, no_view, "The visible picture, with legend and scale bar")
        enable_unless(self.command, no_result, "The command line that gives the same numbers")
        self.command_label.setText(command if has_result else "")
