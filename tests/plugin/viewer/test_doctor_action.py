"""The checks of the installation in the window: one entry in the help menu, and every result as it is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from napari_lrmil.core.doctor import FAILED, OK, Check
from napari_lrmil.plugin.viewer import doctor_action
from napari_lrmil.plugin.viewer.doctor_action import TITLE, DoctorDialog, add_doctor_action
from support.window import WAIT_MS


def test_the_help_menu_has_one_entry(viewer: Any) -> None:
    for _ in range(2):
        add_doctor_action(viewer)
    assert [action.text() for action in viewer.window.help_menu.actions()].count(TITLE) == 1


@pytest.mark.parametrize(("status", "end"), [(OK, "everything that was checked works"), (FAILED, "1 failed")])
def test_results_are_shown_as_plain_text(qtbot: Any, monkeypatch: pytest.MonkeyPatch, status: str, end: str) -> None:
    check = Check("cache", "<b>C:\\cache</b> seen", status, "do this")
    monkeypatch.setattr(doctor_action, "run_checks", lambda: iter([check]))
    dialog = DoctorDialog()
    qtbot.addWidget(dialog)
    text: Callable[[], str] = dialog.text.toPlainText
    qtbot.waitUntil(lambda: end in text(), timeout=WAIT_MS)
    assert f"{status}  cache: <b>C:\\cache</b> seen; do this" in text()
