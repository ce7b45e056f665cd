"""A teacher of another program: frozen, carried by the bundle, and enough for a student without labels."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrmil_training.config import build_config
from lrmil_training.data.cohort import read_cohort
from lrmil_training.data.mil_head import read_mil_head
from lrmil_training.data.splits import make_folds
from lrmil_training.dry_run import dry_run
from lrmil_training.external_evaluation import ExternalEvaluation, evaluate_bundle
from lrmil_training.train import train
from napari_lrmil.core.errors import CohortError, ConfigError
from napari_lrmil.core.events import Event, Finished, Metric, Notice
from napari_lrmil.core.features.bag import read_bag
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.slides.slide import Slide
from support.given_heads import save_as_torchmil, save_clam
from support.killed_training import assert_epochs_not_repeated, resume_killed_training
from support.phantoms import copy_cohort
from support.trained import SHORT, TINY, Trained

CPU = torch.device("cpu")
STAGE3 = {"epochs": 2, "min_epochs": 1, "patches_per_slide": 4, "lr": [1e-3]}


def without_labels(table: Path) -> Path:
    """Write the table without its labels beside itself; return it."""
    with table.open(newline="") as file:
        rows = [row | {"label": ""} for row in csv.DictReader(file)]
    with (table.parent / "unlabelled.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table.parent / "unlabelled.csv"


@pytest.fixture(scope="module")
def cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the table of eight phantom slides."""
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), train=4, val=2, test=2)


@pytest.fixture(scope="module")
def dim(trained: Trained) -> int:
    """Return the width of the encoder's features."""
    return int(Bundle(trained.run / "bundle").teacher.mil.dim)


