"""Nested grids: HR patches with tissue, their LR parents by integer division, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_lrmil.core.errors import ResolutionError, TissueError
from napari_lrmil.core.geometry import Bounds, Lattice, Mpp, PatchPlan
from napari_lrmil.core.patching.grid import (
    NestedGrid,
    build_nested_grid,
    find_nested_grid,
    find_tissue_grid,
    nested_grid_from_cells,
    require_resolution,
    tissue_grid_from_mask,
)
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import TISSUE, FakeSlide, fake_slide, glass, l_shape, one_sentence, resolution, write_tiff

PLAN = PatchPlan(0.5, 2.0, 64, 64)  # HR 32 µm, LR 128 µm


def brute_force_parents(grid: NestedGrid) -> list[list[int]]:
    """Return for each HR patch every kept LR patch that contains it wholly, by comparing corners."""
    (width, height), (lr_width, lr_height) = grid.lattice.cell, grid.lattice.lr_cell
    return [
        [
            row
            for row, (left, top) in enumerate(grid.lr_corners.tolist())
            if left <= x and x + width <= left + lr_width and top <= y and y + height <= top + lr_height
        ]
        for x, y in grid.hr_corners.tolist()
    ]


@st.composite
def shares_on_lattices(draw: st.DrawFn) -> tuple[Lattice, np.ndarray]:
    n = draw(st.sampled_from([1, 2, 4, 8]))
    columns, rows = n * draw(st.integers(1, 4)), n * draw(st.integers(1, 3))
    origin = draw(st.tuples(st.integers(0, 999), st.integers(0, 999)))
    cell = draw(st.tuples(st.integers(1, 500), st.integers(1, 500)))
    shares = draw(hnp.arrays(np.float32, (rows, columns), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])))
    return Lattice(origin, cell, columns, rows, n, Mpp(0.5, 0.4)), shares


@settings(deadline=None)
@given(shares_on_lattices())
def test_parents_by_integer_division_equal_a_search_by_containment(case: tuple[Lattice, np.ndarray]) -> None:
    """Every HR patch lies wholly inside exactly one LR patch, and that one is its parent."""
    grid = build_nested_grid(*case, min_share=0.25)
    assert brute_force_parents(grid) == [[p] for p in grid.parent.tolist()]


@settings(deadline=None)
@given(shares_on_lattices())
def test_lr_patches_are_kept_exactly_where_a_child_is_kept(case: tuple[Lattice, np.ndarray]) -> None:
    lattice, shares = case
    grid = build_nested_grid(lattice, shares, min_share=0.25)
    n = lattice.n
    kept = (shares >= 0.25).reshape(lattice.rows // n, n, lattice.columns // n, n).any(axis=(1, 3))
    rows, columns = np.nonzero(kept)
    assert grid.lr_index.tolist() == np.stack([columns, rows], 1).tolist(), "in reading order"
    assert len(grid.hr_index) == (shares >= 0.25).sum()
    assert set(grid.parent.tolist()) == set(range(len(grid.lr_index))), "no LR patch without a child"


@settings(deadline=None)
@given(shares_on_lattices())
def test_child_and_parent_together_give_back_the_hr_cell(case: tuple[Lattice, np.ndarray]) -> None:
    grid = build_nested_grid(*case, min_share=0.1)
    n = grid.lattice.n
    back = grid.lr_index[grid.parent] * n + np.stack([grid.child % n, grid.child // n], 1)
    assert back.tolist() == grid.hr_index.tolist()


@settings(deadline=None)
@given(case=shares_on_lattices(), data=st.data())
def test_a_selection_keeps_each_hr_patch_with_its_own_parent(
    case: tuple[Lattice, np.ndarray], data: st.DataObject
) -> None:
    """Selecting LR patches renumbers parents: every remaining HR patch lies in the LR patch that it names."""
    lattice, shares = case
    grid = build_nested_grid(lattice, shares, 0.25)
    count = len(grid.lr_index)
    is_selected = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool)
    part = grid.select(is_selected)
    np.testing.assert_array_equal(part.lr_index, grid.lr_index[is_selected])
    np.testing.assert_array_equal(part.hr_index // lattice.n, part.lr_index[part.parent])
    assert len(part.hr_index) == is_selected[grid.parent].sum()


def test_children_are_numbered_row_by_row() -> None:
    lattice = PLAN.lattice(Bounds(0, 0, 512, 256), Mpp(0.5, 0.5))
    grid = nested_grid_from_cells(lattice, np.array([[4, 0], [5, 0], [4, 1], [7, 3]]))
    assert grid.child.tolist() == [0, 1, 4, 15]
    assert grid.parent.tolist() == [0, 0, 0, 0] and grid.lr_index.tolist() == [[1, 0]]
    assert grid.patch_ratio == 4


def test_a_grid_whose_parents_do_not_match_is_refused_with_both_numbers() -> None:
    lattice = PLAN.lattice(Bounds(0, 0, 512, 256), Mpp(0.5, 0.5))
    with pytest.raises(ValueError, match="2 HR patches, but 1 parents"):
        NestedGrid(lattice, np.zeros((2, 2), np.int64), np.zeros((1, 2), np.int64), np.zeros(1, np.int64))


# ---------------------------------------------------------------- grids of slides


@pytest.mark.parametrize("n", [2, 4, 8])
def test_an_l_of_tissue_gives_nested_grids_for_every_ratio(tmp_path: Path, n: int) -> None:
    """Upright 256 px of 2048 wide, foot 160 px (two HR cells of 80) at the bottom of 1280; mpp 0.5 x 0.4."""
    plan = PatchPlan(0.5, 0.5 * n, 64, 64)
    fake = FakeSlide(l_shape(2048, 1280, (256, 160)), (1.0, 4.002, 8.017), resolution(0.5, 0.4))
    with fake_slide(tmp_path, fake) as slide:
        grid = find_nested_grid(slide, plan)
    kept = {(x, y) for x, y in grid.hr_index.tolist()}
    assert kept == {(x, y) for x in range(4) for y in range(16)} | {(x, y) for x in range(32) for y in (14, 15)}
    assert grid.lattice.lr_cell == (64 * n, 80 * n)
    assert {(x, y) for x, y in grid.lr_index.tolist()} == {(x // n, y // n) for x, y in kept}
    assert brute_force_parents(grid) == [[p] for p in grid.parent.tolist()]


def test_the_share_needed_is_the_configurations(tmp_path: Path) -> None:
    base = glass(1024, 512)
    base[:, : 256 + 32] = TISSUE  # half of the fifth column of cells
    with fake_slide(tmp_path, FakeSlide(base, properties=resolution(0.5))) as slide:
        columns = [
            find_nested_grid(slide, PLAN, TissueConfig(min_share=share)).hr_index[:, 0].max() + 1
            for share in (0.25, 0.9)
        ]
    assert columns == [5, 4]


def test_grids_hang_on_the_bounds(tmp_path: Path) -> None:
    base = glass(1400, 900)
    base[217 : 217 + 256, 333 : 333 + 128] = TISSUE
    scanned = {"bounds-x": "333", "bounds-y": "217", "bounds-width": "1000", "bounds-height": "600"}
    properties = resolution(0.5) | {f"openslide.{k}": v for k, v in scanned.items()}
    with fake_slide(tmp_path, FakeSlide(base, (1.0, 4.002), properties)) as slide:
        grid = find_nested_grid(slide, PLAN)
    assert grid.lr_corners.tolist() == [[333, 217]]
    assert sorted(grid.hr_corners.tolist()) == [[333 + 64 * i, 217 + 64 * j] for i in range(2) for j in range(4)]


def test_a_mask_changed_by_hand_gives_its_own_grid_and_says_so(tmp_path: Path) -> None:
    """Results of an edited mask are marked as such; the tissue that was found stays as it was."""
    base = glass(1024, 512)
    base[:, :512] = TISSUE
    with fake_slide(tmp_path, FakeSlide(base, properties=resolution(0.5))) as slide:
        plain = find_tissue_grid(slide, PLAN)
    mask = plain.tissue.mask.copy()
    mask[:, : mask.shape[1] // 4] = False
    edited = tissue_grid_from_mask(slide.path, plain, mask, TissueConfig())
    assert edited.edited and not plain.edited
    assert edited.tissue.mask is mask and edited.tissue.lattice == plain.tissue.lattice
    columns, columns_edited = (set(ground.grid.lr_index[:, 0].tolist()) for ground in (plain, edited))
    assert columns_edited == columns - {0} and {0, 1} <= columns
    with pytest.raises(TissueError, match="no tissue found"):
        tissue_grid_from_mask(slide.path, plain, np.zeros_like(mask), TissueConfig())


def test_without_tissue_there_is_one_sentence_that_says_what_was_looked_for(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", glass(900, 600), mpp=(0.5, 0.5))
    with Slide(path) as slide, pytest.raises(TissueError, match="no tissue found") as caught:
        find_nested_grid(slide, PLAN)
    assert one_sentence(caught.value) and str(tmp_path) in str(caught.value)
    assert "32 µm" in str(caught.value) and "25 %" in str(caught.value)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20, 20), (900, 9)])
def test_a_slide_smaller_than_the_tissue_of_a_patch_says_so(tmp_path: Path, width: int, height: int) -> None:
    path = write_tiff(tmp_path / "a.tif", np.full((height, width, 3), TISSUE, np.uint8), mpp=(0.5, 0.5))
    with Slide(path) as slide, pytest.raises(TissueError, match=f"the slide is {width} x {height} px") as caught:
        find_nested_grid(slide, PLAN)
    assert one_sentence(caught.value) and "a patch of 32 µm" in str(caught.value)


@pytest.mark.parametrize(("mpp", "fine"), [(2.0, True), (2.09, True), (2.11, False), (28.97, False)])
def test_slides_coarser_than_lr_by_more_than_five_percent_are_refused(tmp_path: Path, mpp: float, fine: bool) -> None:
    base = np.full((300, 400, 3), TISSUE, np.uint8)
    with fake_slide(tmp_path, FakeSlide(base, properties=resolution(mpp))) as slide:
        if fine:
            assert len(find_nested_grid(slide, PLAN).lr_index) > 0
            return
        with pytest.raises(ResolutionError, match="too coarse for the student") as caught:
            find_nested_grid(slide, PLAN)
    assert one_sentence(caught.value)


def test_the_sentence_says_who_needs_which_resolution(tmp_path: Path) -> None:
    with fake_slide(tmp_path, FakeSlide(glass(40, 30), properties=resolution(1.0))) as slide:
        with pytest.raises(ResolutionError, match=r"1 µm per pixel at best, too coarse for the teacher.*0\.5"):
            require_resolution(slide, 0.5, "teacher")
        require_resolution(slide, 0.96, "student")  # within 5 %


def test_a_slide_without_resolution_is_refused_before_any_pixel_is_read(tmp_path: Path) -> None:
    fake = FakeSlide(l_shape(600, 400, (100, 100)))
    with fake_slide(tmp_path, fake) as slide, pytest.raises(ResolutionError, match="--mpp"):
        find_nested_grid(slide, PLAN)
    assert fake.reads == []


def test_a_slide_smaller_than_a_patch_still_has_its_tissue(tmp_path: Path) -> None:
    base = np.full((100, 150, 3), TISSUE, np.uint8)
    with fake_slide(tmp_path, FakeSlide(base, properties=resolution(0.5))) as slide:
        grid = find_nested_grid(slide, PLAN)
    assert grid.lr_corners.tolist() == [[0, 0]] and len(grid.hr_index) >= 4


def test_shared_slides_as_documented(shared_data: Path) -> None:
    """CMU-1 has tissue; fluorescence has none by our rule; the overview is too coarse; MoNuSeg is one patch or none."""
    slides = shared_data / "slides"
    with Slide(slides / "CMU-1-Small-Region.svs") as slide:
        grid = find_nested_grid(slide, PatchPlan())
    assert 4 <= len(grid.lr_index) <= 9 and 1 < grid.patch_ratio <= 16
    with Slide(slides / "test3-TRITC 2 (560).ndpi") as slide, pytest.raises(TissueError, match="no tissue found"):
        find_nested_grid(slide, PatchPlan())
    with Slide(slides / "camelyon_overview_jpeg") as slide, pytest.raises(ResolutionError, match="too coarse"):
        find_nested_grid(slide, PatchPlan())
    for path in sorted((slides / "derived").glob("monuseg*")):
        with Slide(path) as slide:
            assert len(find_nested_grid(slide, PatchPlan()).lr_index) == 1, path.name
