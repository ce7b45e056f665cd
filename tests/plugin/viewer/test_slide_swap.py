"""Another slide in the layers of the last one: right tag, right pixels, never the old picture under the new name."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.settings import get_settings
from napari.utils.notifications import notification_manager

from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.viewer.layers import (
    LayerData,
    add_layers,
    build_slide_layers,
    get_screen_slide,
    get_tag,
    lrmil_layers,
)
from napari_lrmil.plugin.viewer.slide_swap import swap_slide
from support.fake_slides import write_tiff
from support.window import WAIT_MS


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a dark and a bright slide of different size and resolution, and one without a pyramid."""
    folder = tmp_path_factory.mktemp("swap")
    dark, bright = np.full((600, 800, 3), 60, np.uint8), np.full((1000, 1280, 3), 200, np.uint8)
    return {
        "dark": write_tiff(folder / "dark.tif", dark, (1.0, 4.0), mpp=(0.5, 0.5)),
        "bright": write_tiff(folder / "bright.tif", bright, (1.0, 2.0, 4.0), mpp=(0.25, 0.25)),
        "flat": write_tiff(folder / "flat.tif", dark, (1.0,), mpp=(0.5, 0.5)),
    }


def _layers(path: Path, underlay: bool = True) -> list[LayerData]:
    return build_slide_layers(Slide(path), underlay=underlay)


def last_message() -> str:
    return str(notification_manager.records[-1].message) if notification_manager.records else ""


@pytest.fixture
def loads_in_background() -> Iterator[None]:
    """Load tiles as `napari-lrmil view` does."""
    experimental = get_settings().experimental
    before, experimental.async_ = experimental.async_, True
    yield
    experimental.async_ = before


def test_a_slide_takes_the_layers_of_another(viewer: Any, slides: dict[str, Path]) -> None:
    layers = add_layers(viewer, _layers(slides["dark"]))
    layers[-1].visible, layers[-1].gamma, layers[-1].opacity = False, 0.5, 0.3
    new = _layers(slides["bright"])
    assert swap_slide(viewer, slides["dark"], new)
    assert list(viewer.layers) == layers and not lrmil_layers(viewer, slides["dark"])
    fresh = [viewer.add_image(data, **{**options, "name": "fresh"}) for data, options, _ in _layers(slides["bright"])]
    for layer, other in zip(layers, fresh, strict=True):
        assert get_tag(layer) == get_tag(other)
        assert tuple(layer.scale) == tuple(other.scale) and tuple(layer.translate) == tuple(other.translate)
        assert (layer.opacity, layer.gamma, layer.visible) == (other.opacity, other.gamma, other.visible)
        assert layer.level_shapes.tolist() == other.level_shapes.tolist() and layer._data_view.mean() > 190
    assert layers[-1].name == "bright"


@pytest.mark.usefixtures("loads_in_background")
def test_the_old_pixels_are_not_shown_under_the_new_name(viewer: Any, slides: dict[str, Path], qtbot: Any) -> None:
    layers = add_layers(viewer, _layers(slides["dark"]))
    qtbot.waitUntil(lambda: all(layer.loaded for layer in layers), timeout=WAIT_MS)
    shown: list[float] = []
    for layer in layers:
        layer.events.opacity.connect(lambda event: shown.append(event.source._data_view.mean()))
    assert swap_slide(viewer, slides["dark"], _layers(slides["bright"]))
    assert [layer.opacity for layer in layers] == [0.0, 0.0]
    shown.clear()
    qtbot.waitUntil(lambda: all(layer.opacity == 1.0 for layer in layers), timeout=WAIT_MS)
    assert min(shown) > 190


@pytest.mark.usefixtures("loads_in_background")
def test_a_slide_of_which_a_level_cannot_be_read_does_not_show_the_last_one(
    viewer: Any, slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    layers, new = add_layers(viewer, _layers(slides["dark"])), _layers(slides["bright"])
    screen = new[-1][1]["metadata"]["napari_lrmil_screen"]
    read_tile = screen.tile

    def read_or_fail(key: Any) -> Any:
        if key[0] == 0:
            raise OSError("the disk is gone")
        return read_tile(key)  # napari reads the coarsest level at once

    monkeypatch.setattr(screen, "tile", read_or_fail)
    assert swap_slide(viewer, slides["dark"], new)
    qtbot.waitUntil(lambda: "the disk is gone" in last_message(), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: all(layer.loaded for layer in layers), timeout=WAIT_MS)
    assert all(layer.opacity == 0 or layer._data_view.mean() > 190 for layer in layers)
    assert swap_slide(viewer, slides["bright"], _layers(slides["dark"]))
    qtbot.waitUntil(lambda: all(layer.opacity == 1.0 for layer in layers), timeout=WAIT_MS)
    assert layers[-1]._data_view.mean() < 70


def test_layers_of_another_kind_are_left_alone(viewer: Any, slides: dict[str, Path]) -> None:
    layers = add_layers(viewer, _layers(slides["dark"], underlay=False))
    assert not swap_slide(viewer, slides["dark"], _layers(slides["flat"], underlay=False))
    assert not swap_slide(viewer, slides["dark"], _layers(slides["bright"]))
    assert not swap_slide(viewer, slides["flat"], _layers(slides["bright"]))
    assert [get_tag(layer).path for layer in layers] == [slides["dark"]]  # type: ignore[union-attr]  # it has a tag


def test_the_old_slide_is_closed_without_garbage_collection(viewer: Any, slides: dict[str, Path]) -> None:
    (layer,) = add_layers(viewer, _layers(slides["dark"], underlay=False))
    screen = weakref.ref(get_screen_slide(layer))  # type: ignore[arg-type]  # it shows a slide
    assert swap_slide(viewer, slides["dark"], _layers(slides["bright"], underlay=False))
    assert screen() is None


@pytest.mark.usefixtures("loads_in_background")
def test_a_slide_that_was_swapped_in_and_out_is_closed_without_garbage_collection(
    viewer: Any, slides: dict[str, Path], qtbot: Any
) -> None:
    """The worklist exempts what is alive from garbage collection, so nothing in a cycle may refer to a slide."""
    layers = add_layers(viewer, _layers(slides["dark"], underlay=False))
    gc.disable()
    try:
        assert swap_slide(viewer, slides["dark"], _layers(slides["bright"], underlay=False))
        screen = weakref.ref(get_screen_slide(layers[-1]))  # type: ignore[arg-type]  # it shows a slide
        qtbot.waitUntil(lambda: layers[-1].opacity == 1.0, timeout=WAIT_MS)
        assert swap_slide(viewer, slides["bright"], _layers(slides["dark"], underlay=False))
        qtbot.waitUntil(lambda: layers[-1].opacity == 1.0 and screen() is None, timeout=WAIT_MS)
    finally:
        gc.enable()
