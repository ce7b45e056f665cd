"""The Worklist dock in a real window, driven through its widgets."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from napari_lrmil.core.formatting import ABOUT_MODEL
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.core.worklist.entry import Status
from napari_lrmil.core.worklist.order import SortKey
from napari_lrmil.core.worklist.review import REVIEW_FILE, ReviewFile, ReviewRow, Verdict, read_review
from napari_lrmil.core.worklist.seen import SEEN_FILE
from napari_lrmil.plugin.viewer.layers import get_screen_slide, lrmil_layers, remove_layers, slide_affine
from napari_lrmil.plugin.viewer.navigation.camera import fly_to
from napari_lrmil.plugin.viewer.navigation.places import Place, place_on
from napari_lrmil.plugin.viewer.navigation.rotation import rotate_view
from support.phantoms import copy_cohort
from support.stored_results import write_result
from support.window import WAIT_MS
from support.worklist import NAMES, MakeWorklist, open_again, page, press, settled


def shown_slides(viewer: Any) -> list[str]:
    return [layer.name for layer in lrmil_layers(viewer, role="slide") if layer.visible]


def state_of(dock: Any, name: str) -> str:
    (index,) = [i for i, entry in enumerate(dock.order.entries) if entry.name == name]
    return str(dock.list._items[index].text(2))


def last_message() -> str:
    from napari.utils.notifications import notification_manager

    return str(notification_manager.records[-1].message) if notification_manager.records else ""


# ---------------------------------------------------------------- going through the list


def test_one_slide_at_a_time_with_its_stored_answer(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    qtbot.waitUntil(lambda: state_of(dock, "d broken") == "failed", timeout=WAIT_MS)
    assert [state_of(dock, name) for name in ("a", "b")] == ["done", "done"]
    assert shown_slides(viewer) == ["a"] and dock.session.slide.name == "a"
    assert dock.session.prediction.student.probabilities == pytest.approx(
        json.loads((folder / "predictions" / "a" / "prediction.json").read_text())["probabilities"]
    )
    assert lrmil_layers(viewer, folder / "a.tif", role="attention")
    assert page(dock, qtbot) == "b"
    assert shown_slides(viewer) == ["b"] and not lrmil_layers(viewer, folder / "a.tif")
    assert dock.session.prediction.path == folder / "b.tif"
    assert page(dock, qtbot, -1) == "a" and shown_slides(viewer) == ["a"]
    assert not dock.previous.isEnabled() and "Slide 1 of 4" in dock.summary.text()


def test_the_next_slide_is_computed_while_one_is_read(make_worklist: MakeWorklist, folder: Path, qtbot: Any) -> None:
    dock = make_worklist(folder)
    assert not (folder / "predictions" / "c").exists()
    page(dock, qtbot)  # to b, so that c is the next one
    qtbot.waitUntil(lambda: (folder / "predictions" / "c" / "prediction.json").exists(), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: state_of(dock, "c") == "done", timeout=WAIT_MS)
    assert page(dock, qtbot) == "c" and dock.session.prediction.path == folder / "c.tif"
    assert dock.session.tissue_grid is not None, "its tissue was found too"


def test_slides_that_were_left_are_closed(make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any) -> None:
    dock = make_worklist(folder)
    page(dock, qtbot)
    screen = weakref.ref(get_screen_slide(lrmil_layers(viewer, folder / "b.tif", role="slide")[0]))
    page(dock, qtbot)
    page(dock, qtbot, -1)
    page(dock, qtbot, -1)
    qtbot.waitUntil(lambda: gc.collect() >= 0 and screen() is None, timeout=WAIT_MS)


def test_paging_back_and_forth_without_waiting_ends_at_the_slide_that_is_named(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    """A slide whose layers were just removed is still in the session for a turn of the event loop."""
    dock = make_worklist(folder)
    page(dock, qtbot)
    for by in (1, -1, -1, 1, -1):
        (dock.next if by > 0 else dock.previous).click()
        qtbot.waitUntil(lambda: dock.pager.has_arrived, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: settled(dock), timeout=WAIT_MS)
    assert dock.current.name == dock.session.slide.name == "a" and shown_slides(viewer) == ["a"]
    assert {layer.metadata["napari_lrmil"]["path"] for layer in lrmil_layers(viewer)} == {str(folder / "a.tif")}


def test_paging_keeps_the_rotation_and_returns_to_where_a_slide_was_left(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    rotate_view(viewer, 90)
    fly_to(viewer, (200.0, 150.0), 20)
    left_at_a = shown_place(viewer)
    page(dock, qtbot)
    whole = shown_place(viewer)
    assert whole.rotation == 90 and whole.centre_um == pytest.approx((320, 250), abs=1), "all of a new slide"
    assert whole.um_per_pixel > 1.5 * left_at_a.um_per_pixel
    rotate_view(viewer, -15)
    fly_to(viewer, (400.0, 300.0), 10)
    left_at_b = shown_place(viewer)
    page(dock, qtbot, -1)
    assert_at(viewer, left_at_a)
    page(dock, qtbot)
    assert_at(viewer, left_at_b)
    dock.open_paths([folder])
    qtbot.waitUntil(lambda: dock.current is not None and dock.current.name == "a" and settled(dock), timeout=WAIT_MS)
    assert_at(viewer, left_at_a)


def test_drawn_regions_and_the_measured_line_are_there_when_the_user_pages_back(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    actions, tools, path = dock.analyse.viewer_actions, dock.analyse.navigation.tools, folder / "a.tif"
    actions.start_drawing().add(np.array([[50.0, 60], [50, 300], [200, 300], [200, 60]]), shape_type="polygon")
    tools.measure.click()
    tools.add_point((10.0, 20.0))
    tools.add_point((40.0, 60.0))
    qtbot.waitUntil(lambda: len(dock.session.regions) == 1, timeout=WAIT_MS)
    (drawn,) = dock.session.regions
    page(dock, qtbot)
    assert not lrmil_layers(viewer, path) and not dock.session.regions
    rotate_view(viewer, 30)
    page(dock, qtbot, -1)
    qtbot.waitUntil(lambda: len(dock.session.regions) == 1, timeout=WAIT_MS)
    assert shapely.equals_exact(dock.session.regions[0].geometry, drawn.geometry, 1e-6)
    line, _ = lrmil_layers(viewer, path, role="distance")
    assert line.name.startswith("Distance 50.0 µm") and line.visible and actions.region_layer().visible
    assert line.data[0] == pytest.approx(np.array([[20, 10], [60, 40]]))
    remove_layers(viewer, [actions.region_layer()])
    qtbot.waitUntil(lambda: not dock.session.regions, timeout=WAIT_MS)
    page(dock, qtbot)
    page(dock, qtbot, -1)
    assert actions.region_layer() is None, "the user has removed it"
    assert len(lrmil_layers(viewer, path, role="distance")) == 2


def shown_place(viewer: Any) -> Place:
    (slide,) = [layer for layer in lrmil_layers(viewer, role="slide") if layer.visible]
    return place_on(viewer, slide)


def assert_at(viewer: Any, place: Place) -> None:
    """Check the place, and that map and slide are rotated alike."""
    shown = shown_place(viewer)
    assert shown.rotation == pytest.approx(place.rotation)
    assert shown.centre_um == pytest.approx(place.centre_um) and shown.um_per_pixel == pytest.approx(place.um_per_pixel)
    (slide,) = [layer for layer in lrmil_layers(viewer, role="slide") if layer.visible]
    maps = [layer for layer in lrmil_layers(viewer, role="attention") if layer.visible]
    assert maps and all(slide_affine(layer) == pytest.approx(slide_affine(slide)) for layer in maps)


def test_a_broken_slide_says_so_in_its_row_and_leaves_no_other_on_the_canvas(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    dock.list.tree.itemClicked.emit(dock.list._items[3], 0)
    qtbot.waitUntil(lambda: dock.order.current == 3 and settled(dock), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: shown_slides(viewer) == [], timeout=WAIT_MS)
    assert dock.review.answer.text() == "Failed" and dock.current.problem in dock.review.details.text()
    assert page(dock, qtbot, -1) == "c" and shown_slides(viewer) == ["c"]


def test_a_slide_that_vanishes_while_it_is_shown_says_so(make_worklist: MakeWorklist, folder: Path, qtbot: Any) -> None:
    dock = make_worklist(folder)
    (folder / "a.tif").unlink()
    qtbot.waitUntil(lambda: state_of(dock, "a") == "failed", timeout=WAIT_MS)
    assert "not there any more" in dock.review.details.text()
    (folder / "b.tif").unlink()
    dock.next.click()
    qtbot.waitUntil(lambda: state_of(dock, "b") == "failed", timeout=WAIT_MS)
    assert page(dock, qtbot) == "c"


def test_an_answer_of_another_model_is_said_and_not_drawn(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    write_result(folder / "predictions", "a", {"normal": 0.4, "lesion": 0.6}, sha256="9" * 64)
    dock = make_worklist(folder)
    assert "answer of another model: demo (99999999)" in dock.review.details.text()
    assert state_of(dock, "a") == "done ⚠" and dock.session.prediction is None
    assert not lrmil_layers(viewer, role="attention")


def test_warnings_about_a_slide_stand_before_those_of_its_model_and_mark_its_row(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    file = folder / "predictions" / "a" / "prediction.json"
    stored = json.loads(file.read_text())
    notice, warning = f"{ABOUT_MODEL}demo: knows phantoms, not tissue.", "little tissue: 3 LR patches"
    file.write_text(json.dumps(stored | {"warnings": [notice, warning]}))
    dock = make_worklist(folder)
    lines = dock.review.details.text().splitlines()
    assert lines[0] == f"⚠ {warning}" and "knows phantoms" in lines[-1]
    assert state_of(dock, "a") == "done ⚠" and warning in dock.list._items[0].toolTip(2)
    file.write_text(json.dumps(stored | {"warnings": [notice]}))
    dock.refresh_entry(0)
    assert state_of(dock, "a") == "done", "the model says so on every slide"


def test_run_all_fills_the_list_in_the_background(make_worklist: MakeWorklist, folder: Path, qtbot: Any) -> None:
    dock = make_worklist(folder)
    assert dock.run_all.isEnabled() and dock.run_all.text() == "Run all"
    dock.run_all.click()
    assert dock.run_all.text() == "Cancel" and not dock.progress.isHidden()
    qtbot.waitUntil(lambda: not dock.filling.is_running, timeout=WAIT_MS)
    assert [state_of(dock, name) for name in (*NAMES, "d broken")] == ["done", "done", "done", "failed"]
    assert dock.progress.isHidden() and (folder / "predictions" / "failures.csv").exists()
    assert "3 done, 1 failed" in dock.summary.text()


def test_run_all_keeps_answers_of_another_model(make_worklist: MakeWorklist, folder: Path, qtbot: Any) -> None:
    write_result(folder / "predictions", "a", {"normal": 0.4, "lesion": 0.6}, sha256="9" * 64)
    stored = (folder / "predictions" / "a" / "prediction.json").read_bytes()
    dock = make_worklist(folder)
    page(dock, qtbot)
    assert "1 slide has an answer of another model, which is kept" in dock.run_all.toolTip()
    dock.run_all.click()
    qtbot.waitUntil(lambda: not dock.filling.is_running, timeout=WAIT_MS)
    assert [state_of(dock, name) for name in NAMES] == ["done ⚠", "done", "done"]
    assert (folder / "predictions" / "a" / "prediction.json").read_bytes() == stored


def test_an_answer_of_the_analyse_dock_is_stored_with_the_list(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    teacher = folder / "predictions" / "a" / "teacher_attention.h5"
    assert not teacher.exists() and not dock.answers.run_store.is_busy, "a restored answer is not stored again"
    dock.analyse.run(TeacherPatches.ALL)
    qtbot.waitUntil(lambda: teacher.exists() and not dock.answers.run_store.is_busy, timeout=WAIT_MS)
    prediction = dock.session.prediction
    assert prediction.teacher is not None and dock.pager.answer(folder / "a.tif") is prediction
    page(dock, qtbot)
    page(dock, qtbot, -1)
    assert dock.session.prediction is prediction


def test_a_cancelled_run_keeps_what_is_done(make_worklist: MakeWorklist, folder: Path, qtbot: Any) -> None:
    dock = make_worklist(folder)
    dock.run_all.click()
    dock.run_all.click()
    qtbot.waitUntil(lambda: not dock.filling.is_running, timeout=WAIT_MS)
    assert dock.run_all.text() == "Run all" and state_of(dock, "a") == "done"


# ---------------------------------------------------------------- the model of phantoms beside tissue


@pytest.fixture
def mixed(phantoms: Path, stored: Path, tmp_path: Path) -> Path:
    """Return a folder with a phantom, and tissue after it."""
    import shutil

    folder = copy_cohort(phantoms, tmp_path / "mixed", test=1).parent
    shutil.copy(stored / "a.tif", folder / "tissue.tif")
    shutil.copy(next(folder.glob("test*.tif*")), folder / "phantom.tif")
    for file in folder.glob("test*"):
        file.unlink()
    return folder


def open_without_model(viewer: Any, folder: Path, qtbot: Any) -> Any:
    """Open the Worklist dock as a new user does, without a model, and wait for the phantom's answer."""
    from napari_lrmil.plugin.qt.docks import open_dock
    from napari_lrmil.plugin.worklist.widget import TITLE, WorklistWidget

    dock = open_dock(viewer, WorklistWidget, TITLE)
    dock.open_paths([folder])
    qtbot.waitUntil(lambda: dock.current is not None and settled(dock), timeout=WAIT_MS)
    assert dock.current.name == "phantom" and dock.session.bundle_name == "demo"
    return dock


