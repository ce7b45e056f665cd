"""A student without a teacher: labels alone, no HR patch, and a bundle, metrics and pages that say so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lrmil_training.config import build_config, load_config
from lrmil_training.dry_run import dry_run
from lrmil_training.external_evaluation import ExternalEvaluation, evaluate_bundle
from lrmil_training.stages.end_to_end import EndToEnd
from lrmil_training.stages.methods import list_methods
from lrmil_training.train import train
from napari_lrmil.core.errors import BundleError, ConfigError
from napari_lrmil.core.events import Finished
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import CARD
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.preconditions import NOT_DISTILLED, why_teacher_unavailable
from support.killed_training import assert_epochs_not_repeated, resume_killed_training
from support.phantoms import copy_cohort
from support.trained import Trained

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "lr_patch_px": 64,
    "bootstrap": 100,
    "teacher": {"epochs": 2, "min_epochs": 1},
    "stage3": {"epochs": 3, "min_epochs": 1, "patches_per_slide": 4, "lr": [1e-3]},
}


@pytest.fixture(scope="module")
def cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the table of ten phantom slides."""
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), train=4, val=2, test=4)


@pytest.fixture(scope="module")
def settings(trained: Trained) -> dict[str, Any]:
    """Return a run without a teacher. Its HR would be finer than any slide, and no LR patch holds whole HR patches."""
    return TINY | {"distil": False, "hr_mpp": 0.013, "encoder": {"teacher": trained.encoder}}


