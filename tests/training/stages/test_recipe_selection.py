"""Choice of the teacher's recipe: the right one wins, patients stay together, a killed run ends like a whole one."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from lrmil_training.config import TrainConfig, build_config
from lrmil_training.data.cohort import Cohort, CohortSlide, require_classes
from lrmil_training.data.feature_store import StoredRows
from lrmil_training.data.patient_groups import effective_patients, patient_parts
from lrmil_training.data.splits import make_inner_folds
from lrmil_training.data.teacher_targets import EMBEDDING, feature_statistics
from lrmil_training.data.validation_patients import few_validation_patients, validation_notice
from lrmil_training.fitting.plan import DivergedError
from lrmil_training.recipes import Recipe, list_recipes
from lrmil_training.runs.event_log import CHECKPOINTS, EVENTS, SELECTION, read_events
from lrmil_training.stages.outputs import HrFeatures
from lrmil_training.stages.recipe_selection import (
    FoldCurve,
    RecipeResult,
    choose_candidate,
    choose_recipe,
    describe_choice,
    summarise_candidate,
)
from lrmil_training.stages.run_context import RunContext
from lrmil_training.stages.teacher import fit_teacher
from lrmil_training.train import train
from napari_lrmil.core.encoders import LoadedEncoder
from napari_lrmil.core.errors import CohortError, ConfigError
from napari_lrmil.core.events import Event, Notice, Progress
from napari_lrmil.core.features.bag import Bag, BagOrigin, write_bag
from napari_lrmil.core.models.bundle import Bundle
from support.phantoms import copy_cohort
from support.trained import SHORT, TINY, Trained

CPU = torch.device("cpu")
CLASSES = ("normal", "lesion")
DIM = 6
PATIENTS = 16
SHORT_TEACHER = {"epochs": 4, "min_epochs": 2, "ema": 0.5}


def make_cohort(folder: Path, count: int = PATIENTS) -> Cohort:
    """Return two slides of each patient, classes in turn; the last quarter validates, and two more patients test."""
    rows = [(f"p{i // 2}", CLASSES[i // 2 % 2], "train" if i < 1.5 * count else "val") for i in range(2 * count)]
    rows += [("t0", CLASSES[0], "test"), ("t1", CLASSES[1], "test")]
    slides = [CohortSlide(folder / f"s{i:02}.tif", *row) for i, row in enumerate(rows)]
    return Cohort(folder / "cohort.csv", tuple(slides), CLASSES)


def make_features(folder: Path, cohort: Cohort, *, balanced: bool = False) -> HrFeatures:
    """Return stored features: a few patches of a slide tell its class, in the first dimension.

    Of `balanced` slides the other patches make up for it, so that the mean of a slide tells nothing.
    """
    arrays = {}
    for i, slide in enumerate(cohort.slides):
        rng = np.random.default_rng(i)
        features = rng.standard_normal((20, DIM)).astype(np.float32) * 0.3
        sign = 1 if cohort.target(slide) else -1
        features[:3, 0] += 4 * sign
        if balanced:
            features[3:, 0] -= features[:, 0].sum() / 17
        coords = np.stack([np.arange(20), np.zeros(20, dtype=int)], axis=1) * 64
        origin = BagOrigin(slide.name, "f", 0.5, 0.5, 64, (64, 64), (0, 0), (1280, 64), "none", "0" * 64)
        write_bag(folder / f"{slide.name}.h5", Bag(features, coords, origin))
        arrays[slide.name] = {EMBEDDING: StoredRows.of(folder / f"{slide.name}.h5")}
    train = [arrays[s.name][EMBEDDING] for s in cohort.of("train")]
    return HrFeatures(cohort, arrays, {EMBEDDING: feature_statistics(train)}, make_encoder())


def make_encoder() -> LoadedEncoder:
    """Return what the selection needs of an encoder: its features are on disk already."""
    return cast(LoadedEncoder, SimpleNamespace(sha256="0" * 64, encoder=SimpleNamespace(dim=DIM)))


def make_context(folder: Path, values: dict[str, Any], cohort: Cohort | None = None) -> RunContext:
    return RunContext(build_config(values), cohort or make_cohort(folder), folder, CPU, make_encoder())


def drain(stream: Generator[Event, None, RunContext]) -> tuple[list[Event], RunContext]:
    events = []
    while True:
        try:
            events.append(next(stream))
        except StopIteration as end:
            return events, end.value


def selection_values(teacher: dict[str, Any] | None = None, **selection: Any) -> dict[str, Any]:
    return {"teacher": SHORT_TEACHER | (teacher or {}), "selection": {"inner_folds": 3, **selection}}


@pytest.fixture(scope="module")
def hr(tmp_path_factory: pytest.TempPathFactory) -> HrFeatures:
    folder = tmp_path_factory.mktemp("features")
    return make_features(folder, make_cohort(folder))


# ---------------------------------------------------------------- the choice


def test_the_learning_rate_that_learns_is_chosen(tmp_path: Path, hr: HrFeatures) -> None:
    """One of them is too small to learn anything in four epochs; teacher and students get the other."""
    context = make_context(tmp_path, selection_values(lr=[1e-7, 1e-2]))
    events, chosen = drain(choose_recipe(context, hr))
    assert chosen.config.teacher.lr == 1e-2 and chosen.teacher_epochs in (2, 3, 4)
    content = json.loads((tmp_path / SELECTION).read_text())
    small, large = content["candidates"]
    assert (small["chosen"], large["chosen"]) == (False, True)
    assert large["auroc"]["mean"] > 0.95 > small["auroc"]["mean"]
    assert large["auroc"]["mean"] == pytest.approx(np.mean(large["auroc"]["folds"]))
    assert large["auroc"]["sd"] == pytest.approx(np.std(large["auroc"]["folds"], ddof=1))
    assert content["patients"] == {"n_slides": 32, "n_patients": 16, "effective_patients": 16}
    assert content["classes"]["lesion"]["n_patients"] == 8
    assert [fold["n_slides"] for fold in content["folds"]] != [] and sum(f["n_slides"] for f in content["folds"]) == 32
    (notice,) = [e.message for e in events if isinstance(e, Notice)]
    assert content["choice"] in notice and "learning rate 0.01" in notice and "16 patients" in notice


def test_the_head_that_fits_is_chosen(tmp_path: Path) -> None:
    """The mean of a slide tells nothing: in few epochs only the mean of the top patches learns it."""
    cohort = make_cohort(tmp_path)
    values = selection_values({"lr": 1e-2}, aggregators=["gated_attention", "linear_topk"])
    context = make_context(tmp_path, values, cohort)
    _, chosen = drain(choose_recipe(context, make_features(tmp_path, cohort, balanced=True)))
    assert chosen.config.teacher.aggregator == "linear_topk"


def test_the_final_teacher_takes_the_last_of_the_chosen_epochs(tmp_path: Path, hr: HrFeatures) -> None:
    """Validation chooses nothing: other labels of its slides give the same teacher."""
    context = make_context(tmp_path, selection_values(lr=[1e-2]))
    _, chosen = drain(choose_recipe(context, hr))
    weights = []
    for flip in (False, True):
        cohort = hr.cohort
        if flip:
            other = {CLASSES[0]: CLASSES[1], CLASSES[1]: CLASSES[0]}
            flipped = (replace(s, label=other[s.label]) if s.split == "val" else s for s in cohort.slides)
            cohort = replace(cohort, slides=tuple(flipped))
        run = replace(chosen, cohort=cohort, folder=tmp_path / str(flip))
        _, outputs = drain(cast(Any, fit_teacher(run, replace(hr, cohort=cohort))))
        weights.append(outputs.mil.state_dict())  # type: ignore[attr-defined]
        (folder,) = (run.folder / CHECKPOINTS).glob("teacher-*")
        assert torch.load(folder / "teacher.ckpt", weights_only=True)["lrmil_score"] > -1  # a real figure was taken
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_without_inner_folds_nothing_changes(tmp_path: Path, hr: HrFeatures) -> None:
    context = make_context(tmp_path, {"teacher": SHORT_TEACHER})
    assert drain(choose_recipe(context, hr)) == ([], context)
    assert not (tmp_path / SELECTION).exists()


def test_the_epoch_is_the_best_of_the_mean_curve() -> None:
    """Each fold's own best epoch would be another one, and higher: 2 and 4."""
    curves = [FoldCurve((0.9, 1.0, 0.8, 0.7), (0.5,) * 4), FoldCurve((0.2, 0.4, 0.7, 0.75), (0.5,) * 4)]
    result = summarise_candidate(Recipe("linear_topk", 0.1), curves, first_epoch=1)
    assert (result.epochs, result.auroc) == (3, (0.8, 0.7))
    assert result.mean_auroc == pytest.approx(0.75) and result.sd_auroc == pytest.approx(0.1 / 2**0.5)
    assert summarise_candidate(Recipe("linear_topk", 0.1), curves, first_epoch=4).epochs == 4
    assert summarise_candidate(Recipe("linear_topk", 0.1), curves, first_epoch=9).epochs == 4


