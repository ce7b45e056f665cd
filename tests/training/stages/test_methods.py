"""Methods of a run: their lists of stages, their settings, and whole runs that share stages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lrmil_training import train as run_module
from lrmil_training.config import TrainConfig, build_config
from lrmil_training.data import features
from lrmil_training.data.bags import BagItem
from lrmil_training.stages.end_to_end import EndToEnd, scale_step
from lrmil_training.stages.methods import list_methods, with_settings
from lrmil_training.stages.outputs import Student
from lrmil_training.stages.patch_distillation import PatchDistillation
from lrmil_training.stages.slide_distillation import LabelTraining, SlideDistillation
from lrmil_training.stages.student import InitialMil, LrFeatures, UntrainedEncoder
from lrmil_training.train import train
from napari_lrmil.core import encoders
from napari_lrmil.core.encoders import (
    AlignedEncoder,
    EncoderOutput,
    LoadedEncoder,
    module_sha256,
    resolve_encoder,
)
from napari_lrmil.core.errors import BundleError, ConfigError, EncoderError
from napari_lrmil.core.events import Event, Finished, Metric, Notice, Progress, StageDone
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models import networks
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.slides.slide import Slide
from support.networks import Borrowed, untrained_encoder
from support.phantoms import copy_cohort
from support.trained import Trained

CPU = torch.device("cpu")
ALL = ("labels_only", "labels_only_finetuned", "stage1_only", "stage2_only", "both")
TINY: dict[str, Any] = {
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "teacher": {"epochs": 2, "min_epochs": 1},
    "stage1": {"epochs": 1, "patches_per_slide": 4},
    "stage2": {"epochs": 2, "min_epochs": 1},
    "stage3": {"epochs": 2, "min_epochs": 1, "patches_per_slide": 4, "lr": [1e-4, 1e-3]},
}


@pytest.fixture(scope="module")
def cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the table of ten phantom slides."""
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), train=4, val=2, test=4)


@pytest.fixture
def base(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a short configuration whose HR features are there already: what is compared begins after them."""
    features = trained.copy_features(tmp_path_factory.mktemp("shared") / "features")
    return TINY | {"encoder": {"teacher": trained.encoder}, "features": str(features)}


def test_baselines_differ_from_the_student_in_what_makes_them_alone() -> None:
    """Stage 1 only keeps the teacher's head; labels only has neither stage; both has no stage 3."""
    config = build_config({"baselines": ALL, "stage3": {"epochs": 4}})
    by_name = {m.name: m for m in list_methods(config)}
    assert list(by_name) == ["student", *ALL]
    assert by_name["student"].config is config
    assert by_name["stage1_only"].config.stage2.init == "frozen_head"
    assert by_name["stage2_only"].config.stage1.epochs == 0
    assert by_name["both"].config == config.model_copy(
        update={"stage3": config.stage3.model_copy(update={"epochs": 0})}
    )
    assert by_name["labels_only_finetuned"].config.stage3.epochs == 4


FROZEN_START = (UntrainedEncoder, LrFeatures, InitialMil)  # of a student that stage 1 does not train


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("student", (PatchDistillation, LrFeatures, InitialMil, SlideDistillation, EndToEnd, LrFeatures)),
        ("labels_only", (*FROZEN_START, LabelTraining)),
        ("labels_only_finetuned", (UntrainedEncoder, InitialMil, EndToEnd, LrFeatures)),
        ("stage1_only", (PatchDistillation, LrFeatures, InitialMil)),
        ("stage2_only", (*FROZEN_START, SlideDistillation)),
        ("both", (PatchDistillation, LrFeatures, InitialMil, SlideDistillation)),
    ],
)
def test_a_method_is_a_list_of_stages(name: str, expected: tuple[type, ...]) -> None:
    """Without labels-only's teacher there is no distillation; without stage 3 features are extracted once."""
    config = build_config({"baselines": ALL, "stage3": {"epochs": 4}})
    by_name = {m.name: m for m in list_methods(config)}
    assert tuple(type(stage) for stage in by_name[name].stages) == expected
    learners = [stage for stage in by_name[name].stages if isinstance(stage, EndToEnd)]
    assert [stage.stage2 is None for stage in learners] == [name == "labels_only_finetuned"] * len(learners)