@pytest.fixture(scope="module")
def settings(trained: Trained, dim: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the settings of a run with a CLAM_SB as its teacher."""
    file = save_clam(tmp_path_factory.mktemp("clam") / "s_0_checkpoint.pt", dim)
    features = trained.copy_features(file.parent / "features")
    encoder = {"encoder": {"teacher": trained.encoder}, "features": str(features)}
    return TINY | SHORT | encoder | {"teacher": SHORT["teacher"] | {"mil": str(file)}, "stage3": STAGE3}


Run = tuple[Path, list[Event]]


@pytest.fixture(scope="module")
def run(cohort: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run without labels, and its events."""
    folder = tmp_path_factory.mktemp("given") / "run"
    events = list(train(without_labels(cohort), folder, build_config(settings), CPU))
    assert events[-1] == Finished(folder)
    return folder, events


def _metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


# ---------------------------------------------------------------- without labels


def test_a_run_without_labels_measures_agreement_alone(run: Run) -> None:
    folder, events = run
    metrics = _metrics(folder)
    (caution,) = metrics.pop("warnings")
    assert set(metrics) == {"teacher", "student"}, "labels_only has nothing to learn from"
    for figures in metrics["student"].values():
        assert figures["auroc"]["value"] is None and figures["auroc"]["reason"] == "the slides have no labels"
        assert -1 <= figures["agreement"]["spearman"] <= 1 and 0 <= figures["same_class"] <= 1
    names = {e.name for e in events if isinstance(e, Metric)}
    assert {"val/agreement", "val/kl"} <= names and not {"val/auroc", "val/ce", "train/ce"} & names
    assert not any(isinstance(e, Metric) and e.stage == "teacher" for e in events), "the teacher is not trained"
    text = "\n".join(e.message for e in events if isinstance(e, Notice))
    assert "the slides have no labels" in text and "names no classes: output 0 is class 0, output 1 is class 1" in text
    # The head was never trained, so all slides have much the same probabilities.
    slides = json.loads((folder / "slides.json").read_text())["slides"]
    logits = [list(s["methods"]["teacher"]["logits"].values()) for s in slides]
    probabilities = torch.softmax(torch.tensor(logits, dtype=torch.float64), dim=1)[:, 0].numpy()
    assert f"its probabilities differ by {np.ptp(probabilities):.3f} at most over {len(slides)} slides" in caution
    assert caution in text and "hardly tells the classes apart" in (folder / "report.html").read_text()


def test_its_epochs_are_selected_by_agreement(run: Run) -> None:
    """The selection figure is the agreement of attention, less a thousandth of the divergence of classes."""
    by_step: dict[tuple[str, int], dict[str, float]] = {}
    for e in run[1]:
        if isinstance(e, Metric) and e.stage in ("stage2", "stage3"):
            by_step.setdefault((e.stage, e.step), {})[e.name] = e.value
    figures = [f for f in by_step.values() if "val/kl" in f]
    assert len(figures) >= 3
    for f in figures:
        assert f["select"] == pytest.approx(f["val/agreement"] - 1e-3 * min(f["val/kl"], 10), abs=1e-6)


def test_report_card_and_list_say_so(run: Run) -> None:
    folder, _ = run
    page = (folder / "report.html").read_text()
    assert "have no labels: agreement with the teacher is all that can be measured" in page
    assert "Confusion" not in page and "Recall" not in page
    bundle = Bundle(folder / "bundle")
    assert bundle.limits is None and bundle.card.temperature is None and bundle.card.classes == ("class 0", "class 1")
    card = (folder / "bundle" / "README.md").read_text()
    assert "CLAM_SB, read from s_0_checkpoint.pt (SHA-256" in card
    assert "labels: none; the student learned from the teacher alone" in card
    assert "agreement with the teacher: rank correlation of attention" in card and "AUROC" not in card
    assert all(row["label"] == "" for row in json.loads((folder / "slides.json").read_text())["slides"])


def test_the_bundle_carries_the_head_exactly(run: Run, settings: dict[str, Any], cohort: Path, dim: int) -> None:
    """In float32; teacher attention of a prediction is that of the head on the stored features."""
    folder, _ = run
    bundle = Bundle(folder / "bundle")
    head = read_mil_head(Path(settings["teacher"]["mil"]))
    origin = bundle.card.teacher.origin if bundle.card.teacher else None
    assert origin is not None and (origin.file, origin.sha256) == (head.file, head.sha256)
    mil = bundle.teacher.mil
    x = torch.randn(50, dim, generator=torch.Generator().manual_seed(0)) * mil.deviation + mil.mean
    expected = _clam(settings["teacher"]["mil"], x)
    torch.testing.assert_close(mil(x).attention.double(), expected, rtol=1e-5, atol=1e-6)
    path = next(iter(sorted(cohort.parent.glob("*.tif"))))
    with Slide(path) as slide:
        *_, last = predict(slide, bundle, device=CPU, teacher=TeacherPatches.ALL)
        name = slide.name
    assert isinstance(last, Finished)
    (file,) = Path(settings["features"]).rglob(f"{name}.h5")
    features = torch.from_numpy(np.asarray(read_bag(file).features, np.float32))
    expected = _clam(settings["teacher"]["mil"], features)
    np.testing.assert_allclose(last.result.teacher.attention, expected, rtol=1e-3, atol=1e-6)


def _clam(file: str, x: torch.Tensor) -> torch.Tensor:
    """Return the attention of CLAM_SB by its published formula."""
    w = {name: t.double() for name, t in torch.load(file, weights_only=True).items()}

    def linear(name: str, rows: torch.Tensor) -> torch.Tensor:
        return rows @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    h, net = torch.relu(linear("attention_net.0", x.double())), "attention_net.3"
    gate = torch.tanh(linear(f"{net}.attention_a.0", h)) * torch.sigmoid(linear(f"{net}.attention_b.0", h))
    return torch.softmax(linear(f"{net}.attention_c", gate)[:, 0], dim=0)


def test_evaluate_measures_agreement_on_slides_without_labels(run: Run, cohort: Path, tmp_path: Path) -> None:
    """With its teacher; without, and by a bundle whose teacher was trained here, labels are required."""
    bundle, table = Bundle(run[0] / "bundle"), without_labels(cohort)
    list(evaluate_bundle(table, tmp_path / "e", ExternalEvaluation(bundle, "test", True, CPU)))
    expected = _metrics(run[0])["student"]["test"]["agreement"]
    assert _metrics(tmp_path / "e")["student"]["test"]["agreement"] == pytest.approx(expected, abs=1e-3)
    assert "have no labels" in (tmp_path / "e" / "report.html").read_text()
    with pytest.raises(CohortError, match="has no label"):
        list(evaluate_bundle(table, tmp_path / "f", ExternalEvaluation(bundle, "test", False, CPU)))


def test_without_a_given_teacher_labels_are_required(cohort: Path, trained: Trained, tmp_path: Path) -> None:
    for config in (trained.config, build_config({"distil": False})):
        with pytest.raises(CohortError, match="line 2 has no label; fill it in or delete the line"):
            list(train(without_labels(cohort), tmp_path / "run", config, CPU))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_and_resumed_equals_unbroken(run: Run, cohort: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    events = resume_killed_training(without_labels(cohort), folder, settings, "stage2 1")
    assert_epochs_not_repeated(events, "stage2")
    for split, figures in _metrics(run[0])["student"].items():
        resumed = _metrics(folder)["student"][split]["agreement"]
        assert resumed == pytest.approx(figures["agreement"], abs=1e-4)


# ---------------------------------------------------------------- with labels


def test_with_labels_it_is_a_teacher_like_any_other(
    trained: Trained, settings: dict[str, Any], cohort: Path, tmp_path: Path
) -> None:
    """A teacher of this program, given in torchmil's layout, has the logits that it had; its classes may be named."""
    own = Bundle(trained.run / "bundle").teacher.mil
    file = save_as_torchmil(own, tmp_path / "abmil.pt")  # type: ignore[arg-type]  # it is gated
    teacher = SHORT["teacher"] | {"mil": str(file), "mil_classes": ["normal", "lesion"]}
    changes = {"teacher": teacher, "stage3": {"epochs": 0}, "baselines": ["labels_only", "stage1_only"]}
    list(train(cohort, tmp_path / "run", build_config(settings | changes), CPU))
    assert set(_metrics(tmp_path / "run")) == {"teacher", "student", "labels_only", "stage1_only"}
    logits = {folder: _teacher_logits(folder) for folder in (tmp_path / "run", trained.run)}
    for name, (normal, lesion) in logits[tmp_path / "run"].items():
        before = logits[trained.run][name]
        assert lesion - normal == pytest.approx(before[1] - before[0], abs=1e-3)
    assert Bundle(tmp_path / "run" / "bundle").limits is not None


def _teacher_logits(folder: Path) -> dict[str, tuple[float, float]]:
    slides = json.loads((folder / "slides.json").read_text())["slides"]
    of_teacher = {s["slide"]: s["methods"]["teacher"]["logits"] for s in slides}
    return {name: (values["normal"], values["lesion"]) for name, values in of_teacher.items()}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"distil": False}, "distil=false asks for none"),
        ({"selection": {"inner_folds": 3}}, "teacher.mil is trained already"),
        ({"encoder": {"pca": 8}}, "encoder.pca reduces"),
        ({"teacher": {"mil": "a.pt", "aggregator": "linear_topk"}}, "mil is one of attention"),
        ({"teacher": {"mil": None, "mil_classes": ["a", "b"]}}, "which is not set"),
        ({"teacher": {"mil": "a.pt", "mil_classes": ["a", "a"]}}, "named twice"),
        ({"teacher": {"mil": "on"}}, "expected a file with the weights"),
    ],
)
def test_settings_that_contradict_it_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_config({"teacher": {"mil": "a.pt"}} | changes)


