"""A teacher whose embedding is pooled maps of chosen layers: features, three stages, bundle, prediction, resume."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from lrmil_training.config import build_config, load_config
from lrmil_training.data.feature_store import StoredRows
from lrmil_training.data.features import find_encoder
from lrmil_training.dry_run import dry_run
from lrmil_training.stages.pca import find_reduction, fit_pca
from lrmil_training.stages.run_context import RunContext
from lrmil_training.train import train
from napari_lrmil.core.errors import ConfigError, LrmilError
from napari_lrmil.core.events import Finished, Notice
from napari_lrmil.core.features.bag import read_bag
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import CARD
from napari_lrmil.core.runtimes import openvino
from napari_lrmil.core.slides.slide import Slide
from support.killed_training import assert_epochs_not_repeated, resume_killed_training
from support.networks import untrained_encoder
from support.phantoms import copy_cohort
from support.trained import Trained

CPU = torch.device("cpu")
LAYERS = ["block_14", "block_15"]
WIDTH = 80  # 40 each at a quarter of the paper's channels
TINY: dict[str, Any] = {
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "teacher": {"epochs": 2, "min_epochs": 1},
    "stage1": {"epochs": 3},
    "stage2": {"epochs": 2, "min_epochs": 1},
    "stage3": {"epochs": 2, "min_epochs": 1, "patches_per_slide": 4, "lr": [1e-3]},
    "baselines": ["labels_only", "labels_only_finetuned"],
}


@pytest.fixture(scope="module")
def cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the table of eight phantom slides."""
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), train=4, val=2, test=2)


@pytest.fixture(scope="module")
def settings(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a run whose HR features lie beside those of the encoder's own embedding."""
    folder = trained.copy_features(tmp_path_factory.mktemp("shared") / "features")
    return TINY | {"encoder": {"teacher": trained.encoder, "teacher_layers": LAYERS}, "features": str(folder)}


@pytest.fixture(scope="module")
def run(cohort: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("layers") / "run"
    assert list(train(cohort, folder, build_config(settings), CPU))[-1] == Finished(folder)
    return folder


def _logits(folder: Path, method: str) -> dict[str, dict[str, float]]:
    slides = json.loads((folder / "slides.json").read_text())["slides"]
    return {slide["slide"]: slide["methods"][method]["logits"] for slide in slides}


def test_layers_are_written_as_list_or_joined() -> None:
    """A sweep joins them by a plus sign; [] is the encoder's own embedding, as it was."""
    assert build_config({}).encoder.teacher_layers == ()
    for text in ("block_14+block_15", "[block_14, block_15]", "block_14,block_15", "[block_14+block_15]"):
        assert load_config(None, [f"encoder.teacher_layers={text}"]).encoder.teacher_layers == tuple(LAYERS)
    assert load_config(None, ["encoder.teacher_layers=[]"]) == load_config()
    with pytest.raises(ConfigError, match="layer block_2 is joined with itself"):
        load_config(None, ["encoder.teacher_layers=block_2+block_2"])
    with pytest.raises(ConfigError, match="a layer has no name"):
        load_config(None, ["encoder.teacher_layers=block_2+"])
    with pytest.raises(ConfigError, match=r"a run without a teacher reads only with encoder\.student=teacher"):
        build_config({"distil": False, "encoder": {"student": "mobilenet_v2", "teacher_layers": ["block_2"]}})


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ({"teacher_layers": ["block_18"]}, r"no layer block_18 to pool .*available: block_1, .*, head"),
        ({"teacher_layers": ["block_5"]}, r"no layer block_12 in untrained, which ends with .* block_5"),
        ({"pca": 321}, r"encoder\.pca=321: the teacher's embedding has 320 dimensions"),
        ({"teacher_layers": LAYERS, "pca": 81}, r"encoder\.pca=81: the teacher's embedding has 80 dimensions"),
    ],
)
def test_impossible_layers_are_refused_before_work(
    encoder: dict[str, Any], reason: str, cohort: Path, trained: Trained, tmp_path: Path
) -> None:
    """The layer term of stage 1 compares block_12, which runs after block_5."""
    config = build_config(TINY | {"encoder": {"teacher": trained.encoder} | encoder})
    with pytest.raises(LrmilError, match=reason):
        list(train(cohort, tmp_path / "run", config, CPU))
    assert not (tmp_path / "run").exists()
    with pytest.raises(LrmilError, match=reason):
        list(dry_run(cohort, tmp_path / "run", config, "cpu"))


def test_features_of_other_layers_are_other_files(run: Path, settings: dict[str, Any], trained: Trained) -> None:
    """Those of the encoder's own embedding, which were there, are neither read nor changed."""
    folders = {path.name: path for path in next(Path(settings["features"]).iterdir()).iterdir()}
    assert set(folders) == {"features_untrained", "features_untrained-block_14+block_15"}
    for path in folders["features_untrained-block_14+block_15"].iterdir():
        assert read_bag(path).features.shape[1] == WIDTH
    before = next((trained.run / "features").glob("20x_*/features_untrained"))
    for path in folders["features_untrained"].iterdir():
        assert path.read_bytes() == (before / path.name).read_bytes()


