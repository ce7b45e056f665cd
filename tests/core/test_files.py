"""Files are written whole or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from napari_lrmil.core.files import whole, write_json, write_text


def test_a_finished_block_leaves_the_file_and_nothing_beside_it(tmp_path: Path) -> None:
    with whole(tmp_path / "deep" / "a.txt") as partial:
        partial.write_text("new")
        assert not (tmp_path / "deep" / "a.txt").exists(), "the final name must not exist before the content is whole"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]
    assert (tmp_path / "deep" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_a_broken_block_leaves_the_old_content_and_no_temporary(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def break_off() -> None:
        with whole(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        break_off()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_temporary_lies_in_the_same_folder_so_that_the_rename_is_atomic(tmp_path: Path) -> None:
    with whole(tmp_path / "a.txt") as partial:
        assert partial.parent == tmp_path
        partial.touch()


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
