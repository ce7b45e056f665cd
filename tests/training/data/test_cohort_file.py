"""Cohort tables as spreadsheets write them: read, or refused with line, column and remedy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lrmil_training.data.cohort import Cohort, read_cohort, read_slides
from lrmil_training.data.cohort_cells import WITHOUT_ENDING
from napari_lrmil.core.errors import CohortError
from support.dicom_objects import write_dicom

Write = Callable[..., Path]
GOOD = "slide,patient,label\ns1.tif,p1,0\ns2.tif,p2,1\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a writer of tables beside the slides s1.tif, s2.tif and sub/s2.tif."""
    (tmp_path / "sub").mkdir()
    for name in ("s1.tif", "s2.tif", "sub/s3.tif"):
        (tmp_path / name).touch()

    def write_table(content: str | bytes) -> Path:
        path = tmp_path / "cohort.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_table


def rows(cohort: Cohort) -> list[tuple[str, str, str, float | None]]:
    return [(s.path.name, s.patient, s.label, s.mpp) for s in cohort.slides]


EXPECTED = [("s1.tif", "p1", "0", None), ("s2.tif", "p2", "1", None)]


@pytest.mark.parametrize(
    "content",
    [
        GOOD.replace("\n", "\r\n").encode("utf-8-sig"),
        GOOD.replace("\n", "\r").encode(),
        GOOD.encode("utf-16"),
        GOOD.encode("utf-16-le"),
        GOOD.encode("utf-16-be"),
        GOOD.encode("utf-32"),
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        GOOD.replace(",", "|"),
        "sep=;\r\n" + GOOD.replace(",", ";"),
        "sep=\t\r\n" + GOOD.replace(",", "\t"),
        GOOD.replace("slide,patient,label", " Slide , PATIENT,Label "),
        GOOD.replace(",p", ", p"),
        GOOD.replace("\n", ",,\n"),
        '"slide","patient","label"\n"s1.tif","p1","0"\n"s2.tif","p2","1"\n',
        "\n\n" + GOOD,
    ],
)
def test_tables_of_spreadsheets_are_read(write: Write, content: str | bytes) -> None:
    cohort = read_cohort(write(content))
    assert rows(cohort) == EXPECTED and not cohort.notices


@pytest.mark.parametrize(
    ("content", "notice"),
    [
        ("# of 2024\n" + GOOD, "line 1 left out, it is a comment: # of 2024"),
        (GOOD + ",,\n,,\n", "2 empty rows left out"),
        (",slide,patient,label\n0,s1.tif,p1,0\n1,s2.tif,p2,1\n", "the first column has no name and holds numbers"),
        (
            "slide;patient;label;mpp\ns1.tif;p1;0;0,5\ns2.tif;p2;1;0,25\n",
            "column mpp: decimal commas are read as points",
        ),
        ("slide,patient,label,split\ns1.tif,p1,0,Train\ns2.tif,p2,1,Validation\n", "'Validation' is read as val"),
        ("slide,patient,label\ns1.tif,Müller,0\ns2.tif,p2,1\n".encode("cp1252"), "not UTF-8 from line 2 on"),
    ],
)
def test_what_is_repaired_is_told(write: Write, content: str | bytes, notice: str) -> None:
    cohort = read_cohort(write(content))
    assert len(cohort.notices) == 1 and notice in cohort.notices[0]
    assert [s.path.name for s in cohort.slides] == ["s1.tif", "s2.tif"]


