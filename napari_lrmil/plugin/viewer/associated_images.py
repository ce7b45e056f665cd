"""Window for the label and macro images of a slide. They are never layers, so no export can contain them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QDialog, QDialogButtonBox, QLabel, QVBoxLayout, QWidget

if TYPE_CHECKING:
    from napari_lrmil.core.slides.slide import Pixels, Slide

PRIVACY_WARNING = "Labels may carry patient names: not part of any export or screenshot."
MAX_PICTURE_PX = (900, 560)  # width, height: fits a laptop's screen


def associated_image_names(slide: Slide) -> tuple[str, ...]:
    """Return the names of a slide's label, macro and other images, without reading them."""
    return slide.associated


def show_associated_image(slide: Slide, name: str, parent: QWidget | None = None) -> AssociatedImageWindow:
    """Show an associated image in a window of its own; the pixels are released when the window is closed.

    Parameters
    ----------
    slide
        The slide.
    name
        One of `associated_image_names`.
    parent
        Window over which the new one is placed.

    Raises
    ------
    SlideError
        If the slide has no such image, or it cannot be read.
    """
    window = AssociatedImageWindow(f"{name} of {slide.name}", slide.associated_image(name), parent)
    window.show()
    return window


class AssociatedImageWindow(QDialog):  # type: ignore[misc]  # qtpy has no types
    """Window with an associated image and a privacy warning.

    Parameters
    ----------
    title
        Title of the window.
    pixels
        (height, width, 3) RGB.
    """

    def __init__(self, title: str, pixels: Pixels, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(title)
        column = QVBoxLayout(self)
        self.picture = QLabel()
        self.picture.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.picture.setPixmap(_fit_pixmap(pixels))
        self.picture.setAccessibleName(title)
        self.warning = QLabel(PRIVACY_WARNING)
        self.warning.setWordWrap(True)
        close = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        close.rejected.connect(self.close)
        for part in (self.picture, self.warning, close):
            column.addWidget(part)


def _fit_pixmap(pixels: Pixels) -> QPixmap:
    """Return the pixels as a pixmap, reduced to `MAX_PICTURE_PX` if they are larger."""
    height, width, _ = pixels.shape
    data = np.ascontiguousarray(pixels)
    # copy(): a QImage shares the buffer of the array, which is freed at the end of this function.
    image = QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
    if width > MAX_PICTURE_PX[0] or height > MAX_PICTURE_PX[1]:
        image = image.scaled(
            *MAX_PICTURE_PX, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        )
    return QPixmap.fromImage(image)