def test_a_candidate_that_diverges_is_left_out_and_told(tmp_path: Path, hr: HrFeatures) -> None:
    _, chosen = drain(choose_recipe(make_context(tmp_path, selection_values(lr=[100.0, 1e-2])), hr))
    assert chosen.config.teacher.lr == 1e-2
    recipe = Recipe("linear_topk", 0.1)
    failed = summarise_candidate(recipe, [FoldCurve((0.5,), (0.5,)), FoldCurve(diverged="the loss is nan")], 1)
    good = RecipeResult(recipe, 1, (0.4, 0.4), (0.5, 0.5))
    assert choose_candidate([failed, good]) is good
    with pytest.raises(DivergedError, match=r"no candidate .* the loss is nan"):
        choose_candidate([failed, failed])


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize(("auroc", "is_told"), [(0.5, True), (0.3, True), (0.6, False)])
def test_a_choice_at_chance_says_that_it_means_nothing(tmp_path: Path, auroc: float, is_told: bool) -> None:
    recipe = list_recipes(build_config(selection_values()))[0]
    text = describe_choice(RecipeResult(recipe, 1, (auroc, auroc), (auroc, auroc)), make_cohort(tmp_path), 3)
    assert ("no meaning" in text) == is_told


def test_a_stopped_selection_goes_on_with_the_same_result(tmp_path: Path, hr: HrFeatures) -> None:
    """Closed in the fourth of six fits: three are not measured again, and the files are equal byte by byte."""
    values = selection_values(lr=[1e-3, 1e-2])
    unbroken, broken = (make_context(tmp_path / name, values, hr.cohort) for name in ("unbroken", "broken"))
    _, expected = drain(choose_recipe(unbroken, hr))
    stream = choose_recipe(broken, hr)
    for event in stream:
        if isinstance(event, Progress) and event.done == 3 * 4 + 1:
            break
    stream.close()
    folder = tmp_path / "broken" / CHECKPOINTS / "selection"
    measured = {file: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    assert len(measured) == 3
    events, chosen = drain(choose_recipe(broken, hr))
    assert chosen.config == expected.config and chosen.teacher_epochs == expected.teacher_epochs
    assert (tmp_path / "broken" / SELECTION).read_bytes() == (tmp_path / "unbroken" / SELECTION).read_bytes()
    assert all(file.stat().st_mtime_ns == time for file, time in measured.items())
    assert len(list(folder.glob("*.json"))) == 6 and not [path for path in folder.iterdir() if path.is_dir()]
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == sorted(done) and done[:4] == [0, 4, 8, 12], "without the epochs of measured fits"


def test_a_candidate_does_not_depend_on_the_others(tmp_path: Path, hr: HrFeatures) -> None:
    """A fit of a shorter list of candidates is used again by a longer one."""
    drain(choose_recipe(make_context(tmp_path, selection_values(lr=[1e-2]), hr.cohort), hr))
    alone = {file.name: file.read_bytes() for file in (tmp_path / CHECKPOINTS / "selection").glob("*.json")}
    drain(choose_recipe(make_context(tmp_path / "more", selection_values(lr=[1e-3, 1e-2]), hr.cohort), hr))
    more = {file.name: file.read_bytes() for file in (tmp_path / "more" / CHECKPOINTS / "selection").glob("*.json")}
    assert len(more) == 6 and alone.items() <= more.items()


# ---------------------------------------------------------------- folds and settings


def test_inner_folds_keep_patients_together_and_leave_test_slides_out() -> None:
    cohort = make_cohort(Path("cohort"))
    first = replace(cohort.slides[0], patient="p0+p2")
    cohort = replace(cohort, slides=(first, *cohort.slides[1:]))
    folds = make_inner_folds(cohort, 4, 0)
    names = [{s.name for s in fold.of("val")} for fold in folds]
    assert sorted(name for held_out in names for name in held_out) == sorted(
        s.name for s in cohort.slides if s.split != "test"
    )
    for fold in folds:
        sides = [{part for s in fold.of(side) for part in patient_parts(s.patient)} for side in ("train", "val")]
        assert not sides[0] & sides[1]
        assert {s.label for s in fold.of("val")} == set(CLASSES)


def test_fewer_patients_than_inner_folds_are_refused() -> None:
    with pytest.raises(CohortError, match=r"class normal has .* of 8 patients .* 9 inner folds; set .*=8 or less"):
        make_inner_folds(make_cohort(Path("cohort")), 9, 0)


def test_one_patient_is_refused() -> None:
    cohort = make_cohort(Path("cohort"))
    alone = replace(cohort, slides=tuple(replace(s, patient="p7") for s in cohort.slides))
    with pytest.raises(CohortError, match=r"all 34 slides are of one patient, p7; .* need different patients"):
        require_classes(alone, ("train", "val"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"selection": {"inner_folds": 1}}, "holds no patient out"),
        ({"selection": {"lr": [1e-3]}}, "inner_folds is 0"),
        ({"selection": {"inner_folds": 3, "lr": [0]}}, "above 0"),
        ({"selection": {"inner_folds": 3, "aggregators": ["median"]}}, "linear_topk"),
        ({"selection": {"inner_folds": 3}, "distil": False}, "the run has none"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(values)


def test_candidates_are_all_combinations_once() -> None:
    config = build_config(
        {"selection": {"inner_folds": 2, "aggregators": ["linear_topk", "gated_attention"], "lr": [1e-3, 3e-3, 1e-3]}}
    )
    recipes = list_recipes(config)
    assert [(r.aggregator, r.lr) for r in recipes] == [
        ("linear_topk", 1e-3),
        ("linear_topk", 3e-3),
        ("gated_attention", 1e-3),
        ("gated_attention", 3e-3),
    ]
    assert list_recipes(TrainConfig()) == [Recipe("gated_attention", 3e-3)]


# ---------------------------------------------------------------- patients


@pytest.mark.parametrize(
    ("patients", "expected"),
    [(["a", "b", "c"], 3.0), (["a", "a", "a", "b"], 16 / 10), (["9+11"], 2.0), (["9+11", "9"], 4 / (2.25 + 0.25))],
)
def test_effective_patients_by_hand(patients: Sequence[str], expected: float) -> None:
    assert effective_patients(patients) == pytest.approx(expected)


def test_few_validation_patients_are_told() -> None:
    """Slides do not count, patients do, and a slide of two patients has two."""
    enough = [("normal", f"n{i}") for i in range(5)] + [("lesion", "9+11"), ("lesion", "1+2"), ("lesion", "3")]
    assert few_validation_patients(enough) == ""
    sentence = few_validation_patients([*enough[:5], *[("lesion", "9+11")] * 8])
    assert "5 of normal, 2 of lesion" in sentence and "cannot rank methods" in sentence


def test_few_validation_patients_of_folds() -> None:
    few, many = make_cohort(Path("cohort")), make_cohort(Path("cohort"), 60)
    assert validation_notice([many]) == "" and "2 of normal" in validation_notice([few])
    assert validation_notice([many, few, few]).endswith("(fold 1; so in 2 of 3 folds)")


# ---------------------------------------------------------------- a whole run


def test_a_run_says_what_was_chosen(phantoms: Path, trained: Trained, tmp_path: Path) -> None:
    """In its files, its log, its card and its report; with the warning on its few validation patients."""
    table = copy_cohort(phantoms, tmp_path / "cohort", train=8, val=4, test=4)
    trained.copy_features(tmp_path / "features")
    values = TINY | SHORT | {"encoder": {"teacher": trained.encoder}, "features": str(tmp_path / "features")}
    values |= {"selection": {"inner_folds": 2, "lr": [1e-3, 3e-3]}, "baselines": []}
    run = tmp_path / "run"
    events = list(train(table, run, build_config(values), CPU))
    choice = json.loads((run / SELECTION).read_text())["choice"]
    notices = [e.message for e in events if isinstance(e, Notice)]
    assert any(choice in text for text in notices) and any("cannot rank methods" in text for text in notices)
    assert any(choice in line.get("message", "") for line in read_events(run / EVENTS))
    card = Bundle(run / "bundle").card
    assert choice in card.metrics.values() and "cannot rank methods" in card.cohort["note"]
    page = (run / "report.html").read_text()
    assert "Choice of the teacher" in page and choice.split(":")[0] in page and "cannot rank methods" in page
    too_many = build_config(values | {"selection": {"inner_folds": 30}})
    with pytest.raises(CohortError, match="30 inner folds"):
        next(train(table, tmp_path / "other", too_many, CPU))
    assert not (tmp_path / "other").exists()
