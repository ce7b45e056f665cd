"""Quality warnings: one sentence each for unusual colour and little tissue; without a reference, no pixel is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.inference.quality_checks import MIN_LR_PATCHES, quality_warnings, small_region_warnings
from napari_lrmil.core.patching.color import CohortColour, cohort_colour, color_stats
from napari_lrmil.core.patching.grid import find_nested_grid
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, resolution, speckled

PLAN = PatchPlan(0.5, 2.0, 64, 64)


def warnings_of(folder: Path, size: tuple[int, int], colour: CohortColour | None) -> tuple[str, ...]:
    with fake_slide(folder, FakeSlide(speckled(*size), (1.0, 4.0, 16.0), resolution(0.5))) as slide:
        return quality_warnings(slide, find_nested_grid(slide, PLAN), DarknessBundle(colour=colour).card)


@pytest.fixture
def cohort(tmp_path: Path) -> CohortColour:
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 1100), (1.0, 4.0, 16.0), resolution(0.5))) as slide:
        return cohort_colour([color_stats(slide, find_nested_grid(slide, PLAN))] * 6)


def test_a_slide_like_the_training_slides_is_not_doubted(tmp_path: Path, cohort: CohortColour) -> None:
    assert warnings_of(tmp_path, (1300, 1100), cohort) == ()


def test_a_far_colour_is_one_sentence_with_its_distance(tmp_path: Path, cohort: CohortColour) -> None:
    far = replace(cohort, mean=tuple(m + 0.2 for m in cohort.mean))
    (warning,) = warnings_of(tmp_path, (1300, 1100), far)
    assert "staining is far outside the training range" in warning and "9.4 times" in warning


def test_a_colour_within_the_usual_spread_is_no_warning(tmp_path: Path, cohort: CohortColour) -> None:
    near = replace(cohort, mean=tuple(m + 0.03 for m in cohort.mean))
    assert warnings_of(tmp_path, (1300, 1100), near) == ()


@pytest.mark.parametrize(("size", "patches"), [((768, 768), 9), ((1280, 512), 10), ((200, 150), 1)])
def test_fewer_than_ten_patches_are_little_tissue(tmp_path: Path, size: tuple[int, int], patches: int) -> None:
    warnings = warnings_of(tmp_path, size, None)
    assert len(warnings) == (patches < MIN_LR_PATCHES)
    if warnings:
        assert f"{patches} LR patch" in warnings[0] and ("patches" in warnings[0].split(",")[0]) == (patches > 1)


@pytest.mark.parametrize(("size", "patches"), [((768, 768), 9), ((1280, 512), 10), ((200, 150), 1)])
def test_a_region_of_few_patches_is_doubted(tmp_path: Path, size: tuple[int, int], patches: int) -> None:
    with fake_slide(tmp_path, FakeSlide(speckled(*size), (1.0, 4.0, 16.0), resolution(0.5))) as slide:
        grid = find_nested_grid(slide, PLAN)
    warnings = small_region_warnings(grid, "region")
    assert len(warnings) == (patches < MIN_LR_PATCHES)
    if warnings:
        expected = "1 LR patch, which gets all" if patches == 1 else f"{patches} LR patches, fewer than 10"
        assert warnings[0].startswith(f"small region: {expected}")
    assert small_region_warnings(grid, "slide") == (), "`quality_warnings` says it"


def test_a_card_without_colour_reads_no_pixel(tmp_path: Path) -> None:
    fake = FakeSlide(speckled(1300, 1100), (1.0, 4.0, 16.0), resolution(0.5))
    with fake_slide(tmp_path, fake) as slide:
        grid = find_nested_grid(slide, PLAN)
        fake.reads.clear()
        assert quality_warnings(slide, grid, DarknessBundle().card) == ()
    assert fake.reads == []
