"""A table as a worklist: faults of rows are said in the rows, and the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrmil_training.data.cohort_cells import WITHOUT_ENDING
from lrmil_training.data.listed_slides import list_table
from napari_lrmil.core.errors import CohortError


def table(folder: Path, *rows: str, head: str = "slide,patient,mpp") -> Path:
    for name in ("a.tif", "b.tif"):
        (folder / name).write_bytes(b"")
    path = folder / "cohort.csv"
    path.write_text("\n".join([head, *rows]))
    return path


def test_slides_have_patients_and_resolutions(tmp_path: Path) -> None:
    a, b = list_table(table(tmp_path, "a.tif,P1,0.5", "b.tif,P2,")).slides
    assert (a.name, a.patient, a.mpp, a.path_in_cohort) == ("a", "P1", 0.5, f"{tmp_path.name}/a.tif")
    assert (b.patient, b.mpp, b.problem) == ("P2", None, "")


def test_a_slide_that_is_named_twice_has_one_row_that_says_so(tmp_path: Path) -> None:
    a, b = list_table(table(tmp_path, "a.tif,P1,", "b.tif,P2,", "a.tif,P1,", "./a.tif,P9,0.25")).slides
    assert a.notes == (
        "the table names it twice, in lines 2 and 4",
        "the table names it twice, in lines 2 and 5 with another patient and mpp, the first is used",
    )
    assert (a.patient, a.mpp, b.notes) == ("P1", None, ())


def test_a_missing_slide_and_a_wrong_cell_are_problems_of_their_rows(tmp_path: Path) -> None:
    rows = ("a.tif,P1,zero", "A.TIF.tif,P1,", ",P1,", "b.tif,P2,0.5", "B.tif,P2,")
    a, gone, nameless, b, similar = list_table(table(tmp_path, *rows)).slides
    assert "column mpp" in a.problem and "no such file" in gone.problem and "names no slide" in nameless.problem
    assert not b.problem and "there is b.tif: correct the table" in similar.problem


def test_a_name_without_ending_is_the_one_slide_that_has_it(tmp_path: Path) -> None:
    listing = list_table(table(tmp_path, "a,P1,", "b.tif,P2,"))
    assert [(s.name, s.path.name, s.problem) for s in listing.slides] == [("a", "a.tif", ""), ("b", "b.tif", "")]
    assert listing.notices == (WITHOUT_ENDING,)
    (tmp_path / "a.svs").write_bytes(b"")
    first, second = list_table(table(tmp_path, "a,P1,", "b.tif,P2,")).slides
    assert first.problem == "line 2: 'a' could be a.svs or a.tif; write the ending" and not second.problem


def test_two_slides_of_one_name_are_both_listed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.tif").write_bytes(b"")
    first, second = list_table(table(tmp_path, "a.tif,P1,", "x/a.tif,P2,")).slides
    assert not first.problem and "would overwrite those of" in second.problem


def test_only_the_column_slide_is_needed(tmp_path: Path) -> None:
    assert [s.name for s in list_table(table(tmp_path, "a.tif", head="slide")).slides] == ["a"]
    with pytest.raises(CohortError, match="no column named slide"):
        list_table(table(tmp_path, "a.tif", head="file"))
