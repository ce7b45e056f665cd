"""Runs that leave artefacts out: the same patches in training and prediction, and none of an earlier run's features."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lrmil_training.config import PRESETS, TrainConfig, build_config, dump_config, load_config
from lrmil_training.data.cohort import read_cohort
from lrmil_training.data.features import make_features
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.encoders import LoadedEncoder
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import Finished
from napari_lrmil.core.features.bag import read_bag
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import card_text
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.tissue import TissueConfig
from support.networks import untrained_bundle, untrained_encoder
from support.phantoms import paint_inked

CPU = torch.device("cpu")
SETTINGS = {"lr_mpp": 1.0, "hr_patch_px": 64, "lr_patch_px": 64}


@pytest.fixture(scope="module")
def inked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cohort table of one slide with green ink on its tissue, in two rows."""
    folder = tmp_path_factory.mktemp("inked")
    path = paint_inked(folder)
    rows = ["slide,label,patient,split,mpp"]
    for name, label, split in (("a", "normal", "train"), ("b", "lesion", "train"), ("c", "normal", "val")):
        shutil.copy(path, folder / f"{name}.tif")
        rows.append(f"{name}.tif,{label},{name},{split},0.5")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return folder / "cohort.csv"


def context_of(table: Path, folder: Path, *, exclude: bool) -> RunContext:
    config = build_config({**SETTINGS, "exclude_artefacts": exclude, "features": str(folder / "shared")})
    encoder = untrained_encoder()
    loaded = LoadedEncoder(encoder, "0" * 64)
    return RunContext(config, read_cohort(table, seed=0), folder / f"run {exclude}", CPU, loaded)


def test_features_are_of_the_patches_that_a_prediction_reads(inked: Path, tmp_path: Path) -> None:
    """Of both resolutions; a shared folder keeps the features of both kinds of runs apart."""
    coords = {}
    for exclude in (False, True):
        context = context_of(inked, tmp_path, exclude=exclude)
        row = context.cohort.slides[0]
        request = context.hr_request()
        list(make_features([row], request, CPU))
        with row.open() as slide:
            grid = find_tissue_grid(slide, context.config.plan, TissueConfig(exclude_artefacts=exclude)).grid
        coords[exclude] = read_bag(request.path(row)).coords
        np.testing.assert_array_equal(coords[exclude], grid.hr_corners)
        lr = replace(context.hr_request(), high=False, encoder_name="lr")
        list(make_features([row], lr, CPU, {row.name: grid}))
        np.testing.assert_array_equal(read_bag(lr.path(row)).coords, grid.lr_corners)
        assert context.lr_request(untrained_encoder()).tissue == context.config.tissue  # type: ignore[arg-type]
    assert 0 < len(coords[True]) < len(coords[False])
    assert len(list((tmp_path / "shared").rglob("*.h5"))) == 4


def test_a_bundle_says_so_and_reads_the_same_patches(inked: Path, tmp_path: Path) -> None:
    context = context_of(inked, tmp_path, exclude=True)
    plans = {"hr_mpp": 0.5, "lr_mpp": 1.0, "hr_patch_px": 64, "lr_patch_px": 64}
    plain = untrained_bundle(tmp_path / "plain", **plans)
    bundle = untrained_bundle(
        tmp_path / "without", **plans, tissue=context_of(inked, tmp_path, exclude=True).config.tissue
    )
    assert "Tissue: without pen, air bubbles and blur" in card_text(Bundle(bundle.path).card)
    assert "Tissue:" not in card_text(plain.card)
    assert plain.sha256 != bundle.sha256, "another model: its answers differ"
    request, row = context.hr_request(), context.cohort.slides[0]
    list(make_features([row], request, CPU))
    with row.open() as slide:
        [prediction] = [event.result for event in predict(slide, bundle, device=CPU) if isinstance(event, Finished)]
    np.testing.assert_array_equal(prediction.grid.hr_corners, read_bag(request.path(row)).coords)
    assert prediction.artefacts is not None and prediction.artefacts.excluded


def test_presets_leave_artefacts_out_and_files_without_the_key_do_not(tmp_path: Path) -> None:
    assert {name for name in PRESETS if load_config(name).exclude_artefacts} == {"default", "paper"}
    assert load_config(None) == load_config("default")
    assert not TrainConfig().exclude_artefacts
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    assert not load_config(tmp_path / "mine.yaml").exclude_artefacts


def test_features_of_another_program_bring_their_patches() -> None:
    assert not load_config(None, ["hr_features=feats", "stage1.epochs=0"]).exclude_artefacts
    with pytest.raises(ConfigError, match="hr_features bring with them"):
        load_config(None, ["hr_features=feats", "stage1.epochs=0", "exclude_artefacts=true"])


def test_a_run_of_an_earlier_version_goes_on_as_it_began(tmp_path: Path) -> None:
    """The same call continues it, because what presets have for new runs is left out."""
    file = tmp_path / "config.yaml"
    text = dump_config(build_config({"seed": 3}))
    file.write_text("".join(line for line in text.splitlines(keepends=True) if "exclude_artefacts" not in line))
    assert load_config(None, ["seed=3"], file) == load_config(file)
    assert load_config(None, ["seed=3", "exclude_artefacts=true"], file) != load_config(file)
    file.write_text(dump_config(load_config(None)))
    assert load_config(None, (), file) == load_config(file)
    assert load_config(None, (), tmp_path / "missing.yaml").exclude_artefacts
