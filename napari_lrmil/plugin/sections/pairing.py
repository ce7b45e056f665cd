"""How the maps of student and teacher lie to each other: side by side, one wiped over the other, their difference."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QButtonGroup, QCheckBox, QLabel, QRadioButton, QSlider, QWidget

from napari_lrmil.plugin.maps import Pairing, View
from napari_lrmil.plugin.sections.parts import Section, bar, row

VIEWS: dict[View, tuple[str, str]] = {
    "side": ("Side by side", "Two views that move together, with one colour scale"),
    "wipe": ("Wipe", "Both maps on one slide: the student's left of the wipe, the teacher's right of it"),
    "difference": ("Difference", "Orange where the student looks more than its teacher, purple where it looks less"),
}
NOTHING = "The teacher did not look at this slide yet."
POOLED = "The teacher's attention summed over the HR patches in each LR patch, as it is compared; else on its own grid"


class PairingSection(Section):
    """Edits a `Pairing`."""

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("pairing", "See both (maps)", parent)
        self._group, self._there = QButtonGroup(self), False
        self.views = {view: QRadioButton(word) for view, (word, _) in VIEWS.items()}
        self.wipe, self.pooled = QSlider(Qt.Orientation.Horizontal), QCheckBox("Teacher pooled to LR patches")
        self.wipe.setAccessibleName("Columns of patches left of the wipe")
        self.wipe.valueChanged.connect(self._changed)
        self.pooled.toggled.connect(self._changed)
        for radio in self.views.values():
            self._group.addButton(radio)
            radio.toggled.connect(self._chosen)
        self.views["side"].setChecked(True)
        self.add(*self.views.values())
        self._line = row(QLabel("Student"), self.wipe, QLabel("Teacher"))
        self.add(self._line)
        self.add(self.pooled)
        self.show_columns(None)

    def value(self) -> Pairing:
        """Return how the maps are to lie."""
        view = next(view for view, radio in self.views.items() if radio.isChecked())
        return Pairing(view, self.wipe.value(), self.pooled.isChecked())

    def choose(self, view: View) -> None:
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
        barred = "" if self._there else NOTHING
        for view, (_, tip) in VIEWS.items():
            bar(self.views[view], barred, tip)
        wiping, differing = self.views["wipe"].isChecked(), self.views["difference"].isChecked()
        bar(self.wipe, barred or ("" if wiping else "Choose Wipe first."), "Move the wipe by a column of LR patches")
        bar(self.pooled, barred or ("A difference is always on the LR grid." if differing else ""), POOLED)

    def _chosen(self, on: bool) -> None:
        if on:
            self._enable()
            self._changed()

    def _changed(self, _: object = None) -> None:
        self.changed.emit()