def test_decimal_commas_and_formulas_are_values(write: Write) -> None:
    cohort = read_cohort(write("slide;patient;label;mpp;note\ns1.tif;'=p1;0;0,5;'+x\ns2.tif;p2;1;;\n"))
    assert [s.mpp for s in cohort.slides] == [0.5, None]
    assert cohort.slides[0].patient == "=p1" and cohort.slides[0].extra == (("note", "+x"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\r\n \n", "the file is empty"),
        ("slide,patient,label\n", "the table has no rows"),
        (
            "slide,patient,label\ns1.tif,p1\n",
            "line 2 has 2 cells where the head has 3; the first that is missing is label",
        ),
        ("slide,patient,label\ns1.tif,p1,0,x\n", "line 2 has 4 cells where the head has 3; the first too many is 'x'"),
        ("slide,patient,label,Label \ns1.tif,p1,0,1\n", r"line 1 names 2 columns label \(columns 3 and 4\)"),
        ("slide,patient,label\ns1.tif,p1,0\0\n", "line 2 has a NUL character"),
        ('slide,patient,label\ns1.tif,"p1,0\ns2.tif,p2,1\n', "line 2 is not a row of cells"),
        ('slide,patient,label\ns1.tif,"p1,0\ns2.tif",p2\n', "line 2 has a cell over several lines"),
        (f"slide,patient,label\ns1.tif,{'x' * 200_000},0\n", "line 2 is not a row of cells"),
        ("slide,patient,label,\ns1.tif,p1,0,x\n", "column 4 has no name, but line 2 has 'x'"),
        ("case,file\n1,2\n", r"no column named slide, patient, label \(its columns are case, file\)"),
        (b"PK\x03\x04rest", "a workbook of Excel or LibreOffice; save the table as CSV"),
        (b"slide,patient,label\ns1.tif,\x81\xff,0\n", "line 2 is not valid text"),
        ("slide,patient,label\ns1.tif,p1,0\ns2.tif,p2,NaN\n", "line 3, column label: 'NaN' stands for a missing value"),
        ("slide,patient,label\ns1.tif,n/a,0\n", "line 2, column patient: 'n/a' stands for a missing value"),
        ("slide,patient,label\ns1.tif,1.2E+12,0\n", "line 2, column patient: '1.2E.12' is a number that a spreadsheet"),
        ("slide,patient,label\ns1.tif,p1,tumor\ns2.tif,p2,Tumor\n", "lines 2 and 3, column label: 'tumor' and 'Tumor'"),
        ("slide,patient,label\ns1.tif,p1,0\ns2.tif,p2,0.0\n", "lines 2 and 3, column label: '0' and '0.0'"),
        ("slide,patient,label\ns1.tif,p1,0\ns1.tif,p1,0\n", "lines 2 and 3 are the same slide; delete one"),
        ("slide,patient,label\nS1.TIF,p1,0\n", r"first S1.TIF \(line 2\); there is s1.tif"),
        ("slide,patient,label\n's1',p1,0\n", r"first 's1' \(line 2\); there is s1.tif"),
        (f"slide,patient,label\n{'x' * 300},p1,0\n", "1 of 1 slides do not exist"),
    ],
)
def test_what_has_no_one_meaning_is_refused(write: Write, content: str | bytes, message: str) -> None:
    with pytest.raises(CohortError, match=message) as refused:
        read_cohort(write(content))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("mpp", ["nan", "inf", "-0.5", "0", "250", "half", "0.5 um", "1e-9"])
def test_an_impossible_resolution_is_refused(write: Write, mpp: str) -> None:
    path = write(f"slide,patient,label,mpp\ns1.tif,p1,0,{mpp}\n")
    for read in (read_cohort, read_slides):
        with pytest.raises(CohortError, match=f"line 2, column mpp: '{mpp}'; expected µm per pixel, 0.02 to 100"):
            read(path)


def test_two_resolutions_of_a_slide_are_refused(write: Write) -> None:
    with pytest.raises(CohortError, match=r"lines 2 and 3 state different mpp for s1\.tif"):
        read_slides(write("slide,mpp\ns1.tif,0.5\ns1.tif,0.25\n"))
    table = read_slides(write("slide,mpp\ns1.tif,0.5\ns2.tif,\ns1.tif,0.5\n"))
    assert [slide.path.name for slide in table.slides] == ["s1.tif", "s2.tif"]
    assert table.notices == ("rows left out that repeat a slide: 1",)