def test_the_bundle_has_the_layers_and_no_later_ones(run: Path, trained: Trained) -> None:
    """Student and teacher; a bundle of a run without them has the card that earlier versions read."""
    bundle = Bundle(run / "bundle")
    for network in (bundle.card.student, bundle.card.teacher):
        assert network is not None and network.encoder.pooled == tuple(LAYERS) and network.dim == WIDTH
    assert list(bundle.student.encoder.layers)[-1] == list(bundle.teacher.encoder.layers)[-1] == "block_15"
    assert "pooled maps of block_14 and block_15" in (run / "bundle" / "README.md").read_text()
    sizes = [sum(p.numel() for p in b.student.encoder.parameters()) for b in (bundle, Bundle(trained.run / "bundle"))]
    assert sizes[0] < 0.75 * sizes[1]
    assert "pooled" not in (trained.run / "bundle" / CARD).read_text()


@pytest.mark.parametrize("runtime", ["torch", "openvino", "auto"])
def test_predictions_are_what_was_measured(runtime: str, run: Path, cohort: Path) -> None:
    """Student and teacher, in every runtime."""
    if runtime == "openvino" and not openvino.is_installed():
        pytest.skip("the extra openvino is not installed")
    bundle, tolerance = Bundle(run / "bundle"), 1e-4 if runtime == "torch" else 0.05
    student, teacher = _logits(run, "student"), _logits(run, "teacher")
    for path in sorted(cohort.parent.glob("*.tif"))[:2]:
        with Slide(path) as slide:
            *_, last = predict(slide, bundle, device=CPU, teacher=TeacherPatches.ALL, runtime=runtime)
            assert isinstance(last, Finished)
            assert last.result.student.logits == pytest.approx(student[slide.name], abs=tolerance)
            assert last.result.teacher.logits == pytest.approx(teacher[slide.name], abs=tolerance)


def test_the_bundle_is_an_encoder_with_the_same_layers(run: Path, trained: Trained) -> None:
    """For `features` and as a teacher; other layers can be chosen from what it kept."""
    loaded = find_encoder(str(run / "bundle"))
    assert loaded.spec.pooled == tuple(LAYERS) and loaded.encoder.dim == WIDTH
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    maps = untrained_encoder()(pixels, LAYERS).maps
    expected = torch.cat([maps[name].mean(dim=(2, 3)) for name in LAYERS], dim=1)
    torch.testing.assert_close(loaded.encoder(pixels).embedding, expected, rtol=1e-3, atol=1e-3)


def test_a_student_of_another_architecture_learns_a_projection(
    settings: dict[str, Any], cohort: Path, tmp_path: Path
) -> None:
    """It has its own embedding, and a linear map to the joined width of the teacher's."""
    encoder = settings["encoder"] | {"student": "mobilenet_v2"}
    short = {"stage1": {"epochs": 1}, "stage3": {"epochs": 0}, "baselines": []}
    list(train(cohort, tmp_path / "run", build_config(settings | short | {"encoder": encoder}), CPU))
    bundle = Bundle(tmp_path / "run" / "bundle")
    assert bundle.card.student.encoder.pooled == () and bundle.card.student.dim == WIDTH
    assert tuple(bundle.student.encoder.projection.weight.shape) == (WIDTH, 1280)


def test_without_a_teacher_the_student_has_the_layers(settings: dict[str, Any], cohort: Path, tmp_path: Path) -> None:
    short = {"distil": False, "baselines": [], "stage3": TINY["stage3"] | {"epochs": 1}}
    list(train(cohort, tmp_path / "run", build_config(settings | short), CPU))
    card = Bundle(tmp_path / "run" / "bundle").card
    assert card.student.encoder.pooled == tuple(LAYERS) and card.student.dim == WIDTH


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("stage", ["stage1", "stage3"])
def test_killed_and_resumed_equals_unbroken(
    stage: str, run: Path, cohort: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    _check_resume(stage, run, cohort, settings, tmp_path / "run")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("stage", ["stage1", "stage3"])
def test_a_killed_run_with_outlines_equals_an_unbroken_one(
    stage: str, outlined: Path, cohort: Path, outlined_settings: dict[str, Any], tmp_path: Path
) -> None:
    """The patch term is part of the teacher, of stages 1 to 3 and of the baselines."""
    _check_resume(stage, outlined, cohort, outlined_settings, tmp_path / "run")


@pytest.fixture(scope="module")
def outlined_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"lambda_patch": 1.0}


