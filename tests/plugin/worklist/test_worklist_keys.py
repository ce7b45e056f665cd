"""The Worklist dock while another slide is on the canvas, and keys of its text fields, in a real window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.core.worklist.review import REVIEW_FILE, Verdict, read_review
from napari_lrmil.plugin.viewer.layers import add_layers, lrmil_layers
from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers
from napari_lrmil.plugin.worklist.review_panel import ANSWER_HIDDEN, NO_NAME, OPENING
from support.window import WAIT_MS
from support.worklist import MakeWorklist, page, press, settled


def rows_of(folder: Path) -> tuple[Any, ...]:
    return read_review(folder / "predictions" / REVIEW_FILE).rows


def activate(viewer: Any, qtbot: Any) -> Any:
    """Make the window active, so that Qt delivers its shortcuts, and return the application."""
    from qtpy.QtWidgets import QApplication

    window = viewer.window._qt_window
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow, timeout=WAIT_MS)
    return QApplication.instance()


def key(qtbot: Any, viewer: Any, key: str, modifier: Any = None) -> None:
    """Press a key in whatever widget has the focus."""
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QApplication

    focus = QApplication.focusWidget() or viewer.window._qt_viewer.canvas.native
    qtbot.keyClick(focus, getattr(Qt.Key, f"Key_{key}"), modifier or Qt.KeyboardModifier.NoModifier)


def test_no_verdict_goes_to_the_list_while_another_slide_is_on_the_canvas(
    make_worklist: MakeWorklist, folder: Path, slide_path: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    dock.review.draw.click()
    add_layers(viewer, read_slide_layers(slide_path))
    qtbot.waitUntil(lambda: dock.session.slide.path == slide_path, timeout=WAIT_MS)
    sentence = f"The canvas shows another slide ({slide_path.name}). Choose a slide of the list to go on."
    assert dock.review.answer.text() == sentence and not dock.review.draw.isChecked()
    blocked = [*dock.review.buttons.values(), dock.review.draw, dock.review.comment]
    assert not any(widget.isEnabled() for widget in blocked)
    for name in "YNU":
        press(dock, name)
    dock.reviewing.give(Verdict.AGREE, "")
    assert rows_of(folder) == () and dock.review.hint.text() == sentence
    dock.list.tree.itemClicked.emit(dock.list._items[0], 0)
    qtbot.waitUntil(lambda: dock.session.slide.name == "a" and settled(dock), timeout=WAIT_MS)
    assert dock.review.answer.text().startswith(dock.current.answer.text) and dock.review.hint.text() == ""
    press(dock, "Y")
    dock.review.draw.click()
    assert [row.slide for row in rows_of(folder)] == ["a"]
    assert len(lrmil_layers(viewer, folder / "a.tif", role="annotation")) == 1


def test_a_slide_that_is_being_opened_shows_no_answer_and_takes_no_verdict(
    make_worklist: MakeWorklist, folder: Path, qtbot: Any
) -> None:
    dock = make_worklist(folder)
    dock.list.tree.itemClicked.emit(dock.list._items[2], 0)
    assert not dock.pager.has_arrived and dock.review.answer.text() == OPENING and dock.review.details.text() == ""
    press(dock, "U")
    assert rows_of(folder) == ()
    qtbot.waitUntil(lambda: dock.current.name == "c" and settled(dock), timeout=WAIT_MS)
    press(dock, "U")
    assert [row.slide for row in rows_of(folder)] == ["c"]


def test_the_key_of_a_hidden_button_gives_no_verdict(make_worklist: MakeWorklist, folder: Path, qtbot: Any) -> None:
    SettingsStore().remember_blind(True)
    dock = make_worklist(folder)
    for name in "YN":
        press(dock, name)
        assert dock.review.hint.text() == ANSWER_HIDDEN
    assert rows_of(folder) == () and dock.reviewing.is_hidden(dock.current)
    press(dock, "Alt+1")
    (row,) = rows_of(folder)
    assert row.is_blind and not dock.reviewing.is_hidden(dock.current) and dock.review.hint.text() == ""
    press(dock, "Alt+2")
    assert rows_of(folder) == (row,), "the answer is shown now, so no blind class can be given"


def test_a_verdict_key_without_a_name_says_so_and_goes_to_the_name(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any
) -> None:
    dock = make_worklist(folder, reviewer="")
    application = activate(viewer, qtbot)
    dock._focus_canvas()
    key(qtbot, viewer, "Y")
    assert dock.review.hint.text() == NO_NAME and application.focusWidget() is dock.review.reviewer
    qtbot.keyClicks(application.focusWidget(), "Dr Anna")
    key(qtbot, viewer, "Return")
    assert dock.review.hint.text() == "" and dock.reviewing.reviewer == "Dr Anna"
    key(qtbot, viewer, "Y")
    assert [row.reviewer for row in rows_of(folder)] == ["Dr Anna"] and dock.review.reviewer.text() == "Dr Anna"


@pytest.mark.parametrize("end", ["Return", "Escape"])
def test_enter_and_esc_end_a_comment_and_its_keys_are_no_shortcuts(
    make_worklist: MakeWorklist, folder: Path, viewer: Any, qtbot: Any, end: str
) -> None:
    from qtpy.QtCore import Qt

    dock = make_worklist(folder)
    activate(viewer, qtbot)
    dock._focus_canvas()
    key(qtbot, viewer, "Y")
    dock.review.comment.setFocus()
    qtbot.keyClicks(dock.review.comment, "any doubt")
    key(qtbot, viewer, "Backspace", Qt.KeyboardModifier.ControlModifier)
    key(qtbot, viewer, "PageDown")
    assert dock.review.comment.text() == "any " and dock.current.name == "a" and len(rows_of(folder)) == 1
    key(qtbot, viewer, end)
    stored = "any" if end == "Return" else ""
    assert [(row.verdict, row.comment) for row in rows_of(folder)] == [(Verdict.AGREE, stored)]
    key(qtbot, viewer, "N")
    assert [(row.verdict, row.comment) for row in rows_of(folder)] == [(Verdict.DISAGREE, stored)]
    key(qtbot, viewer, "PageDown")
    qtbot.waitUntil(lambda: dock.current.name == "b" and settled(dock), timeout=WAIT_MS)
    assert dock.review.comment.text() == "" and page(dock, qtbot, -1) == "a"
