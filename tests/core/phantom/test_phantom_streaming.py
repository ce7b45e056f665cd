"""Phantoms are written while they are painted: what a level holds, and how little of level 0 memory ever holds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from napari_lrmil.core.errors import GeometryError
from napari_lrmil.core.phantom import (
    COMPOSITION_CELL,
    LESION,
    NORMAL,
    PhantomLook,
    PhantomSlide,
    paint,
    paint_bands,
    write_bands,
    write_pyramid,
    write_slide,
)
from napari_lrmil.core.phantom.pieces import find_spots

Pixels = NDArray[np.uint8]
SPARSE = PhantomLook(tissue_share=0.3)


def waves(width: int, height: int) -> Pixels:
    """Return smooth colours, unlike along x and y, that JPEG keeps to about a grey level."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    channels = [128 + 90 * np.sin(x / 210 + c) * np.cos(y / 140) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


# ---------------------------------------------------------------- files


def test_bands_of_any_height_give_the_bytes_of_the_whole(tmp_path: Path) -> None:
    """Neither tiles nor lower levels depend on how rows arrive, odd rows and columns included."""
    level0 = waves(903, 701)
    write_pyramid(tmp_path / "whole.tif", level0, 0.5)
    starts = (0, 1, 8, 300, 555, 556, 701)
    bands = [level0[a:b] for a, b in pairwise(starts)]
    write_bands(tmp_path / "bands.tif", bands, (903, 701), 0.5)
    assert (tmp_path / "bands.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_each_level_holds_means_of_four_pixels_of_the_one_before(tmp_path: Path) -> None:
    """The last odd row and column are left out."""
    level0 = waves(903, 701)
    write_bands(tmp_path / "a.tif", [level0], (903, 701), 0.5, container="generic", levels=4)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        levels = [level.asarray() for level in file.series[0].levels]
    assert [level.shape[:2] for level in levels] == [(701, 903), (350, 451), (175, 225), (87, 112)]
    expected = level0.astype(np.float64)
    for level in levels:
        assert np.abs(level - expected).mean() < 1.5
        height, width = (n // 2 for n in expected.shape[:2])
        expected = expected[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean((1, 3))


def test_the_writer_holds_a_small_part_of_level_0(tmp_path: Path) -> None:
    """137 MiB of pixels pass through; most of what is held waits for the encoder."""
    width, height = 8000, 6000
    peak = peak_bytes(lambda: write_bands(tmp_path / "a.tif", plain_bands(width, height), (width, height), 0.5))
    assert peak < 0.5 * 3 * width * height
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].shape == (height, width, 3)


@pytest.mark.slow
def test_painting_and_writing_hold_a_part_of_level_0(tmp_path: Path) -> None:
    """The plan of the tissue that a band cuts, and the band; a taller slide needs no more."""
    write_slide(tmp_path, PhantomSlide("warm", LESION, 1, (640, 448)))  # libraries of nuclei are drawn once
    look = replace(SPARSE, tissue_share=0.2)
    peak = peak_bytes(lambda: write_slide(tmp_path, PhantomSlide("tall", LESION, 1, (3000, 16000)), look))
    assert peak < 0.4 * 3 * 3000 * 16000


def test_a_slide_too_large_for_32_bits_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by what it may need, before a byte is written; a small slide stays classic."""
    write_bands(tmp_path / "small.tif", [waves(300, 200)], (300, 200), 0.5)
    monkeypatch.setattr("napari_lrmil.core.phantom.pyramid._CLASSIC_TIFF", 200_000)
    write_bands(tmp_path / "large.tif", [waves(300, 200)], (300, 200), 0.5)
    for name, big in (("small", False), ("large", True)):
        with tifffile.TiffFile(tmp_path / f"{name}.tif") as file:
            assert file.is_bigtiff == big


def plain_bands(width: int, height: int) -> Iterator[Pixels]:
    for top in range(0, height, 200):
        yield np.full((200, width, 3), top % 251, dtype=np.uint8)


def peak_bytes(work: object) -> int:
    """Return the most that Python's and NumPy's allocations held at once while `work` was done."""
    assert callable(work)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- painting


def test_an_ordinary_phantom_looks_as_it_did_when_the_demo_was_trained() -> None:
    """The shipped model knows these slides: means over a grid of level 0, to a hundredth of a grey level."""
    pixels = paint(PhantomSlide("a", LESION, 11, (1664, 1216))).pixels
    expected = [
        [208.50, 185.90, 198.32, 214.18],
        [207.33, 196.20, 188.67, 193.63],
        [242.17, 236.67, 186.68, 189.96],
        [242.90, 241.43, 223.56, 207.42],
    ]
    assert pixels.reshape(4, 304, 4, 416, 3).mean((1, 3, 4)) == pytest.approx(np.array(expected), abs=0.011)


def test_bands_are_the_slide_cut_across(tmp_path: Path) -> None:
    """Nothing is drawn twice or left out where two bands meet, and each piece is announced once."""
    slide = PhantomSlide("a", LESION, 5, (1000, 700))
    bands = list(paint_bands(slide))
    assert [len(band.pixels) for band in bands] == [256, 256, 188]
    assert [len(band.begun) for band in bands] == [1, 0, 0]
    assert np.array_equal(np.concatenate([band.pixels for band in bands]), paint(slide).pixels)


# ---------------------------------------------------------------- several pieces


def test_pieces_of_a_huge_slide_are_apart_and_as_much_tissue_as_asked() -> None:
    """Slides of 40,000 px have pieces, each small enough to lay out; the L takes 0.64 of a piece."""
    slide = PhantomSlide("a", NORMAL, 1, (40_000, 30_000))
    spots = find_spots(slide, PhantomLook(tissue_share=0.22))
    assert sum(s.piece.size[0] * s.piece.size[1] for s in spots) * 0.64 / (40_000 * 30_000) == pytest.approx(
        0.22, abs=0.01
    )
    assert [s.rows.start for s in spots] == sorted(s.rows.start for s in spots)
    assert all(s.rows.stop <= 30_000 and s.columns.stop <= 40_000 and max(s.piece.size) <= 6000 for s in spots)
    for a, b in combinations(spots, 2):
        apart = a.rows.stop <= b.rows.start or b.rows.stop <= a.rows.start
        assert apart or a.columns.stop <= b.columns.start or b.columns.stop <= a.columns.start
    assert len(find_spots(slide, PhantomLook())) > 1  # no look makes a huge slide one piece
    assert [s.corner for s in find_spots(replace(slide, size=(8000, 6000)), PhantomLook())] == [(0, 0)]


def test_a_slide_with_a_tissue_share_is_described_where_its_pieces_lie() -> None:
    """Composition and lesions are the slide's, not the piece's; the rest is glass."""
    slide = PhantomSlide("a", LESION, 3, (2560, 1792))
    phantom = paint(slide, SPARSE)
    glass = phantom.composition[..., 0]
    assert glass.shape == (28, 40)
    assert 1 - glass.mean() == pytest.approx(0.3, abs=0.06)
    cells = phantom.pixels.reshape(28, COMPOSITION_CELL, 40, COMPOSITION_CELL, 3).mean((1, 3))
    assert cells[glass == 1].min() > 235
    assert cells[phantom.composition[..., 1] > 0.95][:, 1].max() < 210
    (piece,) = find_spots(slide, SPARSE)
    assert piece.corner != (0, 0)
    for outline in phantom.lesions:
        x, y = outline.mean(0)
        assert glass[int(y / COMPOSITION_CELL), int(x / COMPOSITION_CELL)] < 0.5


def test_an_impossible_tissue_share_is_refused() -> None:
    with pytest.raises(GeometryError, match=r"0\.9 is impossible"):
        next(paint_bands(PhantomSlide("a", LESION, 3, (2560, 1792)), PhantomLook(tissue_share=0.9)))
