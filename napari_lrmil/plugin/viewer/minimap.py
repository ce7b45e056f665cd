"""The whole slide, small, with a frame around what is visible. Label and macro images never come into it.

Own code: neither superqt nor napari's plugins for slides have an overview widget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QPointF, QRectF, QSize, Qt, QTimer
from qtpy.QtGui import QColor, QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_lrmil.core.events import Event, Failed, Finished
from napari_lrmil.core.geometry import BoxUm
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.worker import BackgroundWorker
from napari_lrmil.plugin.viewer.layers import get_screen_slide
from napari_lrmil.plugin.viewer.navigation import current_slide, fly_to, visible_um

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_lrmil.core.slides.slide import Pixels
    from napari_lrmil.plugin.viewer.screen_pyramid import ScreenSlide

REDRAW_MS = 30
SIZE_PX = QSize(320, 170)
MARGIN_PX = 3
MIN_FRAME_PX = 7  # a frame of a pixel at 40x could not be found
GLASS, FRAME, HALO = "#f4f3f5", "#0b62d6", "#ffffff"  # blue is the colour that H&E lacks
EDGE = "#808080"
ARROW_STEP = 0.5  # of the view
ARROWS = {
    Qt.Key.Key_Left: (-1, 0),
    Qt.Key.Key_Right: (1, 0),
    Qt.Key.Key_Up: (0, -1),
    Qt.Key.Key_Down: (0, 1),
}


@dataclass(frozen=True)
class MapTransform:
    """How a part of the world lies in a picture: its extent in µm, where its corner is, and pixels per µm."""

    extent: BoxUm
    left: float
    top: float
    px_per_um: float

    @classmethod
    def within(cls, extent: BoxUm, width: float, height: float) -> MapTransform:
        """Return `extent` as large as it gets in the middle of `width` x `height` pixels."""
        scale = max(1e-9, min((width - 2 * MARGIN_PX) / extent.width, (height - 2 * MARGIN_PX) / extent.height))
        return cls(extent, (width - extent.width * scale) / 2, (height - extent.height * scale) / 2, scale)

    def to_px(self, box: BoxUm) -> tuple[float, float, float, float]:
        """Return left, top, width and height in pixels of a rectangle of the world."""
        left = self.left + (box.x - self.extent.x) * self.px_per_um
        top = self.top + (box.y - self.extent.y) * self.px_per_um
        return left, top, box.width * self.px_per_um, box.height * self.px_per_um

    def to_um(self, x: float, y: float) -> tuple[float, float]:
        """Return the point of the world, x then y in µm, at a pixel; one beside the slide counts as its edge."""
        extent = self.extent
        um_x, um_y = extent.x + (x - self.left) / self.px_per_um, extent.y + (y - self.top) / self.px_per_um
        return (
            min(max(um_x, extent.x), extent.x + extent.width),
            min(max(um_y, extent.y), extent.y + extent.height),
        )

    def frame(self, visible: BoxUm) -> tuple[float, float, float, float]:
        """Return left, top, width and height of a frame around what is visible, never too small to see."""
        ends = [
            _clipped(*pair)
            for pair in (
                (visible.x, visible.width, self.extent.x, self.extent.width),
                (visible.y, visible.height, self.extent.y, self.extent.height),
            )
        ]
        (x0, x1), (y0, y1) = ends
        left, top, *_ = self.to_px(BoxUm(x0, y0, 1, 1))
        width, height = (x1 - x0) * self.px_per_um, (y1 - y0) * self.px_per_um
        wider, higher = max(0.0, MIN_FRAME_PX - width), max(0.0, MIN_FRAME_PX - height)
        return left - wider / 2, top - higher / 2, width + wider, height + higher


def _clipped(start: float, length: float, low: float, span: float) -> tuple[float, float]:
    return min(max(start, low), low + span), min(max(start + length, low), low + span)


class Minimap(QWidget):  # type: ignore[misc]  # qtpy has no types
    """The current slide as a whole. Click, drag or the arrow keys move the view.

    Parameters
    ----------
    viewer
        The viewer that is looked through.
    """

    def __init__(self, viewer: ViewerModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._screen: ScreenSlide | None = None
        self._picture: QImage | None = None
        self._run: BackgroundWorker | None = None
        self._note = ""
        self._redraw, self._look = _after(self, REDRAW_MS, self.update), _after(self, 0, self._look_again)
        self._dress()
        self._subscribe()
        self._look_again()

    def _dress(self) -> None:
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
        connect_until_destroyed(self, [(e, self._moved) for e in moves] + [(e, self._changed) for e in changes])

    def sizeHint(self) -> QSize:  # noqa: N802  # Qt's name
        """Return a size that fits a dock."""
        return SIZE_PX

    @property
    def transform(self) -> MapTransform | None:
        """Where the slide lies in the widget; None where there is no slide."""
        screen = self._screen
        return MapTransform.within(screen.extent_um, self.width(), self.height()) if screen is not None else None

    @property
    def thumbnail(self) -> QImage | None:
        """The thumbnail, once it has been read."""
        return self._picture

    # ------------------------------------------------------------ news

    def _moved(self, _: Any = None) -> None:
        if not self._redraw.isActive():  # a timer that runs draws this move too
            self._redraw.start()

    def _changed(self, _: Any = None) -> None:
        self._look.start()

    def _look_again(self) -> None:
        layer = current_slide(self._viewer)
        screen = get_screen_slide(layer) if layer is not None else None
        if screen is not self._screen:
            if self._screen is not None:
                self._screen.colour_changed.disconnect(self._recoloured)
            self._screen, self._picture = screen, None
            if screen is not None:
                screen.colour_changed.connect(self._recoloured)
            self._read()
        self.update()

    def _recoloured(self) -> None:
        self._read()

    def _read(self) -> None:
        """Read the coarsest level in a thread; what is being read for another slide no longer counts."""
        if self._run is not None:
            self._run.cancel()
        self._run, self._note = None, "" if self._screen is None else "reading the overview…"
        if self._screen is not None:
            self._run = BackgroundWorker(partial(_overview, self._screen), self._take, self.update, self)
            self._run.start()

    def _take(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._picture, self._note = _image(event.result), ""
        elif isinstance(event, Failed):
            self._note = event.message

    # ------------------------------------------------------------ drawing

    def paintEvent(self, _: QPaintEvent) -> None:  # noqa: N802  # Qt's name
        """Draw the slide and the frame."""
        painter = QPainter(self)
        try:
            self._draw(painter)
        finally:
            painter.end()  # Qt does not survive a painter that outlives its event

    def _draw(self, painter: QPainter) -> None:
        painter.setRenderHints(QPainter.RenderHint.Antialiasing | QPainter.RenderHint.SmoothPixmapTransform)
        fit = self.transform
        if fit is None:
            self._write(painter, "No slide is open.")
        else:
            self._draw_slide(painter, fit)
            self._draw_frame(painter, fit)

    def _draw_slide(self, painter: QPainter, fit: MapTransform) -> None:
        area = QRectF(*fit.to_px(fit.extent))
        painter.fillRect(area, QColor(GLASS))
        if self._picture is not None:
            painter.drawImage(area, self._picture)
        painter.setPen(QPen(QColor(EDGE), 2 if self.hasFocus() else 1))
        painter.drawRect(area)
        if self._note:
            painter.setPen(QColor("#404040"))
            self._write(painter, self._note)

    def _draw_frame(self, painter: QPainter, fit: MapTransform) -> None:
        frame = QRectF(*fit.frame(visible_um(self._viewer)))
        for colour, width in ((HALO, 4.0), (FRAME, 2.0)):  # seen on dark and on light tissue
            pen = QPen(QColor(colour), width)
            pen.setJoinStyle(Qt.PenJoinStyle.MiterJoin)
            painter.setPen(pen)
            painter.drawRect(frame)

    def _write(self, painter: QPainter, text: str) -> None:
        flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
        painter.drawText(QRectF(self.rect()).adjusted(8, 8, -8, -8), flags, text)

    # ------------------------------------------------------------ wishes

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802  # Qt's name
        """Move the view to where the mouse is."""
        self.mouseMoveEvent(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802  # Qt's name
        """Move the view along with the mouse."""
        if event.buttons() & Qt.MouseButton.LeftButton:
            self._go(event.position())

    def _go(self, at: QPointF) -> None:
        fit = self.transform
        if fit is not None:
            fly_to(self._viewer, fit.to_um(at.x(), at.y()))

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802  # Qt's name
        """Move the view by half of itself, within the slide."""
        step, fit = ARROWS.get(event.key()), self.transform
        if step is None or fit is None:
            super().keyPressEvent(event)
            return
        seen = visible_um(self._viewer)
        x = seen.x + seen.width * (0.5 + ARROW_STEP * step[0])
        y = seen.y + seen.height * (0.5 + ARROW_STEP * step[1])
        left, top, *_ = fit.to_px(BoxUm(x, y, 1, 1))
        fly_to(self._viewer, fit.to_um(left, top))


def _after(owner: QWidget, ms: int, callback: Any) -> QTimer:
    timer = QTimer(owner)
    timer.setSingleShot(True)
    timer.setInterval(ms)
    timer.timeout.connect(callback)
    return timer


def _overview(screen: ScreenSlide) -> Iterator[Event]:
    yield Finished(np.asarray(screen.array(len(screen.levels) - 1)))


def _image(pixels: Pixels) -> QImage:
    height, width, _ = pixels.shape
    data = np.ascontiguousarray(pixels)
    return QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