def _refusal(cohort: Path, folder: Path, settings: dict[str, Any], **changes: Any) -> str:
    values = settings | {key: value for key, value in changes.items() if key != "teacher"}
    values["teacher"] = settings["teacher"] | changes.get("teacher", {})
    with pytest.raises((ConfigError, CohortError)) as error:
        list(train(cohort, folder, build_config(values), CPU))
    assert error.value.exit_code == 2 and not folder.exists()
    return str(error.value)


def test_a_head_that_does_not_fit_is_refused(cohort: Path, settings: dict[str, Any], dim: int, tmp_path: Path) -> None:
    """Another encoder, other classes, an absent file: before anything is written."""
    out, wide = tmp_path / "run", save_clam(tmp_path / "wide.pt", dim + 1)
    three = str(save_clam(tmp_path / "three.pt", dim, classes=3))
    message = _refusal(cohort, out, settings, teacher={"mil": str(wide)})
    assert f"wide.pt takes features of {dim + 1} dimensions" in message and f"gives {dim}" in message
    assert "three.pt has 3 classes" in _refusal(cohort, out, settings, teacher={"mil": three})
    assert "no such file" in _refusal(cohort, out, settings, teacher={"mil": str(tmp_path / "absent.pt")})
    named = {"mil_classes": ["normal", "tumour"]}
    assert "(normal, tumour); correct the labels" in _refusal(cohort, out, settings, teacher=named)
    assert "names 3: a, b, c" in _refusal(cohort, out, settings, teacher={"mil_classes": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"lambda_patch": 1.0}, "lambda_patch"),
        ({"split": {"calibration": 0.5}}, "split.calibration"),
        ({"operating_point": {"sensitivity": 0.9}}, "operating_point.sensitivity"),
        ({"stage3": STAGE3 | {"keep_stage2_terms": False}}, "stage3.keep_stage2_terms=false"),
        ({"baselines": ["labels_only_finetuned"]}, "baselines=labels_only_finetuned"),
    ],
)
def test_what_needs_labels_is_refused_without(
    cohort: Path, settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    message = _refusal(without_labels(cohort), tmp_path / "run", settings, **changes)
    assert f"the slides have no labels, which {name} needs" in message


def test_labels_are_all_there_or_none(cohort: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    lines = cohort.read_text().splitlines()
    label = lines[1].split(",")[next(csv.reader(lines)).index("label")]
    mixed = cohort.parent / "mixed.csv"
    mixed.write_text("\n".join([lines[0], lines[1].replace(f",{label},", ",,"), *lines[2:]]))
    assert "1 of 8 slides have no label, first line 2" in _refusal(mixed, tmp_path / "run", settings)


# ---------------------------------------------------------------- splits, plan, keys


@pytest.mark.slow
def test_given_features_given_teacher_and_a_comparison_in_one_run(
    cohort: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The head is used on the features as they are; teachers to compare it with are trained, of its aggregator too."""
    features = Path(settings["features"])
    changes = {"features": None, "hr_features": str(features), "compare": ["gated_attention", "mean"]}
    *events, last = train(cohort, tmp_path / "run", build_config(settings | changes), CPU)
    assert last == Finished(tmp_path / "run")
    text = "\n".join(e.message for e in events if isinstance(e, Notice))
    assert "HR patches are not encoded" in text and "frozen: it is not trained here" in text
    fitted = {e.stage for e in events if isinstance(e, Metric)}
    assert {"teacher_gated_attention", "teacher_mean"} <= fitted and "teacher" not in fitted
    with (tmp_path / "run" / "comparison.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file) if row["split"] == "test"}
    assert set(rows) == {"teacher", "teacher_gated_attention", "teacher_mean", "student", "labels_only"}
    bundle = Bundle(tmp_path / "run" / "bundle")
    with Slide(next(iter(sorted(cohort.parent.glob("*.tif"))))) as slide:
        *_, predicted = predict(slide, bundle, device=CPU, teacher=TeacherPatches.ALL)
        (file_of_slide,) = features.rglob(f"{slide.name}.h5")
    assert isinstance(predicted, Finished)
    stored = torch.from_numpy(np.asarray(read_bag(file_of_slide).features, np.float32))
    expected = _clam(settings["teacher"]["mil"], stored)
    np.testing.assert_allclose(predicted.result.teacher.attention, expected, rtol=1e-3, atol=1e-6)


def test_splits_are_dealt_by_patient_without_strata(phantoms: Path, tmp_path: Path) -> None:
    """A table without the columns label and split: every patient is in one split, and in one test fold."""
    with phantoms.open(newline="") as file:
        lines = [f"{phantoms.parent / row['slide']},{row['patient']}" for row in csv.DictReader(file)]
    (tmp_path / "cohort.csv").write_text("\n".join(["slide,patient", *lines]))
    cohort = read_cohort(tmp_path / "cohort.csv", unlabelled=("class 0", "class 1"))
    assert not cohort.is_labelled and [len(cohort.of(side)) for side in ("train", "val", "test")] == [10, 3, 3]
    tested = [s.name for fold in make_folds(cohort, 3, seed=0) for s in fold.of("test")]
    assert sorted(tested) == sorted(s.name for s in cohort.slides)
    with pytest.raises(CohortError, match="no column named label"):
        read_cohort(tmp_path / "cohort.csv")


def test_a_dry_run_says_what_is_given(cohort: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    *events, last = dry_run(without_labels(cohort), tmp_path / "run", build_config(settings), "cpu")
    assert isinstance(last, Finished) and last.result.problems == ()
    plan = "\n".join(last.result.plan)
    assert "(no labels)" in plan and "teacher given" in plan and "baselines  none" in plan
    assert any("no labels, which the teacher replaces" in line for line in last.result.passed)
    assert any(isinstance(e, Notice) and "no AUROC can be measured" in e.message for e in events)


def test_keys_follow_the_content_of_the_file(
    cohort: Path, settings: dict[str, Any], dim: int, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    """Another head under the same name is another teacher; the option is the configuration key."""
    file = save_clam(tmp_path / "head.pt", dim)
    head = read_mil_head(file)
    assert head.with_order([0, 1]).fingerprint == head.fingerprint != head.with_order([1, 0]).fingerprint
    save_clam(file, dim, seed=1)
    assert read_mil_head(file).fingerprint != head.fingerprint
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"teacher": SHORT["teacher"]}))
    words = ["--config", tmp_path / "settings.json", "--teacher-mil", file, "--dry-run"]
    code, out, err = call("train", without_labels(cohort), "--out", tmp_path / "run", *words)
    assert code == 0 and "teacher given" in out, err
