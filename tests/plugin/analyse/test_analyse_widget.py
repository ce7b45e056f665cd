"""The dock in a real napari window, driven as a user does: through its widgets."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.overlay import RESEARCH_USE
from napari_lrmil.plugin.analyse.result_text import ResultText
from napari_lrmil.plugin.analyse.result_view import HOVER_HINT
from napari_lrmil.plugin.viewer.layers import add_layers, build_slide_layers, get_tag, lrmil_layers
from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers
from support.fake_slides import fake_slide, glass, one_sentence, speckled, write_tiff
from support.jpeg_slides import write_jpeg_slide
from support.planted import DARK, centroid, plant
from support.slow_slides import Slow
from support.tile_slides import rectangle, tile
from support.window import WAIT_MS, MakeDock, open_window, timers_rest

CELLS = [[("slide", "student"), ("attention", "student")], [("slide", "teacher"), ("attention", "teacher")]]


def _run(dock: Any, qtbot: Any) -> None:
    dock.run_button.native.click()
    assert dock.run_button.text == "Cancel"
    qtbot.waitUntil(lambda: not dock.session.is_busy, timeout=WAIT_MS)


def _predict(path: Path, bundle: Bundle, teacher: str) -> Prediction:
    with Slide(path) as slide:
        *_, last = predict(slide, bundle, device=torch.device("cpu"), teacher=TeacherPatches.parse(teacher))
    result: Prediction = last.result  # type: ignore[union-attr]  # the last event carries it
    return result


def test_a_run_shows_what_the_engine_says(
    make_dock: MakeDock, viewer: Any, slide_path: Path, bundle: Bundle, qtbot: Any
) -> None:
    dock = make_dock(slide_path)
    assert "tissue" in dock.summary.text() and "lively" in dock.summary.text() and "CPU" in dock.summary.text()
    _run(dock, qtbot)
    expected = _predict(slide_path, bundle, "none")
    shown = dock.results.student.value()
    assert shown == pytest.approx(expected.student.probabilities, abs=1e-5)
    [layer] = lrmil_layers(viewer, role="attention")
    assert np.nansum(layer.data) / len(expected.student.attention) == pytest.approx(1, abs=1e-4)
    assert not viewer.canvas.grid.enabled
    qtbot.waitUntil(lambda: layer.colorbar.visible, timeout=WAIT_MS)
    assert dock.results.isVisible() and "not calibrated" in dock.results.calibration.text()
    assert not dock.results.agreement.isVisible() and not dock.results.teacher.isVisible()
    assert dock.run_button.text == "Run" and dock.run_button.enabled


def test_the_numbers_under_the_cursor_are_those_of_the_newest_map(
    make_dock: MakeDock, viewer: Any, slide_path: Path, qtbot: Any
) -> None:
    dock = make_dock(slide_path)
    _run(dock, qtbot)
    viewer.cursor.position = (250.0, 320.0)
    qtbot.waitUntil(lambda: dock.result_view.hover.text() != HOVER_HINT, timeout=WAIT_MS)
    dock.viewer_actions.start_drawing().add(np.array([[100.0, 100], [100, 500], [450, 500], [450, 100]]))
    qtbot.waitUntil(lambda: bool(dock.session.regions), timeout=WAIT_MS)
    dock.session.use_drawn_regions()
    before = dock.result_view.hover.text()
    _run(dock, qtbot)
    assert dock.session.prediction.scope.kind == "region"
    assert dock.result_view.hover.text() == ResultText(dock.session.prediction).text_at(320.0, 250.0) != before


def test_with_the_teacher_beside_it_two_linked_views_share_one_legend(
    make_dock: MakeDock, viewer: Any, slide_path: Path, bundle: Bundle, qtbot: Any
) -> None:
    dock = make_dock(slide_path)
    dock.with_teacher.native.click()
    _run(dock, qtbot)
    qtbot.waitUntil(lambda: any(layer.colorbar.visible for layer in viewer.layers), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    expected = _predict(slide_path, bundle, "all").teacher
    assert expected is not None and dock.results.teacher.value() == pytest.approx(expected.probabilities, abs=1e-5)
    assert "rank correlation" in dock.results.agreement.text() and dock.results.agreement.isVisible()
    assert _cells(viewer) == CELLS
    student, teacher = (lrmil_layers(viewer, role="attention", side=s)[0] for s in ("student", "teacher"))
    assert student.contrast_limits == teacher.contrast_limits
    assert [layer.name for layer in viewer.layers if layer.colorbar.visible] == [teacher.name]
    assert "Student (LR)" in student.name and "Teacher (HR)" in teacher.name
    _check_halves(viewer, student, teacher)


def _cells(viewer: Any) -> list[list[tuple[str, str]]]:
    """Return role and side of the layers of each cell of the grid, left to right."""
    assert viewer.canvas.grid.enabled
    cells = []
    for _, indices in viewer.canvas.grid.iter_viewboxes(viewer.layers):
        tags = [get_tag(viewer.layers[i]) for i in indices]
        cells.append([(tag.role, tag.side) for tag in tags if tag is not None])
    return cells


def _check_halves(viewer: Any, student: Any, teacher: Any) -> None:
    """Hide the maps in turn: only the half of the picture changes on which that map lies."""
    before = viewer.screenshot(flash=False).astype(int)
    middle = before.shape[1] // 2
    left, right = slice(0, middle), slice(middle, None)
    for layer, changed, unchanged in ((student, left, right), (teacher, right, left)):
        layer.opacity = 0.0
        difference = np.abs(viewer.screenshot(flash=False).astype(int) - before).sum(axis=2)
        assert difference[:, changed].max() > 30 and difference[:, unchanged].max() == 0
        layer.opacity = 0.5


def test_leaving_the_teacher_out_again_gives_one_view(
    make_dock: MakeDock, viewer: Any, slide_path: Path, qtbot: Any
) -> None:
    dock = make_dock(slide_path)
    dock.with_teacher.native.click()
    _run(dock, qtbot)
    assert len(viewer.layers) == 4
    dock.with_teacher.native.click()
    _run(dock, qtbot)
    assert not viewer.canvas.grid.enabled
    assert [get_tag(layer).role for layer in viewer.layers] == ["slide", "attention"]  # type: ignore[union-attr]  # all ours


def test_removing_the_teachers_map_gives_one_view(
    make_dock: MakeDock, viewer: Any, slide_path: Path, qtbot: Any
) -> None:
    dock = make_dock(slide_path)
    dock.with_teacher.native.click()
    _run(dock, qtbot)
    viewer.layers.remove(lrmil_layers(viewer, role="attention", side="teacher")[0])
    qtbot.waitUntil(lambda: not viewer.canvas.grid.enabled, timeout=WAIT_MS)
    assert len(viewer.layers) == 2


def test_another_layer_does_not_mix_the_views(make_dock: MakeDock, viewer: Any, slide_path: Path, qtbot: Any) -> None:
    dock = make_dock(slide_path)
    viewer.add_points(np.zeros((1, 2)), name="mine")
    dock.with_teacher.native.click()
    _run(dock, qtbot)
    assert _cells(viewer)[:2] == CELLS


def test_of_several_slides_the_analysed_one_is_seen(
    make_dock: MakeDock, viewer: Any, slide_path: Path, tmp_path: Path, qtbot: Any
) -> None:
    dock = make_dock(slide_path)
    other = write_tiff(tmp_path / "other.tif", speckled(640, 512, seed=1), (1.0,), mpp=(0.5, 0.5))
    add_layers(viewer, read_slide_layers(other))
    qtbot.waitUntil(lambda: len(dock.session.slides) == 2, timeout=WAIT_MS)
    dock.slide.value = next(s for s in dock.session.slides if s.path == slide_path)
    dock.with_teacher.native.click()
    _run(dock, qtbot)
    assert {get_tag(layer).path for layer in viewer.layers if layer.visible} == {slide_path}  # type: ignore[union-attr]  # all ours
    assert _cells(viewer) == CELLS


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


def test_cancel_answers_and_leaves_nothing_but_a_usable_dock(
    make_dock: MakeDock, viewer: Any, slide_path: Path, slow: Slow, qtbot: Any
) -> None:
    from napari_lrmil.plugin.session.run_state import SessionState
    from napari_lrmil.plugin.session.session import Session

    dock = make_dock(slide_path, Session(open_slide=slow))
    dock.with_teacher.native.click()
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: "teacher" in dock.progress.native.format(), timeout=WAIT_MS)
    assert dock.progress.visible and not dock.slide.enabled
    dock.run_button.native.click()
    assert dock.run_button.text == "Cancelling…" and not dock.run_button.enabled
    qtbot.waitUntil(lambda: not dock.session.is_busy, timeout=WAIT_MS)
    assert dock.session.state is SessionState.IDLE and not lrmil_layers(viewer, role="attention")
    assert not dock.progress.visible and dock.run_button.text == "Run" and dock.slide.enabled
    dock.with_teacher.native.click()
    _run(dock, qtbot)
    assert dock.session.state is SessionState.DONE
    viewer.layers.clear()
    qtbot.waitUntil(lambda: dock.session.slide is None, timeout=WAIT_MS)
    assert len(slow.slides) == 1
    with pytest.raises(Exception, match="closed"):
        slow.slides[0].read_level(0, 0, 0, 10, 10)


def test_escape_cancels(make_dock: MakeDock, slide_path: Path, slow: Slow, qtbot: Any) -> None:
    from qtpy.QtCore import Qt

    from napari_lrmil.plugin.session.run_state import SessionState
    from napari_lrmil.plugin.session.session import Session

    dock = make_dock(slide_path, Session(open_slide=slow))
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: dock.session.progress is not None, timeout=WAIT_MS)
    dock.window().activateWindow()
    qtbot.waitUntil(dock.isActiveWindow, timeout=WAIT_MS)
    qtbot.keyClick(dock, Qt.Key.Key_Escape)
    assert dock.session.state is SessionState.CANCELLING
    qtbot.waitUntil(lambda: not dock.session.is_busy, timeout=WAIT_MS)


def test_closing_the_window_during_a_run_ends_it(bundle: Bundle, slide_path: Path, slow: Slow, qtbot: Any) -> None:
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget
    from napari_lrmil.plugin.session.session import Session

    session, viewer = Session(open_slide=slow), open_window()
    dock = AnalyseWidget(viewer, session)
    viewer.window.add_dock_widget(dock)
    dock.open_model(bundle.path)
    add_layers(viewer, read_slide_layers(slide_path))
    qtbot.waitUntil(lambda: session.slide is not None, timeout=WAIT_MS)
    dock.with_teacher.native.click()
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: session.progress is not None, timeout=WAIT_MS)
    run = dock._worker
    del dock
    viewer.close()
    gc.collect()
    qtbot.waitUntil(lambda: run.wait(0), timeout=WAIT_MS)
    assert session.prediction is None
    with pytest.raises(Exception, match="closed"):
        slow.slides[0].read_level(0, 0, 0, 10, 10)


def test_closing_the_dock_during_a_run_ends_it(
    make_dock: MakeDock, viewer: Any, slide_path: Path, slow: Slow, qtbot: Any
) -> None:
    from napari_lrmil.plugin.session.session import Session

    dock = make_dock(slide_path, Session(open_slide=slow))
    dock.with_teacher.native.click()
    dock.run_button.native.click()
    qtbot.waitUntil(lambda: dock.session.progress is not None, timeout=WAIT_MS)
    viewer.window.remove_dock_widget(dock)
    qtbot.waitUntil(lambda: not dock.session.is_busy, timeout=WAIT_MS)
    assert not lrmil_layers(viewer, role="attention")
    dock.deleteLater()


def test_what_cannot_work_is_not_enabled_and_says_why(
    make_dock: MakeDock, viewer: Any, tmp_path: Path, qtbot: Any
) -> None:
    dock = make_dock(None)
    assert not dock.run_button.enabled and "slide" in dock.run_button.tooltip
    coarse = write_tiff(tmp_path / "coarse.tif", speckled(600, 400), (1.0,), mpp=(4.0, 4.0))
    add_layers(viewer, read_slide_layers(coarse))
    qtbot.waitUntil(lambda: dock.session.slide is not None, timeout=WAIT_MS)
    assert not dock.run_button.enabled and "too coarse for the student" in dock.run_button.tooltip
    assert one_sentence(Exception(dock.note.text())) and dock.note.isVisible()
    assert not dock.with_teacher.enabled and "too coarse for the teacher" in dock.with_teacher.tooltip
    from napari_lrmil.core.features.devices import DEVICES

    items = dock.device.native.model()
    is_enabled = [items.item(row).isEnabled() for row in range(len(DEVICES))]
    assert is_enabled[:2] == [True, True] and is_enabled[2] == torch.cuda.is_available()


def test_a_failure_is_one_sentence_in_the_dock(make_dock: MakeDock, viewer: Any, tmp_path: Path, qtbot: Any) -> None:
    empty = write_tiff(tmp_path / "empty.tif", glass(1280, 1000), (1.0, 4.0), mpp=(0.5, 0.5))
    dock = make_dock(empty)
    _run(dock, qtbot)
    assert "no tissue found" in dock.note.text() and one_sentence(Exception(dock.note.text()))
    assert not lrmil_layers(viewer, role="attention") and dock.run_button.enabled


def test_a_slide_that_lacks_much_tissue_is_analysed_on_request(
    make_dock: MakeDock, viewer: Any, tmp_path: Path, qtbot: Any
) -> None:
    """The reason names the box; the warning of the result and the command line say what was allowed."""
    empty = [tile(c, r) for r in (2, 3) for c in range(1, 7)]
    dock = make_dock(write_jpeg_slide(tmp_path / "half.tif", rectangle(), empty=empty))
    _run(dock, qtbot)
    refusal = dock.note.text()
    assert "hide 48 % of the tissue" in refusal and f"'{dock.allow_missing.text}'" in refusal
    assert one_sentence(Exception(refusal)) and dock.session.prediction is None and dock.run_button.enabled
    dock.allow_missing.native.click()
    _run(dock, qtbot)
    assert "⚠ missing tiles hide 48 % of the tissue" in dock.note.text() and dock.note.isVisible()
    assert dock.results.isVisible() and lrmil_layers(viewer, role="attention")
    assert "--allow-missing" in dock.viewer_actions.equivalent_command()
    stored = dock.session.prediction
    dock.session.show_stored(stored)
    assert "⚠ missing tiles hide 48 % of the tissue" in dock.note.text()
    dock.session.choose_slide(None)
    assert not dock.allow_missing.value  # it holds for one slide only


def test_the_dock_says_research_use_only_and_follows_the_slides(
    make_dock: MakeDock, viewer: Any, slide_path: Path, qtbot: Any
) -> None:
    from qtpy.QtWidgets import QLabel

    dock = make_dock(slide_path)
    footer = dock.findChild(QLabel, "footer")
    assert footer.text() == RESEARCH_USE and footer.isVisible()
    viewer.layers.clear()
    qtbot.waitUntil(lambda: dock.session.slide is None, timeout=WAIT_MS)
    assert not dock.run_button.enabled


def test_napari_draws_every_level_at_the_same_place(viewer: Any, tmp_path: Path) -> None:
    planted = plant((0.5, 0.5))
    [layer] = add_layers(viewer, build_slide_layers(fake_slide(tmp_path, planted.fake), underlay=False))
    viewer.reset_view()
    pictures = [_drawn(viewer, layer, level) for level in range(len(layer.data))]
    square = np.argwhere(np.abs(pictures[0] - DARK).sum(axis=2) < 60)
    around = tuple(slice(*pair) for pair in zip(square.min(axis=0) - 20, square.max(axis=0) + 20, strict=True))
    centres = [centroid(picture[around]) for picture in pictures]
    assert len(centres) == 3
    for centre in centres[1:]:
        assert np.abs(centre - centres[0]).max() < 1.0  # pixels of the screen, of which a coarse pixel takes six


def _drawn(viewer: Any, layer: Any, level: int) -> Any:
    layer.locked_data_level = level
    return viewer.screenshot(flash=False)[..., :3].astype(int)
