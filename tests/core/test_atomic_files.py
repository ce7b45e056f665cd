"""Files are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from napari_lrmil.core import atomic_files as files
from napari_lrmil.core.atomic_files import atomic_write, write_json, write_text

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux states the umask of a process")


@pytest.fixture(params=[0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return the umask of this process, set for a test."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_finished_block_leaves_the_file_and_nothing_beside_it(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "deep" / "a.txt") as partial:
        partial.write_text("new")
        assert not (tmp_path / "deep" / "a.txt").exists(), "the final name must not exist before the content is whole"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]
    assert (tmp_path / "deep" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_a_broken_block_leaves_the_old_content_and_no_temporary(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def break_off() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        break_off()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_temporary_lies_in_the_same_folder_so_that_the_rename_is_atomic(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as partial:
        assert partial.parent == tmp_path
        partial.touch()


@LINUX
def test_a_private_file_gets_the_mode_of_an_ordinary_one_and_the_umask_is_never_set(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A umask that is set for a moment holds for all threads: their new files would be open to all."""

    def refuse(mask: int) -> int:
        raise AssertionError(f"the umask was set to {mask:03o}")

    monkeypatch.setattr(os, "umask", refuse)
    with atomic_write(tmp_path / "a.txt") as partial:
        partial.touch(mode=0o600)
    monkeypatch.undo()
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of this kind")
@pytest.mark.parametrize("status", [None, "Name:\tpython\nState:\tR (running)\n"])
def test_a_system_that_does_not_state_the_umask_has_it_from_the_import(
    tmp_path: Path, status: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if status is not None:
        (tmp_path / "status").write_text(status)
    monkeypatch.setattr(files, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(files, "_UMASK_AT_IMPORT", 0o027)
    write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_reading_the_umask_by_setting_it_leaves_it_as_it_was(umask: int) -> None:
    assert files._umask_by_setting() == umask == files._umask_by_setting()


def test_text_is_utf8_on_every_platform(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "5 µm")
    assert (tmp_path / "a.txt").read_bytes() == "5 µm".encode()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_never_reaches_a_json_file(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"auroc": value})
    assert not list(tmp_path.iterdir())


def test_json_reads_back_as_it_was(tmp_path: Path) -> None:
    content = {"b": [1, 2.5], "a": {"ä": None}}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content
