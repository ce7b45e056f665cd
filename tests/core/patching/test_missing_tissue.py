"""Missing and damaged tiles: told by their share of the tissue, refused above a third, silent in an outer frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from napari_lrmil.core.errors import MissingTilesError, TissueError
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.mask_filters import Mask, surrounded_by_tissue
from napari_lrmil.core.patching.missing_tissue import (
    NOTHING_MISSING,
    MissingTiles,
    MissingTilesCheck,
    find_missing_tiles,
)
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import one_sentence
from support.jpeg_slides import Kind, damaged, write_jpeg_slide
from support.tile_slides import COLUMNS, FRAME, ROWS, rectangle, tile, write_deflate_slide

PLAN = PatchPlan(hr_mpp=0.5, lr_mpp=2.0, hr_patch_px=128, lr_patch_px=128)
HOLE = [tile(2, 2), tile(3, 2), tile(2, 3)]  # 3 of the 24 tiles of tissue
MIRRORED = (274, 3, 1, 2, True)  # TIFF's orientation; OpenSlide ignores it
WHOLE_TISSUE = [tile(c, r) for r in range(1, 5) for c in range(1, 7)]


def judge(slide: Slide) -> MissingTiles:
    """Return what is missing after all LR patches were read."""
    slide.count_damaged_tiles()
    found = find_tissue_grid(slide, PLAN)
    lattice = found.grid.lattice
    slide.read_patches(found.grid.lr_corners, lattice.lr_cell, PLAN.lr_patch_px)
    return find_missing_tiles(slide, found.tissue, [(lattice.lr_cell, PLAN.lr_patch_px)])


def generic(path: Path, empty: Sequence[int], downsamples: Sequence[float] = (1,)) -> Path:
    return write_jpeg_slide(path / "a.tif", rectangle(), downsamples, empty=empty)


@pytest.mark.parametrize("empty", [(), FRAME])
def test_a_whole_slide_and_an_empty_frame_of_glass_are_no_fault(tmp_path: Path, empty: Sequence[int]) -> None:
    with Slide(generic(tmp_path, empty)) as slide:
        missing = judge(slide)
    assert missing.sentences == () and missing.not_stored == len(empty)
    assert empty or missing == NOTHING_MISSING


@pytest.mark.parametrize("write", [generic, "deflate", "aperio", "tifffile"])
def test_holes_in_tissue_are_counted_whichever_reader_reads(tmp_path: Path, write: object) -> None:
    empty = [*FRAME, *HOLE]
    if write == "deflate":
        path = write_deflate_slide(tmp_path / "a.tif", empty={1: empty})
    elif write == "tifffile":  # TIFF's orientation makes OpenSlide's picture wrong
        path = write_deflate_slide(tmp_path / "a.tif", empty={1: empty}, extratags=[MIRRORED])
    else:
        kind = Kind("aperio" if write == "aperio" else "generic")
        path = write_jpeg_slide(tmp_path / "a.svs", rectangle(), kind=kind, empty=empty)
    with Slide(path) as slide:
        missing = judge(slide)
        assert (slide.reader.name == "tifffile") == (write == "tifffile")
    assert (missing.not_stored, missing.not_stored_on_tissue, missing.levels) == (len(empty), 3, (0,))
    assert missing.tissue_share == pytest.approx(3 / 24, abs=0.01)
    assert "hide 12 %" in missing.sentences[0] or "hide 13 %" in missing.sentences[0]
    assert missing.warnings == missing.sentences


def test_a_hole_that_the_mask_shows_is_tissue(tmp_path: Path) -> None:
    """At 2 µm the LR level lacks a tile; the mask is read from the level of 8 µm."""
    path = write_deflate_slide(tmp_path / "a.tif", (1, 4, 16), {4: [tile(1, 1, 4)]}, side=128)
    with Slide(path) as slide:
        missing = judge(slide)
    # x and y from 512 to 1024 of level 0, of 1536 x 1024 px of tissue.
    assert missing.tissue_share == pytest.approx(512 * 512 / (1536 * 1024), abs=0.01)
    assert (missing.not_stored_on_tissue, missing.levels) == (1, (1,))


def test_a_hole_at_the_level_of_the_mask_is_judged_by_another_level(tmp_path: Path) -> None:
    """The hole reaches the edge of the slide, and a finer level shows how much of it is tissue."""
    path = write_deflate_slide(tmp_path / "a.tif", (1, 4), {4: [tile(1, 0, 4)]}, side=128)
    with Slide(path) as slide:
        missing = judge(slide)
        reason = slide.finest_read(2.0)
    assert missing.tissue_share == pytest.approx(512 * 256 / (1536 * 1024), abs=0.01)
    assert reason is not None and "to judge missing tiles" in reason.reason and reason.mpp == 2.0


def test_tiles_of_a_level_that_is_not_read_are_told_and_hide_nothing(tmp_path: Path) -> None:
    with Slide(generic(tmp_path, [*FRAME, *HOLE], (1, 4))) as slide:
        missing = judge(slide)
    assert (missing.tissue_share, missing.not_read_on_tissue, missing.warnings) == (0.0, 3, ())
    assert "3 tiles on tissue" in missing.sentences[0]


def test_the_end_of_a_file_that_was_never_written_is_missing(tmp_path: Path) -> None:
    """The hole is not inside tissue: it reaches the slide's edge."""
    with Slide(generic(tmp_path, range(tile(0, 3), COLUMNS * ROWS))) as slide:
        missing = judge(slide)
    assert missing.tissue_share > 1 / 3
    assert missing.not_stored_on_tissue >= 12


