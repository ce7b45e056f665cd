"""``review.csv``: every verdict is on disk at once, and nothing of others is ever overwritten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from napari_lrmil.core.errors import ReviewError
from napari_lrmil.core.worklist.entry import ListedSlide, StoredAnswer, WorklistEntry
from napari_lrmil.core.worklist.review import REVIEW_FILE, ReviewFile, ReviewRow, Verdict, read_review
from napari_lrmil.core.worklist.verdicts import blind_verdict, open_verdict

WRITER = """
import sys
from pathlib import Path
from napari_lrmil.core.worklist.review import ReviewFile, ReviewRow, Verdict
file = ReviewFile(Path(sys.argv[1]), "Anna")
for i in range(10**6):
    file.record(ReviewRow(f"slide {i % 50}", "", Verdict.AGREE, comment=f"number {i}"))
    print(i, flush=True)
"""


def row(slide: str, verdict: Verdict = Verdict.AGREE, **more: str) -> ReviewRow:
    return ReviewRow(slide, "", verdict, **more)  # type: ignore[arg-type]  # the tests pass texts only


def test_a_verdict_is_on_disk_at_once_and_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results" / "review.csv"
    review = ReviewFile(path, "  Dr.  Ann ")
    given = ReviewRow(
        "s", "", Verdict.DISAGREE, "=cmd", 'says "no",\nthen;', "2026-01-01", True, "a", 0.25, "demo", "ff"
    )
    review.record(given)
    (stored,) = read_review(path).rows
    assert stored.reviewer == "Dr. Ann" and stored.comment == 'says "no", then;'
    assert (stored.label, stored.probability, stored.is_blind) == ("=cmd", 0.25, True)
    assert "'=cmd" in path.read_text()  # no spreadsheet runs it
    assert ReviewFile(path, "Dr. Ann").verdicts == {"s": stored}


def test_a_row_that_was_written_by_hand_may_name_the_file_of_a_slide(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    path.write_text(
        "slide,reviewer,verdict\na.svs,Ann,agree\nb.svs,Ann,agree\nb,Ann,unsure\nc.svs,Ann,agree\nc.tif,Ann,agree\n"
    )
    file = ReviewFile(path, "Ann")
    assert file.verdicts["a"].slide == "a.svs", "there is no other row of this name"
    assert file.verdicts["b"].verdict is Verdict.UNSURE, "the name itself has a row"
    assert "c" not in file.verdicts, "it could be one of two files"
    file.record(row("a", Verdict.DISAGREE))
    assert [r.slide for r in read_review(path).rows] == ["a", "b.svs", "b", "c.svs", "c.tif"], "no second row"
    file.undo()
    assert path.read_text().splitlines()[1].startswith("a.svs,Ann,agree")


def test_verdicts_of_two_reviewers_and_two_windows_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    anna, ben, anna_elsewhere = (ReviewFile(path, name) for name in ("Anna", "Ben", "Anna"))
    anna.record(row("1"))
    ben.record(row("1", Verdict.DISAGREE))
    anna_elsewhere.record(row("2"))
    anna.record(row("3"))
    assert [(r.slide, r.reviewer) for r in read_review(path).rows] == [
        ("1", "Anna"),
        ("1", "Ben"),
        ("2", "Anna"),
        ("3", "Anna"),
    ]


def test_a_verdict_that_was_changed_elsewhere_is_refused_and_replaced_only_on_purpose(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    here, elsewhere = ReviewFile(path, "Anna"), ReviewFile(path, "Anna")
    elsewhere.record(row("1", Verdict.DISAGREE, comment="elsewhere"))
    with pytest.raises(ReviewError, match="'disagree' of Anna on 1"):
        here.record(row("1", Verdict.AGREE))
    assert read_review(path).rows[0].comment == "elsewhere" and here.verdicts["1"].comment == "elsewhere"
    assert not here.can_undo
    here.record(row("1", Verdict.AGREE))
    assert read_review(path).rows[0].verdict is Verdict.AGREE


def undone_slide(review: ReviewFile) -> str:
    step = review.undo()
    return step.slide if step is not None else ""


def test_a_verdict_and_its_first_comment_are_one_step_of_undo_that_says_what_it_took_back(tmp_path: Path) -> None:
    review = ReviewFile(tmp_path / "review.csv", "Anna")
    review.record(row("1", Verdict.UNSURE))
    review.record(row("2"))
    review.record(row("2", comment="clear", time="later"))
    review.record(row("2", comment="clear, seen twice"))
    review.record(row("1", Verdict.UNSURE, comment="thick"))
    review.record(row("1", Verdict.DISAGREE, comment="thick", label="b"))
    texts = []
    while (step := review.undo()) is not None:
        texts.append(step.text)
    assert texts == [
        "Taken back on 1: disagree (b). The verdict is 'unsure' again.",
        "Taken back on 1: the change of the comment. The verdict 'unsure' stays.",
        "Taken back on 2: the change of the comment. The verdict 'agree' stays.",
        "Taken back on 2: agree, with its comment.",
        "Taken back on 1: unsure.",
    ]
    assert not review.verdicts


def test_undo_restores_the_verdict_before_and_leaves_later_changes_alone(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    review = ReviewFile(path, "Anna")
    review.record(row("1", comment="first"))
    review.record(row("1", Verdict.UNSURE))
    review.record(row("2"))
    assert undone_slide(review) == "2" and set(review.verdicts) == {"1"}
    assert undone_slide(review) == "1" and review.verdicts["1"].comment == "first"
    elsewhere = ReviewFile(path, "Anna")
    elsewhere.record(row("1", Verdict.DISAGREE))
    review.refresh()
    with pytest.raises(ReviewError, match="changed since"):
        review.undo()
    assert read_review(path).rows[0].verdict is Verdict.DISAGREE and review.undo() is None


def test_columns_rows_and_delimiter_of_a_spreadsheet_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    path.write_bytes("\ufeffslide;reviewer;verdict;priority\r\n1;Ben;Agree;high\r\n".encode())
    ReviewFile(path, "Anna").record(row("1", Verdict.DISAGREE, label="b"))
    table = read_review(path)
    assert [cells["priority"] for cells in table.cells if "priority" in cells] == ["high", ""]
    assert [(r.reviewer, r.verdict, r.label) for r in table.rows] == [
        ("Ben", Verdict.AGREE, ""),
        ("Anna", Verdict.DISAGREE, "b"),
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"slide,verdict\n1,agree\n", "no column reviewer"),
        (b"slide,reviewer,verdict\n1,Anna,yes\n", "line 2: the verdict is 'yes'"),
        (b"slide,reviewer,verdict\n1,Anna\n", "line 2 has 2 cells"),
        (b'slide,reviewer,verdict\n1,"Anna,agree\n', "line 2 is no row"),
        (b"slide,reviewer,verdict\n\xff,Anna,agree\n", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_table_of_verdicts_is_refused_and_stays(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "review.csv"
    review = ReviewFile(path, "Anna")
    path.write_bytes(content)
    with pytest.raises(ReviewError, match=fault):
        review.record(row("2"))
    assert path.read_bytes() == content


def test_a_file_that_is_open_in_libreoffice_or_locked_is_refused_with_the_reason(tmp_path: Path) -> None:
    from filelock import FileLock

    path = tmp_path / "review.csv"
    review = ReviewFile(path, "Anna")
    lock = tmp_path / ".~lock.review.csv#"
    lock.write_text(",ben,host,27.11.2026 08:00,file:///x;")
    with pytest.raises(ReviewError, match="ben has it open in LibreOffice"):
        review.record(row("1"))
    lock.unlink()
    with FileLock(tmp_path / ".review.csv.lock"), pytest.raises(ReviewError, match="another window"):
        review.record(row("1"))
    review.record(row("1"))
    assert len(read_review(path).rows) == 1


def test_a_verdict_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(ReviewError, match="name of the reviewer"):
        ReviewFile(tmp_path / "review.csv", "  ").record(row("1"))
    assert not (tmp_path / "review.csv").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    review = ReviewFile(tmp_path / "results" / "review.csv", "Anna")
    (tmp_path / "results").write_text("a file")
    with pytest.raises(ReviewError, match="was not stored"):
        review.record(row("1"))


@pytest.mark.slow
def test_a_killed_process_loses_no_verdict(tmp_path: Path) -> None:
    """Killed at any moment: all verdicts that were confirmed are in the file, and it is whole."""
    path = tmp_path / "review.csv"
    for verdicts in (1, 2, 7, 60):
        path.unlink(missing_ok=True)
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last = next(int(line) for line in process.stdout if int(line) + 1 >= verdicts)
            process.kill()
            last = max([last, *map(int, process.stdout.read().split())])
        comments = {r.slide: int(r.comment.removeprefix("number ")) for r in read_review(path).rows}
        for number in range(max(0, last - 49), last + 1):
            assert comments[f"slide {number % 50}"] >= number
        ReviewFile(path, "Anna").record(row("after the crash"))  # no lock is left


# ---------------------------------------------------------------- verdicts


def entry(classes: tuple[str, ...] = ("a", "b"), predicted: str = "a") -> WorklistEntry:
    answer = StoredAnswer(predicted, 0.7, classes, bundle="demo", bundle_sha256="ff")
    return WorklistEntry(ListedSlide(Path("s.tif"), "P1"), answer)


def test_a_verdict_names_the_class_that_follows_from_it() -> None:
    assert open_verdict(entry(), Verdict.AGREE).label == "a"
    assert open_verdict(entry(), Verdict.DISAGREE).label == "b"
    assert open_verdict(entry(("a", "b", "c")), Verdict.DISAGREE).label == ""
    assert open_verdict(entry(("a", "b", "c")), Verdict.DISAGREE, label="c").label == "c"
    unsure = open_verdict(entry(), Verdict.UNSURE, comment="too thick")
    assert (unsure.label, unsure.comment, unsure.patient, unsure.bundle) == ("", "too thick", "P1", "demo")


def test_a_blind_verdict_follows_from_the_class_of_the_reviewer() -> None:
    given = [blind_verdict(entry(), label) for label in ("a", "b", "")]
    assert [r.verdict for r in given] == [Verdict.AGREE, Verdict.DISAGREE, Verdict.UNSURE]
    assert all(r.is_blind and r.predicted == "a" for r in given)


def test_without_an_answer_only_unsure_can_be_said() -> None:
    empty = WorklistEntry(ListedSlide(Path("s.tif")))
    assert open_verdict(empty, Verdict.UNSURE).predicted == ""
    with pytest.raises(ValueError, match="no answer"):
        open_verdict(empty, Verdict.AGREE)
    with pytest.raises(ValueError, match="no answer"):
        blind_verdict(empty, "a")


def test_a_name_of_other_case_or_blanks_is_the_reviewer_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / REVIEW_FILE
    ReviewFile(path, "Anna Müller").record(ReviewRow("a", "", Verdict.AGREE))
    file = ReviewFile(path, "  anna  MÜLLER ")
    assert file.reviewer == "Anna Müller" and set(file.verdicts) == {"a"}
    file.record(ReviewRow("a", "", Verdict.UNSURE))
    assert [(row.reviewer, row.verdict) for row in read_review(path).rows] == [("Anna Müller", Verdict.UNSURE)]
    assert ReviewFile(path, "Anna").reviewer == "Anna" and ReviewFile(path, "").reviewer == ""
