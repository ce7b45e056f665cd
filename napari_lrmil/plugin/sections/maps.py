"""How attention and evidence are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QLabel, QSlider, QWidget

from napari_lrmil.core.modes import MODES
from napari_lrmil.plugin.maps import Look
from napari_lrmil.plugin.sections.parts import Section, label

if TYPE_CHECKING:
    from napari_lrmil.plugin.answer import Answer


class AttentionSection(Section):
    """Edits a `Look`."""

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("attention", "Where the model looked (attention)", parent)
        self.mode = QComboBox()
        for mode, words in MODES.items():
            self.mode.addItem(words, mode)
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setAccessibleName("Opacity of the attention")
        self.smooth = QCheckBox("Smooth")
        self.smooth.setToolTip("Let colours run into each other; a patch is what the model saw, so this adds nothing")
        self.set_value(Look())
        self.mode.currentIndexChanged.connect(self.changed)
        self.opacity.valueChanged.connect(self.changed)
        self.smooth.toggled.connect(self.changed)
        self.add(QLabel("Shown"), self.mode)
        self.add(QLabel("Opacity"), self.opacity, self.smooth)

    def value(self) -> Look:
        """Return how attention is to look."""
        return Look(self.mode.currentData(), self.smooth.isChecked(), self.opacity.value() / 100)

    def set_value(self, look: Look) -> None:
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
        self.total = label("evidence sum", small=True)
        self.shown.toggled.connect(self._choose)
        self.of.currentIndexChanged.connect(self._choose)
        self.add(self.shown, self.of)
        self.add(self.total)

    def value(self) -> str | None:
        """Return the class whose evidence is shown; None where none is."""
        return self.of.currentText() if self.shown.isChecked() and self.of.count() else None

    def show_answer(self, answer: Answer | None) -> None:
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
