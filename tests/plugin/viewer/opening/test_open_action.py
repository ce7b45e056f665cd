"""Tests of Open slide…: in the file menu and in the dock, without napari's question for a reader."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.plugin.viewer.layers import lrmil_layers
from napari_lrmil.plugin.viewer.opening.open_action import FILTER, TITLE, add_open_action
from napari_lrmil.plugin.viewer.opening.slide_drops import open_dropped_slides
from support.window import WAIT_MS, MakeDock, require_screen

require_screen()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the questions for a reader that napari would have asked."""
    from napari._qt.dialogs import qt_reader_dialog
    from napari._qt.qt_viewer import QtViewer

    questions: list[Any] = []
    monkeypatch.setattr(qt_reader_dialog, "handle_gui_reading", lambda *words, **_: questions.append(words))
    monkeypatch.setattr(QtViewer, "_qt_open", lambda *words, **_: questions.append(words))
    return questions


def answer(monkeypatch: pytest.MonkeyPatch, paths: list[Path]) -> list[tuple[Any, ...]]:
    """Answer the next file dialogs with these files, and return what they were asked with."""
    from qtpy.QtWidgets import QFileDialog

    calls: list[tuple[Any, ...]] = []

    def choose(*words: Any) -> tuple[list[str], str]:
        calls.append(words)
        return [str(path) for path in paths], FILTER

    monkeypatch.setattr(QFileDialog, "getOpenFileNames", choose)
    return calls


def menu_action(viewer: Any) -> Any:
    [action] = [action for action in viewer.window.file_menu.actions() if action.text() == TITLE]
    return action


def names(viewer: Any) -> list[str]:
    return sorted(layer.name for layer in lrmil_layers(viewer, role="slide"))


def test_the_file_menu_begins_with_one_entry_that_opens_slides_without_a_question(
    viewer: Any, slide_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    from napari.settings import get_settings

    before = dict(get_settings().plugins.extension2reader)
    for _ in range(2):
        add_open_action(viewer)
    assert viewer.window.file_menu.actions()[0] is menu_action(viewer)
    answer(monkeypatch, [slide_path])
    menu_action(viewer).trigger()
    assert names(viewer) == ["tissue"] and not asked
    assert get_settings().plugins.extension2reader == before


def test_the_dock_opens_slides_from_the_folder_of_the_last_one(
    make_dock: MakeDock, viewer: Any, slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    dock = make_dock(slide_path)
    second = Path(shutil.copy(slide_path, tmp_path / "second.tif"))
    calls = answer(monkeypatch, [second])
    dock.open_slide.native.click()
    qtbot.waitUntil(lambda: dock.session.slide.path == second, timeout=WAIT_MS)
    assert calls[0][2] == str(slide_path.parent) and names(viewer) == ["second", "tissue"]
    answer(monkeypatch, [])
    dock.open_slide.native.click()
    assert names(viewer) == ["second", "tissue"], "a dialog that is cancelled opens nothing"


def test_several_slides_go_to_the_list_of_slides(
    viewer: Any, slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Path(shutil.copy(slide_path, tmp_path / "second.tif"))
    lists: list[list[Path]] = []
    open_dropped_slides(viewer, lists.append)
    add_open_action(viewer)
    answer(monkeypatch, [slide_path, second])
    menu_action(viewer).trigger()
    assert lists == [[slide_path, second]] and not names(viewer)


def test_a_broken_slide_is_said_in_a_sentence_and_leaves_the_canvas_empty(
    make_dock: MakeDock, viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari.utils.notifications import notification_manager

    dock = make_dock(None)
    viewer.window._qt_viewer.show_welcome_screen = True  # as in a window of napari itself
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"II*\0" + bytes(60))
    count = len(notification_manager.records)
    answer(monkeypatch, [broken])
    dock.open_slide.native.click()
    assert "broken.svs" in notification_manager.records[count].message
    assert not viewer.layers and not viewer.window._qt_viewer._welcome_widget.isVisible()
