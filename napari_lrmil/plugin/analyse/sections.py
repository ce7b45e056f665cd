"""Foldable sections of the Analyse dock, from top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QLabel,
    QProgressBar,
    QSlider,
    QWidget,
)

from napari_lrmil.core.patching.roi import WORDS
from napari_lrmil.core.visualize.overlay import ATTENTION_SCALES
from napari_lrmil.plugin.analyse.result_text import ResultText
from napari_lrmil.plugin.qt.section import Section, enable_unless, make_button, make_label
from napari_lrmil.plugin.session.preconditions import RUN_ACTIVE, TISSUE_UNKNOWN
from napari_lrmil.plugin.session.scope_text import count_regions
from napari_lrmil.plugin.viewer.maps.attention_layers import AttentionStyle

if TYPE_CHECKING:
    from napari.layers import Labels

    from napari_lrmil.plugin.session.analyse_state import AnalyseState

NO_RESULT = "There is no result yet."
BRUSH_RANGE = (1, 60)  # pixels of the tissue mask
MASK_OPEN, MASK_CLOSED = "The mask is being edited.", "The mask is not being edited."

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
        super().__init__("evidence", "Evidence for each class", parent)
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

    def show_state(self, state: AnalyseState) -> None:
        """Show how many regions are excluded or kept, and enable the possible steps."""
        of_slide = state.choices.of_slide
        busy = RUN_ACTIVE if state.is_busy else ""
        no_region = busy or ("" if of_slide.regions else "Draw a region first.")
        enable_unless(self.exclude, no_region, "Exclude the drawn regions, such as a pen mark, and predict again")
        enable_unless(self.keep_only, no_region, "Exclude everything outside the drawn regions and predict again")
        no_step = busy or ("" if of_slide.can_undo else "There is nothing to undo.")
        enable_unless(self.undo, no_step, "Undo the last step")
        what_if = of_slide.what_if
        parts = [f"{count_regions(len(what_if.excluded))} excluded"] if what_if.excluded else []
        parts += [f"only {count_regions(len(what_if.included))} kept"] if what_if.included else []
        steps = ", ".join(parts) or "no region is excluded"
        self.status.setText(f"Answers for: {WORDS[of_slide.scope.kind]}; {steps}.")


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

    def show_state(self, state: AnalyseState, layer: Labels | None) -> None:
        """Show the tissue mask of a state and enable the possible steps.

        Parameters
        ----------
        state
            State of the dock.
        layer
            The labels layer in which the mask is edited; None if it is not being edited.
        """
        tissue_grid, is_editing = state.tissue_grid, layer is not None
        busy = RUN_ACTIVE if state.is_busy else ""
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
        self._state, self._is_saving = (False, False), False
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

    def show_command(self, command: str, note: str) -> None:
        """Show the command line that gives the same numbers, with a sentence below it; both may be empty."""
        self.command_label.setText("\n".join(filter(None, (command, note))))

    def show_state(self, has_slide: bool, has_result: bool) -> None:
        """Enable the possible exports.

        Parameters
        ----------
        has_slide
            Whether a slide is open.
        has_result
            Whether there is a result.
        """
        self._state = has_slide, has_result
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
