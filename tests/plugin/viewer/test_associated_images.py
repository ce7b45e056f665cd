"""Label and macro images: listed without reading, shown on request, in no layer and in no screenshot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.viewer.layers import add_layers, build_slide_layers
from support.fake_slides import FakeSlide, fake_slide, one_sentence, resolution, speckled
from support.window import require_screen

require_screen()

from napari_lrmil.plugin.viewer.associated_images import PRIVACY_WARNING, associated_image_names, show_associated_image  # noqa: E402  # needs the screen

LABEL = (3, 251, 7)  # a green that nothing else has


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    fake = FakeSlide(speckled(700, 500), (1.0,), resolution(0.5))
    opened = fake_slide(tmp_path, fake)
    label = Image.new("RGBA", (1300, 400), (*LABEL, 255))
    fake.handles[0].associated_images = {"label": label, "macro": Image.new("RGB", (90, 40))}
    opened.associated = ("label", "macro")
    return opened


def _green(pixels: Any) -> int:
    return int((np.abs(np.asarray(pixels)[..., :3].astype(int) - LABEL) < 12).all(axis=-1).sum())


def test_it_is_shown_in_a_window_of_its_own_and_gets_into_no_layer_and_no_screenshot(
    slide: Slide, viewer: Any, qtbot: Any
) -> None:
    add_layers(viewer, build_slide_layers(slide, underlay=False))
    before = list(viewer.layers)
    assert associated_image_names(slide) == ("label", "macro")
    window = show_associated_image(slide, "label", viewer.window._qt_window)
    qtbot.waitExposed(window)
    assert window.isVisible() and not window.isModal()
    assert PRIVACY_WARNING in window.warning.text() and window.warning.isVisible()
    size = window.pictures["label"].pixmap().size()
    assert size.width() <= 900 and size.width() / size.height() == pytest.approx(1300 / 400, rel=0.02)
    shown = window.pictures["label"].pixmap().toImage()
    assert shown.pixelColor(5, 5).green() == LABEL[1]
    assert list(viewer.layers) == before
    for canvas_only in (True, False):
        assert _green(viewer.screenshot(canvas_only=canvas_only, flash=False)) == 0
    assert all(_green(layer.data) == 0 for layer in viewer.layers)
    window.close()


def test_an_image_that_is_not_there_is_one_sentence(slide: Slide) -> None:
    with pytest.raises(SlideError, match="label, macro") as refused:
        show_associated_image(slide, "thumbnail")
    assert one_sentence(refused.value)


def test_all_images_are_in_one_window_and_a_damaged_one_is_said(slide: Slide, viewer: Any, qtbot: Any) -> None:
    from napari.utils.notifications import notification_manager

    from napari_lrmil.plugin.viewer.associated_images import show_associated_images

    window = show_associated_images(slide, viewer.window._qt_window)
    assert window is not None and list(window.pictures) == ["label", "macro"] and window.tabs.count() == 2
    window.close()
    slide.associated = ("label", "absent")
    count = len(notification_manager.records)
    window = show_associated_images(slide, viewer.window._qt_window)
    assert window is not None and list(window.pictures) == ["label"] and len(notification_manager.records) > count
    window.close()
