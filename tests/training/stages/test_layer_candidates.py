"""Layers of the teacher that the inner cross-validation chooses: one file of features, and a bundle of the choice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrmil_training.config import build_config, load_config
from lrmil_training.data.feature_store import ColumnRows, StoredRows
from lrmil_training.dry_run import dry_run
from lrmil_training.recipes import Recipe, list_recipes
from lrmil_training.runs.event_log import CHECKPOINTS, SELECTION
from lrmil_training.stages.layer_candidates import layer_columns
from lrmil_training.train import train
from napari_lrmil.core.encoders import LoadedEncoder, pool_layers
from napari_lrmil.core.errors import ConfigError, LrmilError
from napari_lrmil.core.events import Finished
from napari_lrmil.core.features.bag import read_bag
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.slides.slide import Slide
from support.killed_training import assert_epochs_not_repeated, resume_killed_training
from support.networks import untrained_encoder
from support.phantoms import copy_cohort
from support.trained import Trained

CPU = torch.device("cpu")
CANDIDATES = ["block_15", "block_14 + block_15", "block_14"]
SELECTION_SETTINGS = {"inner_folds": 2, "layers": CANDIDATES, "lr": [1e-3, 1e-2]}
TINY: dict[str, Any] = {
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "selection": SELECTION_SETTINGS,
    "teacher": {"epochs": 3, "min_epochs": 1},
    "stage1": {"epochs": 2},
    "stage2": {"epochs": 2, "min_epochs": 1},
    "stage3": {"epochs": 2, "min_epochs": 1, "patches_per_slide": 4, "lr": [1e-3]},
}


@pytest.fixture(scope="module")
def cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), train=4, val=2, test=2)


@pytest.fixture(scope="module")
def settings(trained: Trained) -> dict[str, Any]:
    """Return a run whose candidates are reduced too, each by its own directions."""
    return TINY | {"encoder": {"teacher": trained.encoder, "pca": 5}}


@pytest.fixture(scope="module")
def run(cohort: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("candidates") / "run"
    assert list(train(cohort, folder, build_config(settings), CPU))[-1] == Finished(folder)
    return folder


def _logits(folder: Path, method: str) -> dict[str, dict[str, float]]:
    slides = json.loads((folder / "slides.json").read_text())["slides"]
    return {slide["slide"]: slide["methods"][method]["logits"] for slide in slides}


def test_candidates_are_all_combinations_and_none_without_layers() -> None:
    config = load_config(None, ["selection.inner_folds=2", "selection.layers=b1,b1+b2, b1 + b2", "selection.lr=0.1,1"])
    assert config.selection.layers == ("b1", "b1+b2")
    expected = [(("b1",), 0.1), (("b1",), 1.0), (("b1", "b2"), 0.1), (("b1", "b2"), 1.0)]
    assert [(recipe.layers, recipe.lr) for recipe in list_recipes(config)] == expected
    assert list_recipes(config)[2].text == "b1+b2, gated_attention, learning rate 0.1"
    assert list_recipes(build_config({})) == [Recipe("gated_attention", 3e-3)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"selection": {"layers": ["block_1"]}}, "inner_folds is 0"),
        ({"selection": {"inner_folds": 2, "layers": ["block_1+block_1"]}}, "block_1 is joined with itself"),
        ({"selection": {"inner_folds": 2, "layers": ["block_1+"]}}, "a layer has no name"),
        (
            {"selection": {"inner_folds": 2, "layers": ["block_1"]}, "encoder": {"teacher_layers": ["block_2"]}},
            r"encoder\.teacher_layers names block_2; leave teacher_layers out",
        ),
    ],
)
def test_impossible_candidates_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(values)


@pytest.mark.parametrize(
    ("layers", "pca", "reason"),
    [
        (["block_15", "block_18"], None, r"no layer block_18 to pool .*available: block_1, .*, head"),
        (["block_15", "block_5"], None, r"no layer block_12 in untrained, which ends with .* block_5"),
        (["block_14+block_15", "block_15"], 41, r"encoder\.pca=41: the teacher's embedding has 40 dimensions"),
    ],
)
def test_one_wrong_candidate_is_refused_before_work(
    layers: list[str], pca: int | None, reason: str, cohort: Path, trained: Trained, tmp_path: Path
) -> None:
    """Also if the others are right; the dry run says the same."""
    values = TINY | {"encoder": {"teacher": trained.encoder, "pca": pca}}
    config = build_config(values | {"selection": SELECTION_SETTINGS | {"layers": layers}})
    with pytest.raises(LrmilError, match=reason):
        list(train(cohort, tmp_path / "run", config, CPU))
    assert not (tmp_path / "run").exists()
    with pytest.raises(LrmilError, match=reason):
        list(dry_run(cohort, tmp_path / "run", config, "cpu"))


def test_columns_are_those_of_the_layers(run: Path) -> None:
    """In the order of the candidate, whatever the order in the file."""
    joined = pool_layers(LoadedEncoder(untrained_encoder(), "0" * 64), ["block_15", "block_14"])
    columns = layer_columns(joined.encoder, ["block_14", "block_15"])
    assert columns.tolist() == [*range(40, 80), *range(40)]
    path = next((run / "features").glob("20x_*/features_untrained*/*.h5"))
    stored = StoredRows.of(path)
    part = ColumnRows.of_columns(stored, columns)
    assert part.shape == stored.shape and np.array_equal(part(np.array([2, 0])), stored()[[2, 0]][:, columns])


def test_features_of_all_candidates_are_stored_once(run: Path, cohort: Path) -> None:
    (folder,) = (run / "features").glob("20x_*/features_untrained*")
    assert folder.name == "features_untrained-block_15+block_14"
    files = list(folder.iterdir())
    assert len(files) == 8 and {read_bag(file).features.shape[1] for file in files} == {80}
    candidates = json.loads((run / SELECTION).read_text())["candidates"]
    assert [(c["layers"], c["lr"]) for c in candidates] == [
        (layers, lr) for layers in (["block_15"], ["block_14", "block_15"], ["block_14"]) for lr in (1e-3, 1e-2)
    ]
    assert len(list((run / CHECKPOINTS / "selection").glob("*.json"))) == 6 * 2, "no two candidates share a fit"
    assert "block_14 + block_15" in (run / "report.html").read_text()


def test_the_bundle_has_the_chosen_layers_and_gives_what_was_measured(run: Path, cohort: Path) -> None:
    (chosen,) = [c for c in json.loads((run / SELECTION).read_text())["candidates"] if c["chosen"]]
    bundle = Bundle(run / "bundle")
    for network in (bundle.card.student, bundle.card.teacher):
        assert network is not None and network.encoder.pooled == tuple(chosen["layers"]) and network.dim == 5
    student, teacher = _logits(run, "student"), _logits(run, "teacher")
    path = sorted(cohort.parent.glob("*.tif"))[0]
    with Slide(path) as slide:
        *_, last = predict(slide, bundle, device=CPU, teacher=TeacherPatches.ALL, runtime="torch")
    assert isinstance(last, Finished)
    assert last.result.student.logits == pytest.approx(student[path.stem], abs=1e-4)
    assert last.result.teacher.logits == pytest.approx(teacher[path.stem], abs=1e-4)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("reached", ["selection after 19", "stage3 1"])
def test_killed_and_resumed_equals_unbroken(
    reached: str, run: Path, cohort: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """In the seventh fit of the inner folds, and after the choice."""
    folder = tmp_path / "run"
    events = resume_killed_training(cohort, folder, settings, reached)
    if reached.startswith("stage3"):
        assert_epochs_not_repeated(events, "stage3")
    assert (folder / SELECTION).read_bytes() == (run / SELECTION).read_bytes()
    for method in ("teacher", "student", "labels_only"):
        for name, logits in _logits(run, method).items():
            assert _logits(folder, method)[name] == pytest.approx(logits, abs=1e-4)
