"""Names of reviewers in the Worklist dock: what each has seen, and whose annotations are shown, in a real window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.core.worklist.review import REVIEW_FILE, Verdict, read_review
from napari_lrmil.core.worklist.seen import SEEN_FILE
from napari_lrmil.plugin.viewer.layers import lrmil_layers
from napari_lrmil.plugin.worklist.reviewing import NAMELESS_BEFORE, SEEN_BEFORE
from support.window import WAIT_MS
from support.worklist import MakeWorklist, open_again, page, settled


def enter_name(dock: Any, name: str) -> None:
    dock.review.reviewer.setText(name)
    dock.review.reviewer.editingFinished.emit()


def test_the_first_name_takes_over_what_its_session_has_shown_before(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder, reviewer="")
    page(dock, qtbot)
    seen = folder / "predictions" / SEEN_FILE
    assert ",,canvas," in seen.read_text() and ",,list," in seen.read_text(), "on the disk at once"
    enter_name(dock, "Anna")
    assert ",,canvas," not in seen.read_text() and seen.read_text().count(",Anna,canvas,") == 2
    dock = open_again(dock, make_worklist, viewer, folder, qtbot, reviewer="Ben")
    assert dock.reviewing.is_hidden(dock.current) and dock.review.details.text() == ""
    dock.review.class_buttons["lesion"].click()
    (row,) = read_review(folder / "predictions" / REVIEW_FILE).rows
    assert row.reviewer == "Ben" and row.is_blind


def test_what_a_session_without_a_name_has_shown_counts_for_everybody_and_says_what_to_do(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder, reviewer="")
    dock = open_again(dock, make_worklist, viewer, folder, qtbot, reviewer="Ben")
    assert NAMELESS_BEFORE in dock.review.details.text() and not dock.reviewing.is_hidden(dock.current)
    page(dock, qtbot)
    assert NAMELESS_BEFORE in dock.review.details.text() and dock.reviewing.is_hidden(dock.current)
    dock.review.class_buttons["lesion"].click()
    assert not read_review(folder / "predictions" / REVIEW_FILE).rows[0].is_blind


def test_undo_hides_the_answer_that_the_verdict_revealed(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    SettingsStore().remember_blind(True)
    dock = make_worklist(folder)
    dock.review.class_buttons["lesion"].click()
    assert dock.session.prediction is not None
    page(dock, qtbot)
    dock.review.undo.click()
    qtbot.waitUntil(lambda: dock.current.name == "a" and settled(dock), timeout=WAIT_MS)
    assert dock.reviewing.is_hidden(dock.current) and dock.session.prediction is None
    shown = [layer for layer in lrmil_layers(viewer, folder / "a.tif", role="attention") if layer.visible]
    assert shown == [] and SEEN_BEFORE in dock.review.details.text()
    dock.review.class_buttons["lesion"].click()
    assert not read_review(folder / "predictions" / REVIEW_FILE).rows[0].is_blind, "it has been seen"


def test_only_the_regions_of_the_present_reviewer_are_shown(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    dock.review.buttons[Verdict.AGREE].click()
    dock.review.draw.click()
    (layer,) = lrmil_layers(viewer, role="annotation")
    layer.add(np.array([[50.0, 50.0], [50.0, 150.0], [150.0, 150.0]]), shape_type="polygon")
    enter_name(dock, "Ben")
    assert not lrmil_layers(viewer, role="annotation") and dock.review.annotations.text() == ""
    assert (folder / "predictions" / "a" / "annotations_Anna.geojson").exists()
    enter_name(dock, " aNNa ")
    (layer,) = lrmil_layers(viewer, role="annotation")
    assert layer.nshapes == 1 and dock.review.reviewer.text() == "Anna"
    assert dock.session.settings_store.remembered_reviewer() == "Anna"
    assert dock.current.review is not None, "the same reviewer has the same verdicts"
    enter_name(dock, "ANNA")
    assert dock.review.reviewer.text() == "Anna"


def test_stored_answers_of_the_teacher_open_in_one_view_and_draw_leaves_two(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    from napari_lrmil.plugin.compare.widget import CompareWidget
    from napari_lrmil.plugin.qt.docks import open_dock

    dock = make_worklist(folder)
    dock.analyse.run(TeacherPatches.ALL)
    teacher = folder / "predictions" / "a" / "teacher_attention.h5"
    qtbot.waitUntil(lambda: teacher.exists() and not dock.answers.run_store.is_busy, timeout=WAIT_MS)
    assert viewer.canvas.grid.enabled, "the user has asked for both"
    dock = open_again(dock, make_worklist, viewer, folder, qtbot)
    dock.review.blind.setChecked(False)
    qtbot.waitUntil(lambda: dock.session.prediction is not None and settled(dock), timeout=WAIT_MS)
    assert dock.session.prediction.teacher is not None and not viewer.canvas.grid.enabled
    open_dock(viewer, CompareWidget, "Compare (LRMIL)")
    qtbot.waitUntil(lambda: viewer.canvas.grid.enabled, timeout=WAIT_MS)
    dock.review.draw.click()
    (layer,) = lrmil_layers(viewer, role="annotation")
    assert not viewer.canvas.grid.enabled and layer.visible and layer.mode == "add_polygon"
    assert viewer.layers.selection.active is layer and dock.review.draw.isChecked()
