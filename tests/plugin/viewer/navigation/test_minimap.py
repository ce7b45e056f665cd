"""Minimap in a real window: thumbnail, frame, clicks and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core.geometry import BoxUm
from napari_lrmil.plugin.viewer.layers import add_layers, recolour_slide
from napari_lrmil.plugin.viewer.navigation.camera import fly_to, visible_um
from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers
from support.fake_slides import write_tiff
from support.window import WAIT_MS, require_screen, timers_rest

require_screen()

from qtpy.QtCore import QPoint, Qt  # noqa: E402  # Qt needs the screen
from qtpy.QtGui import QColor, QImage  # noqa: E402

from napari_lrmil.plugin.viewer.navigation import minimap as module  # noqa: E402
from napari_lrmil.plugin.viewer.navigation.minimap import MapTransform, Minimap  # noqa: E402


@pytest.fixture(scope="module")
def half_dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a slide of 640 x 500 µm whose left half is dark."""
    pixels = np.full((1000, 1280, 3), 230, np.uint8)
    pixels[:, :640] = (90, 30, 60)
    return write_tiff(tmp_path_factory.mktemp("half") / "half.tif", pixels, (1.0, 4.0), mpp=(0.5, 0.5))


@pytest.fixture
def minimap(viewer: Any, qtbot: Any) -> Any:
    widget = Minimap(viewer)
    viewer.window.add_dock_widget(widget, name="overview", area="right")
    qtbot.waitUntil(widget.isVisible, timeout=WAIT_MS)
    return widget


def _open(viewer: Any, minimap: Any, path: Path, qtbot: Any) -> Any:
    layers = add_layers(viewer, read_slide_layers(path))
    qtbot.waitUntil(lambda: minimap.thumbnail is not None, timeout=WAIT_MS)
    return layers[-1]


def _shot(minimap: Any) -> QImage:
    image: QImage = minimap.grab().toImage()
    return image


def _at(minimap: Any, um: tuple[float, float]) -> QPoint:
    left, top, *_ = minimap.transform.to_px(BoxUm(*um, 1, 1))
    return QPoint(round(left), round(top))


def test_fit_keeps_shape_and_finds_its_way_back() -> None:
    transform = MapTransform.within(BoxUm(100, 40, 600, 200), 306, 206)
    assert transform.to_px(transform.extent) == pytest.approx((3, 53, 300, 100))
    assert transform.to_um(3 + 150, 53 + 25) == pytest.approx((400, 90))
    assert transform.to_um(-50, 900) == pytest.approx((100, 240)), "a pixel outside the slide is its edge"


def test_the_frame_ends_at_the_slide_and_is_never_too_small_to_see() -> None:
    transform = MapTransform.within(BoxUm(0, 0, 600, 200), 306, 206)
    assert transform.frame(BoxUm(-900, 50, 1000, 100)) == pytest.approx((3, 78, 50, 50))
    left, top, width, height = transform.frame(BoxUm(300, 100, 1, 1))
    assert (width, height) == (module.MIN_FRAME_PX,) * 2
    assert (left + width / 2, top + height / 2) == pytest.approx((3 + 150.25, 53 + 50.25))


def test_it_shows_the_slide_and_where_one_is(minimap: Any, viewer: Any, half_dark: Path, qtbot: Any) -> None:
    _open(viewer, minimap, half_dark, qtbot)
    fly_to(viewer, (480.0, 330.0), magnification=80)
    qtbot.waitUntil(lambda: timers_rest(minimap), timeout=WAIT_MS)
    image = _shot(minimap)
    dark, light = (QColor(image.pixel(_at(minimap, p))) for p in ((150.0, 60.0), (560.0, 60.0)))
    assert dark.red() < 110 and light.red() > 210
    x, y, width, _ = minimap.transform.frame(visible_um(viewer))
    edge = QColor(image.pixel(round(x + width / 2), round(y)))
    assert edge.blue() > edge.red() + 100, "the frame is blue"


