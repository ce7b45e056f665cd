"""Bags: features, coordinates and origin stay together, in TRIDENT's layout, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from napari_lrmil.core.errors import BagError
from napari_lrmil.core.features.bag import Bag, BagOrigin, read_bag, write_bag
from napari_lrmil.core.geometry import Bounds, Mpp, PatchPlan
from support.fake_slides import one_sentence

ORIGIN = BagOrigin(
    slide="s1", slide_fingerprint="f" * 32, mpp0=0.2649, target_mpp=0.5, patch_px=256, patch_level0=(483, 480),
    origin_level0=(333, 217), level0_size=(9000, 7000), encoder="untrained", encoder_sha256="e" * 64,
)  # fmt: skip


def bag(count: int = 5, width: int = 3) -> Bag:
    rng = np.random.default_rng(0)
    coords = np.stack([333 + 483 * np.arange(count), 217 + 480 * (np.arange(count) % 2)], axis=1).astype(np.int64)
    layers = {"block_3": rng.normal(size=(count, 2)).astype(np.float32)}
    return Bag(rng.normal(size=(count, width)).astype(np.float32), coords, ORIGIN, layers)


def test_a_written_bag_reads_back_exactly(tmp_path: Path) -> None:
    written = bag()
    write_bag(tmp_path / "deep" / "s1.h5", written)
    read = read_bag(tmp_path / "deep" / "s1.h5")
    np.testing.assert_array_equal(read.features, written.features)
    np.testing.assert_array_equal(read.coords, written.coords)
    np.testing.assert_array_equal(read.layers["block_3"], written.layers["block_3"])
    assert read.features.dtype == np.float32 and read.coords.dtype == np.int64
    assert read.origin == ORIGIN and len(read) == 5
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["s1.h5"]


def test_the_file_has_tridents_names_and_attributes(tmp_path: Path) -> None:
    """What TRIDENT's and CLAM's readers look up, with their meanings."""
    write_bag(tmp_path / "s1.h5", bag())
    with h5py.File(tmp_path / "s1.h5") as file:
        coords, features = file["coords"], file["features"]
        assert coords.dtype == np.int64 and coords.shape == (5, 2)
        assert features.dtype == np.float32 and features.shape == (5, 3)
        a = dict(coords.attrs)
        assert (a["patch_size"], a["patch_size_level0"], a["overlap"]) == (256, 483, 0)
        assert (a["level0_width"], a["level0_height"]) == (9000, 7000)
        assert a["target_magnification"] == 20 and a["name"] == "s1" and a["savetodir"] == "None"
        assert "level0_magnification" in a
        assert {"mpp0", "target_mpp", "patch_um", "encoder_sha256", "slide_fingerprint"} <= set(a)
        assert {"name", "savetodir", "encoder"} <= set(features.attrs) and features.attrs["encoder"] == "untrained"


def test_features_and_coordinates_of_different_length_are_refused_with_both_numbers() -> None:
    whole = bag()
    with pytest.raises(BagError, match="4 rows of features, but 5 coordinates") as caught:
        replace(whole, features=whole.features[:4])
    assert one_sentence(caught.value)
    with pytest.raises(BagError, match="2 rows of block_3, but 5 coordinates"):
        replace(whole, layers={"block_3": np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nan_never_enters_a_bag(value: float) -> None:
    features = bag().features.copy()
    features[3, 1] = value
    with pytest.raises(BagError, match="NaN"):
        replace(bag(), features=features)


def test_the_footprint_is_that_of_the_lattice_on_oblong_pixels() -> None:
    """Mpp 0.5 x 0.25: 256 x 512 level-0 pixels are 128 µm; the bag keeps one mean mpp and both sides."""
    mpp = Mpp(0.5, 0.25)
    lattice = PatchPlan().lattice(Bounds(0, 0, 5000, 4000), mpp)
    origin = replace(ORIGIN, mpp0=mpp.mean, patch_level0=lattice.cell)
    assert origin.patch_um == pytest.approx(lattice.hr_um)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_lattice_of_a_bag_is_the_lattice_that_made_it(n: int) -> None:
    made = PatchPlan(lr_mpp=0.5 * n).lattice(Bounds(333, 217, 9000 - 333, 7000 - 217), Mpp(0.2649, 0.2649))
    found = replace(ORIGIN, patch_level0=made.cell).lattice(n)
    assert (found.origin, found.cell, found.columns, found.rows, found.n) == (
        made.origin, made.cell, made.columns, made.rows, n
    )  # fmt: skip


# ---------------------------------------------------------------- files that are not bags


def check_refused(path: Path, match: str) -> None:
    with pytest.raises(BagError, match=match) as caught:
        read_bag(path)
    assert str(path) in str(caught.value) and one_sentence(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    check_refused(tmp_path / "none.h5", "extract the features again")


def test_a_half_written_file_is_refused(tmp_path: Path) -> None:
    write_bag(tmp_path / "s1.h5", bag(200))
    whole = (tmp_path / "s1.h5").read_bytes()
    for share in (0.0, 0.01, 0.5, 0.9):
        (tmp_path / "cut.h5").write_bytes(whole[: int(share * len(whole))])
        check_refused(tmp_path / "cut.h5", "extract the features again")


def test_a_strangers_hdf5_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.zeros((3, 2))
        file["coords"] = np.zeros((3, 2), int)
    check_refused(tmp_path / "a.h5", "incomplete, or another program wrote it")


def test_a_file_without_coordinates_is_refused(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.h5", bag())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["coords"]
    check_refused(tmp_path / "a.h5", "not a readable feature file")


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("no features")
    check_refused(tmp_path / "a.h5", "not a readable feature file")


def test_a_failed_write_leaves_the_old_bag_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bag(tmp_path / "s1.h5", bag(5))

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Group, "create_dataset", fail)
        with pytest.raises(OSError, match="disk full"):
            write_bag(tmp_path / "s1.h5", bag(7))
    assert len(read_bag(tmp_path / "s1.h5")) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["s1.h5"]
