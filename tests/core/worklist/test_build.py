"""The worklist of a folder or a table: every slide has a row, and what is wrong with it stands in the row."""

from __future__ import annotations

import json
from pathlib import Path

from napari_lrmil.core.results.cohort_tables import write_failure_rows
from napari_lrmil.core.worklist.build import (
    OTHER_MODEL,
    VANISHED,
    find_results_folder,
    list_folder,
    read_entries,
    without_slides,
)
from napari_lrmil.core.worklist.entry import Status
from support.dicom_objects import write_dicom
from support.stored_results import write_result

PROBABILITIES = {"benign": 0.2, "malignant": 0.8}


def slides_in(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_a_folder_is_listed_with_subfolders_and_dicom_as_predict_lists_it(tmp_path: Path) -> None:
    root = slides_in(tmp_path / "slides", "a.tif", "deep/er/b.svs", "notes.txt")
    (root / "dicom slide").mkdir()
    for file in ("1.dcm", "2.dcm"):
        write_dicom(root / "dicom slide" / file, "1.2.3")
    write_result(root / "predictions", "a", PROBABILITIES)
    listing = list_folder([root])
    assert [slide.name for slide in listing.slides] == ["a", "b", "dicom slide"]
    assert listing.slides[1].path_in_cohort == "slides/deep/er/b.svs"
    assert "notes" not in "".join(slide.name for slide in listing.slides) and ".txt" in listing.notices[0]


def test_states_and_answers_come_from_the_files_that_predict_left(tmp_path: Path) -> None:
    root = slides_in(tmp_path / "slides", "new.tif", "done.tif", "failed.tif", "broken.tif", "gone.tif")
    results = root / "predictions"
    write_result(results, "done", PROBABILITIES, classes=("benign", "malignant"))
    write_result(results, "gone", PROBABILITIES)
    (results / "broken").mkdir()
    (results / "broken" / "prediction.json").write_text("{")
    write_failure_rows(results, [("failed.tif", "open", "not a slide")], set())
    slides = list_folder([root]).slides
    (root / "gone.tif").unlink()
    entries = {entry.name: entry for entry in read_entries(slides, results)}
    states = {name: entry.status for name, entry in entries.items()}
    assert states == {
        "broken": Status.FAILED,
        "done": Status.DONE,
        "failed": Status.FAILED,
        "gone": Status.FAILED,
        "new": Status.NEW,
    }
    answer = entries["done"].answer
    assert answer is not None and (answer.text, answer.set_text) == ("malignant 0.800", "benign or malignant (90%)")
    assert entries["failed"].problem == "open: not a slide"
    assert entries["gone"].problem == VANISHED
    assert "stored results" in entries["broken"].problem


def test_a_failure_after_a_result_is_a_note_of_the_row(tmp_path: Path) -> None:
    root = slides_in(tmp_path / "slides", "a.tif")
    write_result(root / "predictions", "a", PROBABILITIES, scope="drawn region")
    write_failure_rows(root / "predictions", [("a.tif", "read", "a tile")], set())
    (entry,) = read_entries(list_folder([root]).slides, root / "predictions")
    assert entry.status is Status.DONE
    assert entry.reason == "a later run failed: read: a tile; answer for a part of the slide: drawn region"


def test_an_answer_of_another_model_is_said_in_its_row(tmp_path: Path) -> None:
    root = slides_in(tmp_path / "slides", "a.tif", "b.tif", "c.tif")
    results = root / "predictions"
    for name, sha256 in (("a", "11" * 32), ("b", "11" * 32), ("c", "22" * 32)):
        write_result(results, name, PROBABILITIES, sha256=sha256)
    slides = list_folder([root]).slides
    a, b, c = read_entries(slides, results)
    assert not a.notes and not b.notes
    assert c.reason == f"{OTHER_MODEL} demo (22222222), not of the model of most slides here"
    a, b, c = read_entries(slides, results, model_sha256="22" * 32)
    assert a.notes and b.notes and not c.notes


def test_two_slides_of_one_name_are_listed_and_the_second_is_refused(tmp_path: Path) -> None:
    root = slides_in(tmp_path / "slides", "x/a.tif", "y/a.svs")
    write_result(root / "predictions", "a", PROBABILITIES)
    first, second = read_entries(list_folder([root]).slides, root / "predictions")
    assert first.status is Status.DONE and second.status is Status.FAILED
    assert second.answer is None and "slides/x/a.tif" in second.problem


def test_results_are_located_in_and_beside_the_folder(tmp_path: Path) -> None:
    root = slides_in(tmp_path / "slides", "a.tif")
    slides = list_folder([root]).slides
    assert find_results_folder(root, slides) == root / "predictions"
    write_result(tmp_path / "predictions", "a", PROBABILITIES)
    assert find_results_folder(root, slides) == tmp_path / "predictions"
    write_result(root, "a", PROBABILITIES)
    assert find_results_folder(root, slides) == root
    assert without_slides(tmp_path / "predictions", []) == ("a",)


def test_a_failures_table_of_another_kind_hides_no_slide(tmp_path: Path) -> None:
    root = slides_in(tmp_path / "slides", "a.tif")
    (root / "predictions").mkdir()
    (root / "predictions" / "failures.csv").write_bytes(b"\xff\xfe\x00")
    (entry,) = read_entries(list_folder([root]).slides, root / "predictions")
    assert entry.status is Status.NEW


def test_a_result_whose_predicted_class_has_no_probability_is_a_problem_of_the_row(tmp_path: Path) -> None:
    root = slides_in(tmp_path / "slides", "a.tif")
    file = write_result(root / "predictions", "a", PROBABILITIES) / "prediction.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"predicted": "other"}))
    (entry,) = read_entries(list_folder([root]).slides, root / "predictions")
    assert entry.status is Status.FAILED and "class without a probability" in entry.problem