def test_another_network_needs_its_own_statistics() -> None:
    """Its features come before the MIL, which is fresh; an aligned student's MIL starts from the teacher's."""
    other = build_config({"encoder": {"student": "other"}, "baselines": ALL, "stage3": {"epochs": 4}})
    by_name = {m.name: m for m in list_methods(other)}
    assert [type(s) for s in by_name["labels_only_finetuned"].stages] == [*FROZEN_START, EndToEnd, LrFeatures]
    mils = {name: next(s for s in m.stages if isinstance(s, InitialMil)) for name, m in by_name.items()}
    assert {name for name, mil in mils.items() if mil.standardises} == {
        *("labels_only", "labels_only_finetuned", "stage2_only"),
    }
    assert {name for name, mil in mils.items() if mil.copies_teacher} == {"student", "stage1_only", "both"}
    assert {name for name, mil in mils.items() if mil.notice} == {"stage2_only"}
    assert {name for name, mil in mils.items() if mil.is_frozen} == {"stage1_only"}


def test_a_stage_that_comes_too_early_is_refused() -> None:
    """A list of stages in the wrong order says which stage is missing, and does not fit on stale features."""
    student = Student(AlignedEncoder(untrained_encoder(), 8))
    with pytest.raises(RuntimeError, match="the method needs the stage InitialMil"):
        student.require_mil()
    with pytest.raises(RuntimeError, match="the method needs the stage LrFeatures"):
        student.require_features()


def test_ablation_turns_every_term_off_in_turn() -> None:
    """Terms that are off already are no ablation."""
    config = build_config({"ablation": True, "baselines": [], "stage2": {"lambda_hard": 0.0}})
    names = [m.name for m in list_methods(config)]
    assert names == ["student", "without_layer", "without_attn", "without_ce", "without_bag", "without_soft"]
    without = list_methods(config)[1].config
    assert (without.stage1.lambda_layer, without.stage1.lambda_attn) == (0.0, config.stage1.lambda_attn)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stage1": {"lambda_layer": 0.0}}, ["without_ce", "without_bag", "without_soft"]),
        ({"stage1": {"epochs": 0}}, ["without_ce", "without_bag", "without_soft"]),
        ({"stage2": {"lambda_bag": 0.0, "lambda_soft": 0.0}}, ["without_layer", "without_attn"]),
        ({"stage2": {"init": "frozen_head"}}, ["without_layer", "without_attn"]),
    ],
)
def test_an_ablation_leaves_something_to_learn_from(changes: dict[str, object], expected: list[str]) -> None:
    """The only term of a stage cannot be left out, and terms of a stage that is not fitted change nothing."""
    config = build_config({"ablation": True, "baselines": [], "stage3": {"epochs": 0}} | changes)
    assert [m.name for m in list_methods(config)][1:] == expected


def test_a_changed_configuration_is_checked() -> None:
    """As one that comes from a file."""
    with pytest.raises(ConfigError, match="every weight is 0"):
        with_settings(TrainConfig(), {"stage1": {"lambda_layer": 0.0, "lambda_attn": 0.0}})
    assert with_settings(TrainConfig(), {"stage1": {"epochs": 2}}).stage1.epochs == 2


def test_a_run_with_everything_compares_every_method(cohort: Path, base: dict[str, Any], tmp_path: Path) -> None:
    """One option gives all rows; a stage that two methods share is fitted once."""
    config = build_config(base | {"baselines": ALL, "ablation": True})
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
        {
            "sampling": "patient",
            "teacher": {"epochs": 2, "min_epochs": 1, "feature_dropout": 0.5, "patches_per_slide": 5},
            "stage2": {"epochs": 2, "min_epochs": 1, "feature_dropout": 0.5, "patches_per_slide": 3},
            "stage3": {"epochs": 1, "min_epochs": 1, "feature_dropout": 0.5},
        },
        {
            "stain": {"normalise": "density_gain"},
            "stage1": {"epochs": 1, "targets": "on_the_fly"},
            "stage3": {"epochs": 1, "min_epochs": 1},
        },
        {
            "teacher": {"epochs": 2, "min_epochs": 1, "aggregator": "linear_topk", "top_share": 0.3},
            "stage2": {"epochs": 2, "min_epochs": 1},
            "stage3": {"epochs": 1, "min_epochs": 1},
            "baselines": ["labels_only"],
        },
        {"stage2": {"init": "frozen_head"}, "stage3": {"epochs": 0}},
        {"lr_mpp": 4.0, "lr_patch_px": 64, "student_input_px": 128},
        {"lr_mpp": 1.0},
    ],
    ids=[
        "stain",
        "uniform",
        "stage 2 on the fly",
        "dropout",
        "draws",
        "normalised",
        "linear top-k",
        "frozen head",
        "ratio 8",
        "ratio 2",
    ],
)
def test_every_choice_runs(cohort: Path, base: dict[str, Any], tmp_path: Path, changes: dict[str, object]) -> None:
    """Each way of the configuration ends in figures."""
    short = {"stage3": {"epochs": 0}, "baselines": []}
    config = build_config(base | short | changes)
    list(train(cohort, tmp_path, config, CPU))
    assert "student" in json.loads((tmp_path / "metrics.json").read_text())


