"""Where one looks: magnification, the overview, true colours, and the slide's label on request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QWidget

from napari_lrmil.plugin.magbuttons import MagnificationRow
from napari_lrmil.plugin.minimap import Minimap
from napari_lrmil.plugin.sections.parts import Section, bar, button

if TYPE_CHECKING:
    from napari.components import ViewerModel


class NavigationSection(Section):
    """Magnification buttons, minimap, colours."""

    icc_chosen = Signal(bool)
    label_wanted = Signal()

    def __init__(self, viewer: ViewerModel, parent: QWidget | None = None) -> None:
        super().__init__("navigation", "Overview", parent)
        self.magnification, self.minimap = MagnificationRow(viewer), Minimap(viewer)
        self.icc = QCheckBox("Scanner's colours (ICC)")
        self.icc.clicked.connect(self.icc_chosen)
        self.label = button("Label…", "")
        self.label.clicked.connect(self.label_wanted)
        self.add(self.magnification)
        self.add(self.minimap)
        self.add(self.icc, self.label)

    def show_slide(self, has_profile: bool, images: tuple[str, ...]) -> None:
        """Enable what the slide has."""
        bar(
            self.icc,
            "" if has_profile else "The slide has no colour profile.",
            "Show colours as the scanner meant them",
        )
        told = f"Show {', '.join(images)}: may carry a patient's name; never part of an export"
        bar(self.label, "" if images else "The slide has no label or macro image.", told)