@pytest.fixture(scope="module")
def outlined(
    run: Path, cohort: Path, outlined_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a finished run whose outlines teach, with other logits than without."""
    folder = tmp_path_factory.mktemp("outlined") / "run"
    list(train(cohort, folder, build_config(outlined_settings), CPU))
    assert _logits(folder, "teacher") != _logits(run, "teacher")
    return folder


def _check_resume(stage: str, unbroken: Path, cohort: Path, settings: dict[str, Any], folder: Path) -> None:
    """Kill a run in a stage, go on with it, and compare all methods with the unbroken run."""
    assert_epochs_not_repeated(resume_killed_training(cohort, folder, settings, f"{stage} 1"), stage)
    for method in ("teacher", "student", *settings["baselines"]):
        for name, logits in _logits(unbroken, method).items():
            assert _logits(folder, method)[name] == pytest.approx(logits, abs=1e-4)


@dataclass(frozen=True)
class FewRows:
    """Rows of a slide in memory."""

    shape: tuple[int, int]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).normal(size=self.shape).astype(np.float32)[rows]


# ---------------------------------------------------------------- reduced by principal component analysis

DIM = 6


@pytest.fixture(scope="module")
def reduced_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a run that reads the features of the other, from the same files."""
    return settings | {"encoder": settings["encoder"] | {"pca": DIM}, "baselines": ["labels_only"]}


@pytest.fixture(scope="module")
def reduced(
    run: Path, cohort: Path, reduced_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a finished run with a reduced embedding."""
    folder = tmp_path_factory.mktemp("reduced") / "run"
    events = list(train(cohort, folder, build_config(reduced_settings), CPU))
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert any(f"reduced from {WIDTH} to {DIM} dimensions" in text for text in notices)
    return folder


def test_principal_components_are_those_of_a_library() -> None:
    """Of standardised dimensions, with more rows than dimensions and with fewer; signs are fixed."""
    rng = np.random.default_rng(0)
    for count, width in ((200, 30), (20, 30)):
        rows = rng.normal(size=(count, 4)) @ rng.normal(size=(4, width)) * rng.uniform(0.1, 5, width) + 3
        rows += 0.01 * rng.normal(size=rows.shape)
        reduction, share = fit_pca(rows, 3)
        standard = (rows - rows.mean(0)) / rows.std(0)
        _, singular, directions = np.linalg.svd(standard, full_matrices=False)
        mine = (torch.from_numpy(rows).float() - reduction["mean"]) @ reduction["components"].T
        expected = standard @ directions[:3].T
        signs = np.sign((mine.numpy() * expected).sum(axis=0))
        np.testing.assert_allclose(mine.numpy(), expected * signs, atol=0.05)
        assert share == pytest.approx((singular[:3] ** 2).sum() / (singular**2).sum())
        assert all(torch.equal(tensor, tensor.half().float()) for tensor in reduction.values())


def test_a_reduction_is_fitted_to_training_slides_alone(
    reduced: Path, run: Path, settings: dict[str, Any], cohort: Path
) -> None:
    """The stored features are not reduced, so runs with other numbers of dimensions share them."""
    (folder,) = Path(settings["features"]).glob("*/features_untrained-block_14+block_15")
    assert all(read_bag(path).features.shape[1] == WIDTH for path in folder.iterdir())
    with cohort.open(newline="") as file:
        train_slides = [Path(row["slide"]).stem for row in csv.DictReader(file) if row["split"] == "train"]
    rows = np.concatenate([read_bag(folder / f"{name}.h5").features for name in train_slides]).astype(float)
    expected, _ = fit_pca(rows, DIM)
    for network in (Bundle(reduced / "bundle").student.encoder.encoder, Bundle(reduced / "bundle").teacher.encoder):
        assert network.spec.pca == DIM and network.reduction is not None
        torch.testing.assert_close(network.reduction.mean, expected["mean"], rtol=0, atol=1e-2)
        similarity = torch.cosine_similarity(network.reduction.components, expected["components"])
        assert similarity.min() > 0.999
    assert f"reduced to {DIM} dimensions" in (reduced / "bundle" / "README.md").read_text()


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_reduced_predictions_are_what_was_measured(runtime: str, reduced: Path, cohort: Path) -> None:
    test_predictions_are_what_was_measured(runtime, reduced, cohort)


def test_more_dimensions_than_patches_are_refused(reduced_settings: dict[str, Any], tmp_path: Path) -> None:
    """The patches are known when the features are there."""
    context = cast(RunContext, SimpleNamespace(config=build_config(reduced_settings), pca_file=tmp_path / "none"))
    few = [FewRows((count, WIDTH)) for count in (2, 3)]
    with pytest.raises(ConfigError, match=r"encoder\.pca=6 needs 6 patches .* there are 5"):
        list(find_reduction(context, cast(list[StoredRows], few)))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_reduced_run_that_was_killed_equals_an_unbroken_one(
    reduced: Path, cohort: Path, reduced_settings: dict[str, Any], tmp_path: Path
) -> None:
    _check_resume("stage1", reduced, cohort, reduced_settings, tmp_path / "run")
