"""The caption of the maps and the scale bar never overlap, and the caption names the colours that are shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_lrmil.core.visualize.overlay import SCALE_LEGENDS
from napari_lrmil.plugin.viewer.layers import LayerTag, lrmil_layers
from napari_lrmil.plugin.viewer.maps.attention_layers import CompareMode
from napari_lrmil.plugin.viewer.maps.captions import (
    CAPTION_PREFIX,
    CAPTION_WIDTH,
    LETTER_PX,
    SCALE_BAR_PX,
    caption_evidence,
    caption_maps,
    place_caption,
)
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


def read_caption(viewer: Any) -> str:
    """Return the caption in one line."""
    return str(viewer.canvas.overlays.text.text.replace("\n", " "))


@pytest.fixture
def answered(make_dock: MakeDock, slide_path: Path, qtbot: Any) -> Any:
    """Return a dock with the answer of both networks."""
    dock = make_dock(slide_path)
    dock.with_teacher.native.click()
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not None and timers_rest(dock), timeout=WAIT_MS)
    return dock


def test_the_caption_of_differences_names_no_colour_that_is_not_shown(answered: Any, viewer: Any, qtbot: Any) -> None:
    answered.result_view.set_compare_mode(CompareMode("difference"))
    qtbot.waitUntil(lambda: timers_rest(answered), timeout=WAIT_MS)
    assert read_caption(viewer).endswith("orange: the student looks more")
    [layer] = lrmil_layers(viewer, role="difference")
    own = layer.colormap
    layer.colormap = "viridis"  # as napari's key c and its controls do
    assert read_caption(viewer).endswith("above 0: the student looks more")
    legend = answered.viewer_actions.view_export_job().legend
    assert legend is not None and legend.label.endswith("above 0: the student looks more")
    layer.colormap = own
    assert read_caption(viewer).endswith("orange: the student looks more")


def test_the_caption_of_evidence_names_no_colour_that_is_not_shown(answered: Any, viewer: Any, qtbot: Any) -> None:
    answered.result_view.set_compare_mode(CompareMode("wipe", 2))
    evidence = answered.result_view.evidence
    evidence.show_box.click()
    qtbot.waitUntil(lambda: timers_rest(answered) and bool(lrmil_layers(viewer, role="evidence")), timeout=WAIT_MS)
    name = evidence.class_box.currentText()
    assert read_caption(viewer).endswith(f"evidence for {name} (logit): orange raises it, blue lowers it")
    [layer] = lrmil_layers(viewer, role="evidence")
    layer.colormap = "viridis"
    assert read_caption(viewer).endswith(f"evidence for {name} (logit): above 0 raises it, below 0 lowers it")
    evidence.show_box.click()
    qtbot.waitUntil(lambda: timers_rest(answered) and not lrmil_layers(viewer, role="evidence"), timeout=WAIT_MS)
    assert "evidence" not in read_caption(viewer)


def test_maps_that_are_added_later_lie_below_what_is_drawn(
    make_dock: MakeDock, slide_path: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_dock(slide_path)
    dock.roi_form.draw.click()
    drawn = dock.viewer_actions.region_layer()
    drawn.add([[0, 0], [0, 300], [300, 300], [300, 0]], shape_type="polygon")
    qtbot.waitUntil(lambda: bool(dock.session.regions), timeout=WAIT_MS)
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: dock.session.prediction is not None and timers_rest(dock), timeout=WAIT_MS)
    [attention] = lrmil_layers(viewer, role="attention")
    assert viewer.layers.index(drawn) > viewer.layers.index(attention)
    dock.result_view.evidence.show_box.click()
    qtbot.waitUntil(lambda: timers_rest(dock) and bool(lrmil_layers(viewer, role="evidence")), timeout=WAIT_MS)
    [evidence] = lrmil_layers(viewer, role="evidence")
    assert viewer.layers.index(drawn) > viewer.layers.index(evidence)


def test_in_two_views_evidence_takes_the_place_of_the_student_s_attention(
    answered: Any, viewer: Any, qtbot: Any
) -> None:
    evidence = answered.result_view.evidence
    [student] = lrmil_layers(viewer, role="attention", side="student")
    [teacher] = lrmil_layers(viewer, role="attention", side="teacher")
    assert viewer.canvas.grid.enabled and student.visible
    evidence.show_box.click()
    qtbot.waitUntil(lambda: timers_rest(answered) and bool(lrmil_layers(viewer, role="evidence")), timeout=WAIT_MS)
    [layer] = lrmil_layers(viewer, role="evidence")
    assert layer.visible and layer.name_overlay.visible and teacher.visible and not student.visible
    shown = [each for each in viewer.layers if each.visible]
    assert len(shown) == 2 * viewer.canvas.grid.stride, "two views and no third"
    assert shown.index(layer) == viewer.canvas.grid.stride - 1 and shown[-1] is teacher
    assert "evidence for" in read_caption(viewer) and read_caption(viewer).endswith("right: the teacher's attention")
    legend = answered.viewer_actions.view_export_job().legend
    assert legend is not None and (legend.low, legend.high) == tuple(layer.contrast_limits)
    evidence.class_box.setCurrentIndex(1 - evidence.class_box.currentIndex())
    qtbot.waitUntil(
        lambda: timers_rest(answered) and layer.name.endswith(evidence.class_box.currentText()), timeout=WAIT_MS
    )
    assert layer.visible and not student.visible
    evidence.show_box.click()
    qtbot.waitUntil(lambda: timers_rest(answered) and not lrmil_layers(viewer, role="evidence"), timeout=WAIT_MS)
    assert student.visible and [each for each in viewer.layers if each.visible].index(student) < len(shown) // 2


def test_under_napari_s_own_grid_the_caption_of_evidence_names_no_teacher() -> None:
    viewer = ViewerModel()
    tag = LayerTag("evidence", Path("a.svs"), 0.5)
    layer = viewer.add_image(np.zeros((4, 4)), name="Evidence for lesion", metadata=tag.as_metadata())
    viewer.canvas.grid.enabled = True
    caption_evidence(viewer, layer)
    assert "teacher" not in read_caption(viewer) and "evidence for lesion" in read_caption(viewer)


def test_the_caption_of_a_wipe_outlives_the_layer_of_its_slide() -> None:
    viewer = ViewerModel()
    viewer.add_image(np.zeros((4, 4)), metadata=LayerTag("wipe", Path("a.svs"), 0.5).as_metadata())
    caption_maps(viewer, None)
    assert read_caption(viewer).endswith("student left of the wipe, teacher right of it")