def test_a_slide_without_any_tissue_left_says_that_tiles_are_missing(tmp_path: Path) -> None:
    with Slide(generic(tmp_path, WHOLE_TISSUE)) as slide, pytest.raises(TissueError, match="24 of 48 tiles") as error:
        judge(slide)
    assert one_sentence(error.value)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("kind", [Kind("aperio"), Kind("generic", False, "444"), "tifffile"], ids=str)
@pytest.mark.parametrize("data", [None, b"\xff" * 64], ids=["zeros", "255"])
def test_damaged_tiles_are_white_and_counted(tmp_path: Path, kind: Kind | str, data: bytes | None) -> None:
    path = tmp_path / "a.tif"
    if isinstance(kind, str):
        write_deflate_slide(path, extratags=[MIRRORED])
    else:
        write_jpeg_slide(path, rectangle(), kind=kind)
    for index in HOLE:
        damaged(path, index, data, at=0.3)
    with Slide(path) as slide:
        missing = judge(slide)
        assert missing.damaged_on_tissue == missing.damaged == 3 == slide.damaged_tile_count
        assert missing.tissue_share == pytest.approx(3 / 24, abs=0.01) and "3 tiles damaged" in missing.sentences[0]
        columns = (5, 3) if isinstance(kind, str) else (2, 4)
        hole, beside = (slide.read_level(0, 256 * column, 512, 256, 256) for column in columns)
        assert hole.min() == 255
        np.testing.assert_allclose(beside.mean(axis=(0, 1)), (190, 90, 160), atol=2)


def test_damage_in_glass_is_told_without_a_share(tmp_path: Path) -> None:
    with Slide(damaged(generic(tmp_path, ()), tile(0, 0), at=0.3)) as slide:
        missing = judge(slide)
    assert (missing.damaged, missing.tissue_share, missing.warnings) == (1, 0.0, ())
    assert "1 tile outside the tissue damaged" in missing.sentences[0]


def test_damage_that_only_the_patches_meet_is_found_after_they_are_read(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", rectangle(), (1, 4, 16))
    damaged(path, 0, level=1, at=0.3)
    with Slide(path) as slide:
        slide.count_damaged_tiles()
        found = find_tissue_grid(slide, PLAN)
        lattice = found.grid.lattice
        check = MissingTilesCheck(slide, found.tissue, [(lattice.lr_cell, PLAN.lr_patch_px)])
        assert list(check.notices()) == []
        slide.read_patches(found.grid.lr_corners, lattice.lr_cell, PLAN.lr_patch_px)
        with pytest.raises(MissingTilesError, match="--allow-missing") as error:  # 768 x 768 of 1536 x 1024 px
            list(check.notices())
        assert one_sentence(error.value)
        allowed = MissingTilesCheck(slide, found.tissue, [(lattice.lr_cell, PLAN.lr_patch_px)], allow=True)
        assert len(list(allowed.notices())) == 1 and list(allowed.notices()) == []


# ---------------------------------------------------------------- rules


def mask(*rows: str) -> tuple[Mask, Mask]:
    """Return tissue and holes from text: T tissue, . glass, ? hole; each letter is a square of 10 px."""
    letters = np.array([list(row) for row in rows]).repeat(10, axis=0).repeat(10, axis=1)
    return letters == "T", letters == "?"


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        (("TTT", "T?T", "TTT"), 1.0),
        (("...", ".?.", "..."), 0.0),
        (("???", "?T?", "???"), 0.0),  # an outer frame
        (("?????", "?...?", "?.T.?", "?...?", "?????"), 0.0),
        ((".TTT.", ".TTT.", "?????"), 0.6),  # the end of the file
        ((".TTT.", "?????", ".TTT."), 0.6),  # a band
        (("?????", "?TTT?", "?????", "?TTT?", "?????"), 3 / 19),  # a band in a frame
        (("TT.", "T?.", "TT."), 1.0),
        (("...", "T?.", "..."), 0.0),
    ],
    ids=range(9),
)
def test_holes_are_tissue_if_tissue_surrounds_them(rows: tuple[str, ...], share: float) -> None:
    tissue, holes = mask(*rows)
    assert surrounded_by_tissue(tissue, holes)[holes].mean() == pytest.approx(share, abs=0.05)
