"""Minimap: thumbnail of the whole slide with a frame around the visible part. It never shows label or macro images.

Own code: neither superqt nor napari's plugins for slides have an overview widget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_lrmil.core.events import Event, Failed, Finished
from napari_lrmil.core.geometry import BoxUm
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.timers import single_shot
from napari_lrmil.plugin.qt.worker import BackgroundWorker
from napari_lrmil.plugin.viewer.layers import get_screen_slide
from napari_lrmil.plugin.viewer.navigation.camera import current_slide, fly_to, visible_outline_um, visible_um

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_lrmil.core.slides.slide import Pixels
    from napari_lrmil.plugin.viewer.screen_pyramid import ScreenSlide

REDRAW_MS = 30
SIZE_PX = QSize(320, 170)
MARGIN_PX = 3
MIN_FRAME_PX = 7  # at 40x the true frame can be one pixel, too small to see
GLASS, FRAME, HALO = "#f4f3f5", "#0b62d6", "#ffffff"  # a blue frame, because H&E contains no blue of this kind
EDGE, NOTE = "#808080", "#404040"
ARROW_STEP = 0.5  # fraction of the view
ARROWS = {  # direction in x and y
    Qt.Key.Key_Left: (-1, 0),
    Qt.Key.Key_Right: (1, 0),
    Qt.Key.Key_Up: (0, -1),
    Qt.Key.Key_Down: (0, 1),
}


@dataclass(frozen=True)
class MapTransform:
    """Mapping between the world and the pixels of the minimap.

    Attributes
    ----------
    extent
        Part of the world that the minimap shows, in µm.
    left, top
        Pixel of its corner.
    px_per_um
        Scale.
    """

    extent: BoxUm
    left: float
    top: float
    px_per_um: float

    @classmethod
    def within(cls, extent: BoxUm, width: float, height: float) -> MapTransform:
        """Return the mapping that centres `extent` as large as possible in `width` x `height` pixels."""
        scale = max(1e-9, min((width - 2 * MARGIN_PX) / extent.width, (height - 2 * MARGIN_PX) / extent.height))
        return cls(extent, (width - extent.width * scale) / 2, (height - extent.height * scale) / 2, scale)

    def to_px(self, box: BoxUm) -> tuple[float, float, float, float]:
        """Return left, top, width and height of a box of the world, in pixels."""
        left = self.left + (box.x - self.extent.x) * self.px_per_um
        top = self.top + (box.y - self.extent.y) * self.px_per_um
        return left, top, box.width * self.px_per_um, box.height * self.px_per_um

    def to_um(self, x: float, y: float) -> tuple[float, float]:
        """Return x and y in µm of a pixel; a pixel outside the slide gives the nearest point of the slide."""
        extent = self.extent
        um_x, um_y = extent.x + (x - self.left) / self.px_per_um, extent.y + (y - self.top) / self.px_per_um
        return (
            min(max(um_x, extent.x), extent.x + extent.width),
            min(max(um_y, extent.y), extent.y + extent.height),
        )

    def frame(self, visible: BoxUm) -> tuple[float, float, float, float]:
        """Return left, top, width and height of a frame around `visible`, in pixels, at least `MIN_FRAME_PX` wide."""
        x0, x1 = _clip(visible.x, visible.width, self.extent.x, self.extent.width)
        y0, y1 = _clip(visible.y, visible.height, self.extent.y, self.extent.height)
        left, top, *_ = self.to_px(BoxUm(x0, y0, 1, 1))
        width, height = (x1 - x0) * self.px_per_um, (y1 - y0) * self.px_per_um
        extra_x, extra_y = max(0.0, MIN_FRAME_PX - width), max(0.0, MIN_FRAME_PX - height)
        return left - extra_x / 2, top - extra_y / 2, width + extra_x, height + extra_y


def _clip(start: float, length: float, low: float, span: float) -> tuple[float, float]:
    """Return start and end of an interval, clipped to `low` … `low + span`."""
    return min(max(start, low), low + span), min(max(start + length, low), low + span)


class Minimap(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Thumbnail of the current slide, on which a click, a drag or the arrow keys move the view.

    Parameters
    ----------
    viewer
        Viewer whose camera the minimap shows and moves.
    """

    def __init__(self, viewer: ViewerModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._screen: ScreenSlide | None = None
        self._thumbnail: QImage | None = None
        self._worker: BackgroundWorker | None = None
        self._note = ""
        self._redraw_soon = single_shot(self, REDRAW_MS, self.update)
        self._find_slide_soon = single_shot(
            self, 0, self._find_slide
        )  # napari emits `inserted` before a layer is ready
        self._configure()
        self._subscribe()
        self._find_slide()

    def _configure(self) -> None:
        self.setObjectName("minimap")
        self.setAccessibleName("Overview of the slide; the arrow keys move the view")
        self.setToolTip("The whole slide. The frame is what you see: click, drag or use the arrow keys to move it.")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMinimumHeight(SIZE_PX.height())

    def _subscribe(self) -> None:
        viewer, layers = self._viewer, self._viewer.layers
        camera = viewer.scene.camera.events
        moves = [camera.center, camera.zoom, viewer.canvas.events.size, viewer.canvas.grid.events.enabled]
        changes = [layers.events.inserted, layers.events.removed, layers.selection.events.active]
        connections = [(emitter, self._on_moved) for emitter in moves]
        connections += [(emitter, self._on_layers_changed) for emitter in changes]
        connect_until_destroyed(self, connections)

    def sizeHint(self) -> QSize:  # noqa: N802  # Qt's name
        """Return the preferred size in a dock."""
        return SIZE_PX

    @property
    def transform(self) -> MapTransform | None:
        """Mapping between the slide and the widget's pixels; None if there is no slide."""
        screen = self._screen
        return MapTransform.within(screen.extent_um, self.width(), self.height()) if screen is not None else None

    @property
    def thumbnail(self) -> QImage | None:
        """Thumbnail of the slide; None until it has been read."""
        return self._thumbnail

    # ------------------------------------------------------------ changes in the viewer

    def follow_slide(self) -> None:
        """Look up the current slide anew. Call it after a slide was shown or hidden."""
        self._find_slide_soon.start()

    def _on_moved(self, _: Any = None) -> None:
        if not self._redraw_soon.isActive():  # a running timer will draw this move too
            self._redraw_soon.start()

    def _on_layers_changed(self, _: Any = None) -> None:
        self._find_slide_soon.start()

    def _find_slide(self) -> None:
        layer = current_slide(self._viewer)
        screen = get_screen_slide(layer) if layer is not None else None
        if screen is not self._screen:
            if self._screen is not None:
                self._screen.colour_changed.disconnect(self._read)
            self._screen, self._thumbnail = screen, None
            if screen is not None:
                screen.colour_changed.connect(self._read)
            self._read()
        self.update()

    def _read(self) -> None:
        """Read the coarsest level in a thread, and cancel the read for an earlier slide."""
        if self._worker is not None:
            self._worker.cancel()
        self._worker, self._note = None, "" if self._screen is None else "reading the overview…"
        if self._screen is not None:
            source = partial(_read_overview, self._screen)
            self._worker = BackgroundWorker(source, self._on_event, self.update, self)
            self._worker.start()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._thumbnail, self._note = _make_image(event.result), ""
        elif isinstance(event, Failed):
            self._note = event.message  # shown in place of the thumbnail; the frame still works

    # ------------------------------------------------------------ drawing

    def paintEvent(self, _: QPaintEvent) -> None:  # noqa: N802  # Qt's name
        """Draw the thumbnail and the frame."""
        painter = QPainter(self)
        try:
            self._draw(painter)
        finally:
            painter.end()  # Qt crashes if a painter is still active after the event

    def _draw(self, painter: QPainter) -> None:
        painter.setRenderHints(QPainter.RenderHint.Antialiasing | QPainter.RenderHint.SmoothPixmapTransform)
        transform = self.transform
        if transform is None:
            self._write(painter, "No slide is open.")
        else:
            self._draw_slide(painter, transform)
            self._draw_frame(painter, transform)

    def _draw_slide(self, painter: QPainter, transform: MapTransform) -> None:
        area = QRectF(*transform.to_px(transform.extent))
        painter.fillRect(area, QColor(GLASS))
        if self._thumbnail is not None:
            painter.drawImage(area, self._thumbnail)
        painter.setPen(QPen(QColor(EDGE), 2 if self.hasFocus() else 1))
        painter.drawRect(area)
        if self._note:
            painter.setPen(QColor(NOTE))
            self._write(painter, self._note)

    def _draw_frame(self, painter: QPainter, transform: MapTransform) -> None:
        frame = self._frame(transform)
        for colour, width in ((HALO, 4.0), (FRAME, 2.0)):  # visible on dark and on light tissue
            pen = QPen(QColor(colour), width)
            pen.setJoinStyle(Qt.PenJoinStyle.MiterJoin)
            painter.setPen(pen)
            painter.drawPolygon(frame)

    def _frame(self, transform: MapTransform) -> QPolygonF:
        """Return the outline of the visible part in pixels, cut off at the slide; of a tiny part the box around it."""
        box = QPolygonF(QRectF(*transform.frame(visible_um(self._viewer))))
        outline = visible_outline_um(self._viewer)
        is_upright = abs(outline[0, 1] - outline[1, 1]) < 1e-9 * abs(outline[0, 0] - outline[1, 0])
        shown = box.boundingRect()
        if is_upright or min(shown.width(), shown.height()) <= MIN_FRAME_PX:
            return box
        corners = [transform.to_px(BoxUm(x, y, 1, 1))[:2] for x, y in outline.tolist()]
        area = QPolygonF(QRectF(*transform.to_px(transform.extent)))
        return QPolygonF([QPointF(*corner) for corner in corners]).intersected(area)

    def _write(self, painter: QPainter, text: str) -> None:
        flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
        painter.drawText(QRectF(self.rect()).adjusted(8, 8, -8, -8), flags, text)

    # ------------------------------------------------------------ mouse and keyboard

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802  # Qt's name
        """Centre the view on the mouse position."""
        self.mouseMoveEvent(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802  # Qt's name
        """Centre the view on the mouse position while the left button is down."""
        if event.buttons() & Qt.MouseButton.LeftButton:
            self._centre_on(event.position())

    def _centre_on(self, point: QPointF) -> None:
        transform = self.transform
        if transform is not None:
            fly_to(self._viewer, transform.to_um(point.x(), point.y()))

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802  # Qt's name
        """Move the view by half its size, within the slide."""
        step, transform = ARROWS.get(event.key()), self.transform
        if step is None or transform is None:
            super().keyPressEvent(event)
            return
        view = visible_um(self._viewer)
        x = view.x + view.width * (0.5 + ARROW_STEP * step[0])
        y = view.y + view.height * (0.5 + ARROW_STEP * step[1])
        left, top, *_ = transform.to_px(BoxUm(x, y, 1, 1))
        fly_to(self._viewer, transform.to_um(left, top))


def _read_overview(screen: ScreenSlide) -> Iterator[Event]:
    yield Finished(np.asarray(screen.array(len(screen.levels) - 1)))


def _make_image(pixels: Pixels) -> QImage:
    height, width, _ = pixels.shape
    data = np.ascontiguousarray(pixels)
    # copy(): a QImage shares the buffer of the array, which is freed at the end of this function.
    return QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
