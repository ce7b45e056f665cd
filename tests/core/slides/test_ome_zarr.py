"""OME-Zarr slides of NGFF 0.4 and 0.5."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.missing_tissue import MissingTiles, find_missing_tiles
from napari_lrmil.core.slides.ome_metadata import is_ome_zarr
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.slide_files import SlideSearch
from support.fake_slides import one_sentence, reduced
from support.pictures import rectangles
from support.tile_slides import COLUMNS, FRAME, TILE, rectangle, tile

BASE = rectangles(5, 700, 500)
LEVELS = (BASE, reduced(BASE, 2.0), reduced(BASE, 4.0))
Written = tuple[str, dict[str, Any]]


def write(
    folder: Path,
    version: str = "0.4",
    levels: tuple[NDArray[Any], ...] = LEVELS,
    axes: str = "tczyx",
    size: tuple[float, str] = (0.25, "micrometer"),
    name: str = "scan",
    side: int = 128,
    **arrays: Any,
) -> Path:
    zarr = pytest.importorskip("zarr")
    form = 2 if version == "0.4" else 3
    group = zarr.open_group(folder, mode="w", zarr_format=form)
    datasets = []
    for i, level in enumerate(levels):
        shape = [{"c": level.shape[2], "y": level.shape[0], "x": level.shape[1]}.get(a, 1) for a in axes]
        chunks = [{"y": side, "x": side}.get(a, 1) for a in axes]
        order = [a for a in axes if a in "cyx"]
        values = level.transpose([("y", "x", "c").index(a) for a in order]) if "c" in order else level[..., 0]
        more = {"chunks": chunks, "dtype": level.dtype, "fill_value": 0, **arrays}
        group.create_array(str(i), shape=shape, **more)[...] = values.reshape(shape)
        scale = [size[0] * 2.0**i if a in "yx" else 1.0 for a in axes]
        datasets.append({"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    parts = [{"name": a, "type": "space", "unit": size[1]} if a in "yx" else {"name": a} for a in axes]
    ome = {"multiscales": [{"name": name, "version": version, "axes": parts, "datasets": datasets}]}
    group.attrs.update(ome if version == "0.4" else {"ome": {"version": version, **ome}})
    return folder


def whole(slide: Slide) -> NDArray[np.uint8]:
    return slide.read_level(0, 0, 0, slide.width, slide.height)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "cyx", "yxc"])
def test_both_versions_open_with_all_levels_and_their_pixel_size(tmp_path: Path, version: str, axes: str) -> None:
    with Slide(write(tmp_path / "a.ome.zarr", version, axes=axes)) as slide:
        assert [level.width for level in slide.levels] == [700, 350, 175] and slide.warnings == ()
        assert (slide.mpp.x, slide.mpp.source) == (pytest.approx(0.25), "OME metadata")
        assert (slide.vendor, slide.reader.name) == ("ome-zarr", "zarr")
        np.testing.assert_array_equal(whole(slide), BASE)
        np.testing.assert_array_equal(slide.read_level(2, 11, 7, 90, 80), LEVELS[2][7:87, 11:101])
        again = pickle.loads(pickle.dumps(slide))
        np.testing.assert_array_equal(whole(again), BASE)
        assert again.fingerprint == slide.fingerprint


@pytest.mark.parametrize("size", [(250.0, "nanometer"), (2.5e-4, "millimeter")])
def test_the_unit_of_the_axes_counts(tmp_path: Path, size: tuple[float, str]) -> None:
    with Slide(write(tmp_path / "a.zarr", size=size)) as slide:
        assert slide.mpp.x == pytest.approx(0.25)


def test_without_a_unit_the_resolution_is_not_known(tmp_path: Path) -> None:
    with Slide(write(tmp_path / "a.zarr", size=(1.0, ""))) as slide:
        assert not slide.has_mpp


def test_shards_and_grey(tmp_path: Path) -> None:
    shards = write(tmp_path / "s.zarr", "0.5", axes="cyx", shards=(3, 256, 256))
    grey = write(tmp_path / "g.zarr", axes="yx", levels=tuple(level[..., :1] for level in LEVELS))
    with Slide(shards) as slide:
        np.testing.assert_array_equal(whole(slide), BASE)
    with Slide(grey) as slide:
        np.testing.assert_array_equal(whole(slide), np.repeat(BASE[..., :1], 3, axis=2))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_chunk_that_is_not_stored_is_white_and_not_black(tmp_path: Path, version: str) -> None:
    blank = BASE.copy()
    blank[:128, :128] = 0  # zarr does not write chunks of the fill value
    with Slide(write(tmp_path / "a.zarr", version, levels=(blank,))) as slide:
        assert (whole(slide)[:128, :128] == 255).all()
        np.testing.assert_array_equal(whole(slide)[128:], BASE[128:])


def judge(slide: Slide) -> MissingTiles:
    slide.count_damaged_tiles()
    plan = PatchPlan(hr_mpp=0.5, lr_mpp=2.0, hr_patch_px=128, lr_patch_px=128)
    found = find_tissue_grid(slide, plan)
    lattice = found.grid.lattice
    slide.read_patches(found.grid.lr_corners, lattice.lr_cell, plan.lr_patch_px)
    return find_missing_tiles(slide, found.tissue, [(lattice.lr_cell, plan.lr_patch_px)])


def with_value(tiles: Sequence[int], value: int, colours: slice = slice(None)) -> NDArray[np.uint8]:
    """Return tissue in glass, with tiles of one value, which zarr does not store if it is the fill value."""
    pixels = rectangle()
    for number in tiles:
        row, column = divmod(number, COLUMNS)
        pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE, colours] = value
    return pixels


SHAPES: list[dict[str, Any]] = [
    {"version": "0.4", "axes": "tczyx"},
    {"version": "0.5", "axes": "yxc"},
    {"version": "0.5", "axes": "cyx", "shards": (3, 512, 512)},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_absent_chunks_are_glass_in_the_frame_and_missing_in_tissue(tmp_path: Path, shape: dict[str, Any]) -> None:
    """A frame without chunks is no fault; chunks that tissue surrounds are counted; all are white and not black."""
    absent = [*FRAME, tile(2, 2), tile(3, 2)]
    common = {"size": (0.5, "micrometer"), "side": TILE, **shape}
    with Slide(write(tmp_path / "a.zarr", levels=(with_value(FRAME, 0),), **common)) as slide:
        assert judge(slide).sentences == () and slide.read_level(0, 0, 0, 512, 256).min() > 200
    with Slide(write(tmp_path / "b.zarr", levels=(with_value(absent, 0),), **common)) as slide:
        missing = judge(slide)
        assert (slide.read_level(0, 2 * TILE, 2 * TILE, 2 * TILE, TILE) == 255).all()
    assert (missing.not_stored, missing.not_stored_on_tissue) == (len(absent), 2)
    assert missing.tissue_share == pytest.approx(2 / 24, abs=0.01) and len(missing.warnings) == 1


def test_a_chunk_that_lacks_one_colour_is_missing(tmp_path: Path) -> None:
    pixels = with_value([tile(2, 2)], 0, slice(1, 2))
    with Slide(write(tmp_path / "a.zarr", levels=(pixels,), axes="cyx", size=(0.5, "micrometer"), side=TILE)) as slide:
        assert judge(slide).not_stored_on_tissue == 1
        assert (slide.read_level(0, 2 * TILE, 2 * TILE, TILE, TILE) == 255).all()


def test_another_fill_value_than_black_is_read(tmp_path: Path) -> None:
    """The format defines it as the value of the chunk; of one colour alone it is no fault."""
    pixels = with_value([*FRAME, tile(2, 2)], 240)
    pixels[:, :TILE, 0] = 240
    common: dict[str, Any] = {"axes": "cyx", "size": (0.5, "micrometer"), "side": TILE, "fill_value": 240}
    with Slide(write(tmp_path / "a.zarr", levels=(pixels,), **common)) as slide:
        np.testing.assert_array_equal(whole(slide), pixels)
        assert judge(slide).not_stored_on_tissue == 1


def test_a_damaged_chunk_is_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.zarr", levels=(rectangle(),), axes="yxc", size=(0.5, "micrometer"), side=TILE)
    (folder / "0" / "2.2.0").write_bytes(b"no chunk")
    (folder / "0" / "2.2.1").write_bytes(b"no chunk")
    with Slide(folder) as slide:
        missing = judge(slide)
    assert (missing.damaged, missing.damaged_on_tissue) == (1, 1)


def test_the_slide_of_several_images_is_read_and_not_the_label(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr" / "0", levels=(rectangles(2, 900, 900),), name="label image")
    write(tmp_path / "a.zarr" / "1")
    (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps({"bioformats2raw.layout": 3}))
    with Slide(tmp_path / "a.zarr") as slide:
        np.testing.assert_array_equal(whole(slide), BASE)


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ((np.zeros((200, 300, 8), np.uint8),), "8 channels"),
        ((np.zeros((200, 300, 3), np.uint16),), "3 channels of the type uint16"),
    ],
)
def test_what_is_no_brightfield_plane_is_refused(tmp_path: Path, levels: Any, words: str) -> None:
    with pytest.raises(SlideError, match=words) as caught:
        Slide(write(tmp_path / "a.zarr", levels=levels))
    assert one_sentence(caught.value)


def test_without_zarr_the_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps({"multiscales": [{"datasets": [{"path": "0"}]}]}))
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(SlideError, match=r"napari-lrmil\[ome\]") as caught:
        Slide(tmp_path / "a.zarr")
    assert one_sentence(caught.value)


def test_broken_metadata_is_one_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.zarr")
    (folder / "0" / ".zarray").write_text("{")
    with pytest.raises(SlideError, match="metadata cannot be read") as caught:
        Slide(folder)
    assert one_sentence(caught.value)


def test_a_search_takes_the_folder_for_one_slide(tmp_path: Path) -> None:
    (tmp_path / "cohort" / "a.zarr" / "0").mkdir(parents=True)
    content = {"zarr_format": 3, "attributes": {"ome": {"multiscales": [{"datasets": []}]}}}
    (tmp_path / "cohort" / "a.zarr" / "zarr.json").write_text(json.dumps(content))
    search = SlideSearch()
    search.add_folder(tmp_path / "cohort")
    assert search.slides == [tmp_path / "cohort" / "a.zarr"] and not search.notice
    assert not is_ome_zarr(tmp_path / "cohort") and not is_ome_zarr(tmp_path / "absent")