def test_stain_augmentation_needs_targets_that_follow() -> None:
    """Stored targets know nothing of changed stain: the sentence says what to set."""
    with pytest.raises(ConfigError, match=r"stage1\.targets=on_the_fly"):
        build_config({"stage1": {"stain_sd": 0.1}})


def test_default_is_the_preset() -> None:
    """The preset `default` is what a run without a file does: the defaults of the fields, and what is for new runs."""
    from lrmil_training.config import NEW_RUNS, load_config

    assert load_config("default") == load_config() == TrainConfig(**NEW_RUNS)
    assert load_config("paper").stage1.lambda_layer == 1.0


def test_a_series_keeps_folds_apart_and_goes_on(cohort: Path, base: dict[str, Any], tmp_path: Path) -> None:
    """Three folds: every slide but the table's own test side is tested once, figures are never pooled.

    A second call measures nothing again, except a run that was killed before it was whole or whose settings cannot be
    read. Settings that an earlier version wrote without a field count as the same.
    """
    short = {"stage3": {"epochs": 0}, "stage2": {"init": "frozen_head"}, "stage1": {"epochs": 0}, "baselines": []}
    config = build_config(base | short | {"folds": 3})
    events = list(train(cohort, tmp_path, config, CPU))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["protocol"] == {"kind": "k-fold cross-validation", "folds": 3, "seeds": 1}
    assert [(run["fold"], run["seed"]) for run in metrics["runs"]] == [(0, 0), (1, 0), (2, 0)]
    assert sum(run["student"]["test"]["auroc"]["n_slides"] for run in metrics["runs"]) == 6
    messages = [e.message for e in events if isinstance(e, Notice)]
    assert [
        m for m in messages if m.startswith("4 slides are on the table's fixed test side and stay out of the folds")
    ]
    assert "student" in metrics["summary"]
    assert (tmp_path / "bundle" / "lrmil.json").exists()
    assert [type(e).__name__ for e in events].count("Finished") == 1
    files = list(tmp_path.rglob("config.yaml"))
    for file in files:
        file.write_text(file.read_text().replace("loggers: []\n", ""))
    again = list(train(cohort, tmp_path, config, CPU))
    assert len(files) == 4 and not [e for e in again if isinstance(e, StageDone)]
    (tmp_path / "runs" / "fold0-seed0" / "config.yaml").write_text("warp: 9\n")
    (tmp_path / "runs" / "fold1-seed0" / "bundle" / "lrmil.json").unlink()
    (tmp_path / "runs" / "fold2-seed0" / "report.html").unlink()
    mended = list(train(cohort, tmp_path, config, CPU))
    assert [e.stage for e in mended if isinstance(e, StageDone)].count("evaluation") == 3
    assert (tmp_path / "runs" / "fold1-seed0" / "bundle" / "lrmil.json").exists()
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_the_learning_rate_is_chosen_over_all_attempts(cohort: Path, base: dict[str, Any], tmp_path: Path) -> None:
    """Broken off in the second of them, the figures that are compared are those of an unbroken run."""
    short = {"stage1": {"epochs": 0}, "stage2": {"init": "frozen_head"}, "baselines": []}
    tuned = {"stage3": TINY["stage3"] | {"epochs": 4, "ema": 0.0, "lr": [1e-4, 3e-2]}}
    config = build_config(base | short | tuned)

    def scores_by_rate(events: Iterable[Event]) -> dict[str, float]:
        return {e.name: e.value for e in events if isinstance(e, Metric) and e.name.startswith("lr ")}

    whole = scores_by_rate(train(cohort, tmp_path / "whole", config, CPU))
    stream = train(cohort, tmp_path / "broken", config, CPU)
    seen = 0
    for event in stream:
        seen += isinstance(event, Progress) and event.stage == "stage3"
        if seen == 7:
            break
    stream.close()
    assert scores_by_rate(train(cohort, tmp_path / "broken", config, CPU)) == whole
    assert len(whole) == 2
    assert {p.suffix for p in (tmp_path / "broken" / "checkpoints").rglob("stage3*") if p.is_file()} == {
        ".ckpt",
        ".done",
    }  # nothing beside them that a kill could part from them