def show_tissue(dock: Any, qtbot: Any) -> None:
    dock.next.click()
    qtbot.waitUntil(lambda: dock.current.name == "tissue" and dock.pager.has_arrived, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: not dock.pager.is_busy and not dock.pager.is_completing, timeout=WAIT_MS)


def test_a_model_that_a_phantom_brought_along_runs_on_no_tissue(viewer: Any, mixed: Path, qtbot: Any) -> None:
    dock = open_without_model(viewer, mixed, qtbot)
    assert not (mixed / "predictions" / "tissue").exists(), "nothing is computed ahead"
    show_tissue(dock, qtbot)
    assert dock.session.bundle is None and state_of(dock, "tissue") == "new"
    page(dock, qtbot, -1)
    dock.run_all.click()
    qtbot.waitUntil(lambda: not dock.filling.is_running, timeout=WAIT_MS)
    assert state_of(dock, "tissue") == "new ⚠" and state_of(dock, "phantom") == "done ⚠", "it has little tissue"
    assert not (mixed / "predictions" / "tissue").exists()
    assert "no model is chosen for this slide; choose one and run again" in dock.list._items[1].toolTip(2)
    assert last_message().startswith("1 slide was not run")
    dock.pager.stop()
    qtbot.waitUntil(lambda: not dock.pager.is_busy, timeout=WAIT_MS)


