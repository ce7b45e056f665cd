"""The caption of the maps and the scale bar never overlap, however narrow the canvas is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.visualize.overlay import SCALE_LEGENDS
from napari_lrmil.plugin.viewer.attention_layers import CompareMode
from napari_lrmil.plugin.viewer.split_view import CAPTION_PREFIX, CAPTION_WIDTH, LETTER_PX, SCALE_BAR_PX, place_caption
from support.window import WAIT_MS, MakeDock, timers_rest

WIDTHS = (320, 350, 440, 548, 905)  # 350 px are left at 1280 x 720 with napari's panels and a wide dock


@pytest.mark.parametrize("legend", SCALE_LEGENDS.values())
@pytest.mark.parametrize("width", WIDTHS)
def test_lines_fit_beside_the_scale_bar_or_into_the_canvas(legend: str, width: int) -> None:
    text, position = place_caption(CAPTION_PREFIX + legend, width)
    longest = max(map(len, text.splitlines()))
    assert text.replace("\n", " ") == CAPTION_PREFIX + legend and longest <= CAPTION_WIDTH
    assert longest * LETTER_PX <= width - 20, "napari keeps 10 px free on both sides"
    assert position == ("bottom_left" if longest * LETTER_PX + SCALE_BAR_PX <= width else "bottom_right")
    assert place_caption(text, width) == (text, position), "broken lines are joined first"


@pytest.fixture
def sized(viewer: Any) -> Iterator[Any]:
    """Return the viewer; its canvas gets its size back, because all tests share the window."""
    size = viewer.canvas.size
    yield viewer
    viewer.canvas.size = size


def boxes(viewer: Any) -> list[tuple[float, float, float, float]]:
    """Return left, top, right and bottom of caption and scale bar in pixels of the canvas."""
    canvas = viewer.window._qt_viewer.canvas
    canvas._update_overlay_canvas_positions()  # which napari does before it draws
    visuals = [canvas._viewer_overlay_to_visual[viewer.canvas.overlays[name]][0] for name in ("text", "scale_bar")]
    corners = [(visual, *visual.node.transform.translate[:2]) for visual in visuals]
    return [(x, y, x + visual.x_size, y + visual.y_size) for visual, x, y in corners]


def test_caption_and_scale_bar_do_not_overlap(make_dock: MakeDock, sized: Any, slide_path: Path, qtbot: Any) -> None:
    """At every width, in a view with a long caption, after the size has changed under a caption that is shown."""
    dock = make_dock(slide_path)
    sized.canvas.overlays.scale_bar.visible = True
    dock.with_teacher.native.click()
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not None and timers_rest(dock), timeout=WAIT_MS)
    for mode in (CompareMode("wipe", 2), CompareMode("difference")):
        dock.result_view.set_compare_mode(mode)
        qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
        for width in (*WIDTHS[::-1], *WIDTHS):
            sized.canvas.size = (500, width)
            caption, bar = boxes(sized)
            assert caption[0] >= 0 and caption[2] <= width, f"the caption is cut at {width} px"
            is_apart = caption[2] <= bar[0] or caption[3] <= bar[1] or bar[3] <= caption[1]
            assert is_apart, f"they overlap at {width} px: {caption}, {bar}"
    assert sized.canvas.overlays.text.position == "bottom_left", "beside the bar where there is room"
