"""Levels of a pyramid are read if they show the picture of level 0; others are left out, in words."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from napari_lrmil.core.geometry import BoxLevel0, Level
from napari_lrmil.core.slides.levels import check_levels
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import FakeSlide, glass, reduced
from support.pictures import rectangles

Picture = NDArray[np.uint8]


def write(path: Path, *levels: Picture) -> Path:
    with tifffile.TiffWriter(path) as file:
        for i, level in enumerate(levels):
            more: dict[str, Any] = {"compression": "jpeg", "photometric": "rgb", "tile": (256, 256), "metadata": None}
            file.write(level, subfiletype=int(i > 0), resolution=(2e4, 2e4), resolutionunit="CENTIMETER", **more)
    return path


BASE, OTHER = rectangles(1, 1536, 1024), rectangles(2, 1536, 1024)
QUARTER, SIXTEENTH = reduced(BASE, 4.0), reduced(BASE, 16.0)


def test_levels_of_one_picture_are_all_used_and_nothing_is_said(tmp_path: Path) -> None:
    with Slide(write(tmp_path / "a.tif", BASE, QUARTER, SIXTEENTH)) as slide:
        assert [level.width for level in slide.levels] == [1536, 384, 96]
        assert slide.warnings == () and slide.level_check.failure is None
        assert slide.pixels_decoded == 0, "the comparison is counted apart"
        assert 0 < slide.level_check.pixels_compared <= 9 * 64**2


@pytest.mark.parametrize(
    ("name", "levels", "left_out"),
    [
        ("other, last", (QUARTER, reduced(OTHER, 16.0)), [2]),
        ("other, middle", (reduced(OTHER, 4.0), SIXTEENTH), [1]),
        ("other, both", (reduced(rectangles(3, 1536, 1024), 4.0), reduced(OTHER, 16.0)), [1, 2]),
        ("mirrored", (QUARTER[:, ::-1].copy(), SIXTEENTH), [1]),
        ("a mask", (np.where(QUARTER < 200, 0, 255).astype(np.uint8),), [1]),
        ("blank", (np.full_like(QUARTER, 255),), [1]),
        ("cut", (reduced(BASE[80:-80, 120:-120], 4.0),), [1]),
        ("another shape", (QUARTER, SIXTEENTH[:56]), [2]),
    ],
)
def test_a_level_of_another_picture_is_left_out_with_a_warning(
    tmp_path: Path, name: str, levels: tuple[Picture, ...], left_out: list[int]
) -> None:
    del name
    with Slide(write(tmp_path / "a.tif", BASE, *levels)) as slide:
        assert [level.index for level in slide.levels] == list(range(1 + len(levels) - len(left_out)))
        assert len(slide.warnings) == len(left_out)
        assert all(f"level {i} of the file" in text for i, text in zip(left_out, slide.warnings, strict=True))
        coarse = slide.read(BoxLevel0(0, 0, 1536, 1024), (48, 32))
    assert np.abs(coarse.astype(float) - reduced(BASE, 32.0)).mean() < 3


def test_levels_with_more_contrast_or_a_blank_slide_are_no_other_picture(tmp_path: Path) -> None:
    harder = np.clip(QUARTER * 1.2 - 30, 0, 255).astype(np.uint8)
    blank = glass(1024, 768)
    for i, levels in enumerate([(BASE, harder), (blank, reduced(blank, 4.0) - 3)]):
        with Slide(write(tmp_path / f"{i}.tif", *levels)) as slide:
            assert len(slide.levels) == 2 and slide.warnings == ()


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_levels_after_one_that_is_left_out_are_read_by_their_own_number(tmp_path: Path, reader: str) -> None:
    path = write(tmp_path / "a.tif", BASE, reduced(OTHER, 4.0), SIXTEENTH)
    with Slide(path, reader=reader) as slide:
        assert slide.reader.name == ("openslide" if reader == "openslide" else "tiles")
        seen = slide.read_level(1, 0, 0, 96, 64)
        again = pickle.loads(pickle.dumps(slide))
        np.testing.assert_array_equal(again.read_level(1, 0, 0, 96, 64), seen)
        again.close()
    assert np.abs(seen.astype(float) - SIXTEENTH).mean() < 3


def test_the_shape_of_a_level_is_checked_for_any_handle(tmp_path: Path) -> None:
    fake = FakeSlide(BASE, downsamples=(1.0, 4.0))
    fake.levels[1] = fake.levels[1][:200]
    with Slide(tmp_path / "fake.svs", opener=fake) as slide:
        assert len(slide.levels) == 1 and "4 and 5.12 times" in slide.warnings[0]
    assert fake.reads == [] and all(handle.closed for handle in fake.handles)


def test_the_finest_level_read_is_stated_with_its_reason(tmp_path: Path) -> None:
    with Slide(write(tmp_path / "a.tif", BASE, QUARTER)) as slide:
        assert slide.finest_read(2.0) is None
        slide.read(BoxLevel0(0, 0, 1024, 1024), (256, 256))
        coarse = slide.finest_read(2.0)
        slide.read(BoxLevel0(0, 0, 1024, 1024), (512, 512))
        fine = slide.finest_read(2.0)
        slide.forget_finest_read()
        assert slide.finest_read(2.0) is None
    assert coarse is not None and fine is not None
    assert coarse.mpp == pytest.approx(2.0) and coarse.reason.startswith("no level finer than 2 µm")
    assert fine.mpp == pytest.approx(0.5) and "no level between 0.5 and 2 µm" in fine.reason
    assert "pixels of level 0 were read to check" in coarse.reason


def test_a_comparison_that_fails_is_a_warning() -> None:
    class Broken:
        def read_region(self, *_: object) -> None:
            raise OSError("tile 3 is damaged")

    levels = [Level(0, 4096, 4096, 1.0), Level(1, 1024, 1024, 4.0)]
    check = check_levels(Broken(), levels, compare=True)  # type: ignore[arg-type]  # a stand-in
    assert check.trusted == (0, 1) and check.failure is not None
    (warning,) = check.warnings
    assert warning.startswith("levels could not be compared with level 0 (") and "sizes alone" in warning
