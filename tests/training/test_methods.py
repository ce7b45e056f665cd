"""What a run compares: every method is the run's configuration but for what makes it, and stages are shared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lrmil_training.config import TrainConfig, build_config
from lrmil_training.methods import methods
from lrmil_training.run import train
from napari_lrmil.core.encoders import save_encoder
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import StageDone
from napari_lrmil.core.phantom import make_cohort
from networks import untrained_encoder

CPU = torch.device("cpu")
ALL = ("labels_only", "labels_only_finetuned", "stage1_only", "stage2_only", "both")
TINY = {
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "teacher": {"epochs": 2, "min_epochs": 1},
    "stage1": {"epochs": 1, "patches_per_slide": 4},
    "stage2": {"epochs": 2, "min_epochs": 1},
    "stage3": {"epochs": 2, "min_epochs": 1, "patches_per_slide": 4, "lr": [1e-4, 1e-3]},
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the table of ten phantom slides of 1024 x 768 px."""
    folder = tmp_path_factory.mktemp("cohort")
    for split, count, seed in (("train", 4, 1), ("val", 2, 2), ("test", 4, 3)):
        list(make_cohort(folder, count, (1024, 768), seed, split=split))
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the file of an encoder that was never trained."""
    file = tmp_path_factory.mktemp("encoder") / "untrained.safetensors"
    save_encoder(file, untrained_encoder())
    return str(file)


def test_baselines_differ_from_the_student_in_what_makes_them_alone() -> None:
    """Stage 1 only keeps the teacher's head; labels only has neither stage; both has no stage 3."""
    config = build_config({"baselines": ALL, "stage3": {"epochs": 4}})
    by_name = {m.name: m for m in methods(config)}
    assert list(by_name) == ["student", *ALL]
    assert by_name["student"].config is config
    assert by_name["stage1_only"].config.stage2.init == "frozen_head"
    assert by_name["stage2_only"].config.stage1.epochs == 0
    assert by_name["both"].config == config.model_copy(
        update={"stage3": config.stage3.model_copy(update={"epochs": 0})}
    )
    assert [name for name, m in by_name.items() if not m.taught] == ["labels_only", "labels_only_finetuned"]
    assert by_name["labels_only_finetuned"].config.stage3.epochs == 4


def test_ablation_turns_every_term_off_in_turn() -> None:
    """Terms that are off already are no ablation."""
    config = build_config({"ablation": True, "baselines": [], "stage2": {"lambda_hard": 0.0}})
    names = [m.name for m in methods(config)]
    assert names == ["student", "without_layer", "without_attn", "without_ce", "without_bag", "without_soft"]
    changed = methods(config)[1].config
    assert (changed.stage1.lambda_layer, changed.stage1.lambda_attn) == (0.0, config.stage1.lambda_attn)


def test_a_run_with_everything_compares_every_method(cohort: Path, encoder: str, tmp_path: Path) -> None:
    """One option gives all rows; a stage that two methods share is fitted once."""
    config = build_config(TINY | {"encoder": {"teacher": encoder}, "baselines": ALL, "ablation": True})
    events = list(train(cohort, tmp_path, config, CPU))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    ablation = {"without_layer", "without_attn", "without_ce", "without_bag", "without_soft"}
    assert {"teacher", "student", *ALL, *ablation} <= set(metrics)
    fitted = [e for e in events if isinstance(e, StageDone) and e.stage == "stage1" and e.seconds > 0]
    assert len(fitted) == 3  # as configured, without the layer term, without the attention term
    tuned = [e for e in events if isinstance(e, StageDone) and e.stage == "finetuned" and e.seconds > 0]
    assert len(tuned) == 2  # one for each learning rate


