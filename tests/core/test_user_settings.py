"""What is remembered: answers, paces and settings come back; broken content is told and never fatal."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.user_settings import FILE, FOLDER_VARIABLE, RUNS, Settings, SettingsStore, ThroughputKey
from support.fake_slides import one_sentence

STUDENT = ThroughputKey("a" * 64, "cpu", "student")
TEACHER = ThroughputKey("a" * 64, "cpu", "teacher")
OTHER = Settings(512, "cuda", "log", 0.75, True, ("evidence", "save"), True, True)


@pytest.fixture
def memory(tmp_path: Path) -> SettingsStore:
    return SettingsStore(tmp_path / "deep" / "config")


def put(memory: SettingsStore, content: object) -> None:
    memory.path.parent.mkdir(parents=True, exist_ok=True)
    memory.path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_nothing_is_known_and_nothing_written_at_first(memory: SettingsStore) -> None:
    assert memory.remembered_mpp("f1") is None and memory.expected_seconds(STUDENT, 100) is None
    loaded = memory.load_settings()
    assert loaded.settings == Settings() and loaded.notice is None
    assert not memory.path.exists()


def test_the_folder_is_the_one_given_then_the_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "named"))
    assert SettingsStore().path == tmp_path / "named" / FILE
    assert SettingsStore(tmp_path / "given").path == tmp_path / "given" / FILE
    monkeypatch.delenv(FOLDER_VARIABLE)
    assert SettingsStore().path.parent.name == "napari-lrmil"


def test_each_kind_of_memory_leaves_the_others(memory: SettingsStore) -> None:
    memory.remember_mpp("f1", 0.4)
    memory.remember_pace(STUDENT, 5.0, 100)
    memory.save_settings(OTHER)
    memory.remember_mpp("f2", 0.3)
    again = SettingsStore(memory.path.parent)
    assert again.remembered_mpp("f1") == 0.4 and again.remembered_mpp("f2") == 0.3
    assert again.remembered_mpp("f3") is None
    assert again.expected_seconds(STUDENT, 40) == pytest.approx(2.0)
    assert again.load_settings().settings == OTHER and again.load_settings().notice is None


def test_the_last_answer_for_a_slide_counts(memory: SettingsStore) -> None:
    memory.remember_mpp("f1", 0.4)
    memory.remember_mpp("f1", 0.25)
    assert memory.remembered_mpp("f1") == 0.25


@pytest.mark.parametrize("mpp", [0.0, -0.5, float("nan"), float("inf"), True, "0.5"])
def test_an_impossible_resolution_is_not_kept(memory: SettingsStore, mpp: Any) -> None:
    with pytest.raises(ConfigError, match="positive number") as caught:
        memory.remember_mpp("f1", mpp)
    assert one_sentence(caught.value) and memory.remembered_mpp("f1") is None


def test_pace_is_by_model_device_and_network(memory: SettingsStore) -> None:
    memory.remember_pace(STUDENT, 10.0, 100)
    memory.remember_pace(TEACHER, 90.0, 100)
    assert memory.expected_seconds(STUDENT, 50) == pytest.approx(5.0)
    assert memory.expected_seconds(TEACHER, 50) == pytest.approx(45.0)
    assert memory.expected_seconds(replace(STUDENT, device="cuda"), 50) is None
    assert memory.expected_seconds(replace(STUDENT, bundle_sha256="b" * 64), 50) is None


def test_one_slow_run_and_a_glance_move_the_pace_little(memory: SettingsStore) -> None:
    for seconds, patches in ((10.0, 100), (11.0, 100), (300.0, 100), (4.0, 2), (4.0, 2), (4.0, 2), (4.0, 2)):
        memory.remember_pace(STUDENT, seconds, patches)
    assert memory.expected_seconds(STUDENT, 100) == pytest.approx(11.0)


def test_a_pace_that_has_changed_is_believed_after_some_runs(memory: SettingsStore) -> None:
    for _ in range(20):
        memory.remember_pace(STUDENT, 10.0, 100)
    for _ in range(RUNS // 2 + 1):
        memory.remember_pace(STUDENT, 2.0, 100)
    assert memory.expected_seconds(STUDENT, 100) == pytest.approx(2.0)
    assert len(json.loads(memory.path.read_text())["pace"][STUDENT.text]) == RUNS


@pytest.mark.parametrize(("seconds", "patches"), [(1.0, 0), (0.0, 5), (float("nan"), 5), (-1.0, 5)])
def test_a_run_that_tells_nothing_is_left_out(memory: SettingsStore, seconds: float, patches: int) -> None:
    memory.remember_pace(STUDENT, seconds, patches)
    assert memory.expected_seconds(STUDENT, 10) is None


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="student or teacher"):
        ThroughputKey("a", "cpu", "judge")


@pytest.mark.parametrize(
    "change",
    [
        {"tile_cache_mb": 0}, {"tile_cache_mb": 12.5}, {"tile_cache_mb": True}, {"device": "tpu"}, {"device": 3},
        {"attention_mode": "sqrt"}, {"opacity": 1.2}, {"opacity": float("nan")}, {"smooth": 1}, {"live": "yes"},
        {"icc": None}, {"sections_open": ("a", 1)}, {"sections_open": "save"},
    ],
)  # fmt: skip
def test_settings_are_checked_and_broken_ones_ignored_key_by_key(memory: SettingsStore, change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ConfigError, match=name) as caught:
        Settings(**change)
    assert one_sentence(caught.value)
    memory.save_settings(OTHER)
    content = json.loads(memory.path.read_text())
    put(memory, {"settings": content["settings"] | change | {"brand_new": 1}})
    loaded = memory.load_settings()
    assert loaded.settings == replace(OTHER, **{name: getattr(Settings(), name)})
    assert loaded.notice is not None and name in loaded.notice.message and "brand_new" in loaded.notice.message


def test_settings_lie_in_the_file_as_in_version_0_1(memory: SettingsStore) -> None:
    memory.save_settings(OTHER)
    assert memory.path.read_text(encoding="utf-8") == dedent("""\
        {
          "settings": {
            "tile_cache_mb": 512,
            "device": "cuda",
            "attention_mode": "log",
            "opacity": 0.75,
            "smooth": true,
            "sections_open": [
              "evidence",
              "save"
            ],
            "live": true,
            "icc": true
          }
        }
        """)


@pytest.mark.parametrize(
    ("name", "good", "broken"),
    [
        ("tile_cache_mb", [16, 65_536], [15, 65_537, 256.0, "256", True, None, 10**30]),
        ("device", ["auto", "cpu", "cuda", "mps"], ["CPU", "cuda:1", "cpu\n", "", 0, None, ["cpu"]]),
        ("attention_mode", ["raw", "percentile", "log"], ["Raw", "", True, None]),
        ("opacity", [0, 0.0, 0.25, 1, 1.0], [-0.01, 1.01, "0.5", False, None, [0.5]]),
        ("smooth", [True, False], [0, 1, "true", None]),
        ("sections_open", [[], ["a"], ["a", "b"]], ["a", {}, {"a": 1}, ["a", 1], [["a"]], None]),
        ("live", [True, False], [0, "yes", None]),
        ("icc", [True, False], [1, "", None]),
        ("unknown", [], [1, True, None, "a"]),
    ],
)
def test_each_setting_of_a_file_is_taken_or_left_by_itself(
    memory: SettingsStore, name: str, good: list[Any], broken: list[Any]
) -> None:
    for value in good:
        put(memory, {"settings": {name: value, "opacity": 0.125} | ({"opacity": value} if name == "opacity" else {})})
        loaded = memory.load_settings()
        expected = tuple(value) if isinstance(value, list) else value
        assert loaded.notice is None and getattr(loaded.settings, name) == expected, value
    for value in broken:
        put(memory, {"settings": {"icc": True, "live": True, name: value}})
        loaded = memory.load_settings()
        others = {"icc": True, "live": True}
        others.pop(name, None)
        assert loaded.settings == replace(Settings(), **others), value
        assert loaded.notice is not None and loaded.notice.message == (
            f"the settings {name} are unknown or broken in {memory.path} and left at the default; "
            "save the settings to mend the file"
        )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tile_cache_mb": 8}, "the setting tile_cache_mb is 8; expected a whole number of MiB from 16 to 65536"),
        ({"device": "tpu"}, "the setting device is 'tpu'; expected one of auto, cpu, cuda, mps"),
        ({"attention_mode": 1}, "the setting attention_mode is 1; expected one of raw, percentile, log"),
        ({"opacity": -1}, "the setting opacity is -1; expected a number from 0 to 1"),
        ({"smooth": 1}, "the setting smooth is 1; expected true or false"),
        ({"sections_open": "save"}, "the setting sections_open is 'save'; expected a list of names"),
        ({"live": None}, "the setting live is None; expected true or false"),
    ],
)
def test_a_broken_setting_is_told_with_what_was_expected(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(**change)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"settings": 3, "mpp": [], "pace": 1}', "\x00", '"text"'])
def test_a_broken_file_is_told_once_and_mended_by_the_next_answer(memory: SettingsStore, content: str) -> None:
    put(memory, content)
    loaded = memory.load_settings()
    assert loaded.settings == Settings() and loaded.notice is not None and FILE in loaded.notice.message
    assert memory.remembered_mpp("f1") is None and memory.expected_seconds(STUDENT, 3) is None
    memory.save_settings(OTHER)
    memory.remember_mpp("f1", 0.4)
    memory.remember_pace(STUDENT, 1.0, 2)
    assert memory.load_settings().settings == OTHER and memory.load_settings().notice is None
    assert memory.remembered_mpp("f1") == 0.4 and memory.expected_seconds(STUDENT, 4) == pytest.approx(2.0)


def test_broken_entries_count_as_absent_and_unknown_parts_are_kept(memory: SettingsStore) -> None:
    runs = [[1.0, 10], ["x", 3], [1.0], 5, [-1.0, 4], [True, 1]]
    put(memory, {"mpp": {"f1": "0.4", "f2": 0.3, "f3": -1}, "pace": {STUDENT.text: runs}, "later": {"a": 1}})
    assert memory.remembered_mpp("f1") is None and memory.remembered_mpp("f2") == 0.3
    assert memory.remembered_mpp("f3") is None
    assert memory.expected_seconds(STUDENT, 20) == pytest.approx(2.0)
    memory.remember_mpp("f1", 0.5)
    content = json.loads(memory.path.read_text())
    assert content["later"] == {"a": 1} and content["mpp"] == {"f1": 0.5, "f2": 0.3, "f3": -1}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=FOLDER_VARIABLE) as caught:
        SettingsStore(tmp_path / "file" / "config").remember_mpp("f1", 0.5)
    assert one_sentence(caught.value)


def test_threads_lose_nothing(memory: SettingsStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: SettingsStore(memory.path.parent).remember_mpp(f"f{i}", 0.1 + i), range(40)))
    assert [memory.remembered_mpp(f"f{i}") for i in range(40)] == [0.1 + i for i in range(40)]
    assert [p.name for p in memory.path.parent.iterdir()] == [FILE], "no temporary files"


def _remember_many(folder: str, mark: str) -> None:
    for i in range(30):
        SettingsStore(folder).remember_mpp(f"{mark}{i}", 0.5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a file that another process reads cannot be replaced there")
def test_two_processes_at_once_never_lose_the_file(memory: SettingsStore) -> None:
    spawn = multiprocessing.get_context("spawn")
    memory.save_settings(OTHER)
    writers = [spawn.Process(target=_remember_many, args=(os.fspath(memory.path.parent), mark)) for mark in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        json.loads(memory.path.read_text(encoding="utf-8"))  # whole at any moment
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert memory.load_settings().settings == OTHER
    assert memory.remembered_mpp("a29") == 0.5 or memory.remembered_mpp("b29") == 0.5