def test_tissue_that_the_user_lets_a_model_of_phantoms_answer_is_marked(viewer: Any, mixed: Path, qtbot: Any) -> None:
    dock = open_without_model(viewer, mixed, qtbot)
    show_tissue(dock, qtbot)
    dock.analyse.open_model("demo")
    qtbot.waitUntil(lambda: settled(dock), timeout=WAIT_MS)
    qtbot.waitUntil(lambda: state_of(dock, "tissue") == "done ⚠", timeout=WAIT_MS)
    assert "demo: phantoms only" in dock.list._items[1].toolTip(2)
    details = dock.review.details.text()
    assert "⚠ demo: It knows phantoms, not tissue" in details and "Trained on" not in details, "what counts is in sight"
    tip = dock.list._items[0].toolTip(2)
    assert state_of(dock, "phantom") == "done ⚠" and "little tissue" in tip and "phantoms only" not in tip
    dock.pager.stop()
    qtbot.waitUntil(lambda: not dock.pager.is_busy, timeout=WAIT_MS)


# ---------------------------------------------------------------- list


def test_sorting_searching_and_filtering(make_worklist: MakeWorklist, folder: Path, qtbot: Any) -> None:
    dock = make_worklist(folder)
    rows = lambda: [dock.list.tree.topLevelItem(i).text(0) for i in range(dock.list.tree.topLevelItemCount())]  # noqa: E731
    dock.list.sort_box.setCurrentIndex(dock.list.sort_box.findData(SortKey.NAME))
    dock.list.direction.click()
    assert rows() == ["d broken", "c", "b", "a"]
    dock.list.search.setText("BROK")
    assert rows() == ["d broken"]
    dock.list.search.clear()
    dock.list.filter_box.setCurrentText("Done")
    assert rows() == ["b", "a"]
    assert not dock.previous.isEnabled() or dock.order.step(-1) == 1, "paging follows the list"


