"""Regions off the slide, off the tissue and too thin for a patch: three sentences, and the patches that answer."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import shapely

from napari_lrmil.core.errors import TissueError
from napari_lrmil.core.geometry import Lattice, Mpp
from napari_lrmil.core.patching.grid import NestedGrid, TissueGrid, build_nested_grid
from napari_lrmil.core.patching.overlaps import find_overlaps, overlap_areas
from napari_lrmil.core.patching.placement import place_regions
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import RegionOfInterest
from napari_lrmil.core.patching.tissue import Tissue

# 4 x 3 LR patches of 400 x 320 px from (50, 30), each of 4 x 4 HR cells of 100 x 80 px with 10 x 10 mask pixels.
LATTICE = Lattice((50, 30), (100, 80), 16, 12, 4, Mpp(0.5, 0.5))
SLIDE = Path("s.svs")


def tissue_grid(left: int = 5, top: int = 5, right: int = 155, bottom: int = 115) -> TissueGrid:
    """Return a slide whose tissue is a rectangle given in mask pixels, of 10 x 8 px; 0.05 of a border cell is glass."""
    mask = np.zeros((120, 160), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    tissue = Tissue(mask, LATTICE, 20.0)
    return TissueGrid(tissue, build_nested_grid(LATTICE, tissue.shares(), 0.25))


def box(x: float, y: float, width: float, height: float) -> Region:
    return Region("r", shapely.box(50 + x, 30 + y, 50 + x + width, 30 + y + height))


def chosen(slide: TissueGrid, *regions: Region) -> list[tuple[int, int]]:
    is_selected = place_regions(slide, regions).is_selected
    return [(int(x), int(y)) for x, y in slide.grid.lr_index[is_selected]]


@pytest.mark.parametrize(
    ("region", "patches"),
    [
        (box(0, 0, 400, 320), [(0, 0)]),
        (box(100, 300, 1300, 40), [(x, y) for y in (0, 1) for x in range(4)]),  # a strip along a border: both rows
        (box(100, 310, 1300, 40), [(x, 1) for x in range(4)]),  # 10 px in the upper row, 30 in the lower
        (box(200, 160, 400, 320), [(0, 0), (1, 0), (0, 1), (1, 1)]),  # a quarter of each of four
        (box(500, 400, 30, 20), [(1, 1)]),
        (Region("r", shapely.LineString([(60, 40), (1640, 980)]).buffer(3)), None),
    ],
)
def test_a_thin_region_is_answered_by_the_patches_it_touches_most(
    region: Region, patches: list[tuple[int, int]] | None
) -> None:
    slide = tissue_grid(0, 0, 160, 120)
    answers = chosen(slide, region)
    assert (answers == patches) if patches else 4 <= len(answers) < 12
    _, warnings = RegionOfInterest("region", (region,)).of(slide, SLIDE)
    assert bool(warnings) == (patches != [(0, 0)])
    for warning in warnings:
        assert "too thin to fill half of a patch" in warning and f"that of the {len(answers)} patch" in warning


def test_off_tissue_off_the_slide_and_thin_are_three_sentences() -> None:
    slide = tissue_grid(left=25)  # glass: 250 px, of the left patches' 400
    for region, says in (
        (box(5000, 100, 900, 900), r"it lies outside the slide \(x 5050 to 5950, y 130 to 1030"),
        (box(20, 20, 180, 900), "it lies off the tissue; choose a part with tissue"),  # thin, on glass alone
        (box(20, 100, 60, 60), "it lies off the tissue; choose a part with tissue"),  # small, in a patch with tissue
    ):
        with pytest.raises(TissueError, match=f"the drawn region holds no LR patch: {says}"):
            RegionOfInterest("region", (region,)).of(slide, SLIDE)
    with pytest.raises(TissueError, match="the 2 drawn regions hold no LR patch: they lie off the tissue, or outside"):
        RegionOfInterest("region", (box(5000, 100, 900, 900), box(20, 20, 180, 900))).of(slide, SLIDE)
    grid, (warning,) = RegionOfInterest("region", (box(300, 20, 60, 900),)).of(slide, SLIDE)
    assert grid.lr_index[:, 0].tolist() == [0, 0, 0] and warning.startswith("the drawn region is too thin")


def test_an_islet_within_a_region_is_tissue() -> None:
    slide = tissue_grid(left=20, top=20, right=26, bottom=26)
    assert chosen(slide, box(190, 150, 90, 80)) == [(0, 0)]


def test_a_region_that_reaches_beyond_the_slide_says_which_part_was_left_out() -> None:
    slide = tissue_grid(0, 0, 160, 120)
    half, inside = box(-400, 0, 800, 320), box(0, 0, 400, 320)
    (warning,) = RegionOfInterest("region", (half,)).of(slide, SLIDE)[1]
    assert warning.startswith("50% of the drawn region lies outside the slide and was left out")
    assert not RegionOfInterest("region", (inside,)).of(slide, SLIDE)[1], "the slide's own edge is no fault"
    assert not RegionOfInterest("view", (half,)).of(slide, SLIDE)[1], "the window may show more than the slide"
    warnings = RegionOfInterest("region", (half, inside)).of(slide, SLIDE)[1]
    assert warnings == ("1 of 2 drawn regions reaches beyond the slide; the parts outside were left out",)


def test_each_of_several_regions_is_told_by_count() -> None:
    slide = tissue_grid(left=25)
    regions = (
        box(400, 0, 400, 320),
        box(5000, 0, 9, 9),
        box(20, 20, 50, 50),
        box(1240, 500, 40, 30),
        box(20, 90, 9, 9),
    )
    grid, warnings = RegionOfInterest("region", regions).of(slide, SLIDE)
    assert [tuple(index) for index in grid.lr_index.tolist()] == [(1, 0), (3, 1)]
    assert warnings == (
        "1 of 5 drawn regions lies outside the slide and was left out",
        "2 of 5 drawn regions lie off the tissue and were left out",
        "1 of 5 drawn regions is too thin to fill half of a patch, or across patch borders; the patches that they "
        "touch most count for them (2 patches in all)",
    )


def test_a_thin_region_beside_a_full_one_gets_its_own_patches() -> None:
    slide = tissue_grid(0, 0, 160, 120)
    full, strip = box(0, 0, 400, 320), box(390, 10, 1100, 20)  # 10 px of the strip lie in the full patch
    assert chosen(slide, full, strip) == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_excluded_regions_without_effect_are_told() -> None:
    slide = tissue_grid(0, 0, 160, 120)
    pen = Region("pen", shapely.LineString([(60, 300), (1600, 400)]).buffer(4))
    scope = RegionOfInterest(excluded=(box(1200, 0, 400, 320), pen, box(9000, 0, 9, 9)))
    grid, warnings = scope.of(slide, SLIDE)
    assert len(grid.lr_index) == 11
    assert warnings == (
        "1 of 3 excluded regions lies outside the slide",
        "1 of 3 excluded regions is too thin to fill half of a patch, or across patch borders; nothing was left out "
        "for them",
    )


def test_what_is_kept_and_drawn_apart_is_told() -> None:
    slide = tissue_grid(0, 0, 160, 120)
    scope = RegionOfInterest("region", (box(0, 0, 400, 320),), included=(box(800, 0, 400, 320),))
    with pytest.raises(TissueError, match="no patch of it belongs to what was kept"):
        scope.of(slide, SLIDE)


def test_sixty_thousand_outlines_are_placed_in_seconds() -> None:
    """CPU seconds; a plain union takes 18 s, and cutting each patch out of all outlines minutes."""
    lattice = Lattice((0, 0), (256, 256), 388, 312, 4, Mpp(0.5, 0.5))
    tissue = Tissue(np.ones((312 * 4, 388 * 4), dtype=np.bool_), lattice, 20.0)
    slide = TissueGrid(tissue, build_nested_grid(lattice, tissue.shares(), 0.25))
    rng, angle = np.random.default_rng(0), np.linspace(0, 2 * np.pi, 20, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 40
    centres = rng.uniform(100, 79_000, (60_000, 1, 2))
    regions = tuple(Region("cell", polygon) for polygon in shapely.polygons(centres + circle))
    began = time.process_time()
    selection = RegionOfInterest("region", regions).select(slide)
    assert time.process_time() - began < 30
    assert selection.is_selected.sum() > 6000 and "60,000 of 60,000 drawn regions" in selection.warnings[0]


def test_overlaps_of_many_small_areas_and_of_a_long_one_sum_up() -> None:
    corners = np.array([(x * 100.0, y * 100.0) for y in range(20) for x in range(20)])
    boxes = np.c_[corners, corners + 100]
    angle = np.linspace(0, 2 * np.pi, 3000, endpoint=False)
    rim = 1000 + 700 * np.c_[np.cos(angle), np.sin(angle)] * (1 + 0.1 * np.sin(40 * angle))[:, None]
    areas = [shapely.Polygon(rim), shapely.box(30, 40, 130, 60), shapely.box(-50, -50, -10, -10)]
    overlaps = find_overlaps(boxes, areas)
    sums = np.bincount(overlaps.area, overlaps.size, minlength=3)
    assert sums == pytest.approx([areas[0].area, 100 * 20, 0])
    assert overlaps.largest(3).tolist() == [10_000, 70 * 20, 0]
    expected = shapely.area(shapely.intersection(shapely.box(*boxes.T), areas[0]))
    np.testing.assert_allclose(overlap_areas(boxes, areas[0]), expected, atol=1e-6)
    assert overlap_areas(boxes, shapely.Polygon()).sum() == 0


def test_the_grid_of_the_tests_is_as_stated() -> None:
    grid: NestedGrid = tissue_grid().grid
    assert len(grid.lr_index) == 12 and len(grid.hr_index) == 16 * 12