def test_seeds_differ_and_share_features(cohort: Path, trained: Trained, tmp_path: Path) -> None:
    """Two seeds on the fixed split: one set of HR features, two teachers."""
    short = {"stage3": {"epochs": 0}, "stage2": {"init": "frozen_head"}, "stage1": {"epochs": 0}, "baselines": []}
    config = build_config(TINY | short | {"encoder": {"teacher": trained.encoder}, "seeds": 2, "seed": 4})
    list(train(cohort, tmp_path, config, CPU))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["protocol"]["kind"] == "fixed split"
    assert [run["seed"] for run in metrics["runs"]] == [4, 5]
    assert len(list((tmp_path / "features").rglob("*.h5"))) == 10
    briers = {run["teacher"]["test"]["brier"] for run in metrics["runs"]}
    assert len(briers) == 2


def test_a_stage_2_that_learns_from_nothing_is_refused() -> None:
    """Without any weight there is nothing to learn from; the sentence names what to raise."""
    nothing = {"lambda_ce": 0, "lambda_bag": 0, "lambda_soft": 0}
    with pytest.raises(ConfigError, match="raise one of lambda_ce"):
        build_config({"stage2": nothing})
    build_config({"stage2": nothing | {"init": "frozen_head"}, "stage3": {"epochs": 0}})


