"""Tools of the Overview section: distance, rotation, positions, links to places, full screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
from napari.layers import Points
from qtpy.compat import isalive
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QGuiApplication, QKeySequence
from qtpy.QtWidgets import QComboBox, QDoubleSpinBox, QLabel, QLineEdit, QShortcut, QVBoxLayout, QWidget

from napari_lrmil.core.geometry import Float
from napari_lrmil.core.slides.place_link import PlaceLink
from napari_lrmil.plugin.qt.errors import show_errors
from napari_lrmil.plugin.qt.section import enable_unless, make_button, make_label, make_row
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.viewer.layers import UNITS, LayerTag, add_layers, lrmil_layers, remove_layers, slide_affine
from napari_lrmil.plugin.viewer.navigation.camera import (
    current_slide,
    fit_slide,
    shows_whole_slide,
    um_per_unit,
    world_to_slide,
)
from napari_lrmil.plugin.viewer.navigation.places import current_link, current_slide_tag, format_distance, go_to_text
from napari_lrmil.plugin.viewer.navigation.rotation import current_rotation, follow_slide, rotate_view

if TYPE_CHECKING:
    from napari.components import ViewerModel

CLICK_PX = 4  # a press that moves further is a drag of the slide
LINE_COLOUR, LINE_PX, TEXT_PT = "#0072b2", 3, 14
# The text is drawn four times in white around itself, because tissue is as dark as a text that is legible on glass.
HALO, HALO_PX, HALO_COLOUR = ((-1, -1), (-1, 1), (1, -1), (1, 1), (0, 0)), 1.2, "white"
MEASURE_HINT, SECOND_HINT = "Click on two points of the slide.", "Click on the second point."
MEASURE_TIP = "Measure the distance between two points of the slide in µm"
LINK_TIP = "Copy slide, position, magnification and rotation; `napari-lrmil view LINK` opens the place"
GO_TIP = "Position x, y from the corner of the slide, or a link"
TURN_TIP = "Rotation of the view, clockwise"
LEFT_TIP, RIGHT_TIP = "Rotate by 90° to the left (Alt+Shift+R)", "Rotate by 90° to the right (Alt+R)"
NO_SLIDE = "Open a slide first."


class NavigationTools(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Buttons and fields of the tools.

    Parameters
    ----------
    viewer
        Viewer with the slides.

    Attributes
    ----------
    measuring
        Emitted when the user begins to measure, before a line is drawn: it would not be seen in two views.
    """

    measuring = Signal()

    def __init__(self, viewer: ViewerModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._start_um: tuple[float, float] | None = None
        self._press = _make_press(ref(self))
        self.measure, self.link = make_button("Measure", MEASURE_TIP), make_button("Copy link", LINK_TIP)
        self.full_screen = make_button("Full screen", "Show the window on the whole screen, or as before")
        self.measure.setCheckable(True)
        self.position, self.unit = QLineEdit(), QComboBox()
        self.position.setPlaceholderText("x, y or a link")
        self.position.setToolTip(GO_TIP)
        self.position.setAccessibleName("Position to go to")
        self.unit.addItems(["µm", "px"])
        self.unit.setToolTip("Unit of the position; px: pixels of the finest level")
        self.go = make_button("Go to", GO_TIP)
        self.left, self.right, self.rotation = make_button("−90°", ""), make_button("+90°", ""), QDoubleSpinBox()
        self.rotation.setRange(-180, 180)
        self.rotation.setDecimals(1)
        self.rotation.setWrapping(True)
        self.rotation.setSuffix("°")
        self.rotation.setKeyboardTracking(False)  # 45 is not to pass by 4
        self.rotation.setAccessibleName("Rotation of the view")
        self.distance = make_label("distance", small=True)
        self._connect()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(make_row(self.measure, self.link, self.full_screen))
        column.addWidget(make_row(QLabel("Rotation"), self.rotation, self.left, self.right))
        column.addWidget(make_row(self.position, self.unit, self.go))
        column.addWidget(self.distance)
        self.show_slide()

    def _connect(self) -> None:
        self.measure.toggled.connect(self._set_measuring)
        self.link.clicked.connect(lambda: show_errors(self._copy_link))
        self.full_screen.clicked.connect(self._toggle_full_screen)
        self.go.clicked.connect(self._go)
        self.position.returnPressed.connect(self._go)
        self.rotation.valueChanged.connect(partial(rotate_view, self._viewer))
        for button, key, degrees in ((self.left, "Alt+Shift+R", -90), (self.right, "Alt+R", 90)):
            button.clicked.connect(partial(self._turn, degrees))
            shortcut = QShortcut(QKeySequence(key), self, activated=button.click)
            shortcut.setContext(Qt.ShortcutContext.WindowShortcut)  # the canvas has the focus, not this section
        layers, camera = self._viewer.layers.events, self._viewer.scene.camera.events
        connect_until_destroyed(self, [(layers.inserted, self._on_inserted)])
        connect_until_destroyed(self, [(camera.center, self._show_rotation), (camera.zoom, self._scale_halo)])

    def show_slide(self) -> None:
        """Enable the tools if there is a slide; end a measurement on a slide that is not shown any more."""
        blocked = "" if current_slide(self._viewer) is not None else NO_SLIDE
        tips = {self.measure: MEASURE_TIP, self.link: LINK_TIP, self.go: GO_TIP, self.rotation: TURN_TIP}
        tips |= {self.left: LEFT_TIP, self.right: RIGHT_TIP}
        for widget, tip in tips.items():
            enable_unless(widget, blocked, tip)
        self._show_rotation()
        if blocked:
            self.measure.setChecked(False)

    # ------------------------------------------------------------ distance

    def _set_measuring(self, is_on: bool) -> None:
        callbacks = self._viewer.mouse_drag_callbacks
        if self._press in callbacks:
            callbacks.remove(self._press)
        self._start_um = None
        if is_on:
            self.measuring.emit()
            # Of a slide's layer no tool draws while the user clicks.
            self._viewer.layers.selection.active = current_slide(self._viewer)
            callbacks.append(self._press)
        else:
            self._remove_line()
        self._show_distance(MEASURE_HINT if is_on else "")

    def _show_distance(self, text: str) -> None:
        self.distance.setText(text)
        self.distance.setVisible(bool(text))

    def take_press(self, event: Any) -> Iterator[None]:
        """Take a click, which napari reports as a press and a release; a drag moves the slide as usual."""
        pressed_at = np.asarray(event.pos)
        yield
        while event.type == "mouse_move":
            yield
        if np.abs(np.asarray(event.pos) - pressed_at).max() <= CLICK_PX:
            self.add_point(world_to_slide(self._viewer, event.position))

    def add_point(self, point_um: tuple[float, float]) -> None:
        """Take the first or the second point of a measurement.

        Parameters
        ----------
        point_um
            x and y in µm.
        """
        start, tag = self._start_um, current_slide_tag(self._viewer)
        if tag is None:
            return
        if start is None:
            self._start_um = point_um
            self.measuring.emit()  # the user may have chosen two views meanwhile
            self._show_distance(SECOND_HINT)
            return
        self._start_um = None
        text = format_distance(start, point_um)
        self._draw_line(tag, start, point_um, text)
        self._show_distance(f"Distance {text}.")

    def _remove_line(self) -> None:
        """Remove the line of the current slide, and those of all without a slide."""
        tag = current_slide_tag(self._viewer)
        path = tag.path if tag is not None else None
        remove_layers(self._viewer, lrmil_layers(self._viewer, path, role="distance"))

    def _draw_line(self, slide: LayerTag, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
        """Draw a line over the slide, with its length beside its middle, in place of its last one."""
        self._remove_line()
        active = self._viewer.layers.selection.active
        unit = um_per_unit(self._viewer)
        corners = np.array([start[::-1], end[::-1]])
        tag = LayerTag("distance", slide.path, slide.mpp, slide.given_mpp)
        common = {"name": f"Distance {text}", "units": UNITS, "metadata": tag.as_metadata()}
        line = {
            "shape_type": "line",
            "edge_color": LINE_COLOUR,
            "edge_width": LINE_PX * unit / float(self._viewer.scene.camera.zoom),
        }
        # A text of the line itself would lie in the middle of its bounding box, on the line.
        # napari's anchors name the corner of the data at which the text begins: it grows up from "upper_left".
        anchor = "upper_left" if self._falls_to_the_right(corners) else "lower_left"
        colours = [HALO_COLOUR] * (len(HALO) - 1) + [LINE_COLOUR]
        label = {
            "face_color": "transparent",
            "border_width": 0,
            "size": unit / float(self._viewer.scene.camera.zoom),
            "text": {"string": {"constant": f" {text} "}, "color": colours, "size": TEXT_PT, "anchor": anchor},
        }
        points = self._halo_points(corners.mean(axis=0))
        add_layers(self._viewer, [([corners], common | line, "shapes"), (points, common | label, "points")])
        self._viewer.layers.selection.active = active

    def _halo_points(self, point: Float) -> Float:
        """Return (5, 2) positions of the text: four around a point, as seen at the present zoom, and last the point.

        Parameters
        ----------
        point
            Row and column in µm of the slide.
        """
        um_per_px = um_per_unit(self._viewer) / float(self._viewer.scene.camera.zoom)
        return np.asarray(point + HALO_PX * um_per_px * np.array(HALO), dtype=np.float64)

    def _scale_halo(self, _: Any = None) -> None:
        for layer in lrmil_layers(self._viewer, role="distance"):
            if isinstance(layer, Points):
                layer.data = self._halo_points(layer.data[-1])

    def _falls_to_the_right(self, corners: Float) -> bool:
        """Return whether a line falls to the right on the screen, where the slide may be rotated.

        Parameters
        ----------
        corners
            (2, 2) row and column of both ends in µm of the slide.
        """
        down, across = slide_affine(current_slide(self._viewer))[:2, :2] @ (corners[1] - corners[0])
        return bool(down * across > 0)

    # ------------------------------------------------------------ rotation

    def _turn(self, degrees: float, _: bool = False) -> None:
        slide, is_whole = current_slide_tag(self._viewer), shows_whole_slide(self._viewer)
        value = self.rotation.value() + degrees
        self.rotation.setValue(value - 360 if value > 180 else value + 360 if value <= -180 else value)
        if slide is not None and is_whole:  # a long slide would reach beyond the view
            fit_slide(self._viewer, slide.path)

    def _show_rotation(self, _: Any = None) -> None:
        self.rotation.blockSignals(True)
        self.rotation.setValue(current_rotation(self._viewer))
        self.rotation.blockSignals(False)

    def _on_inserted(self, event: Any) -> None:
        follow_slide(self._viewer, event.value)

    # ------------------------------------------------------------ positions

    def _go(self) -> None:
        text, unit = self.position.text(), self.unit.currentText()
        show_errors(partial(go_to_text, self._viewer, text, unit, self.devicePixelRatioF()))

    def _copy_link(self) -> PlaceLink:
        link = current_link(self._viewer, self.devicePixelRatioF())
        QGuiApplication.clipboard().setText(link.as_text())
        return link

    def _toggle_full_screen(self) -> None:
        window = self.window()
        (window.showNormal if window.isFullScreen() else window.showFullScreen)()


def _make_press(tools: ref[NavigationTools]) -> Callable[[Any, Any], Iterator[None]]:
    """Return a mouse callback of napari that does nothing once Qt has deleted the tools."""

    def press(_: Any, event: Any) -> Iterator[None]:
        present = tools()
        if present is not None and isalive(present):
            yield from present.take_press(event)

    return press
