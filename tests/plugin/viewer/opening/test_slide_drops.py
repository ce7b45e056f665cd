"""Tests of slides that are dropped on the canvas."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.plugin.viewer.layers import lrmil_layers
from napari_lrmil.plugin.viewer.opening.slide_drops import open_dropped_slides
from support.window import WAIT_MS, MakeDock, require_screen

require_screen()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the drops that were left to napari, which may ask for a reader."""
    from napari._qt.qt_viewer import QtViewer

    drops: list[Any] = []
    monkeypatch.setattr(
        QtViewer, "_qt_open", lambda _, names, stack, choose_plugin: drops.append((names, stack, choose_plugin))
    )
    return drops


@pytest.fixture
def preferences() -> Any:
    """Return napari's stored readers, and restore them after the test."""
    from napari.settings import get_settings

    plugins = get_settings().plugins
    before = dict(plugins.extension2reader)
    yield plugins
    plugins.extension2reader = before


def drop(viewer: Any, paths: Sequence[Path], *, alt: bool = False, target: Any = None) -> bool:
    """Drop files on the canvas, and return whether the drop was accepted."""
    from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
    from qtpy.QtGui import QDragEnterEvent, QDropEvent
    from qtpy.QtWidgets import QApplication

    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    modifiers = Qt.KeyboardModifier.AltModifier if alt else Qt.KeyboardModifier.NoModifier
    details = Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, modifiers
    target = target or viewer.window._qt_viewer
    QApplication.sendEvent(target, QDragEnterEvent(QPoint(50, 50), *details))  # without it Qt knows no target
    event = QDropEvent(QPointF(50, 50), *details)
    QApplication.sendEvent(target, event)
    return bool(event.isAccepted())


def names(viewer: Any) -> list[str]:
    return sorted(layer.name for layer in lrmil_layers(viewer, role="slide"))


def test_a_dropped_slide_opens_without_a_question_and_changes_no_preference(
    viewer: Any, slide_path: Path, qtbot: Any, asked: list[Any], preferences: Any
) -> None:
    before = dict(preferences.extension2reader)
    open_dropped_slides(viewer)
    assert drop(viewer, [slide_path])
    qtbot.waitUntil(lambda: names(viewer) == ["tissue"], timeout=WAIT_MS)
    assert not asked and preferences.extension2reader == before


def test_a_slide_dropped_on_the_welcome_text_opens_too(
    viewer: Any, slide_path: Path, qtbot: Any, asked: list[Any]
) -> None:
    open_dropped_slides(viewer)
    drop(viewer, [slide_path], target=viewer.window._qt_viewer._welcome_widget)
    qtbot.waitUntil(lambda: names(viewer) == ["tissue"], timeout=WAIT_MS)
    assert not asked


def test_other_files_and_the_alt_key_are_left_to_napari(
    viewer: Any, slide_path: Path, tmp_path: Path, asked: list[Any]
) -> None:
    (tmp_path / "table.csv").write_text("a,b\n")
    open_dropped_slides(viewer)
    drop(viewer, [tmp_path / "table.csv"])
    drop(viewer, [slide_path, tmp_path / "table.csv"])
    drop(viewer, [slide_path], alt=True)
    drop(viewer, [tmp_path])
    assert len(asked) == 4 and not names(viewer)


def test_a_reader_that_the_user_prefers_is_respected(
    viewer: Any, slide_path: Path, asked: list[Any], preferences: Any
) -> None:
    preferences.extension2reader = {"*.tif": "another-reader"}
    open_dropped_slides(viewer)
    drop(viewer, [slide_path])
    assert len(asked) == 1 and not names(viewer)
    assert preferences.extension2reader == {"*.tif": "another-reader"}


def test_several_slides_and_folders_go_to_the_list_of_slides(
    viewer: Any, slide_path: Path, tmp_path: Path, qtbot: Any, asked: list[Any]
) -> None:
    (tmp_path / "class").mkdir()
    second = Path(shutil.copy(slide_path, tmp_path / "class" / "second.tif"))
    lists: list[list[Path]] = []
    open_dropped_slides(viewer, lists.append)
    drop(viewer, [slide_path, second])
    drop(viewer, [tmp_path])
    qtbot.waitUntil(lambda: len(lists) == 2, timeout=WAIT_MS)
    assert lists == [[slide_path, second], [tmp_path]] and not asked and not names(viewer)


def test_a_slide_that_cannot_be_opened_is_said_in_a_sentence(
    viewer: Any, tmp_path: Path, qtbot: Any, asked: list[Any]
) -> None:
    from napari.utils.notifications import notification_manager

    open_dropped_slides(viewer)
    broken = tmp_path / "broken.svs"
    for content in (b"II*\0" + bytes(60), b"", b"no picture"):
        broken.write_bytes(content)
        count = len(notification_manager.records)
        assert drop(viewer, [broken]) and not asked
        qtbot.waitUntil(lambda count=count: len(notification_manager.records) > count, timeout=WAIT_MS)
        assert str(notification_manager.records[-1].message).startswith("broken.svs: ")
    assert not names(viewer)


def test_a_slide_that_is_open_already_is_shown_and_said(
    viewer: Any, make_dock: MakeDock, slide_path: Path, tmp_path: Path, qtbot: Any
) -> None:
    from napari.utils.notifications import notification_manager

    dock = make_dock(slide_path)
    second = Path(shutil.copy(slide_path, tmp_path / "second.tif"))
    drop(viewer, [second])
    qtbot.waitUntil(lambda: dock.session.slide.path == second, timeout=WAIT_MS)
    drop(viewer, [slide_path])
    qtbot.waitUntil(lambda: dock.session.slide.path == slide_path, timeout=WAIT_MS)
    shown = [layer.name for layer in lrmil_layers(viewer, role="slide") if layer.visible]
    assert names(viewer) == ["second", "tissue"] and shown == ["tissue"]
    assert notification_manager.records[-1].message == "tissue is open already, and shown now."


def test_a_series_that_is_open_already_is_shown_whichever_of_its_files_comes(
    viewer: Any, shared_data: Path, slide_path: Path, make_dock: MakeDock, qtbot: Any
) -> None:
    folder = shared_data / "slides" / "CMU-1-Small-Region_dicom"
    dock = make_dock(folder)
    drop(viewer, [slide_path])
    qtbot.waitUntil(lambda: dock.session.slide.path == slide_path, timeout=WAIT_MS)
    drop(viewer, [sorted(folder.glob("*.dcm"))[1]])
    qtbot.waitUntil(lambda: dock.session.slide.path == folder, timeout=WAIT_MS)
    assert names(viewer) == [folder.name, "tissue"]
