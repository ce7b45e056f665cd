"""What a run is about: the slide, what is visible, or regions that are drawn or read from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QButtonGroup, QCheckBox, QRadioButton, QVBoxLayout, QWidget

from napari_lrmil.core.scope import Kind
from napari_lrmil.plugin.sections.parts import bar, button, label, row

if TYPE_CHECKING:
    from napari_lrmil.plugin.session import Session

KINDS: tuple[tuple[Kind, str], ...] = (("slide", "Slide"), ("view", "View"), ("region", "Region"))
DRAW = "Draw a region on the slide: click corners, double-click to close"
READ = "Regions from QuPath (GeoJSON) or ASAP (XML)"
WRITE = "Write the drawn regions as GeoJSON for QuPath"
FOLLOW = "While the view moves the student answers for what is visible; what was seen before costs nothing"


class ScopeForm(QWidget):  # type: ignore[misc]  # qtpy has no types
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
        for kind, word in KINDS:
            self.kinds[kind] = QRadioButton(word)
            self._group.addButton(self.kinds[kind])
            self.kinds[kind].clicked.connect(lambda _=False, kind=kind: self.kind_chosen.emit(kind))
        self.follow = QCheckBox("Follow the view (live)")
        self.follow.clicked.connect(self.follow_chosen)
        self.draw, self.read, self.write = button("Draw", DRAW), button("Import…", READ), button("Export…", WRITE)
        wishes = ((self.draw, self.drawing_wanted), (self.read, self.import_wanted), (self.write, self.export_wanted))
        for widget, wish in wishes:
            widget.clicked.connect(wish)
        self.estimate = label("estimate")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(3)
        for part in (row(*self.kinds.values()), row(self.draw, self.read, self.write), self.follow, self.estimate):
            column.addWidget(part)

    def show_session(self, session: Session) -> None:
        """Show what is chosen, what cannot be, and the cost."""
        self.kinds[session.kind].setChecked(True)
        self.follow.setChecked(session.follow)
        free = "Wait for the analysis, or cancel it." if session.busy else ""
        no_slide = free or ("" if session.slide else "Open a slide first.")
        for kind, word in KINDS:
            bar(self.kinds[kind], free, f"Analyse the {'drawn regions' if kind == 'region' else word.lower()}")
        bar(self.draw, no_slide, DRAW)
        bar(self.read, no_slide, READ)
        bar(self.write, "" if session.regions else "No region is drawn.", WRITE)
        bar(self.follow, "" if session.ground else "The tissue of the slide is not known yet.", FOLLOW)
        estimate = session.estimate
        self.estimate.setText(f"{session.scope.text}: {estimate.text}" if estimate else "")
        self.estimate.setVisible(estimate is not None)
