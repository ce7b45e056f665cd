"""File of the answers that were shown to reviewers."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_lrmil.core.errors import ReviewError
from napari_lrmil.core.worklist.seen import COLUMNS, SEEN_FILE, SeenAnswers, Where

HEAD = f"{','.join(COLUMNS)}\n"


def test_what_was_shown_is_known_to_the_next_process_per_reviewer_and_place(tmp_path: Path) -> None:
    path = tmp_path / "results" / SEEN_FILE
    seen = SeenAnswers(path)
    seen.add(["a", "=b"], "Anna", Where.CANVAS)
    seen.add(["a"], "  Anna ", Where.CANVAS)
    seen.add([], "Anna", Where.LIST)
    assert path.read_text().count("\n") == 3, "a row is written once"
    again = SeenAnswers(path)
    assert again.was_seen("a", "Anna", Where.CANVAS) and again.was_seen("=b", "Anna", Where.CANVAS)
    assert not again.was_seen("a", "Anna", Where.LIST) and not again.was_seen("a", "Ben", Where.CANVAS)


def test_answers_that_were_shown_before_a_name_was_entered_count_for_every_reviewer(tmp_path: Path) -> None:
    seen = SeenAnswers(tmp_path / SEEN_FILE)
    seen.add(["a"], "", Where.LIST)
    assert SeenAnswers(tmp_path / SEEN_FILE).was_seen("a", "Ben", Where.LIST)


def test_a_name_is_put_into_the_rows_of_this_process_alone(tmp_path: Path) -> None:
    path = tmp_path / SEEN_FILE
    SeenAnswers(path).add(["a", "b"], "", Where.LIST)
    seen = SeenAnswers(path)
    seen.add(["b"], "", Where.CANVAS)
    seen.add(["=c"], "", Where.LIST)
    seen.take_over("  ")
    seen.take_over("Anna")
    seen.add(["d"], "anna ", Where.LIST)
    rows = [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()[1:]]
    assert rows == ["a,,list", "b,,list", "b,Anna,canvas", "'=c,Anna,list", "d,anna,list"]
    for known in (seen, SeenAnswers(path)):
        assert known.was_seen("=c", "ANNA", Where.LIST) and not known.was_seen("=c", "Ben", Where.LIST)
        assert known.was_seen_by_anybody("b") and not known.was_seen("b", "Ben", Where.CANVAS)
        assert known.was_seen("a", "Ben", Where.LIST), "nobody knows who saw it"


def test_rows_without_a_name_stay_if_the_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / SEEN_FILE
    seen = SeenAnswers(path)
    seen.add(["a"], "", Where.LIST)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("napari_lrmil.core.worklist.seen.os.fsync", _refuse)
        with pytest.raises(ReviewError, match="cannot be written"):
            seen.take_over("Anna")
    assert path.read_bytes() == before and seen.was_seen("a", "Ben", Where.LIST)
    seen.take_over("Anna")
    assert not SeenAnswers(path).was_seen("a", "Ben", Where.LIST)


def _refuse(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_rows_of_two_windows_are_joined(tmp_path: Path) -> None:
    first, second = SeenAnswers(tmp_path / SEEN_FILE), SeenAnswers(tmp_path / SEEN_FILE)
    first.add(["a"], "Anna", Where.LIST)
    second.add(["b"], "Anna", Where.LIST)
    first.add(["c"], "Anna", Where.LIST)
    again = SeenAnswers(tmp_path / SEEN_FILE)
    assert all(again.was_seen(name, "Anna", Where.LIST) for name in "abc")


@pytest.mark.parametrize(
    ("last", "names"),
    [("b,An", "ac"), ("b,Anna,canvas,2026", "abc"), ("b,Anna,canvas,2026-11-27T15:00:00+00:00", "abc"), ("", "ac")],
)
def test_a_row_that_a_killed_process_left_unfinished_spoils_no_other(tmp_path: Path, last: str, names: str) -> None:
    path = tmp_path / SEEN_FILE
    path.write_text(f"{HEAD}a,Anna,canvas,2026-11-27T15:00:00+00:00\n{last}")
    SeenAnswers(path).add(["c"], "Anna", Where.CANVAS)
    again = SeenAnswers(path)
    assert "".join(name for name in "abc" if again.was_seen(name, "Anna", Where.CANVAS)) == names


@pytest.mark.parametrize("text", ["my,own,notes\n", f"{HEAD}a,Anna,there,2026\n", f"{HEAD}a;Anna;list;2026\n"])
def test_a_file_that_is_no_such_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / SEEN_FILE).write_text(text)
    with pytest.raises(ReviewError, match="Until then no verdict counts as blind"):
        SeenAnswers(tmp_path / SEEN_FILE)


def test_a_folder_that_cannot_be_written_is_said_and_the_answers_are_known_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(ReviewError):
        SeenAnswers(tmp_path / "results" / SEEN_FILE)
    seen = SeenAnswers(tmp_path / SEEN_FILE)
    (tmp_path / SEEN_FILE).mkdir()
    with pytest.raises(ReviewError, match="cannot be written"):
        seen.add(["a"], "Anna", Where.CANVAS)
    assert seen.was_seen("a", "Anna", Where.CANVAS)
