"""The window's settings file: its name, its place and its keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from napari_lrmil.core.user_settings import Settings, SettingsStore, ThroughputKey
from support.shapes import STORED

SLIDE, OTHER = "668ec70190478240e0e279970e4d7a45", "0123456789abcdef0123456789abcdef"
BUNDLE = "7a080fd505f90b9d51964820ff808628a7ba655b909dd7a0cd521a77bcc5e977"
CHANGED = Settings(
    tile_cache_mb=512,
    device="cpu",
    attention_mode="percentile",
    opacity=0.7,
    smooth=True,
    sections_open=("navigation", "gallery"),
    live=True,
    icc=True,
)
CONTENT = {
    "mpp": {SLIDE: 0.5, OTHER: 0.2527},
    "pace": {f"{BUNDLE} cpu student": [[0.257, 22]], f"{BUNDLE} cpu teacher": [[0.402, 260]]},
    "settings": {
        "tile_cache_mb": 512,
        "device": "cpu",
        "attention_mode": "percentile",
        "opacity": 0.7,
        "smooth": True,
        "sections_open": ["navigation", "gallery"],
        "live": True,
        "icc": True,
    },
}


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAPARI_LRMIL_CONFIG", str(tmp_path))
    remembered = SettingsStore()
    remembered.remember_mpp(SLIDE, 0.5)
    remembered.remember_mpp(OTHER, 0.2527)
    remembered.remember_pace(ThroughputKey(BUNDLE, "cpu", "student"), 0.257, 22)
    remembered.remember_pace(ThroughputKey(BUNDLE, "cpu", "teacher"), 0.402, 260)
    remembered.save_settings(CHANGED)
    written, stored = (folder / "remembered.json" for folder in (tmp_path, STORED / "settings"))
    assert json.loads(written.read_text(encoding="utf-8")) == CONTENT
    assert json.loads(stored.read_text(encoding="utf-8")) == CONTENT


def test_the_stored_file_is_read() -> None:
    remembered = SettingsStore(STORED / "settings")
    loaded = remembered.load_settings()
    assert loaded.settings == CHANGED and loaded.notice is None
    assert remembered.remembered_mpp(SLIDE) == 0.5 and remembered.remembered_mpp(OTHER) == 0.2527
    assert remembered.expected_seconds(ThroughputKey(BUNDLE, "cpu", "student"), 44) == pytest.approx(0.514)
    assert remembered.expected_seconds(ThroughputKey(BUNDLE, "cpu", "teacher"), 130) == pytest.approx(0.201)


@pytest.mark.parametrize(
    ("setting", "values"),
    [("device", ("auto", "cpu", "cuda", "mps")), ("attention_mode", ("raw", "percentile", "log"))],
)
def test_words_that_a_setting_may_be(tmp_path: Path, setting: str, values: tuple[str, ...]) -> None:
    for value in values:
        (tmp_path / "remembered.json").write_text(json.dumps({"settings": {setting: value}}), encoding="utf-8")
        loaded = SettingsStore(tmp_path).load_settings()
        assert getattr(loaded.settings, setting) == value and loaded.notice is None
