"""Features for other programs: ``features --convert``, ``--format``, and files of coordinates that torchmil reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from napari_lrmil.core.atomic_files import _partial_name
from napari_lrmil.core.features.bag import Bag, read_bag
from napari_lrmil.core.features.layouts.find import find_feature_folder
from napari_lrmil.core.features.layouts.proof import prove_patches
from napari_lrmil.core.features.layouts.writers import layout_bytes
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.grid import find_nested_grid
from napari_lrmil.core.slides.slide import Slide
from support import foreign_features as ff
from support.phantoms import copy_cohort, paint_inked
from support.trained import Trained

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), train=2)


@pytest.fixture(scope="module")
def bags(cohort: Path) -> list[Bag]:
    """Return features of every slide that no encoder made; float16 holds them exactly."""
    made_up = []
    for path in sorted(cohort.parent.glob("*.tif")):
        with Slide(path) as slide:
            grid = find_nested_grid(slide, PatchPlan(0.5, 2.0, 64, 64))
            features = np.random.default_rng(len(made_up)).normal(size=(len(grid.hr_index), 8)).astype(np.float16)
            made_up.append(Bag(features.astype(np.float32), grid.hr_corners, ff.bag_origin(slide, grid)))
    return made_up


@pytest.mark.parametrize("layout", ["trident", "clam", "stamp"])
@pytest.mark.parametrize("name", ["trident", "clam", "stamp", "slideflow"])
def test_features_of_one_program_become_those_of_another(
    name: str, layout: str, cohort: Path, bags: list[Bag], tmp_path: Path, call: Call
) -> None:
    for bag in bags:
        folder = ff.LAYOUTS[name][0](tmp_path / "in", bag)
    code, out, err = call("features", cohort, "--convert", folder, "--out", tmp_path / "out", "--format", layout)
    assert code == 0 and f"2 of 2 slides, from {find_feature_folder(folder).layout} to {layout}" in out, err
    written = find_feature_folder(tmp_path / "out")
    assert written.layout.lower() == layout
    for bag in bags:
        foreign = written.open(bag.origin.slide)
        with Slide(cohort.parent / f"{bag.origin.slide}.tif") as slide:
            patches = prove_patches(foreign, slide)
        np.testing.assert_array_equal(patches.corners, bag.coords)
        assert patches.side == 64
        np.testing.assert_array_equal(np.concatenate([values for _, values in foreign.chunks()]), bag.features)


def test_files_of_another_program_are_never_written_over(
    cohort: Path, bags: list[Bag], tmp_path: Path, call: Call
) -> None:
    """Our own may be written again. The slide whose file is in the way is listed, the other is converted."""
    for bag in bags:
        ff.write_stamp(tmp_path / "in", bag)
    target = tmp_path / "out" / "h5_files"
    for _ in range(2):
        arguments = ("features", cohort, "--convert", tmp_path / "in", "--out", tmp_path / "out", "--format", "clam")
        assert call(*arguments)[0] == 0
    first, second = sorted(target.glob("*.h5"))
    first.unlink()
    ff.write_clam(tmp_path / "other", bags[0])
    first.write_bytes((tmp_path / "other" / "h5_files" / first.name).read_bytes())
    before = first.read_bytes()
    code, _, err = call(*arguments)
    assert code == 3 and "another program wrote this file" in err and first.read_bytes() == before
    assert first.stem in (tmp_path / "out" / "failures.csv").read_text() and second.exists()


def test_tissue_without_features_is_told(cohort: Path, bags: list[Bag], tmp_path: Path, call: Call) -> None:
    """The whole file is silent; of half a file the sentence says how much is lacking, and the slide is converted."""
    whole, other = bags
    ff.write_trident(tmp_path / "in", whole)
    half = len(other) // 2
    ff.write_trident(tmp_path / "in", replace(other, coords=other.coords[:half], features=other.features[:half]))
    code, _, err = call("features", cohort, "--convert", tmp_path / "in", "--out", tmp_path / "out")
    (line,) = (text for text in err.splitlines() if "have no features" in text)
    assert code == 0 and other.origin.slide in line
    assert f"{len(other) - half} of {len(other)} HR patches of tissue have no features" in line
    assert "in the converted file" in line and "of another slide" in line


def test_a_wrong_call_is_refused(cohort: Path, bags: list[Bag], tmp_path: Path, call: Call) -> None:
    out = ("--out", tmp_path / "out")
    code, _, err = call("features", cohort, *out)
    assert code == 2 and "--encoder, or --convert" in err
    code, _, err = call("features", cohort, *out, "--convert", tmp_path, "--exclude-artefacts")
    assert code == 2 and "are chosen already" in err
    code, _, err = call("features", cohort, *out, "--convert", tmp_path, "--format", "csv")
    assert code == 2 and "expected trident, clam, stamp" in err
    code, _, err = call("features", cohort, *out, "--convert", tmp_path)
    assert code == 2 and "no features of a known layout" in err
    for bag in bags:
        ff.write_plain_h5(tmp_path / "plain", bag)
    mapping = [word for text in ff.PLAIN_H5[:4] for word in ("--hr-mapping", text)]
    code, _, err = call("features", cohort, *out, "--convert", tmp_path / "plain", *mapping)
    assert code == 3 and "--hr-mapping patch_px=256" in err.replace("\n", " ")


def test_a_sample_is_encoded_again_by_the_encoder_that_is_named(
    cohort: Path, bags: list[Bag], trained: Trained, tmp_path: Path, call: Call
) -> None:
    """The features of one slide are in their order, those of the other are not; without an encoder the call says so."""
    code, _, err = call("features", cohort, "--encoder", trained.encoder, "--patch-px", 64, "--out", tmp_path / "own")
    assert code == 0, err
    first, second = (read_bag(file) for file in sorted((tmp_path / "own").glob("20x_*/features_*/*.h5")))
    for bag in (first, replace(second, features=np.ascontiguousarray(second.features[::-1]))):
        ff.write_trident(tmp_path / "in", bag)
    arguments = ("features", cohort, "--convert", tmp_path / "in", "--out", tmp_path / "out")
    code, out, err = call(*arguments, "--encoder", trained.encoder)
    assert code == 3 and "1 of 2 slides" in out and "4 patches encoded again by" in err
    (line,) = (tmp_path / "out" / "failures.csv").read_text().splitlines()[1:]
    assert second.origin.slide in line and "leave --encoder out" in line and "expected 0.99 or more" in line
    code, _, err = call(*arguments)
    assert code == 0 and "no patch is encoded again" in err
    ff.write_trident(tmp_path / "narrow", bags[0])
    arguments = ("features", cohort, "--convert", tmp_path / "narrow", "--out", tmp_path / "other")
    code, _, err = call(*arguments, "--encoder", trained.encoder)
    assert code == 3 and "8 dimensions, and the encoder" in err.replace("\n", " ")


def test_a_disk_that_would_not_hold_the_conversion_is_refused(
    cohort: Path, bags: list[Bag], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes of the files are what is written, within a tenth."""
    for bag in bags:
        folder = ff.write_trident(tmp_path / "in", replace(bag, features=np.tile(bag.features, 64)))
    arguments = ("features", cohort, "--convert", folder, "--out", tmp_path / "out", "--format", "clam")
    assert call(*arguments)[0] == 0
    written = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.suffix in (".h5", ".pt"))
    expected = sum(layout_bytes("clam", (len(bag), 512)) for bag in bags)
    assert expected == pytest.approx(written, rel=0.1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(expected) - 1))
    code, _, err = call(*arguments)
    assert code == 2 and "2 slides in the layout clam; counted on 2 slides" in err.replace("\n", " ")
    assert call(*arguments, "--ignore-disk")[0] == 0


