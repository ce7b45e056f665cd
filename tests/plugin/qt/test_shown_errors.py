"""Errors as notifications: the reason is seen before the folder, as there is room for few words."""

from __future__ import annotations

import pytest
from napari.utils.notifications import notification_manager

from napari_lrmil.core.errors import SlideError
from napari_lrmil.plugin.qt.errors import folder_last, show_errors


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/data/results/slide-1: no result; choose another", "slide-1: no result; choose another (in /data/results/)"),
        ("/slide.svs: empty", "slide.svs: empty (in /)"),
        ("C:\\slides\\a.svs: level 0: cut off", "a.svs: level 0: cut off (in C:\\slides\\)"),
        ("/data/a.svs: first\nsecond", "a.svs: first\nsecond (in /data/)"),
        ("3/4 of the slides failed: see the rows", "3/4 of the slides failed: see the rows"),
        ("https://hub/model: not there", "https://hub/model: not there"),
        ("No model is chosen.", "No model is chosen."),
    ],
)
def test_the_folder_comes_last(message: str, shown: str) -> None:
    assert folder_last(message) == shown


def test_an_error_of_a_file_shows_its_reason_first() -> None:
    def fail() -> None:
        raise SlideError("/data/a.svs", "the file is empty")

    assert show_errors(fail) is None
    assert notification_manager.records[-1].message == "a.svs: the file is empty (in /data/)"