def test_a_name_that_nearly_exists_is_told(write: Write) -> None:
    table = read_slides(write("slide\n's1'\nS2.TIF\n"))
    assert table.notices[0] == "line 2: 's1' does not exist; there is s1.tif: correct the table"
    assert len(table.notices) == len(table.slides) == 2


def test_a_name_without_ending_is_the_one_slide_that_has_it(write: Write, tmp_path: Path) -> None:
    """For a training and for a prediction alike, with one notice; the same slide with and without is one."""
    (tmp_path / "sub" / "t.1.svs").write_bytes(b"")
    (tmp_path / "s1.geojson").write_bytes(b"")  # no slide, so that the name means one
    cohort = read_cohort(write("slide,patient,label\ns1,p1,0\ns2.tif,p2,1\nsub\\t.1,p3,1\n"))
    assert [s.path.name for s in cohort.slides] == ["s1.tif", "s2.tif", "t.1.svs"]
    assert all(s.path.is_file() for s in cohort.slides) and cohort.notices == (WITHOUT_ENDING,)
    assert [s.name for s in cohort.slides] == ["s1", "s2", "t.1"]
    assert (
        cohort.sha256 == read_cohort(write("slide,patient,label\ns1.tif,p1,0\ns2.tif,p2,1\nsub/t.1.svs,p3,1\n")).sha256
    )
    assert [s.path.name for s in read_slides(write("slide\ns1\ns1.tif\n")).slides] == ["s1.tif"]
    with pytest.raises(CohortError, match="lines 2 and 3 are the same slide; delete one"):
        read_cohort(write("slide,patient,label\ns1,p1,0\ns1.tif,p1,0\n"))


def test_a_name_that_could_be_two_slides_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "s1.svs").write_bytes(b"")
    for read in (read_cohort, read_slides):
        with pytest.raises(CohortError, match=r"line 2: 's1' could be s1\.svs or s1\.tif; write the ending"):
            read(write("slide,patient,label\ns1,p1,0\n"))


def test_a_slide_is_not_the_folder_of_its_tiles(write: Write, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m.mrxs").write_bytes(b"")
    (slide,) = read_slides(write("slide\nm\n")).slides
    assert slide.path == tmp_path / "m.mrxs"


def test_paths_of_windows_and_of_the_home_folder_are_found(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    cohort = read_cohort(write("slide,patient,label\n.\\s1.tif,p1,0\n~/s2.tif,p2,1\nsub\\s3.tif,p3,1\n"))
    assert all(s.path.exists() for s in cohort.slides)


def test_files_of_a_dicom_series_are_one_slide(write: Write, tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        write_dicom(tmp_path / name, "1.2.3")
    cohort = read_cohort(write("slide,patient,label\na.dcm,p1,0\nb.dcm,p1,0\ns2.tif,p2,1\n"))
    assert [s.path.name for s in cohort.slides] == ["a.dcm", "s2.tif"]
    assert cohort.notices == ("1 row left out that names further files of a DICOM series in the table",)
    with pytest.raises(CohortError, match="lines 2 and 3 are files of one DICOM series with different cells"):
        read_cohort(write("slide,patient,label\na.dcm,p1,0\nb.dcm,p1,1\n"))


@pytest.mark.skipif(os.name == "nt", reason="file names of Windows are text")
def test_a_name_in_ragged_bytes_is_found(write: Write, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/s\xff.tif")).touch()
    (slide,) = read_slides(write(b"slide\ns\xff.tif\n")).slides
    assert slide.path.exists()


def test_a_first_line_too_long_for_names_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text("x" * 200_000 + ",slide,patient,label\na.svs,p,a,b\n")
    with pytest.raises(CohortError, match="line 1 is no row of names of columns"):
        read_cohort(path)
