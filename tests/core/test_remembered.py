"""What is kept between sessions; and that nothing which is broken stops anybody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from napari_lrmil.core.remembered import FOLDER, Remembered, Settings, default_folder

KEY = ("sha", "cpu", "student")


@pytest.fixture
def remembered(tmp_path: Path) -> Remembered:
    return Remembered(tmp_path / "config")


def test_what_was_said_is_there_next_time(remembered: Remembered) -> None:
    remembered.remember_mpp("one", 0.2649)
    remembered.remember_mpp("two", 0.5)
    told = Settings(64, "cpu", attention_mode="log", opacity=0.3, smooth=True, sections_open=("a",))
    remembered.save_settings(told)
    again = Remembered(remembered.folder)
    assert (again.mpp("one"), again.mpp("two"), again.mpp("three")) == (0.2649, 0.5, None)
    assert again.load_settings() == told


def test_the_pace_is_that_of_the_last_runs(remembered: Remembered) -> None:
    assert remembered.expected_seconds(KEY, 100) is None
    for seconds in (500.0, 10.0, 11.0, 12.0, 90.0, 10.0):  # the first is forgotten, the busy one outvoted
        remembered.remember_pace(KEY, seconds, 100)
    assert remembered.expected_seconds(KEY, 50) == pytest.approx(11.0 / 2)
    remembered.remember_pace(KEY, 1.0, 0)  # nothing was encoded: nothing to learn
    assert remembered.expected_seconds(KEY, 50) == pytest.approx(11.0 / 2)
    assert remembered.expected_seconds(("sha", "cuda", "student"), 50) is None


def test_broken_files_count_as_empty_entry_by_entry(remembered: Remembered) -> None:
    remembered.folder.mkdir()
    (remembered.folder / "mpp.json").write_text("{broken")
    (remembered.folder / "pace.json").write_text('{"sha cpu student": ["x", -1, 0.5]}')
    (remembered.folder / "settings.json").write_text('{"device": "abacus", "opacity": 0.25, "gone": 1, "smooth": 1}')
    assert remembered.mpp("one") is None
    assert remembered.expected_seconds(KEY, 4) == 2.0
    assert remembered.load_settings() == Settings(opacity=0.25)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    Remembered(tmp_path / "config").remember_mpp("one", 0.5)


def test_the_folder_can_be_put_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv(FOLDER)
    assert default_folder().name == "napari-lrmil"
