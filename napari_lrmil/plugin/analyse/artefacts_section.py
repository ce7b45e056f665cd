"""Section of the Analyse dock on artefacts: which lie on the tissue, their outlines, and whether they are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QWidget

from napari_lrmil.core.patching.artefacts import FOLD, format_shares
from napari_lrmil.plugin.qt.section import Section, enable_unless, make_label
from napari_lrmil.plugin.session.preconditions import RUN_ACTIVE, TISSUE_UNKNOWN

if TYPE_CHECKING:
    from napari_lrmil.plugin.session.analyse_state import AnalyseState

NOT_FOUND = "No artefact was found."
OFF_TISSUE = "Artefacts lie beside the tissue only."
EDITED = "The mask was edited by hand and is used as it is."
BY_MODEL = "The model was trained without artefacts, and always leaves out all but folds."
SHOW_TIP = "Outline pen (blue), folds (orange), air bubbles (green) and blur (pink) on the slide"
EXCLUDE_TIP = (
    "Read no patch where pen, air bubbles or blur leave too little tissue, although the model was trained with them. "
    "Folds stay: dense tissue can look like one"
)


class ArtefactsSection(Section):
    """Check boxes for the outlines of artefacts and for their exclusion, and a line on what was found.

    Attributes
    ----------
    outlines_toggled, exclusion_toggled
        Emitted with the state of the check box when the user clicks it.
    """

    outlines_toggled = Signal(bool)
    exclusion_toggled = Signal(bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("artefacts", "Artefacts", parent)
        self.outlines, self.exclude = QCheckBox("Show"), QCheckBox("Leave out")
        self.outlines.setAccessibleName("Show artefacts on the slide")
        self.exclude.setAccessibleName("Leave artefacts out of the tissue")
        self.status = make_label("artefacts", small=True)
        self.outlines.clicked.connect(self.outlines_toggled)
        self.exclude.clicked.connect(self.exclusion_toggled)
        self.add(self.outlines, self.exclude)
        self.add(self.status)

    def show_state(self, state: AnalyseState, *, has_outlines: bool) -> None:
        """Show the artefacts of the shown slide.

        Parameters
        ----------
        state
            State of the dock.
        has_outlines
            Whether the outlines are on the slide.
        """
        tissue_grid = state.tissue_grid
        artefacts = tissue_grid.tissue.artefacts if tissue_grid is not None and not tissue_grid.edited else None
        unknown = "" if tissue_grid is not None else TISSUE_UNKNOWN
        edited = EDITED if tissue_grid is not None and tissue_grid.edited else ""
        nothing = unknown or edited or ("" if artefacts is not None and artefacts.masks else NOT_FOUND)
        by_model = state.bundle is not None and state.bundle.card.tissue.exclude_artefacts
        enable_unless(self.outlines, "" if has_outlines else nothing, SHOW_TIP)
        busy = RUN_ACTIVE if state.is_busy else ""
        enable_unless(self.exclude, unknown or edited or (BY_MODEL if by_model else "") or busy, EXCLUDE_TIP)
        self.outlines.setChecked(has_outlines)
        self.exclude.setChecked(state.excludes_artefacts)
        shares = artefacts.shares if artefacts is not None else {}
        is_left_out = state.excludes_artefacts and shares.keys() != {FOLD}
        treated = "all but folds are left out" if is_left_out else "they count as tissue"
        text = f"Of the tissue: {format_shares(shares)}; {treated}." if shares else nothing or OFF_TISSUE
        self.status.setText(text)