def test_a_table_is_listed_by_patient_and_says_what_it_names_twice(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    table = folder / "cohort.csv"
    table.write_text("slide,patient\na.tif,P1\nb.tif,P2\nc.tif,P1\na.tif,P1\ngone.tif,P3\n")
    dock = make_worklist(table)
    assert [entry.name for entry in dock.order.entries] == ["a", "b", "c", "gone"]
    assert "in lines 2 and 5" in dock.review.details.text() and state_of(dock, "gone") == "failed"
    dock.list.by_patient.click()
    tree = dock.list.tree
    groups = [tree.topLevelItem(i) for i in range(tree.topLevelItemCount())]
    assert [group.text(0) for group in groups] == ["P1", "P2", "P3"]
    assert [groups[0].child(i).text(0) for i in range(2)] == ["a", "c"]


def test_a_dropped_folder_opens_as_a_list(make_worklist: MakeWorklist, folder: Path, qtbot: Any) -> None:
    from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
    from qtpy.QtGui import QDropEvent

    dock = make_worklist()
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(folder))])
    buttons, keys = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    dock.dropEvent(QDropEvent(QPointF(5, 5), Qt.DropAction.CopyAction, data, buttons, keys))
    qtbot.waitUntil(lambda: dock.current is not None and settled(dock), timeout=WAIT_MS)
    assert len(dock.order.entries) == 4


