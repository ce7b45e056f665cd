"""Form for the region of interest: whole slide, current view or drawn regions, with the expected cost of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QButtonGroup, QCheckBox, QHBoxLayout, QRadioButton, QVBoxLayout, QWidget

from napari_lrmil.core.patching.roi import Kind
from napari_lrmil.plugin.qt.section import enable_unless, make_button, make_label, make_row
from napari_lrmil.plugin.session.preconditions import RUN_ACTIVE, TISSUE_UNKNOWN
from napari_lrmil.plugin.session.scope_text import scope_words

if TYPE_CHECKING:
    from napari_lrmil.plugin.session.analyse_state import AnalyseState

ROI_KIND_LABELS: dict[Kind, str] = {"slide": "Whole slide", "view": "View", "region": "Drawn regions"}
DRAW_TIP = "Draw a region: click corners, double-click to close. It stays until the window is closed; Export… saves it"
IMPORT_TIP = "Read regions from QuPath (GeoJSON) or ASAP (XML)"
EXPORT_TIP = "Write the drawn regions as GeoJSON for QuPath"
FOLLOW_TIP = "Predict for the visible area while you move; patches that were read before cost nothing"


class RoiKindButtons(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Row of radio buttons for the kind of region.

    Attributes
    ----------
    buttons
        One radio button per kind.
    kind_chosen
        Emitted with the kind on a click.
    """

    kind_chosen = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.buttons: dict[str, QRadioButton] = {}
        self._group = QButtonGroup(self)
        line = QHBoxLayout(self)
        line.setContentsMargins(0, 0, 0, 0)
        line.setSpacing(4)
        for kind, label in ROI_KIND_LABELS.items():
            button = QRadioButton(label)
            # `clicked`, because `toggled` is also emitted when the session sets the button.
            button.clicked.connect(lambda _=False, kind=kind: self.kind_chosen.emit(kind))
            self._group.addButton(button)
            self.buttons[kind] = button
            line.addWidget(button)
        line.addStretch(1)

    def show_kind(self, kind: Kind, blocked: str, action: str) -> None:
        """Check a kind, and enable the buttons unless something blocks them.

        Parameters
        ----------
        kind
            The chosen kind.
        blocked
            Why nothing can be chosen now; empty if it can.
        action
            Start of the tooltips, such as ``Analyse``.
        """
        self.buttons[kind].setChecked(True)
        for name, label in ROI_KIND_LABELS.items():
            enable_unless(self.buttons[name], blocked, f"{action} the {label.lower()}")


class RoiForm(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Region of interest, drawing tools and the expected cost of a run."""

    kind_chosen = Signal(str)
    follow_toggled = Signal(bool)
    draw_requested = Signal()
    import_requested = Signal()
    export_requested = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.kinds = RoiKindButtons()
        self.kinds.kind_chosen.connect(self.kind_chosen)
        self.follow = QCheckBox("Follow the view (live)")
        self.follow.clicked.connect(self.follow_toggled)
        self.draw = make_button("Draw", DRAW_TIP)
        self.import_button, self.export_button = make_button("Import…", IMPORT_TIP), make_button("Export…", EXPORT_TIP)
        for button, signal in (
            (self.draw, self.draw_requested),
            (self.import_button, self.import_requested),
            (self.export_button, self.export_requested),
        ):
            button.clicked.connect(signal)
        self.estimate = make_label("estimate")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(3)
        title = make_label("region of interest", "Region of interest")
        drawing = make_row(self.draw, self.import_button, self.export_button)
        for part in (title, self.kinds, drawing, self.follow, self.estimate):
            column.addWidget(part)

    def show_state(self, state: AnalyseState) -> None:
        """Show the chosen region, what can be changed now, and the expected cost of a run."""
        of_slide, estimate = state.choices.of_slide, state.estimate
        busy = RUN_ACTIVE if state.is_busy else ""
        no_slide = busy or ("" if state.slide else "Open a slide first.")
        self.kinds.show_kind(of_slide.roi_kind, busy, "Analyse")
        self.follow.setChecked(state.choices.follows_view)
        enable_unless(self.draw, no_slide, DRAW_TIP)
        enable_unless(self.import_button, no_slide, IMPORT_TIP)
        enable_unless(self.export_button, "" if of_slide.regions else "No region is drawn.", EXPORT_TIP)
        enable_unless(self.follow, "" if state.has_tissue else TISSUE_UNKNOWN, FOLLOW_TIP)
        self.estimate.setText(f"{scope_words(of_slide.scope)}: {estimate.text}" if estimate else "")
        self.estimate.setVisible(estimate is not None)