def test_memory_that_runs_out_halves_stages_1_and_3(
    cohort: Path, base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that trains four patches at once: it says so, and the run comes to its end."""
    forward, most = AlignedEncoder.forward, []

    def limited(self: AlignedEncoder, pixels: torch.Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        if torch.is_grad_enabled():
            most.append(len(pixels))
            if len(pixels) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pixels, layers)

    monkeypatch.setattr(AlignedEncoder, "forward", limited)
    config = build_config(base | {"baselines": []})
    events = list(train(cohort, tmp_path, config, CPU))
    messages = [e.message for e in events if isinstance(e, Notice) and "memory ran out" in e.message]
    assert {m.split(":")[1].split()[0] for m in messages} == {"stage1", "stage3"}
    assert [m for m in messages if "stage1" in m][-1].endswith("0.25 of the batch size")
    assert max(most) == 16
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize(
    ("scale", "expected"), [(1.0, (4, 24)), (0.5, (2, 24)), (0.25, (1, 24)), (0.125, (1, 12)), (0.015625, (1, 1))]
)
def test_a_smaller_step_has_fewer_slides_then_fewer_patches(scale: float, expected: tuple[int, int]) -> None:
    assert scale_step(4, 24, scale) == expected
    assert scale_step(4, None, scale) == (expected[0], None)


# ---------------------------------------------------------------- other architectures

SMALL = {"hidden_size": 24, "intermediate_size": 48, "patch_size": 16}
TOKENS = SMALL | {"num_hidden_layers": 3, "num_attention_heads": 2}
CONVOLUTIONS = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 20]}


def configured(folder: Path, family: str, **settings: object) -> str:
    """Return the file of a network's configuration: random weights, the same every time."""
    path = folder / f"{family}.json"
    path.write_text(json.dumps({"model_type": family, **settings}))
    return str(path)


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_a_student_of_another_architecture(cohort: Path, base: dict[str, Any], tmp_path: Path, family: str) -> None:
    """Of another width, with layers of other names; its bundle says what it is and predicts as the run measured."""
    own = configured(tmp_path, family, **(TOKENS if family == "vit" else CONVOLUTIONS))
    layer = "block_12:block_2" if family == "vit" else "block_12:stage_3"
    compared = ["labels_only", "labels_only_finetuned", "stage2_only"] if family == "vit" else []
    changes = {"encoder": base["encoder"] | {"student": own}, "baselines": compared}
    config = build_config(base | changes | {"stage1": {"epochs": 1, "layers": [layer], "lambda_layer": 0.5}})
    events = list(train(cohort, tmp_path / "run", config, CPU))
    _by_their_own_statistics(tmp_path / "run", events, compared)
    bundle = Bundle(tmp_path / "run" / "bundle")
    assert bundle.card.student.encoder.family == family
    assert bundle.card.teacher is not None
    assert bundle.card.teacher.encoder.family == "mobilenet_v2"
    rows = json.loads((tmp_path / "run" / "slides.json").read_text())["slides"]
    row = next(r for r in rows if r["split"] == "test")
    with Slide(cohort.parent / f"{row['slide']}.tif") as slide:
        *_, last = predict(slide, bundle, device=CPU)
    assert isinstance(last, Finished)
    assert last.result.student.logits == pytest.approx(row["methods"]["student"]["logits"], abs=1e-4)


def _by_their_own_statistics(run: Path, events: Sequence[Event], compared: Sequence[str]) -> None:
    """Check that what stage 1 did not teach has the student's own width, 24, and is standardised as such."""
    messages = [e.message for e in events if isinstance(e, Notice)]
    assert sum("stage 2 starts from a fresh MIL" in m for m in messages) == ("stage2_only" in compared)
    assert set(compared) <= set(json.loads((run / "metrics.json").read_text()))
    stages = {"labels_only": "labels_only", "labels_only_finetuned": "finetuned"}
    for name in set(compared) & set(stages):
        for file in (run / "checkpoints").rglob(f"{stages[name]}.ckpt"):
            state = torch.load(file, weights_only=True)["state_dict"]
            mean, deviation = (state[f"mil.{key}"] for key in ("mean", "deviation"))
            assert mean.shape == (24,) and mean.abs().max() > 0
            assert (deviation != 1).all()
            assert "student.projection.weight" not in state
    taught = next((run / "checkpoints").rglob("stage3.ckpt"))
    assert torch.load(taught, weights_only=True)["state_dict"]["mil.mean"].abs().max() == 0


@pytest.mark.parametrize(
    ("student", "changes", "aligned"),
    [
        ("teacher", {"stage1": {"epochs": 0}}, {"labels_only": True, "stage2_only": True, "both": True}),
        ("other", {}, {"student": True, "labels_only": False, "stage2_only": False, "both": True}),
        ("other", {"stage1": {"epochs": 0}}, {"student": False, "labels_only": False, "both": False}),
        ("other", {"stage2": {"init": "frozen_head"}}, {"labels_only": False, "stage2_only": True}),
    ],
)
def test_which_students_are_aligned_with_the_teacher(
    student: str, changes: dict[str, object], aligned: dict[str, bool]
) -> None:
    """All but another network that stage 1 does not train, unless it has the teacher's own head."""
    config = build_config({"encoder": {"student": student}, "baselines": ALL} | changes)
    by_name = {m.name: m for m in list_methods(config)}
    assert {name: by_name[name].is_aligned for name in aligned} == aligned


def test_stage_3_goes_on_with_stage_2s_terms_or_with_labels_alone() -> None:
    """The loss differs, and without a teacher there are no terms to go on with."""
    torch.manual_seed(0)
    instances, logits, scores = torch.randn(5, 4), torch.tensor([2.0, -1.0]), torch.randn(5)
    output, item = GatedAttentionMIL(4, 2, 3)(instances), BagItem(instances, 1, logits, scores)
    terms = {}
    for keep in (True, False):
        config = build_config({"stage3": {"epochs": 1, "keep_stage2_terms": keep}})
        terms[keep] = EndToEnd(config.stage3, config.stage2).loss(output, item)
    assert set(terms[True]) == {"ce", "bag", "soft"}
    assert set(terms[False]) == {"ce"}
    assert sum(terms[True].values()) > sum(terms[False].values())
    config = build_config({"stage3": {"epochs": 1}})
    assert set(EndToEnd(config.stage3, None).loss(output, item)) == {"ce"}


def test_three_classes_from_table_to_bundle(cohort: Path, base: dict[str, Any], tmp_path: Path) -> None:
    """Labels mean nothing here: what is checked is that every stage and figure takes three of them."""
    rows = [line.split(",")[0] for line in cohort.read_text().splitlines()[1:]]
    sides = ["train"] * 4 + ["val"] * 3 + ["test"] * 3
    lines = [f"{name},p{i},{'abc'[i % 3]},{sides[i]}" for i, name in enumerate(rows)]
    table = cohort.with_name("three.csv")
    table.write_text("\n".join(["slide,patient,label,split", *lines]))
    config = build_config(base | {"stage2": TINY["stage2"] | {"lambda_hard": 0.5}})
    list(train(table, tmp_path, config, CPU))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["student"]["test"]["per_class"]) == {"a", "b", "c"}
    bundle = Bundle(tmp_path / "bundle")
    assert bundle.card.classes == ("a", "b", "c")
    assert bundle.student.mil.classes == 3


