"""Tests of the search for slides that moved after their results were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.results.moved_slides import find_moved_slides
from napari_lrmil.core.results.reader import StoredResult


def test_one_folder_serves_all_slides(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    for name in ("uuid-1/a.svs", "uuid-2/b.svs", "dicom/0.dcm", "c.txt"):
        (slides / name).parent.mkdir(parents=True, exist_ok=True)
        (slides / name).touch()
    (slides / "results").mkdir()
    (slides / "results" / "prediction.json").touch()
    (slides / "results" / "d.svs").touch()
    results = [
        StoredResult("a", Path("1"), Path("cohort/uuid-1/a.svs")),
        StoredResult("b", Path("2")),  # an early result states no path
        StoredResult("dicom", Path("3"), Path("cohort/dicom")),
        StoredResult("c", Path("4")),
        StoredResult("d", Path("5"), Path("cohort/d.svs")),
    ]
    assert find_moved_slides(results, slides) == {
        Path("1"): slides / "uuid-1" / "a.svs",
        Path("2"): slides / "uuid-2" / "b.svs",
        Path("3"): slides / "dicom",
    }


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="cannot be read"):
        find_moved_slides([StoredResult("a", Path("1"))], tmp_path / "absent")
