"""What if: leave regions out, keep only some, change the tissue mask; and back again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QWidget

from napari_lrmil.plugin.sections.parts import Section, bar, button, label

if TYPE_CHECKING:
    from napari_lrmil.plugin.session import Session


class WhatIfSection(Section):
    """Leaves drawn regions out of the bag, or all but them."""

    exclude_wanted = Signal()
    keep_wanted = Signal()
    undo_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("what-if", "What if… (without a region)", parent)
        self.exclude = button("Leave out", "")
        self.keep = button("Keep only", "")
        self.undo = button("Undo", "")
        self.told = label("what-if", small=True)
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
        blocked = "Wait for the analysis, or cancel it." if session.busy else ""
        drawn = blocked or ("" if session.regions else "Draw a region first.")
        bar(self.exclude, drawn, "Leave the drawn regions (a pen mark, a fold) out; answered at once")
        bar(self.keep, drawn, "Leave out everything outside the drawn regions")
        bar(self.undo, blocked or ("" if session.can_undo else "Nothing to take back."), "Take the last step back")
        left = session.what_if
        parts = [f"{len(left.excluded)} left out"] if left.excluded else []
        parts += [f"only {len(left.kept)} kept"] if left.kept else []
        self.told.setText(f"Regions: {', '.join(parts)}." if parts else "Nothing is left out.")


class TissueSection(Section):
    """Shows the tissue mask as labels to paint on, and takes what was painted."""

    edit_wanted = Signal()
    use_wanted = Signal()
    back_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("tissue", "Where the tissue is (mask)", parent)
        self.edit, self.use = button("Edit mask", ""), button("Use it", "")
        self.back = button("As found", "")
        self.told = label("tissue", small=True)
        for widget, wish in ((self.edit, self.edit_wanted), (self.use, self.use_wanted), (self.back, self.back_wanted)):
            widget.clicked.connect(wish)
        self.add(self.edit, self.use, self.back)
        self.add(self.told)

    def show_session(self, session: Session, editing: bool) -> None:
        """Show what holds; `editing` tells whether the mask lies in the viewer."""
        ground = session.ground
        blocked = "Wait for the analysis, or cancel it." if session.busy else ""
        known = blocked or ("" if ground else "The tissue of the slide is not known yet.")
        bar(self.edit, known or ("It is being edited." if editing else ""), "Paint tissue with 1, erase it with 0")
        bar(self.use, known or ("" if editing else "The mask is not being edited."), "Find the patches of this mask")
        edited = ground is not None and ground.edited
        bar(self.back, blocked or ("" if edited else "The mask is as it was found."), "Go back to the mask as found")
        hand = "changed by hand" if edited else "found by colour"
        self.told.setText(f"{len(ground.grid.lr_index)} patches; mask {hand}." if ground else "")
