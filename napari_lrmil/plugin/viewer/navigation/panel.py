"""Overview section of the dock: magnification buttons with the keys 1 to 6, minimap, colour and label buttons.

Own code: neither superqt nor napari's plugins for slides have buttons for magnifications.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QLabel, QPushButton, QShortcut, QWidget

from napari_lrmil.plugin.qt.section import Section, enable_unless, make_button
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.timers import single_shot
from napari_lrmil.plugin.viewer.navigation.camera import (
    MAGNIFICATIONS,
    current_magnification,
    current_mpp,
    set_magnification,
    um_per_pixel,
    why_magnification_unavailable,
)
from napari_lrmil.plugin.viewer.navigation.minimap import Minimap
from napari_lrmil.plugin.viewer.navigation.tools import NavigationTools

if TYPE_CHECKING:
    from napari.components import ViewerModel


REFRESH_MS, LABEL_MARGIN_PX = 30, 18
MAGNIFICATION_TOLERANCE = 0.01  # relative; a button is checked within it, because the zoom is a rounded float
STYLE = "QPushButton { padding: 3px 0px; min-width: 2.5em; } QPushButton:checked { font-weight: bold; }"


class MagnificationRow(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Row of magnification buttons, and a label with the present magnification if it is between two buttons.

    Parameters
    ----------
    viewer
        Viewer whose camera the buttons move.
    """

    def __init__(self, viewer: ViewerModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self.buttons: dict[float, QPushButton] = {}
        self._shortcuts: dict[float, QShortcut] = {}
        self._build()
        # Later, because napari emits `inserted` before the layer is fully added.
        self._refresh_soon = single_shot(self, REFRESH_MS, self._refresh)
        self._subscribe()
        self._refresh()

    def _build(self) -> None:
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(2)
        for key, magnification in enumerate(MAGNIFICATIONS, start=1):
            button = QPushButton(f"{magnification:g}x")
            button.setCheckable(True)
            button.setStyleSheet(STYLE)
            button.clicked.connect(partial(self._choose, magnification))
            row.addWidget(button, 1)
            self.buttons[magnification] = button
            self._shortcuts[magnification] = self._make_shortcut(str(key), magnification)
        self.current = QLabel()
        self.current.setObjectName("magnification")
        self.current.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.current.setToolTip("Magnification now: at 20x a pixel of the screen shows 0.5 µm")
        row.addWidget(self.current)

    def _make_shortcut(self, key: str, magnification: float) -> QShortcut:
        shortcut = QShortcut(QKeySequence(key), self)
        shortcut.setContext(Qt.ShortcutContext.WindowShortcut)  # the canvas has the focus, not this row
        shortcut.activated.connect(partial(self._choose, magnification))
        return shortcut

    def _subscribe(self) -> None:
        viewer, layers = self._viewer, self._viewer.layers
        emitters = [
            viewer.scene.camera.events.zoom,
            layers.events.inserted,
            layers.events.removed,
            layers.selection.events.active,
        ]
        connect_until_destroyed(self, [(emitter, self._schedule_refresh) for emitter in emitters])

    def follow_slide(self) -> None:
        """Enable the magnifications of the current slide. Call it after a slide was shown or hidden."""
        self._schedule_refresh()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802  # Qt's name
        """Make room for the magnification in the new font."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange) and hasattr(self, "_refresh_soon"):
            self._schedule_refresh()

    def value(self) -> float:
        """Return the present magnification."""
        return current_magnification(self._viewer, self.devicePixelRatioF())

    def _choose(self, magnification: float, _: bool = False) -> None:
        set_magnification(self._viewer, magnification, self.devicePixelRatioF())
        self._refresh()

    def _schedule_refresh(self, _: Any = None) -> None:
        if not self._refresh_soon.isActive():
            self._refresh_soon.start()

    def _refresh(self) -> None:
        value, mpp, keys_are_free = self.value(), current_mpp(self._viewer), self._keys_are_free()
        for key, (magnification, button) in enumerate(self.buttons.items(), start=1):
            reason = why_magnification_unavailable(magnification, mpp)
            tip = f"{magnification:g}x: a pixel of the screen shows {um_per_pixel(magnification):g} µm (key {key})"
            enable_unless(button, reason, tip)
            button.setChecked(not reason and abs(value / magnification - 1) < MAGNIFICATION_TOLERANCE)
            self._shortcuts[magnification].setEnabled(not reason and keys_are_free)
        is_between = mpp is not None and not any(button.isChecked() for button in self.buttons.values())
        # Room for any text in the present font, or the buttons would move whenever it changes.
        self.current.ensurePolished()
        self.current.setMinimumWidth(self.current.fontMetrics().horizontalAdvance("88.8x") + LABEL_MARGIN_PX)
        self.current.setText(f"{value:.3g}x" if is_between else "")

    def _keys_are_free(self) -> bool:
        """Return whether the digit keys may change the magnification.

        On Labels, Shapes and Points layers napari uses them to choose a drawing tool.
        """
        from napari.layers import Image

        active = self._viewer.layers.selection.active
        return active is None or isinstance(active, Image)


class NavigationSection(Section):
    """Section with magnification buttons, minimap, colour profile and label button.

    Attributes
    ----------
    icc_toggled
        Signal: whether to apply the colour profile of the slide.
    label_requested
        Signal: the user wants to see the label and macro images.
    """

    icc_toggled = Signal(bool)
    label_requested = Signal()

    def __init__(self, viewer: ViewerModel, parent: QWidget | None = None) -> None:
        super().__init__("navigation", "Overview", parent)
        self.magnification, self.minimap = MagnificationRow(viewer), Minimap(viewer)
        self.icc = QCheckBox("Scanner's colours (ICC)")
        self.icc.clicked.connect(self.icc_toggled)
        self.label = make_button("Label…", "")
        self.label.clicked.connect(self.label_requested)
        self.add(self.magnification)
        self.tools = NavigationTools(viewer)
        self.add(self.minimap)
        self.add(self.tools)
        self.add(self.icc, self.label)

    def show_slide(self, has_profile: bool, images: tuple[str, ...]) -> None:
        """Enable the controls for which the slide has data.

        Parameters
        ----------
        has_profile
            Whether the slide has an ICC colour profile.
        images
            Names of its associated images.
        """
        self.magnification.follow_slide()
        self.minimap.follow_slide()
        self.tools.show_slide()
        no_profile = "" if has_profile else "The slide has no colour profile."
        enable_unless(self.icc, no_profile, "Show the colours that the scanner's profile defines")
        tip = f"Show {', '.join(images)}: may carry a patient's name; never part of an export"
        enable_unless(self.label, "" if images else "The slide has no label or macro image.", tip)
