"""Search for slides: DICOM series, folders of folders, and what is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slides.dicom_headers import read_dicom_header
from napari_lrmil.core.slides.openslide_handle import open_with_openslide, slide_file
from napari_lrmil.core.slides.slide_files import SlideSearch, path_in_cohort
from support.dicom_objects import DEFLATED, EXPLICIT, IMPLICIT, REPORT, write_dicom


def searched(*paths: Path) -> SlideSearch:
    search = SlideSearch()
    for path in paths:
        search.add_folder(path) if path.is_dir() else search.add_file(path, is_only=len(paths) == 1)
    return search


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED])
def test_the_series_is_read_in_every_transfer_syntax(tmp_path: Path, syntax: str) -> None:
    header = read_dicom_header(write_dicom(tmp_path / "0001", "1.2.3", kind="LABEL", syntax=syntax))
    assert header is not None and header.series == "1.2.3" and header.is_slide and not header.is_volume


def test_other_files_have_no_header(tmp_path: Path) -> None:
    whole = write_dicom(tmp_path / "a.dcm", "1.2.3").read_bytes()
    for size in (0, 10, 131, 132, 140, 200):
        (tmp_path / "cut.dcm").write_bytes(whole[:size])
        header = read_dicom_header(tmp_path / "cut.dcm")
        assert header is None or not header.is_slide
    assert read_dicom_header(tmp_path / "absent.dcm") is None


def test_a_series_is_one_slide_however_it_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "case 1"
    files = [write_dicom(folder / name, "1.2.3") for name in ("a.dcm", "b.DCM", "c", "7")]
    report = write_dicom(folder / "sr.dcm", "1.2.9", REPORT)
    assert searched(folder).slides == [folder]
    assert searched(tmp_path).slides == [folder]
    one_by_one = searched(*files, report)
    assert one_by_one.slides == files[:1]
    assert one_by_one.notice == "left out: 1 DICOM object that is no slide, 3 further files of DICOM series"


def test_several_series_of_a_folder_are_several_slides(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", "1.1", kind="LABEL")
    second, other = write_dicom(tmp_path / "b.dcm", "1.1"), write_dicom(tmp_path / "c.dcm", "1.2")
    assert searched(tmp_path).slides == [second, other]  # a file with pixels of the slide, not the label
    with pytest.raises(SlideError, match="a folder with 2 DICOM slides; give one file"):
        slide_file(tmp_path)


def test_objects_that_are_no_slides_are_refused_in_words(tmp_path: Path) -> None:
    report = write_dicom(tmp_path / "sr.dcm", "1.2.9", REPORT)
    with pytest.raises(SlideError, match=r"a DICOM object that is no whole-slide image \(SR\)"):
        open_with_openslide(report)
    with pytest.raises(SlideError, match="1 DICOM objects that are no slides"):
        slide_file(tmp_path)


def test_folders_are_walked_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b/x.svs", "a/y.SVS", "a/._y.SVS", "a/notes.txt", ".trash/z.svs", "z.tif")))
    touch(tmp_path / "mirax/m.mrxs", tmp_path / "mirax/m/Data0000.dat")
    touch(tmp_path / "results/s/prediction.json", tmp_path / "results/s/attention.ome.tif")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    search = searched(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in search.slides] == [
        *("z.tif", "a/y.SVS", "b/x.svs", "mirax/m.mrxs")
    ]
    assert search.notice == (
        "left out: 1 file of another type (.txt), 1 folder of results, 2 hidden files or folders, 1 repetition"
    )


def test_a_folder_that_is_named_like_a_slide_is_listed(tmp_path: Path) -> None:
    (tmp_path / "x.svs").mkdir()
    assert searched(tmp_path).slides == [tmp_path / "x.svs"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.svs")
    os.mkfifo(tmp_path / "p.dcm")
    for name in ("p.svs", "p.dcm"):
        with pytest.raises(SlideError, match="a pipe or device"):
            open_with_openslide(tmp_path / name)
    searched(tmp_path)


HOME = "/".join(("", "home", "anna"))  # in parts: no file of this project names a real home


@pytest.mark.parametrize(
    ("slide", "root", "expected"),
    [
        (f"{HOME}/slides/a/x.svs", f"{HOME}/slides", "slides/a/x.svs"),
        (f"{HOME}/slides", f"{HOME}/slides", "slides"),
        (f"{HOME}/tables/../slides/x.svs", f"{HOME}/tables", "slides/x.svs"),
        (f"{HOME}/tables/../../ben/x.svs", f"{HOME}/tables", "ben/x.svs"),
        ("/scans/ben/x.svs", f"{HOME}/tables", "x.svs"),
        (f"{HOME}/a/x.svs", HOME, "a/x.svs"),
        (f"{HOME}/x.svs", f"{HOME}/x.svs", "x.svs"),
        ("slides/a/x.svs", "slides", "slides/a/x.svs"),
        ("../anna/x.svs", "../anna/x.svs", "x.svs"),
    ],
)
def test_folders_above_the_cohort_stay_out(slide: str, root: str, expected: str) -> None:
    assert path_in_cohort(Path(slide), Path(root)) == expected


def test_a_dicom_folder_inside_a_cohort_folder_is_a_slide_and_a_copy_of_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "normal").mkdir()
    (tmp_path / "normal" / "a.svs").touch()
    for folder, series in (("normal/b", "1.1"), ("tumour/c", "1.2"), ("tumour/copy of c", "1.2")):
        (tmp_path / folder).mkdir(parents=True)
        write_dicom(tmp_path / folder / "0.dcm", series)
        write_dicom(tmp_path / folder / "1.dcm", series)
    search = SlideSearch()
    assert search.add_folder(tmp_path) == 3
    assert [path.relative_to(tmp_path).as_posix() for path in search.slides] == ["normal/a.svs", "normal/b", "tumour/c"]
    assert search.notice == "left out: 1 folder with a DICOM series that an earlier folder has too (copy of c)"
