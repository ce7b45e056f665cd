"""Window for the label and macro images of a slide. They are never layers, so no export can contain them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QDialog, QDialogButtonBox, QLabel, QTabWidget, QVBoxLayout, QWidget

from napari_lrmil.plugin.qt.errors import show_errors

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
    return _show_window(slide, {name: slide.associated_image(name)}, parent)


def show_associated_images(slide: Slide, parent: QWidget | None = None) -> AssociatedImageWindow | None:
    """Show all associated images of a slide in one window, and say which of them cannot be read.

    Parameters
    ----------
    slide
        The slide.
    parent
        Window over which the new one is placed.

    Returns
    -------
    AssociatedImageWindow or None
        None if no image can be read.
    """
    read = {name: show_errors(partial(slide.associated_image, name)) for name in associated_image_names(slide)}
    pictures = {name: pixels for name, pixels in read.items() if pixels is not None}
    return _show_window(slide, pictures, parent) if pictures else None


def _show_window(slide: Slide, pictures: Mapping[str, Pixels], parent: QWidget | None) -> AssociatedImageWindow:
    window = AssociatedImageWindow(f"{', '.join(pictures)} of {slide.name}", pictures, parent)
    window.show()
    return window


class AssociatedImageWindow(QDialog):  # type: ignore[misc]  # qtpy has no types
    """Window with the associated images of a slide, one on each tab, and a privacy warning.

    Parameters
    ----------
    title
        Title of the window.
    pictures
        Name -> (height, width, 3) RGB; at least one.
    """

    def __init__(self, title: str, pictures: Mapping[str, Pixels], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(title)
        column = QVBoxLayout(self)
        self.pictures = {name: _make_picture(name, pixels) for name, pixels in pictures.items()}
        self.tabs = QTabWidget()
        for name, picture in self.pictures.items():
            self.tabs.addTab(picture, name)
        self.tabs.tabBar().setVisible(len(self.pictures) > 1)
        self.warning = QLabel(PRIVACY_WARNING)
        self.warning.setWordWrap(True)
        close = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        close.rejected.connect(self.close)
        for part in (self.tabs, self.warning, close):
            column.addWidget(part)


def _make_picture(name: str, pixels: Pixels) -> QLabel:
    picture = QLabel()
    picture.setAlignment(Qt.AlignmentFlag.AlignCenter)
    picture.setPixmap(_fit_pixmap(pixels))
    picture.setAccessibleName(name)
    return picture


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
