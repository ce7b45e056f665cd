"""Section with the patches of highest and lowest attention; a click or the arrow keys move the view there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QIcon, QImage, QKeyEvent, QPixmap
from qtpy.QtWidgets import QGridLayout, QRadioButton, QToolButton, QWidget

from napari_lrmil.core.events import Event, Finished, Partial
from napari_lrmil.core.text_escapes import escape_qt
from napari_lrmil.plugin.qt.section import Section, make_label, make_row

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.slides.slide import Pixels, Slide
    from napari_lrmil.core.visualize.top_patches import GalleryPatch

PATCHES_PER_ROW = 5  # highest attention in the upper row, lowest in the lower
ICON_PX, PATCH_THUMBNAIL_PX = 54, 58
GALLERY_SPACING_PX = 3
ARROW_KEY_STEPS = {
    Qt.Key.Key_Left: -1,
    Qt.Key.Key_Up: -PATCHES_PER_ROW,
    Qt.Key.Key_Right: 1,
    Qt.Key.Key_Down: PATCHES_PER_ROW,
}


def read_gallery(slide: Slide, prediction: Prediction, patches: Sequence[GalleryPatch], mpp: float) -> Iterator[Event]:
    """Read the pixels of patches.

    Parameters
    ----------
    slide
        The slide, open.
    prediction
        The result that the patches belong to.
    patches
        The patches to read.
    mpp
        µm per pixel of the pictures.

    Yields
    ------
    Event
        `Partial` with (row in the prediction, pixels) for each patch, and last `Finished`.
    """
    from napari_lrmil.core.visualize.top_patches import read_patch

    for patch in patches:
        yield Partial((patch.row, read_patch(slide, prediction, patch.row, mpp=mpp)))
    yield Finished()


class PatchThumbnail(QToolButton):  # type: ignore[misc]  # qtpy has no types
    """Button with the picture of one patch; arrow keys emit `arrow_pressed` with the offset of the neighbour."""

    arrow_pressed = Signal(int)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802  # Qt's name
        """Emit `arrow_pressed` for an arrow key; other keys act as usual."""
        step = ARROW_KEY_STEPS.get(event.key())
        if step is None:
            super().keyPressEvent(event)
        else:
            self.arrow_pressed.emit(step)


class GallerySection(Section):
    """Thumbnails of patches, at the student's or the teacher's resolution."""

    patch_selected = Signal(object)  # a GalleryPatch
    resolution_changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("gallery", "Most and least attended patches", parent)
        self.patches: tuple[GalleryPatch, ...] = ()
        self.thumbnails: list[PatchThumbnail] = []
        self.lr, self.hr = QRadioButton("Student (LR)"), QRadioButton("Teacher (HR)")
        self.lr.setToolTip("Pictures at the student's resolution, as the student reads the patches")
        self.hr.setToolTip("Pictures at the teacher's resolution, with more detail")
        self.lr.setChecked(True)
        self.lr.toggled.connect(lambda _: self.resolution_changed.emit())
        box = QWidget()
        self._grid = QGridLayout(box)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(GALLERY_SPACING_PX)
        # A section takes its height when it unfolds, which may be before it has patches.
        box.setFixedHeight(2 * PATCH_THUMBNAIL_PX + GALLERY_SPACING_PX)
        self.caption = make_label("patch", small=True)
        self.caption.setMinimumHeight(3 * self.caption.fontMetrics().lineSpacing())
        self.add(make_row(self.lr, self.hr))
        self.add(box)
        self.add(self.caption)

    @property
    def is_hr(self) -> bool:
        """Whether pictures at the teacher's resolution are chosen."""
        return bool(self.hr.isChecked())

    def show_patches(self, patches: Sequence[GalleryPatch]) -> None:
        """Show an empty thumbnail for each patch, highest attention first; `show_pixels` fills them."""
        self.patches = tuple(patches)
        for thumbnail in self.thumbnails:
            self._grid.removeWidget(thumbnail)
            thumbnail.deleteLater()
        self.thumbnails = [self._add_thumbnail(i) for i in range(len(self.patches))]
        hint = "Upper row: most attention. Lower row: least. Click a patch to go there."
        self.caption.setText(hint if patches else "")

    def _add_thumbnail(self, index: int) -> PatchThumbnail:
        patch = self.patches[index]
        thumbnail = PatchThumbnail()
        thumbnail.setIconSize(QSize(ICON_PX, ICON_PX))
        thumbnail.setFixedSize(PATCH_THUMBNAIL_PX, PATCH_THUMBNAIL_PX)
        thumbnail.setAutoRaise(True)
        thumbnail.setToolTip(escape_qt(_describe(patch)))
        thumbnail.setAccessibleName(_describe(patch))
        thumbnail.clicked.connect(lambda: self._select(index))
        thumbnail.arrow_pressed.connect(lambda step: self._select(index + step))
        n_top = sum(p.side == "top" for p in self.patches)
        if patch.side == "top":
            self._grid.addWidget(thumbnail, 0, index)
        else:
            self._grid.addWidget(thumbnail, 1, index - n_top)
        return thumbnail

    def show_pixels(self, row: int, pixels: Pixels) -> None:
        """Fill the thumbnail of a patch.

        Parameters
        ----------
        row
            The patch's row in the prediction.
        pixels
            Its picture, (height, width, 3).
        """
        for thumbnail, patch in zip(self.thumbnails, self.patches, strict=True):
            if patch.row == row:
                thumbnail.setIcon(QIcon(_pixmap(pixels)))

    def _select(self, index: int) -> None:
        if 0 <= index < len(self.thumbnails):  # an arrow key at the edge goes nowhere
            self.thumbnails[index].setFocus()
            self.caption.setText(_describe(self.patches[index]))
            self.patch_selected.emit(self.patches[index])


def _describe(patch: GalleryPatch) -> str:
    x, y = patch.centre_um
    evidence = ", ".join(f"{name} {value:+.3f}" for name, value in patch.evidence.items())
    return f"Rank {patch.rank}: {patch.relative:.2f} times the average · evidence {evidence} · at {x:,.0f}, {y:,.0f} µm"


def _pixmap(pixels: Pixels) -> QPixmap:
    data = np.ascontiguousarray(pixels)
    height, width, _ = data.shape
    image = QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888)
    return QPixmap.fromImage(image.copy())  # QImage does not own the array's memory
