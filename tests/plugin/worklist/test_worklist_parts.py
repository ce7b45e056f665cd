"""Answers for a part of a slide come back when the user pages back, although no file has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.plugin.viewer.layers import lrmil_layers, remove_layers
from support.window import WAIT_MS
from support.worklist import MakeWorklist, page, settled

CORNERS_UM = np.array([[10.0, 10], [10, 300], [240, 300], [240, 10]])  # row, column


def draw(dock: Any, qtbot: Any) -> None:
    dock.analyse.roi_form.draw.click()
    dock.analyse.viewer_actions.region_layer().add(CORNERS_UM, shape_type="polygon")
    qtbot.waitUntil(lambda: len(dock.session.regions) == 1, timeout=WAIT_MS)


def run(dock: Any, qtbot: Any) -> Prediction:
    """Run what is chosen, and return the answer."""
    before = dock.session.prediction
    dock.analyse.run(TeacherPatches.NONE)
    qtbot.waitUntil(lambda: not dock.session.is_busy and dock.session.prediction is not before, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: not dock.answers.run_store.is_busy and settled(dock), timeout=WAIT_MS)
    prediction: Prediction = dock.session.prediction
    return prediction


def page_back_and_forth(dock: Any, qtbot: Any) -> None:
    name = dock.current.name
    page(dock, qtbot)
    assert dock.session.prediction.scope.is_whole_slide and dock.session.roi_kind == "slide"
    assert page(dock, qtbot, -1) == name


def test_the_answer_of_a_drawn_region_comes_back_until_the_whole_slide_is_run(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    row = dock.list._items[0].text(1)
    draw(dock, qtbot)
    of_region = run(dock, qtbot)
    assert of_region.scope.kind == "region" and len(of_region.student.coords) < 20
    page_back_and_forth(dock, qtbot)
    assert dock.session.prediction is of_region and dock.session.roi_kind == "region"
    assert dock.analyse.results.student.value() == of_region.student.probabilities
    [layer] = [layer for layer in lrmil_layers(viewer, folder / "a.tif", role="attention") if layer.visible]
    assert np.isfinite(layer.data).sum() == len(of_region.student.coords)
    assert dock.list._items[0].text(1) == row, "the list has the answer of the whole slide"
    dock.session.choose_roi_kind("slide")
    whole = run(dock, qtbot)
    page_back_and_forth(dock, qtbot)
    assert dock.session.prediction.scope.is_whole_slide and dock.session.roi_kind == "slide"
    assert dock.session.prediction.student.probabilities == whole.student.probabilities


def test_the_answer_of_the_view_comes_back(make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any) -> None:
    dock = make_worklist(folder)
    qtbot.waitUntil(lambda: dock.session.tissue_grid is not None, timeout=WAIT_MS)
    viewer.scene.camera.zoom *= 4
    dock.analyse.roi_form.kinds.buttons["view"].click()
    of_view = run(dock, qtbot)
    assert of_view.scope.kind == "view"
    page_back_and_forth(dock, qtbot)
    assert dock.session.prediction is of_view and dock.session.roi_kind == "view"
    assert not dock.session.run_blocked_by


def test_without_its_region_an_answer_does_not_come_back(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    draw(dock, qtbot)
    run(dock, qtbot)
    remove_layers(viewer, [dock.analyse.viewer_actions.region_layer()])
    qtbot.waitUntil(lambda: not dock.session.regions, timeout=WAIT_MS)
    page_back_and_forth(dock, qtbot)
    assert dock.session.prediction.scope.is_whole_slide and dock.session.roi_kind == "slide"


def test_an_answer_of_other_regions_than_are_drawn_now_does_not_come_back(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    draw(dock, qtbot)
    run(dock, qtbot)
    dock.analyse.viewer_actions.region_layer().add(CORNERS_UM + 100, shape_type="polygon")
    qtbot.waitUntil(lambda: len(dock.session.regions) == 2, timeout=WAIT_MS)
    page_back_and_forth(dock, qtbot)
    assert dock.session.prediction.scope.is_whole_slide and dock.session.roi_kind == "slide"


def test_answers_of_few_slides_are_kept(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_lrmil.plugin.worklist.slide_answers.MAX_ANSWERS", 1)
    dock = make_worklist(folder)
    draw(dock, qtbot)
    run(dock, qtbot)
    page(dock, qtbot)
    draw(dock, qtbot)
    of_second = run(dock, qtbot)
    page(dock, qtbot, -1)
    assert dock.session.prediction.scope.is_whole_slide and dock.session.regions, "its region is still drawn"
    page(dock, qtbot)
    assert dock.session.prediction is of_second


def test_a_blind_reviewer_does_not_see_the_answer_of_another_one(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    page(dock, qtbot)
    page(dock, qtbot)  # c, of which no answer is stored
    qtbot.waitUntil(lambda: dock.session.prediction is not None and settled(dock), timeout=WAIT_MS)
    draw(dock, qtbot)
    of_region = run(dock, qtbot)
    page(dock, qtbot, -1)
    dock.review.reviewer.setText("Ben")
    dock.review.reviewer.editingFinished.emit()
    dock.review.blind.click()
    page(dock, qtbot)
    assert dock.session.prediction is None and dock.session.regions
    dock.review.blind.click()
    qtbot.waitUntil(lambda: dock.session.prediction is of_region, timeout=WAIT_MS)