def test_a_click_and_a_drag_move_the_view(minimap: Any, viewer: Any, half_dark: Path, qtbot: Any) -> None:
    _open(viewer, minimap, half_dark, qtbot)
    left = Qt.MouseButton.LeftButton
    um = 2 / minimap.transform.px_per_um
    qtbot.mousePress(minimap, left, pos=_at(minimap, (480, 100)))
    assert viewer.scene.camera.center[-2:] == pytest.approx((100, 480), abs=um)
    qtbot.mouseMove(minimap, _at(minimap, (120, 300)))
    qtbot.waitUntil(lambda: abs(viewer.scene.camera.center[-1] - 120) < um, timeout=WAIT_MS)
    qtbot.mouseRelease(minimap, left, pos=_at(minimap, (120, 300)))
    assert viewer.scene.camera.center[-2:] == pytest.approx((300, 120), abs=um)


def test_the_arrow_keys_move_the_view_by_half_of_it(minimap: Any, viewer: Any, half_dark: Path, qtbot: Any) -> None:
    _open(viewer, minimap, half_dark, qtbot)
    fly_to(viewer, (200.0, 300.0), magnification=80)
    before = visible_um(viewer)
    qtbot.keyClick(minimap, Qt.Key.Key_Right)
    qtbot.keyClick(minimap, Qt.Key.Key_Up)
    after = visible_um(viewer)
    assert after.x - before.x == pytest.approx(before.width / 2)
    assert before.y - after.y == pytest.approx(before.height / 2)


def test_many_moves_are_few_drawings(
    minimap: Any, viewer: Any, half_dark: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _open(viewer, minimap, half_dark, qtbot)
    qtbot.waitUntil(lambda: timers_rest(minimap), timeout=WAIT_MS)
    drawn: list[int] = []
    draw = Minimap._draw_frame
    monkeypatch.setattr(Minimap, "_draw_frame", lambda self, *a: (drawn.append(1), draw(self, *a))[1])
    for step in range(200):
        viewer.scene.camera.center = (0, 100 + step, 100)
    # The timer only asks for a drawing; Qt delivers it in a later turn, which a busy machine delays.
    qtbot.waitUntil(lambda: bool(drawn) and timers_rest(minimap), timeout=WAIT_MS)
    assert len(drawn) <= 3


def test_other_colours_and_another_slide_are_shown(
    minimap: Any, viewer: Any, half_dark: Path, slide_path: Path, qtbot: Any
) -> None:
    _open(viewer, minimap, half_dark, qtbot)
    recolour_slide(viewer, half_dark, lambda pixels: 255 - pixels)
    qtbot.waitUntil(lambda: QColor(minimap.thumbnail.pixel(3, 3)).red() > 150, timeout=WAIT_MS)
    first = minimap.thumbnail
    add_layers(viewer, read_slide_layers(slide_path))
    qtbot.waitUntil(lambda: minimap.thumbnail is not None and minimap.thumbnail is not first, timeout=WAIT_MS)
    viewer.layers.clear()
    qtbot.waitUntil(lambda: minimap.transform is None, timeout=WAIT_MS)
    assert minimap.thumbnail is None


def test_what_it_reads_is_the_slide_never_its_label(
    minimap: Any, viewer: Any, half_dark: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_lrmil.core.slides.slide import Slide

    monkeypatch.setattr(Slide, "associated_image", lambda *_: pytest.fail("a label was read"))
    layer = _open(viewer, minimap, half_dark, qtbot)
    assert (minimap.thumbnail.width(), minimap.thumbnail.height()) == layer.data[-1].shape[1::-1]


def test_it_stops_listening_when_it_goes(minimap: Any, viewer: Any, half_dark: Path, qtbot: Any) -> None:
    _open(viewer, minimap, half_dark, qtbot)
    camera = viewer.scene.camera.events.center
    mine = [c for c in camera.callbacks if _belongs_to(c, minimap)]
    assert len(mine) == 1
    viewer.window.remove_dock_widget(minimap)
    minimap.deleteLater()
    qtbot.waitUntil(lambda: not [c for c in camera.callbacks if _belongs_to(c, minimap)], timeout=WAIT_MS)
    fly_to(viewer, (10.0, 20.0))


def _belongs_to(callback: Any, widget: Any) -> bool:
    return isinstance(callback, tuple) and callback[0]() is widget