def test_a_folder_without_slides_and_a_table_that_is_none_are_refused(
    make_worklist: MakeWorklist, folder: Path, tmp_path: Path, qtbot: Any
) -> None:
    dock = make_worklist()
    for path in (tmp_path / "empty", tmp_path / "table.csv"):
        if path.suffix:
            path.write_text("name\nx\n")
        else:
            path.mkdir()
        dock.open_paths([path])
        qtbot.waitUntil(lambda path=path: last_message().startswith(path.name), timeout=WAIT_MS)
    assert dock.order.entries == [] and not dock.run_all.isEnabled()


# ---------------------------------------------------------------- verdicts


def test_verdicts_are_stored_at_once_with_comment_and_undo(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    path = folder / "predictions" / REVIEW_FILE
    dock.review.comment.setText("clear case")
    dock.review.buttons[Verdict.AGREE].click()
    (row,) = read_review(path).rows
    assert (row.slide, row.reviewer, row.verdict, row.comment) == ("a", "Anna", Verdict.AGREE, "clear case")
    assert row.label == row.predicted == dock.current.answer.predicted and not row.is_blind
    assert state_of(dock, "a") == "✓ agree" and dock.current.status is Status.REVIEWED
    dock.review.comment.setText("clear case, seen twice")
    dock.review.comment.editingFinished.emit()
    assert read_review(path).rows[0].comment == "clear case, seen twice"
    page(dock, qtbot)
    assert dock.review.comment.text() == ""
    dock.review.buttons[Verdict.DISAGREE].click()
    assert [r.verdict for r in read_review(path).rows] == [Verdict.AGREE, Verdict.DISAGREE]
    states = [dock.list._items[row] for row in (0, 1)]
    assert [item.text(2) for item in states] == ["✓ agree", "✗ disagree"]
    assert states[0].foreground(2).color() != states[1].foreground(2).color()
    dock.review.undo.click()
    assert [r.slide for r in read_review(path).rows] == ["a"] and state_of(dock, "b") == "done"
    assert last_message() == "Taken back on b: disagree."
    dock.review.undo.click()
    qtbot.waitUntil(lambda: dock.current.name == "a" and settled(dock), timeout=WAIT_MS)
    assert read_review(path).rows[0].comment == "clear case"
    assert last_message() == "Taken back on a: the change of the comment. The verdict 'agree' stays."


def test_keys_page_and_judge_but_a_comment_keeps_its_letters(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    press(dock, "Y")
    assert dock.current.review is not None and dock.current.review.verdict is Verdict.AGREE
    qtbot.keyClicks(dock.review.comment, "nun")
    assert dock.review.comment.text() == "nun" and dock.current.review.verdict is Verdict.AGREE
    press(dock, "PgDown")
    qtbot.waitUntil(lambda: dock.current.name == "b" and settled(dock), timeout=WAIT_MS)
    assert read_review(folder / "predictions" / REVIEW_FILE).rows[0].comment == "nun", "stored when the slide is left"
    press(dock, "N")
    press(dock, "Ctrl+Backspace")
    assert dock.current.review is None
    press(dock, "PgUp")
    qtbot.waitUntil(lambda: dock.current.name == "a" and settled(dock), timeout=WAIT_MS)


def test_a_comment_without_a_verdict_waits_for_its_slide(make_worklist: MakeWorklist, folder: Path, qtbot: Any) -> None:
    dock = make_worklist(folder)
    dock.review.comment.setText("look again")
    page(dock, qtbot)
    assert dock.review.comment.text() == ""
    page(dock, qtbot, -1)
    assert dock.review.comment.text() == "look again"
    assert not (folder / "predictions" / REVIEW_FILE).exists()


def test_verdicts_need_a_name_and_each_name_has_its_own(make_worklist: MakeWorklist, folder: Path, qtbot: Any) -> None:
    dock = make_worklist(folder, reviewer="")
    assert not dock.review.buttons[Verdict.AGREE].isEnabled()
    for name in ("Anna", "Ben"):
        dock.review.reviewer.setText(name)
        dock.review.reviewer.editingFinished.emit()
        assert dock.current.review is None
        dock.review.buttons[Verdict.UNSURE].click()
    assert [row.reviewer for row in read_review(folder / "predictions" / REVIEW_FILE).rows] == ["Anna", "Ben"]
    assert dock.session.settings_store.remembered_reviewer() == "Ben"


def test_blind_reading_hides_the_answer_until_the_class_is_given(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist()
    dock.review.blind.click()
    dock.open_paths([folder])
    qtbot.waitUntil(lambda: dock.current is not None and settled(dock), timeout=WAIT_MS)
    answer = dock.current.answer
    texts = [dock.review.answer.text(), dock.review.details.text(), dock.list._items[0].text(1)]
    texts.append(dock.list._items[0].toolTip(1))
    assert not any(answer.predicted in text for text in texts) and "hidden" in texts[0]
    assert dock.session.prediction is None and not lrmil_layers(viewer, role="attention")
    assert dock.analyse.results.headline.text().startswith("Hidden until your verdict (blind).")
    assert dock.session.settings_store.remembered_blind()
    assert dock.review.buttons[Verdict.AGREE].isHidden() and not dock.review.class_buttons["lesion"].isHidden()
    dock.review.class_buttons["lesion"].click()
    (row,) = read_review(folder / "predictions" / REVIEW_FILE).rows
    assert row.is_blind and row.label == "lesion"
    assert row.verdict is (Verdict.AGREE if answer.predicted == "lesion" else Verdict.DISAGREE)
    assert dock.review.answer.text().startswith(answer.text)
    qtbot.waitUntil(lambda: bool(lrmil_layers(viewer, role="attention")), timeout=WAIT_MS)
    assert dock.session.prediction is not None


def test_a_list_opens_blind_as_it_was_left_and_a_run_ends_the_blinding_of_its_slide(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    SettingsStore().remember_blind(True)
    dock = make_worklist(folder)
    assert dock.review.blind.isChecked() and dock.session.prediction is None
    dock.analyse.run(TeacherPatches.NONE)
    qtbot.waitUntil(lambda: dock.session.prediction is not None and not dock.answers.run_store.is_busy, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: not dock.review.buttons[Verdict.AGREE].isHidden(), timeout=WAIT_MS)
    dock.reviewing.open(folder / "predictions")
    assert not dock.reviewing.is_hidden(dock.current), "an answer that was seen is not forgotten with the list"
    dock.review.buttons[Verdict.AGREE].click()
    assert not read_review(folder / "predictions" / REVIEW_FILE).rows[0].is_blind


def test_an_answer_that_was_seen_before_the_program_was_killed_is_not_read_blind(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    SettingsStore().remember_blind(True)
    dock = make_worklist(folder)
    dock.analyse.run(TeacherPatches.NONE)
    qtbot.waitUntil(lambda: dock.session.prediction is not None and not dock.answers.run_store.is_busy, timeout=WAIT_MS)
    dock = open_again(dock, make_worklist, viewer, folder, qtbot)
    assert dock.current.name == "a" and not dock.reviewing.is_hidden(dock.current)
    dock.review.buttons[Verdict.AGREE].click()
    page(dock, qtbot)
    assert dock.reviewing.is_hidden(dock.current), "the answer of b was never shown"
    assert "not stored as blind" not in dock.review.details.text()
    dock.review.class_buttons["lesion"].click()
    rows = read_review(folder / "predictions" / REVIEW_FILE).rows
    assert [(row.slide, row.is_blind) for row in rows] == [("a", False), ("b", True)]


def test_answers_that_stood_in_the_list_are_hidden_but_no_verdict_on_them_is_blind(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    assert (folder / "predictions" / SEEN_FILE).read_text().count("Anna,list") >= 2
    dock = open_again(dock, make_worklist, viewer, folder, qtbot)
    page(dock, qtbot)
    assert dock.reviewing.is_hidden(dock.current) and "not stored as blind" in dock.review.details.text()
    dock.review.class_buttons["lesion"].click()
    assert not read_review(folder / "predictions" / REVIEW_FILE).rows[0].is_blind
    dock.review.reviewer.setText("Ben")
    dock.review.reviewer.editingFinished.emit()
    dock.review.undo.click()
    page(dock, qtbot)
    assert dock.reviewing.is_hidden(dock.current) and "not stored as blind" not in dock.review.details.text()


def test_a_list_sorted_by_class_does_not_tell_hidden_answers(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    SettingsStore().remember_blind(True)
    dock = make_worklist(folder)
    dock.list.sort_box.setCurrentIndex(dock.list.sort_box.findData(SortKey.PROBABILITY))
    assert dock.order.rows == [0, 1, 2, 3]


def test_a_verdict_of_another_program_is_neither_overwritten_nor_lost(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    elsewhere = ReviewFile(folder / "predictions" / REVIEW_FILE, "Anna")
    elsewhere.record(ReviewRow("a", "", Verdict.UNSURE, comment="from the other room"))
    elsewhere.record(ReviewRow("b", "", Verdict.AGREE))
    dock.review.buttons[Verdict.AGREE].click()
    assert "not overwritten" in last_message()
    assert state_of(dock, "a") == "? unsure" and state_of(dock, "b") == "✓ agree"
    assert read_review(elsewhere.path).rows[0].comment == "from the other room"
    dock.review.buttons[Verdict.AGREE].click()
    assert read_review(elsewhere.path).rows[0].verdict is Verdict.AGREE


def test_a_file_that_is_no_table_of_verdicts_is_said_and_left_alone(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    path = folder / "predictions" / REVIEW_FILE
    path.write_text("my,own,notes\n1,2,3\n")
    dock = make_worklist(folder)
    dock.review.buttons[Verdict.AGREE].click()
    assert "no column slide" in last_message() and path.read_text().startswith("my,own,notes")
    path.unlink()
    dock.review.buttons[Verdict.AGREE].click()
    assert len(read_review(path).rows) == 1


# ---------------------------------------------------------------- annotations


def test_drawn_regions_are_stored_with_their_class_and_come_back(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    dock.review.annotation_class.setCurrentText("Necrosis")
    dock.review.draw.click()
    (layer,) = lrmil_layers(viewer, role="annotation")
    assert layer.mode == "add_polygon" and dock.review.draw.isChecked()
    viewer.layers.selection.active = lrmil_layers(viewer, role="slide")[0]
    assert not dock.review.draw.isChecked(), "another layer has the mouse"
    dock.review.draw.click()
    assert dock.review.draw.isChecked() and "double-click to close" in dock.review.draw.toolTip()
    dock.review.draw.click()
    assert layer.mode == "pan_zoom" and not dock.review.draw.isChecked()
    dock.review.draw.click()
    layer.add(np.array([[50.0, 50.0], [50.0, 150.0], [150.0, 150.0]]), shape_type="polygon")
    path = folder / "predictions" / "a" / "annotations_Anna.geojson"
    qtbot.waitUntil(path.exists, timeout=WAIT_MS)
    (feature,) = json.loads(path.read_text())["features"]
    assert feature["properties"]["classification"] == {"name": "Necrosis", "color": [0, 0, 0]}
    assert sorted({x for x, _ in feature["geometry"]["coordinates"][0]}) == [100, 300]
    assert dock.session.regions == (), "annotations are no region of interest"
    page(dock, qtbot)
    assert not lrmil_layers(viewer, role="annotation") and dock.review.annotations.text() == ""
    assert not dock.review.draw.isChecked()
    page(dock, qtbot, -1)
    qtbot.waitUntil(lambda: bool(lrmil_layers(viewer, role="annotation")), timeout=WAIT_MS)
    (layer,) = lrmil_layers(viewer, role="annotation")
    assert list(layer.features["class"]) == ["Necrosis"] and dock.review.annotations.text() == "1 annotation"
    layer.mode, layer.selected_data = "select", {0}
    dock.review.annotation_class.textActivated.emit("Tumor")
    qtbot.waitUntil(lambda: "Tumor" in path.read_text(), timeout=WAIT_MS)


@pytest.mark.parametrize("moment", ["opening", "arrival", "answer"])
def test_draw_that_is_pressed_while_a_slide_arrives_draws_on_that_slide(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any, moment: str
) -> None:
    dock = make_worklist(folder)
    pager, presses = dock.pager, []

    def press_draw(is_moment: bool) -> None:
        if is_moment and dock.current.name == "b" and not presses:
            presses.append(moment)
            dock.review.draw.click()

    if moment == "arrival":  # emitted once the slide is on the canvas, before its annotations are opened
        pager.progress.connect(lambda _: press_draw(pager.has_arrived))
    elif moment == "answer":
        pager.arrived.connect(lambda path: press_draw(True))
    dock.next.click()
    if moment == "opening":
        press_draw(not pager.has_arrived)
    qtbot.waitUntil(lambda: bool(presses) and settled(dock), timeout=WAIT_MS)
    (layer,) = lrmil_layers(viewer, folder / "b.tif", role="annotation")
    assert viewer.layers.selection.active is layer and layer.mode == "add_polygon" and dock.review.draw.isChecked()
    layer.add(np.array([[50.0, 50.0], [50.0, 150.0], [150.0, 150.0]]), shape_type="polygon")
    qtbot.waitUntil((folder / "predictions" / "b" / "annotations_Anna.geojson").exists, timeout=WAIT_MS)
    assert not (folder / "predictions" / "a" / "annotations_Anna.geojson").exists()


def test_draw_that_is_pressed_before_another_slide_is_chosen_is_given_up(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    dock.next.click()
    dock.review.draw.click()
    page(dock, qtbot)
    assert dock.current.name == "c" and not dock.review.draw.isChecked()
    assert not lrmil_layers(viewer, role="annotation")


def test_annotations_that_qupath_changed_are_not_overwritten(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    dock.review.draw.click()
    (layer,) = lrmil_layers(viewer, role="annotation")
    path = folder / "predictions" / "a" / "annotations_Anna.geojson"
    path.write_text('{"type": "FeatureCollection", "features": []}')
    layer.add(np.array([[50.0, 50.0], [50.0, 150.0], [150.0, 150.0]]), shape_type="polygon")
    qtbot.waitUntil(lambda: "not overwritten" in last_message(), timeout=WAIT_MS)
    assert json.loads(path.read_text())["features"] == []
