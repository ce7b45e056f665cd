"""A row of magnifications, 1.25x to 40x, on buttons and on the keys 1 to 6.

Own code: neither superqt nor napari's plugins for slides have buttons for magnifications.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QLabel, QPushButton, QShortcut, QWidget

from napari_lrmil.plugin.qt.section import Section, enable_unless, make_button
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.viewer.minimap import Minimap
from napari_lrmil.plugin.viewer.navigation import (
    MAGNIFICATIONS,
    current_magnification,
    current_mpp,
    set_magnification,
    um_per_pixel,
    why_magnification_unavailable,
)

if TYPE_CHECKING:
    from napari.components import ViewerModel


REFRESH_MS = 30
MAGNIFICATION_TOLERANCE = 0.01  # as near as this counts as the button's magnification
STYLE = "QPushButton { padding: 3px 0px; min-width: 34px; } QPushButton:checked { font-weight: bold; }"


class MagnificationRow(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Buttons that show the slide at a magnification, and the one that it has where that is between theirs.

    Parameters
    ----------
    viewer
        The viewer that is looked through.
    """

    def __init__(self, viewer: ViewerModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self.buttons: dict[float, QPushButton] = {}
        self._shortcuts: dict[float, QShortcut] = {}
        self._build()
        self._refresh_soon = QTimer(self)  # napari tells of a layer in the middle of adding it
        self._refresh_soon.setSingleShot(True)
        self._refresh_soon.setInterval(REFRESH_MS)
        self._refresh_soon.timeout.connect(self._refresh)
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
            button.clicked.connect(partial(self._chosen, magnification))
            row.addWidget(button, 1)
            self.buttons[magnification] = button
            self._shortcuts[magnification] = self._shortcut(str(key), magnification)
        self.now = QLabel()
        self.now.setObjectName("magnification")
        self.now.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.now.setMinimumWidth(self.now.fontMetrics().horizontalAdvance(" 88.8x "))
        self.now.setToolTip("Magnification now: at 20x a pixel of the screen shows 0.5 µm")
        row.addWidget(self.now)

    def _shortcut(self, key: str, magnification: float) -> QShortcut:
        shortcut = QShortcut(QKeySequence(key), self)
        shortcut.setContext(Qt.ShortcutContext.WindowShortcut)
        shortcut.activated.connect(partial(self._chosen, magnification))
        return shortcut

    def _subscribe(self) -> None:
        viewer, layers = self._viewer, self._viewer.layers
        news = [
            viewer.scene.camera.events.zoom,
            layers.events.inserted,
            layers.events.removed,
            layers.selection.events.active,
        ]
        connect_until_destroyed(self, [(emitter, self._news) for emitter in news])

    def value(self) -> float:
        """Return the magnification that is shown."""
        return current_magnification(self._viewer, self.devicePixelRatioF())

    def _chosen(self, magnification: float, _: bool = False) -> None:
        set_magnification(self._viewer, magnification, self.devicePixelRatioF())
        self._refresh()

    def _news(self, _: Any = None) -> None:
        if not self._refresh_soon.isActive():
            self._refresh_soon.start()

    def _refresh(self) -> None:
        now, mpp, keys_free = self.value(), current_mpp(self._viewer), self._keys_are_free()
        for key, (magnification, magnification_button) in enumerate(self.buttons.items(), start=1):
            blocked = why_magnification_unavailable(magnification, mpp)
            magnification_button.setEnabled(not blocked)
            magnification_button.setChecked(not blocked and abs(now / magnification - 1) < MAGNIFICATION_TOLERANCE)
            offer = f"{magnification:g}x: a pixel of the screen shows {um_per_pixel(magnification):g} µm (key {key})"
            magnification_button.setToolTip(blocked or offer)
            self._shortcuts[magnification].setEnabled(not blocked and keys_free)
        between = mpp is not None and not any(x.isChecked() for x in self.buttons.values())
        self.now.setText(f"{now:.3g}x" if between else "")

    def _keys_are_free(self) -> bool:
        """Whether the digits are ours: on layers that are drawn on they choose napari's tools."""
        from napari.layers import Image

        active = self._viewer.layers.selection.active
        return active is None or isinstance(active, Image)


class NavigationSection(Section):
    """Magnification buttons, minimap, colours."""

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
        self.add(self.minimap)
        self.add(self.icc, self.label)

    def show_slide(self, has_profile: bool, images: tuple[str, ...]) -> None:
        """Enable what the slide has."""
        enable_unless(
            self.icc,
            "" if has_profile else "The slide has no colour profile.",
            "Show colours as the scanner meant them",
        )
        told = f"Show {', '.join(images)}: may carry a patient's name; never part of an export"
        enable_unless(self.label, "" if images else "The slide has no label or macro image.", told)
