"""Errors of the environment name what to do; only a fault of the program is unexpected, and leaves a log to send."""

from __future__ import annotations

import errno
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core import extras, unexpected_errors
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.extras import EXTRAS, extra_of, require_extra
from napari_lrmil.core.unexpected_errors import MAX_LOGS, describe_error, write_error_log

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAPARI_LRMIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _raised(message: str = "a\nb") -> Exception:
    try:
        raise RuntimeError(message)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("", name="sklearn.metrics"), 'pip install "napari-lrmil[train]"'),
        (ModuleNotFoundError("", name="dask_jobqueue"), 'pip install "napari-lrmil[distributed]"'),
        (ModuleNotFoundError("", name="h5py"), "the library h5py is missing"),
        (MemoryError(), "the memory is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: Permission denied; check the rights"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError(errno.EIO, "Input/output error", "z"), "z: Input/output error; check the disk"),
    ],
)
def test_an_error_of_the_environment_is_expected(error: Exception, words: str, cache: Path) -> None:
    sentence = describe_error(error)
    assert words in sentence and "not expected" not in sentence and not cache.exists()


def test_a_fault_of_the_program_leaves_one_log_however_often_it_happens(cache: Path) -> None:
    sentence = [describe_error(_raised(f"slide {i}\nfailed")) for i in range(3)][-1]
    (log,) = (cache / "logs").iterdir()
    assert sentence.startswith("RuntimeError: slide 2 failed; this was not expected") and str(log) in sentence
    text = log.read_text(encoding="utf-8")
    assert "Traceback" in text and "napari-lrmil " in text and "test_unexpected_errors.py" in text


def test_only_the_latest_logs_are_kept(cache: Path) -> None:
    (cache / "logs").mkdir(parents=True)
    for i in range(MAX_LOGS + 5):
        (cache / "logs" / f"error-{i:012}.log").touch()
    assert write_error_log(_raised()) is not None
    assert len(list((cache / "logs").iterdir())) == MAX_LOGS


def test_without_any_folder_for_the_log_the_sentence_names_debug(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache.touch()  # a file where the folder should be
    monkeypatch.setattr(unexpected_errors.tempfile, "gettempdir", lambda: str(cache / "none"))
    assert describe_error(_raised()).endswith("run it again with --debug and report it")


def test_the_command_line_names_the_log(call: Call, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from napari_lrmil.core import doctor

    def broken() -> None:
        raise _raised("[bold] x")

    monkeypatch.setattr(doctor, "run_checks", broken)
    code, _, err = call("doctor")
    assert code == 1 and "RuntimeError: [bold] x; this was not expected" in err and str(cache / "logs") in err


def test_a_missing_extra_is_named_before_any_work(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(EXTRAS, "train", ("no_such_module",))
    for command in ("train", "evaluate"):
        code, _, err = call(command, tmp_path / "cohort.csv", "--out", tmp_path / "out")
        assert code == 2 and 'pip install "napari-lrmil[train]"' in err
    assert not (tmp_path / "out").exists()


def test_any_qt_binding_serves_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "PySide6" else object())
    require_extra("gui", "the window")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        require_extra("gui", "the window")
    assert str(refused.value) == (
        "the window needs napari, magicgui, superqt, qtpy, psygnal and PySide6: not installed; "
        'pip install "napari-lrmil[gui]"'
    )


@pytest.mark.parametrize(
    ("installed", "is_known"), [("0.9.2", True), ("0.10.3", True), ("0.9.1", False), ("1.0", False)]
)
def test_a_napari_that_the_docks_do_not_know_is_named(
    installed: str, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin that napari itself installs does not bring napari, so pip compares nothing."""
    monkeypatch.setattr(extras, "version", lambda name: installed)
    if is_known:
        extras.require_known_napari()
        return
    with pytest.raises(
        ConfigError, match=rf"napari {installed} is installed; the docks need 0.9.2 or newer, below 0.11"
    ):
        extras.require_known_napari()


def test_the_napari_that_the_docks_know_is_the_one_of_the_extra() -> None:
    lower, upper = (".".join(map(str, numbers)) for numbers in extras.NAPARI_VERSIONS)
    assert f"napari>={lower},<{upper}" in _project()["optional-dependencies"]["gui"]


def test_every_extra_of_the_project_is_known() -> None:
    assert set(EXTRAS) == set(_project()["optional-dependencies"]) - {"dev", "docs", "all"}
    assert extra_of("sklearn.metrics") == "train" and extra_of(sys.__name__) is None


def _project() -> dict[str, Any]:
    content = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(content)["project"]
    return project