def test_features_without_artefacts_lie_in_a_folder_of_their_own(trained: Trained, tmp_path: Path, call: Call) -> None:
    """It is the folder that a run with the same settings looks for in a shared folder of features."""
    slides = tmp_path / "slides"
    paint_inked(slides)
    (slides / "plain.tif").unlink()
    options = ("--encoder", trained.encoder, "--patch-px", 64, "--out", tmp_path / "features")
    assert call("features", slides, *options)[0] == 0
    code, out, err = call("features", slides, *options, "--exclude-artefacts")
    assert code == 0 and "without_artefacts" in out, err
    (whole,) = (tmp_path / "features").glob("20x_*/features_*/inked.h5")
    clean = read_bag(tmp_path / "features" / "without_artefacts" / whole.relative_to(tmp_path / "features"))
    assert {*map(tuple, clean.coords)} < {*map(tuple, read_bag(whole).coords)}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_torchmil_builds_its_adjacency_from_our_features(
    cohort: Path, trained: Trained, tmp_path: Path, call: Call
) -> None:
    """And CLAM's and STAMP's files of the same features lie beside them."""
    pytest.importorskip("torchmil")
    from torchmil.datasets import TridentWSIDataset

    options = ("--encoder", trained.encoder, "--patch-px", "64", "--out", tmp_path)
    code, _, err = call("features", cohort, *options, "--format", "clam")
    assert code == 0, err
    (base,) = tmp_path.glob("20x_*")
    (tmp_path / "labels").mkdir()
    names = [path.stem for path in sorted(cohort.parent.glob("*.tif"))]
    for name in names:
        with h5py.File(tmp_path / "labels" / f"{name}.h5", "w") as file:
            file["label"] = np.array([1])
    (features,) = base.glob("features_*")
    dataset = TridentWSIDataset(
        f"{base}/",
        str(tmp_path / "labels" / ""),
        features.name.removeprefix("features_"),
        wsi_names=names,
        bag_keys=["X", "adj", "coords"],
        patch_size=64,
        load_at_init=False,
    )
    bag = read_bag(features / f"{names[0]}.h5")
    loaded = dataset[0]
    np.testing.assert_allclose(loaded["X"].numpy(), bag.features)
    index = (bag.coords - bag.origin.origin_level0) // 64
    neighbours = (np.abs(index[:, None] - index[None]).max(axis=2) <= 1) & ~np.eye(len(index), dtype=bool)
    adjacency = loaded["adj"].to_dense().numpy() > 0
    np.testing.assert_array_equal(adjacency & ~np.eye(len(index), dtype=bool), neighbours)
    clam = find_feature_folder(tmp_path / "clam").open(names[0])
    np.testing.assert_array_equal(clam.coords, bag.coords)
    # Another call keeps the files, and makes those of coordinates that are missing.
    patches = base / "patches" / f"{names[0]}_patches.h5"
    patches.unlink()
    assert call("features", cohort, *options)[0] == 0 and patches.exists()


def test_files_that_killed_calls_left_half_written_are_removed(
    cohort: Path, bags: list[Bag], tmp_path: Path, call: Call
) -> None:
    """Those of living processes stay."""
    for bag in bags:
        folder = ff.write_trident(tmp_path / "in", bag)
    arguments = ("features", cohort, "--convert", folder, "--out", tmp_path / "out", "--format", "clam")
    assert call(*arguments)[0] == 0
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    slide, written = bags[0].origin.slide, ("h5_files/{}.h5", "patches/{}.h5", "pt_files/{}.pt")
    files = [tmp_path / "out" / file.format(slide) for file in written]
    left = [file.with_name(_partial_name(file.name).replace(f"-{os.getpid()}", f"-{gone.pid}")) for file in files]
    living = files[0].with_name(_partial_name(files[0].name).replace(f"-{os.getpid()}", f"-{os.getppid()}"))
    for file in (*left, living):
        file.write_bytes(b"half")
    assert call(*arguments)[0] == 0
    assert [file.exists() for file in left] == [False] * 3 and living.exists()