@pytest.fixture(scope="module")
def run(cohort: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("undistilled") / "run"
    assert list(train(cohort, folder, build_config(settings), CPU))[-1] == Finished(folder)
    return folder


def _logits(folder: Path, method: str) -> dict[str, dict[str, float]]:
    slides = json.loads((folder / "slides.json").read_text())["slides"]
    return {slide["slide"]: slide["methods"][method]["logits"] for slide in slides}


def test_what_needs_a_teacher_is_refused() -> None:
    """In a sentence, when the configuration is read."""
    assert build_config({}).distil and load_config(None, ["distil=false"]).baselines == ("labels_only",)
    for name in ("stage1_only", "stage2_only", "both"):
        with pytest.raises(ConfigError, match=f"baseline {name} needs a teacher in a run without a teacher"):
            build_config({"distil": False, "baselines": ["labels_only", name]})
    with pytest.raises(ConfigError, match="baseline labels_only_finetuned is the student itself"):
        build_config({"distil": False, "baselines": ["labels_only_finetuned"]})
    with pytest.raises(ConfigError, match="the run has none; set ablation=false"):
        build_config({"distil": False, "ablation": True})


def test_the_student_learns_from_labels_alone() -> None:
    """Stage 3 with the label term, whatever weights stage 2 has; HR patches need not nest in LR patches."""
    off = dict.fromkeys(("lambda_ce", "lambda_bag", "lambda_soft", "lambda_hard"), 0)
    config = build_config({"distil": False, "lr_mpp": 8, "lr_patch_px": 50, "stage2": off | {"init": "frozen_head"}})
    assert (config.plan.n, config.plan.hr_mpp, config.plan.hr_um) == (1, 8, 400) and config.compared_layers == ()
    student, frozen = list_methods(config)
    assert (student.name, frozen.name) == ("student", "labels_only")
    assert [stage.stage2 for stage in student.stages if isinstance(stage, EndToEnd)] == [None]
    assert not student.is_aligned and not frozen.is_aligned


def test_a_run_has_no_teacher_and_says_so(run: Path) -> None:
    """No HR features, no row of a teacher, no agreement; the report says that there is nothing to compare with."""
    grids = {path.name for path in (run / "features").iterdir()}
    assert grids == {"5x_64px_0px_overlap"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"student", "labels_only"}
    assert all(figures["agreement"] is None for splits in metrics.values() for figures in splits.values())
    page = (run / "report.html").read_text()
    assert "not distilled: no teacher to compare with" in page
    assert "with teacher" not in page and "Fewer than teacher" not in page and "distilled from" not in page


def test_the_bundle_says_that_it_was_not_distilled(run: Path, cohort: Path) -> None:
    """The card, its text and its refusal of a teacher; prediction gives what was measured."""
    bundle = Bundle(run / "bundle")
    assert not bundle.card.distilled and not bundle.has_teacher
    assert (bundle.card.hr_mpp, bundle.card.hr_patch_px, bundle.card.plan.n) == (2.0, 64, 1)
    text = (run / "bundle" / "README.md").read_text()
    assert "not distilled from a teacher" in text and "Teacher: none" in text and "2606.06864" not in text
    with pytest.raises(BundleError, match="was not distilled, so there is no teacher"):
        bundle.require_teacher()
    logits = _logits(run, "student")
    with Slide(next(iter(sorted(cohort.parent.glob("*.tif"))))) as slide:
        *_, last = predict(slide, bundle, device=CPU)
        assert isinstance(last, Finished)
        assert last.result.student.logits == pytest.approx(logits[slide.name], abs=1e-4)


def test_the_window_says_why_there_is_nothing_to_compare(run: Path) -> None:
    """On every slide, whatever its resolution."""
    for mpp in (0.25, 2.0):
        choice = SlideChoice("slide", Path("slide.tif"), mpp)
        assert why_teacher_unavailable(choice, Bundle(run / "bundle")) == NOT_DISTILLED
    assert "not distilled: there is no teacher to compare with" in NOT_DISTILLED


def test_a_dry_run_names_no_teacher(cohort: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    *_, last = dry_run(cohort, tmp_path / "run", build_config(settings), "cpu")
    assert isinstance(last, Finished)
    assert last.result.problems == () and not (tmp_path / "run").exists()
    text = "\n".join((*last.result.plan, *last.result.cost))
    assert "teacher    none" in text and "LR patches" in text and "HR" not in text


def test_a_card_that_contradicts_itself_is_refused(run: Path, trained: Trained, tmp_path: Path) -> None:
    """A teacher and no distillation; a card of a distilled student has no such key, so older programs read it."""
    content = json.loads((trained.run / "bundle" / CARD).read_text())
    assert "distilled" not in content and Bundle(trained.run / "bundle").card.distilled
    (tmp_path / CARD).write_text(json.dumps(content | {"distilled": False}))
    with pytest.raises(BundleError, match="says that the student was not distilled"):
        Bundle(tmp_path)


def test_its_evaluation_on_other_slides_says_so(run: Path, cohort: Path, tmp_path: Path) -> None:
    evaluation = ExternalEvaluation(Bundle(run / "bundle"), "test", False, CPU)
    list(evaluate_bundle(cohort, tmp_path / "evaluated", evaluation))
    assert "not distilled: no teacher to compare with" in (tmp_path / "evaluated" / "report.html").read_text()
    expected = json.loads((run / "metrics.json").read_text())["student"]["test"]["auroc"]["value"]
    metrics = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    assert metrics["student"]["test"]["auroc"]["value"] == expected


def test_the_student_is_the_fine_tuned_baseline(run: Path, cohort: Path, trained: Trained, tmp_path: Path) -> None:
    """A distilled run of one resolution, whose student is another network, trains the same baseline."""
    encoders = {"teacher": trained.encoder, "student": trained.encoder}
    same = {"hr_mpp": 2.0, "hr_patch_px": 64, "encoder": encoders, "baselines": ["labels_only_finetuned"]}
    short = {"stage1": {"epochs": 0}, "stage2": {"epochs": 1, "min_epochs": 1}}
    list(train(cohort, tmp_path / "run", build_config(TINY | same | short), CPU))
    baseline = _logits(tmp_path / "run", "labels_only_finetuned")
    for name, logits in _logits(run, "student").items():
        assert logits == pytest.approx(baseline[name], abs=1e-9)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    "changes",
    [{}, {"split": {"calibration": 0.5}}, {"lambda_patch": 1.0}],
    ids=["plain", "calibration split", "lambda_patch"],
)
def test_killed_and_resumed_equals_unbroken(
    run: Path, cohort: Path, settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder, settings = tmp_path / "run", settings | changes
    if changes:
        run = tmp_path / "whole"
        list(train(cohort, run, build_config(settings), CPU))
    assert_epochs_not_repeated(resume_killed_training(cohort, folder, settings, "finetuned 1"), "finetuned")
    for method in ("student", "labels_only"):
        for name, logits in _logits(run, method).items():
            assert _logits(folder, method)[name] == pytest.approx(logits, abs=1e-4)
    limits = [Bundle(path / "bundle").limits for path in (run, folder)]
    assert limits[0] is not None and limits[1] is not None
    sets = [each.student.conformal for each in limits]
    assert [each and each.n_patients for each in sets] == [2 if "split" in changes else None] * 2
    assert "split" not in changes or sets[0].scores == pytest.approx(sets[1].scores, abs=1e-4)