@pytest.mark.parametrize(
    "changes",
    [
        {"stage1": {"epochs": 1, "targets": "on_the_fly", "stain_sd": 0.1}},
        {"stage1": {"epochs": 1, "attention": "uniform", "projection": "identity"}},
        {"stage2": {"epochs": 2, "min_epochs": 1, "features": "on_the_fly"}},
        {"stage2": {"epochs": 2, "min_epochs": 1, "patch_dropout": 0.5, "init": "fresh"}},
        {"stage2": {"init": "frozen_head"}, "stage3": {"epochs": 0}},
        {"lr_mpp": 4.0, "lr_patch_px": 64, "student_input_px": 128},
        {"lr_mpp": 1.0},
    ],
    ids=["stain", "uniform", "stage 2 on the fly", "dropout", "frozen head", "ratio 8", "ratio 2"],
)
def test_every_choice_runs(cohort: Path, encoder: str, tmp_path: Path, changes: dict[str, object]) -> None:
    """Each way of the configuration ends in figures."""
    short = {"stage3": {"epochs": 0}, "baselines": []}
    config = build_config(TINY | {"encoder": {"teacher": encoder}} | short | changes)
    list(train(cohort, tmp_path, config, CPU))
    assert "student" in json.loads((tmp_path / "metrics.json").read_text())


def test_stain_augmentation_needs_targets_that_follow() -> None:
    """Stored targets know nothing of changed stain: the sentence says what to set."""
    with pytest.raises(ConfigError, match=r"stage1\.targets=on_the_fly"):
        build_config({"stage1": {"stain_sd": 0.1}})


def test_default_is_the_preset() -> None:
    """The preset `default` is what a run without a file does."""
    from lrmil_training.config import load_config

    assert load_config("default") == TrainConfig()
    assert load_config("paper").stage1.lambda_layer == 1.0


def test_a_series_keeps_folds_apart_and_goes_on(cohort: Path, encoder: str, tmp_path: Path) -> None:
    """Three folds: every slide is tested once, figures are never pooled, and a second call measures nothing again."""
    short = {"stage3": {"epochs": 0}, "stage2": {"init": "frozen_head"}, "stage1": {"epochs": 0}, "baselines": []}
    config = build_config(TINY | short | {"encoder": {"teacher": encoder}, "folds": 3})
    events = list(train(cohort, tmp_path, config, CPU))
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told["protocol"] == {"kind": "k-fold cross-validation", "folds": 3, "seeds": 1}
    assert [(run["fold"], run["seed"]) for run in told["runs"]] == [(0, 0), (1, 0), (2, 0)]
    assert sum(run["student"]["test"]["auroc"]["n_slides"] for run in told["runs"]) == 10
    assert "student" in told["summary"]
    assert (tmp_path / "bundle" / "lrmil.json").exists()
    assert [type(e).__name__ for e in events].count("Finished") == 1
    again = list(train(cohort, tmp_path, config, CPU))
    assert not [e for e in again if isinstance(e, StageDone)]


def test_seeds_differ_and_share_features(cohort: Path, encoder: str, tmp_path: Path) -> None:
    """Two seeds on the fixed split: one set of HR features, two teachers."""
    short = {"stage3": {"epochs": 0}, "stage2": {"init": "frozen_head"}, "stage1": {"epochs": 0}, "baselines": []}
    config = build_config(TINY | short | {"encoder": {"teacher": encoder}, "seeds": 2, "seed": 4})
    list(train(cohort, tmp_path, config, CPU))
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told["protocol"]["kind"] == "fixed split"
    assert [run["seed"] for run in told["runs"]] == [4, 5]
    assert len(list((tmp_path / "features").rglob("*.h5"))) == 10
    briers = {run["teacher"]["test"]["brier"] for run in told["runs"]}
    assert len(briers) == 2


def test_a_stage_2_that_learns_from_nothing_is_refused() -> None:
    """Without any weight there is nothing to learn from; the sentence names what to raise."""
    nothing = {"lambda_ce": 0, "lambda_bag": 0, "lambda_soft": 0}
    with pytest.raises(ConfigError, match="raise one of lambda_ce"):
        build_config({"stage2": nothing})
    build_config({"stage2": nothing | {"init": "frozen_head"}})
