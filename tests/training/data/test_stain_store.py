"""Stored colour statistics: measured once, exactly as read back, and again if the slide or the file changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lrmil_training.data import stain_store
from lrmil_training.data.cohort import CohortSlide
from lrmil_training.data.stain_store import STAIN_FOLDER, stored_stain
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.stain import StainStatistics, measure_stain
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import speckled, write_tiff

PLAN = PatchPlan(0.5, 2.0, 64, 64)


@pytest.fixture
def row(tmp_path: Path) -> CohortSlide:
    return CohortSlide(write_tiff(tmp_path / "a.tif", speckled(600, 400, 1), (1.0, 4.0), (0.5, 0.5)), "p", "normal", "")


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the slides that are measured from here on."""
    names: list[str] = []

    def measure(slide: Slide, grid: object) -> StainStatistics:
        names.append(slide.name)
        return measure_stain(slide, grid)  # type: ignore[arg-type]

    monkeypatch.setattr(stain_store, "measure_stain", measure)
    return names


def test_statistics_are_measured_once_and_read_back_exactly(
    row: CohortSlide, tmp_path: Path, measurements: list[str]
) -> None:
    with row.open() as slide:
        direct = measure_stain(slide, find_tissue_grid(slide, PLAN).grid)
    first, second = (stored_stain(tmp_path, row, PLAN) for _ in range(2))
    assert measurements == ["a"]
    assert repr(first) == repr(second) == repr(direct), "the names of feature files are hashes of this text"


def test_another_slide_plan_or_resolution_is_measured_again(
    row: CohortSlide, tmp_path: Path, measurements: list[str]
) -> None:
    first = stored_stain(tmp_path, row, PLAN)
    stored_stain(tmp_path, row, replace(PLAN, lr_patch_px=128, hr_patch_px=128))
    stored_stain(tmp_path, row, PLAN)
    stored_stain(tmp_path, replace(row, mpp=0.45), PLAN)
    write_tiff(row.path, speckled(600, 400, 2), (1.0, 4.0), (0.5, 0.5))
    assert stored_stain(tmp_path, row, PLAN) != first
    assert len(measurements) == 5


@pytest.mark.parametrize("damaged", [b"", b"{}", b'{"source": 1', b"[]", b"\xff\xfe\x00"])
def test_a_damaged_file_is_measured_again(
    row: CohortSlide, tmp_path: Path, measurements: list[str], damaged: bytes
) -> None:
    first = stored_stain(tmp_path, row, PLAN)
    file = tmp_path / STAIN_FOLDER / "a.json"
    whole = file.read_bytes()
    file.write_bytes(damaged)
    assert stored_stain(tmp_path, row, PLAN) == first
    assert file.read_bytes() == whole and len(measurements) == 2
