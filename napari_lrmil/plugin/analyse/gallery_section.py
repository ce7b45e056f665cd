"""The patches that counted most and least; a click or the arrow keys lead there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QIcon, QImage, QKeyEvent, QPixmap
from qtpy.QtWidgets import QGridLayout, QRadioButton, QToolButton, QWidget

from napari_lrmil.core.events import Event, Finished, Partial
from napari_lrmil.plugin.qt.section import Section, make_label, make_row

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.slides.slide import Pixels, Slide
    from napari_lrmil.core.visualize.top_patches import GalleryPatch

PATCHES_PER_ROW = 5  # patches of either end
ICON_PX, PATCH_THUMBNAIL_PX = 54, 58
ARROW_KEY_STEPS = {
    Qt.Key.Key_Left: -1,
    Qt.Key.Key_Up: -PATCHES_PER_ROW,
    Qt.Key.Key_Right: 1,
    Qt.Key.Key_Down: PATCHES_PER_ROW,
}


def read_gallery(slide: Slide, prediction: Prediction, patches: Sequence[GalleryPatch], mpp: float) -> Iterator[Event]:
    """Yield `Partial` with (row, pixels) for each patch, read at `mpp`, and last `Finished`."""
    from napari_lrmil.core.visualize.top_patches import read_patch

    for patch in patches:
        yield Partial((patch.row, read_patch(slide, prediction, patch.row, mpp=mpp)))
    yield Finished()


class PatchThumbnail(QToolButton):  # type: ignore[misc]  # qtpy has no types
    """One patch; the arrow keys go to its neighbours."""

    moved = Signal(int)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802  # Qt's name
        """Pass the arrow keys on."""
        step = ARROW_KEY_STEPS.get(event.key())
        if step is None:
            super().keyPressEvent(event)
        else:
            self.moved.emit(step)


class GallerySection(Section):
    """Shows patches at the student's or the teacher's resolution."""

    flown_to = Signal(object)  # a GalleryPatch
    resolution_chosen = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("gallery", "Patches that counted", parent)
        self.patches: tuple[GalleryPatch, ...] = ()
        self.thumbs: list[PatchThumbnail] = []
        self.lr, self.hr = QRadioButton("as seen (LR)"), QRadioButton("finer (HR)")
        self.lr.setChecked(True)
        self.lr.toggled.connect(lambda _: self.resolution_chosen.emit())
        box = QWidget()
        self._grid = QGridLayout(box)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(3)
        box.setFixedHeight(
            2 * PATCH_THUMBNAIL_PX + 3
        )  # a section takes its height when it unfolds, before there are patches
        self.told = make_label("patch", small=True)
        self.told.setMinimumHeight(3 * self.told.fontMetrics().lineSpacing())
        self.add(make_row(self.lr, self.hr))
        self.add(box)
        self.add(self.told)

    @property
    def fine(self) -> bool:
        """Whether HR pixels are wanted."""
        return bool(self.hr.isChecked())

    def show_patches(self, patches: Sequence[GalleryPatch]) -> None:
        """Show empty frames for patches, the highest attention first; `show_pixels` fills them."""
        self.patches = tuple(patches)
        for thumb in self.thumbs:
            self._grid.removeWidget(thumb)
            thumb.deleteLater()
        self.thumbs = [self._thumb(i) for i in range(len(self.patches))]
        self.told.setText("Upper row: most attention; lower row: least. Click one to go there." if patches else "")

    def _thumb(self, place: int) -> PatchThumbnail:
        patch = self.patches[place]
        thumb = PatchThumbnail()
        thumb.setIconSize(QSize(ICON_PX, ICON_PX))
        thumb.setFixedSize(PATCH_THUMBNAIL_PX, PATCH_THUMBNAIL_PX)
        thumb.setAutoRaise(True)
        thumb.setToolTip(_describe(patch))
        thumb.setAccessibleName(_describe(patch))
        thumb.clicked.connect(lambda: self._go(place))
        thumb.moved.connect(lambda step: self._go(place + step))
        top = [p for p in self.patches if p.side == "top"]
        across = place if patch.side == "top" else place - len(top)
        self._grid.addWidget(thumb, 0 if patch.side == "top" else 1, across)
        return thumb

    def show_pixels(self, row_: int, pixels: Pixels) -> None:
        """Fill the frame of a patch, given by its row in the prediction."""
        for thumb, patch in zip(self.thumbs, self.patches, strict=True):
            if patch.row == row_:
                thumb.setIcon(QIcon(_pixmap(pixels)))

    def _go(self, place: int) -> None:
        if 0 <= place < len(self.thumbs):
            self.thumbs[place].setFocus()
            self.told.setText(_describe(self.patches[place]))
            self.flown_to.emit(self.patches[place])


def _describe(patch: GalleryPatch) -> str:
    x, y = patch.centre_um
    evidence = ", ".join(f"{name} {value:+.3f}" for name, value in patch.evidence.items())
    return f"Rank {patch.rank}: {patch.relative:.2f} times the average · evidence {evidence} · at {x:,.0f}, {y:,.0f} µm"


def _pixmap(pixels: Pixels) -> QPixmap:
    data = np.ascontiguousarray(pixels)
    height, width, _ = data.shape
    image = QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888)
    return QPixmap.fromImage(image.copy())
