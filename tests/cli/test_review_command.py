"""`review` compares the verdicts of two reviewers and the model, on the screen and in two tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from napari_lrmil.core.csv_files import read_csv
from napari_lrmil.core.worklist.review import REVIEW_FILE, ReviewFile, ReviewRow, Verdict, common_slide_names

Call = Callable[..., tuple[int, str, str]]


def give(folder: Path, reviewer: str, labels: str, predicted: str = "abababababab") -> Path:
    file = ReviewFile(folder / REVIEW_FILE, reviewer)
    for i, (label, answer) in enumerate(zip(labels, predicted, strict=True)):
        verdict = Verdict.AGREE if label == answer else Verdict.DISAGREE
        file.record(ReviewRow(f"s{i}", "", verdict, label, predicted=answer, bundle="demo", bundle_sha256="f" * 64))
    return folder


def test_two_reviewers_are_compared_from_the_folders_of_each(call: Call, tmp_path: Path) -> None:
    anna = give(tmp_path / "anna" / "predictions", "Anna", "abababababab")
    ben = give(tmp_path / "ben", "Ben", "abababababbb")
    code, out, err = call("review", anna.parent, ben, "--out", tmp_path / "out")
    assert code == 0, err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Anna 12 12 0 0 0 0" in lines and "Ben 12 11 1 0 0 0" in lines
    assert any(line.startswith("Anna · Ben 12 12 92% 0.83 ") for line in lines)
    rows = read_csv(tmp_path / "out" / "review_agreement.csv")
    assert [row[:4] for row in rows[1:]] == [
        ["Anna", "Ben", "12", "12"],
        ["Anna", "model", "12", "12"],
        ["Ben", "model", "12", "12"],
    ]
    assert 0 < float(rows[1][6]) < float(rows[1][5]) == round(5 / 6, 6)
    slides = read_csv(tmp_path / "out" / "review_slides.csv")
    assert slides[0][:5] == ["slide", "Anna verdict", "Anna class", "Anna model", "Anna comment"]
    models = ["demo", "f" * 64] * 2
    assert slides[11] == ["s10", "agree", "a", "a", "", "disagree", "b", "a", "", *models]
    assert rows[0][-2:] == ["bundle", "bundle_sha256"]
    assert [row[-2:] for row in rows[1:]] == [["", ""], *[["demo", "f" * 64]] * 2]


def test_answers_of_several_models_are_said_and_a_choice_of_reviewers_is_kept(call: Call, tmp_path: Path) -> None:
    give(tmp_path, "Anna", "ab", "ab")
    ReviewFile(tmp_path / REVIEW_FILE, "Ben").record(
        ReviewRow("s0", "", Verdict.AGREE, "a", predicted="a", bundle="demo", bundle_sha256="1" * 64)
    )
    code, out, err = call("review", tmp_path)
    assert code == 0 and "not pooled: demo (ffffffff), demo (11111111)" in " ".join(err.split())
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Anna · demo (ffffffff) 2 2 0 0 0 0" in lines and "Ben · demo (11111111) 1 1 0 0 0 0" in lines
    assert any(line.startswith("Anna · model demo (ffffffff) 2 2 100% 1.00") for line in lines)
    assert any(line.startswith("Ben · model demo (11111111) 1 1 100%") for line in lines)
    agreement = read_csv(tmp_path / "review_agreement.csv")
    assert [row[:3] + row[-2:] for row in agreement[1:]] == [
        ["Anna", "Ben", "1", "", ""],
        ["Anna", "model", "2", "demo", "f" * 64],
        ["Ben", "model", "1", "demo", "1" * 64],
    ]
    slides = read_csv(tmp_path / "review_slides.csv")
    assert slides[0][-4:] == ["Anna bundle", "Anna bundle_sha256", "Ben bundle", "Ben bundle_sha256"]
    assert slides[2][-4:] == ["demo", "f" * 64, "", ""]
    code, out, _ = call("review", tmp_path, "--reviewer", "Anna")
    assert code == 0 and "Ben" not in out and (tmp_path / "review_agreement.csv").exists()
    assert call("review", tmp_path, "--reviewer", "Eve")[0] == 2


def test_slides_with_and_without_ending_are_the_same(call: Call, tmp_path: Path) -> None:
    """A table that was written by hand may name files. A name that could be two of them is refused."""
    anna, ben = give(tmp_path / "anna", "Anna", "abab", "abab"), give(tmp_path / "ben", "Ben", "abab", "abab")
    table = ben / REVIEW_FILE
    table.write_text(table.read_text().replace("\ns0,", "\ns0.svs,").replace("\ns1,", "\ns1.TIF,"))
    code, out, err = call("review", anna, ben)
    assert code == 0, err
    assert any(line.startswith("Anna · Ben 4 4 100%") for line in (" ".join(line.split()) for line in out.splitlines()))
    assert [row[0] for row in read_csv(anna / "review_slides.csv")] == ["slide", "s0", "s1", "s2", "s3"]
    table.write_text(table.read_text().replace("\ns2,", "\ns0.tif,"))
    code, _, err = call("review", anna, ben)
    assert code == 1 and "the slide s0 could be s0.svs or s0.tif; write the ending" in " ".join(err.split())
    alone = common_slide_names(["a.svs", "a.tif", "b", "c.1"])
    assert alone == {name: name for name in ("a.svs", "a.tif", "b", "c.1")}, "nothing is joined without need"


def test_a_folder_without_verdicts_and_two_different_verdicts_are_refused(call: Call, tmp_path: Path) -> None:
    code, _, err = call("review", tmp_path)
    assert code == 1 and "no review.csv here" in " ".join(err.split())
    first, second = give(tmp_path / "1", "Anna", "ab", "ab"), give(tmp_path / "2", "Anna", "bb", "ab")
    code, _, err = call("review", first, second)
    assert code == 1 and "another verdict of Anna on s0" in " ".join(err.split())
    assert call("review", first, first)[0] == 0
