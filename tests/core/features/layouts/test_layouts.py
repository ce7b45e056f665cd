"""Features of other programs: the same patches in every layout, and a sentence for every file that cannot be used."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from napari_lrmil.core.errors import BagError, ConfigError, LrmilError
from napari_lrmil.core.features.bag import Bag, write_bag
from napari_lrmil.core.features.layouts.find import find_feature_folder
from napari_lrmil.core.features.layouts.plain import parse_mapping
from napari_lrmil.core.features.layouts.proof import ProvenPatches, prove_patches
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.grid import find_nested_grid
from napari_lrmil.core.slides.slide import Slide
from support import foreign_features as ff
from support.foreign_features import bag_origin

DIM = 8


@pytest.fixture(scope="module")
def slide(phantoms: Path) -> Iterator[Slide]:
    with Slide(next(phantoms.parent.glob("train*.tif"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def bag(slide: Slide) -> Bag:
    """Return features that no encoder made, on the HR grid of a slide."""
    grid = find_nested_grid(slide, PatchPlan(0.5, 2.0, 64, 64))
    features = np.random.default_rng(0).normal(size=(len(grid.hr_index), DIM)).astype(np.float32)
    return Bag(features, grid.hr_corners, bag_origin(slide, grid))


def proven(folder: Path, slide: Slide, *mapping: str) -> tuple[ProvenPatches, np.ndarray]:
    """Return the places and the features of a slide in a folder."""
    foreign = find_feature_folder(folder, parse_mapping(mapping)).open(slide.name)
    return prove_patches(foreign, slide), np.concatenate([values for _, values in foreign.chunks()])


def refusal(folder: Path, slide: Slide, *mapping: str) -> str:
    with pytest.raises(LrmilError) as error:
        proven(folder, slide, *mapping)
    return str(error.value)


@pytest.mark.parametrize("name", ff.LAYOUTS)
def test_every_layout_gives_the_same_patches(name: str, slide: Slide, bag: Bag, tmp_path: Path) -> None:
    write, mapping = ff.LAYOUTS[name]
    patches, features = proven(write(tmp_path / name, bag), slide, *mapping)
    np.testing.assert_array_equal(patches.corners, bag.coords)
    np.testing.assert_array_equal(features, bag.features)
    assert patches.side == 64 and patches.mpp in (None, pytest.approx(0.5))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_stamp_is_in_micrometres(version: int, slide: Slide, bag: Bag, tmp_path: Path) -> None:
    """The oldest counts in 224 px of 256 µm, and only a step of 224 says so."""
    if version == 1:  # patches of 256 µm
        grid = find_nested_grid(slide, PatchPlan(1.0, 1.0, 256, 256))
        bag = Bag(bag.features[: len(grid.hr_index)], grid.hr_corners, bag_origin(slide, grid))
    patches, _ = proven(ff.write_stamp(tmp_path, bag, version=version), slide)
    np.testing.assert_array_equal(patches.corners, bag.coords)
    assert patches.side == bag.origin.patch_level0[0]


def test_float16_is_read_as_float32(slide: Slide, bag: Bag, tmp_path: Path) -> None:
    half = bag.features.astype(np.float16)
    with h5py.File(ff.write_trident(tmp_path, bag) / "features_resnet" / f"{slide.name}.h5", "r+") as file:
        attributes = dict(file["features"].attrs)
        del file["features"]
        file["features"] = half
        file["features"].attrs.update(attributes)
    _, features = proven(tmp_path, slide)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, half.astype(np.float32))


def test_our_own_files_are_of_tridents_layout(slide: Slide, bag: Bag, tmp_path: Path) -> None:
    write_bag(tmp_path / "features_x" / f"{slide.name}.h5", bag)
    patches, features = proven(tmp_path, slide)
    np.testing.assert_array_equal(patches.corners, bag.coords)
    np.testing.assert_array_equal(features, bag.features)


def test_clam_without_patch_sizes_takes_the_step_and_says_so(slide: Slide, bag: Bag, tmp_path: Path) -> None:
    (ff.write_clam(tmp_path, bag) / "patches" / f"{slide.name}.h5").unlink()
    (tmp_path / "patches").rmdir()
    patches, _ = proven(tmp_path, slide)
    assert patches.side == 64 and "64 level-0 px is the step" in patches.notices[0]


def altered(path: Path, **changes: Any) -> None:
    """Replace arrays of an HDF5 file, or attributes of its coordinates."""
    with h5py.File(path, "r+") as file:
        for name, value in changes.items():
            if name in file:
                attributes = dict(file[name].attrs)
                del file[name]
                file[name] = value
                file[name].attrs.update(attributes)
            else:
                file["coords"].attrs[name] = value


CASES = {
    "NaN": (lambda b: {"features": np.where(np.arange(len(b))[:, None] == 3, np.nan, b.features)}, "row 3 .* NaN"),
    "twice": (lambda b: {"coords": np.concatenate([b.coords[:1], b.coords[:-1]])}, "1 of .* come twice"),
    "count": (lambda b: {"features": b.features[:-2]}, "rows of features, but"),
    "outside": (lambda b: {"coords": b.coords + np.array([10_000, 0])}, "lie outside the slide of 1024 x 768"),
    "size": (lambda b: {"level0_width": 40_000}, "another slide: its file says 40000 x 768"),
    "side": (lambda b: {"patch_size_level0": 32, "patch_size": 32}, "neighbours are 64 px apart"),
    "overlap": (lambda b: {"overlap": 32}, "states an overlap of 50%"),
    "mpp": (lambda b: {"target_magnification": 5}, r"says 2 µm per pixel \(5x\), but its patches have 0.5"),
    "empty": (lambda b: {"features": np.empty((0,)), "coords": np.empty((0, 2))}, "has no patches"),
    "shape": (lambda b: {"features": b.features[None]}, "expected patches x dimensions"),
    "fingerprint": (lambda b: {"slide_fingerprint": "f" * 16}, "another slide: the file names the slide's content"),
    "no number": (lambda b: {"coords": b.coords * np.nan}, "a coordinate is no finite number"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_file_cannot_be_is_refused_in_a_sentence(case: str, slide: Slide, bag: Bag, tmp_path: Path) -> None:
    change, sentence = CASES[case]
    file = ff.write_trident(tmp_path, bag) / "features_resnet" / f"{slide.name}.h5"
    altered(file, **change(bag))
    with pytest.raises(BagError, match=sentence) as error:
        proven(tmp_path, slide)
    assert str(file) in str(error.value)


def test_a_half_written_file_is_refused_and_hides_no_layout(slide: Slide, bag: Bag, tmp_path: Path) -> None:
    file = ff.write_trident(tmp_path, bag) / "features_resnet" / f"{slide.name}.h5"
    content = file.read_bytes()
    (file.parent / "z.h5").write_bytes(content)
    file.write_bytes(content[: len(content) // 2])
    assert "half-written" in refusal(tmp_path, slide)


def test_a_tensor_file_with_code_runs_none(slide: Slide, bag: Bag, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was-run",))

    file = ff.write_slideflow(tmp_path, bag) / f"{slide.name}.pt"
    torch.save(Code(), file)
    assert "more than tensors" in refusal(tmp_path, slide)
    file.write_bytes(pickle.dumps(Code()))
    assert str(file) in refusal(tmp_path, slide)
    assert not (tmp_path / "was-run").exists()
    torch.save({"features": torch.zeros(2, 2)}, file)
    assert "expected a tensor" in refusal(tmp_path, slide)


def test_features_of_other_patches_than_clams_are_refused(slide: Slide, bag: Bag, tmp_path: Path) -> None:
    ff.write_clam(tmp_path, bag)
    ff.write_patches(tmp_path, replace(bag, coords=bag.coords + 8))
    assert "are not those of" in refusal(tmp_path, slide)


def test_a_bag_that_its_configuration_contradicts(slide: Slide, bag: Bag, tmp_path: Path) -> None:
    config = ff.write_slideflow(tmp_path, bag) / "bags_config.json"
    config.write_text(config.read_text().replace(f'"num_features": {DIM}', '"num_features": 512'))
    assert "512" in refusal(tmp_path, slide)
    (tmp_path / f"{slide.name}.index.npz").rename(tmp_path / "other.index.npz")
    assert "no phantom" not in refusal(tmp_path, slide) and "index.npz" in refusal(tmp_path, slide)


def test_folders_that_leave_a_choice_or_none(slide: Slide, bag: Bag, tmp_path: Path) -> None:
    for name in ("a", "b"):
        ff.write_stamp(tmp_path / "both" / name, bag)
    assert "several folders (a, b)" in refusal(tmp_path / "both", slide)
    (tmp_path / "none").mkdir()
    assert "no features of a known layout" in refusal(tmp_path / "none", slide)
    assert "no such folder" in refusal(tmp_path / "absent", slide)
    ff.write_plain_h5(tmp_path / "plain", bag)
    assert "--hr-mapping features=" in refusal(tmp_path / "plain", slide)
    assert "only emb, yx" in refusal(tmp_path / "plain", slide, "features=feats", "coords=yx")


@pytest.mark.parametrize("text", ["features", "colour=red", "unit=mm", "patch=-3", "patch=wide", "order=zx"])
def test_a_mapping_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="mapping"):
        parse_mapping([text])


def test_coordinates_in_another_order_are_outside_of_a_wide_slide(slide: Slide, bag: Bag, tmp_path: Path) -> None:
    wide = replace(bag, coords=np.stack([np.arange(len(bag)) % 16, np.arange(len(bag)) // 16], 1) * 64)
    ff.write_plain_h5(tmp_path, replace(wide, features=bag.features))
    mapping = [text for text in ff.PLAIN_H5 if text != "order=yx"]
    assert "another unit or order" in refusal(tmp_path, slide, *mapping)


def test_a_store_with_several_tables_needs_a_name(slide: Slide, bag: Bag, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(ff.write_lazyslide(tmp_path, bag) / f"{slide.name}.zarr", mode="r+")
    group["tables"].create_group("uni_tiles")
    assert "--hr-mapping table=NAME" in refusal(tmp_path, slide)
    patches, _ = proven(tmp_path, slide, "table=resnet_tiles")
    np.testing.assert_array_equal(patches.corners, bag.coords)