def test_a_teacher_of_another_architecture(cohort: Path, tmp_path: Path) -> None:
    """The student begins as its copy; layers are chosen by the names it has."""
    teacher = configured(tmp_path, "convnext", **CONVOLUTIONS)
    changes = {"encoder": {"teacher": teacher}, "baselines": [], "stage3": {"epochs": 0}}
    wrong = build_config(TINY | changes)
    with pytest.raises(EncoderError, match=r"no layer block_12 in convnext .*; available: stage_1, stage_2"):
        list(train(cohort, tmp_path / "run", wrong, CPU))
    right = build_config(TINY | changes | {"stage1": {"epochs": 1, "layers": ["stage_3"]}})
    list(train(cohort, tmp_path / "run", right, CPU))
    card = Bundle(tmp_path / "run" / "bundle").card
    assert card.teacher is not None
    assert card.student.encoder == card.teacher.encoder


def test_a_borrowed_teacher_is_named_not_copied(
    cohort: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without layers, without its weights in the bundle, with its licence on it; found again by its name and hash."""
    loaded = LoadedEncoder(Borrowed(), module_sha256(Borrowed().net))
    other = LoadedEncoder(Borrowed(), "another")
    monkeypatch.setattr(
        features, "resolve_encoder", lambda name: loaded if name == "lazyslide:x" else resolve_encoder(name)
    )
    for module in (run_module, encoders):
        monkeypatch.setattr(module, "encoder_notice", lambda name: "its terms" if name == "lazyslide:x" else None)
    changes = {"encoder": {"teacher": "lazyslide:x"}, "baselines": [], "stage3": {"epochs": 0}}
    short = TINY | changes | {"stage1": {"epochs": 1, "lambda_layer": 0.0, "patches_per_slide": 4}}
    with pytest.raises(ConfigError, match=r"lazyslide:x can be a frozen teacher only; set encoder\.student"):
        list(train(cohort, tmp_path / "run", build_config(short), CPU))
    config = build_config(short | {"encoder": {"teacher": "lazyslide:x", "student": trained.encoder}})
    events = list(train(cohort, tmp_path / "run", config, CPU))
    assert events[0] == Notice("its terms")
    folder = tmp_path / "run" / "bundle"
    assert (folder / "teacher.safetensors").stat().st_size < (folder / "student.safetensors").stat().st_size / 5
    assert "CC-BY-NC-ND-4.0" in Bundle(folder).card.licence
    assert "CC-BY-NC-ND-4.0" in (folder / "README.md").read_text()
    slide_file = next(cohort.parent.glob("*.tif"))
    for resolved, works in ((loaded, True), (other, False), (None, False)):
        monkeypatch.setattr(networks, "resolve_encoder", lambda _, resolved=resolved: resolved)
        with Slide(slide_file) as slide:
            if works:
                *_, last = predict(slide, Bundle(folder), device=CPU, teacher=TeacherPatches.ALL)
                assert isinstance(last, Finished)
                assert last.result.teacher is not None
            else:
                with pytest.raises(BundleError, match="not the encoder that this bundle was trained with"):
                    list(predict(slide, Bundle(folder), device=CPU, teacher=TeacherPatches.ALL))
                *_, last = predict(slide, Bundle(folder), device=CPU)  # the student needs no teacher
                assert isinstance(last, Finished)


def test_inference_normalises_as_training_did(cohort: Path, base: dict[str, Any], tmp_path: Path) -> None:
    """The bundle's target gives the logits that the run measured, and none of them are those of raw colours."""
    changes = {"stain": {"normalise": "reinhard"}, "stage3": {"epochs": 0}, "baselines": []}
    list(train(cohort, tmp_path, build_config(base | changes), CPU))
    bundle = Bundle(tmp_path / "bundle")
    assert bundle.card.stain is not None and bundle.card.stain.method == "reinhard"
    row = json.loads((tmp_path / "slides.json").read_text())["slides"][0]
    file = next(cohort.parent.rglob(f"{row['slide']}.*"))
    with Slide(file) as slide:
        last = list(predict(slide, bundle, device=CPU))[-1]
    assert isinstance(last, Finished)
    stored = row["methods"]["student"]["logits"]
    assert dict(last.result.student.logits) == pytest.approx(stored, abs=1e-3)
