"""Whole runs on tiny phantom slides: stages, planted signal, and the files of a run folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lrmil_training.config import Stage2Config, TeacherConfig, TrainConfig, build_config
from lrmil_training.data.bags import BagItem
from lrmil_training.data.feature_store import StoredRows
from lrmil_training.data.patch_pairs import Augmentation, PatchPairDataset
from lrmil_training.data.teacher_targets import EMBEDDING, FeatureStatistics, TeacherTargets, grid_from_coords
from lrmil_training.evaluation.metrics import multiclass_auroc
from lrmil_training.fitting.plan import FitPlan, StoppedError
from lrmil_training.runs.lock import request_stop
from lrmil_training.stages.bag_fitting import distillation_loss, fit_mil, label_loss, rank_agreement, seeded_mil
from lrmil_training.train import train
from napari_lrmil.core.errors import BagError, CohortError, ConfigError, EncoderError
from napari_lrmil.core.events import Event, Failed, Finished, Metric, Notice, Progress, StageDone
from napari_lrmil.core.features.bag import Bag, read_bag, write_bag
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.slides.slide import Slide
from support.jpeg_slides import write_jpeg_slide
from support.phantoms import copy_cohort
from support.tile_slides import rectangle, tile
from support.trained import TINY, Trained

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the table of sixteen phantom slides, in a folder where other tables may lie beside it."""
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), train=8, val=4, test=4)


@pytest.fixture(scope="module")
def config(trained: Trained) -> TrainConfig:
    """Return a configuration that ends within seconds."""
    return trained.config


@pytest.fixture(scope="module")
def run(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """Return a finished run and its events."""
    return trained.copy_run(tmp_path_factory.mktemp("run") / "run"), trained.events


def test_stages_run_in_an_order_that_can(run: tuple[Path, list[Event]]) -> None:
    """Stage 1 needs the teacher's attention: the documented order of the research code cannot run."""
    done = [e.stage for e in run[1] if isinstance(e, StageDone)]
    assert done == ["teacher", "stage1", "stage2", "labels_only", "evaluation"]
    assert isinstance(run[1][-1], Finished)


def test_agreement_with_the_teacher_is_told_while_distilling(run: tuple[Path, list[Event]]) -> None:
    """Spearman's correlation of attention on validation slides; the teacher itself has none."""
    agreement = {e.stage: e.value for e in run[1] if isinstance(e, Metric) and e.name == "val/agreement"}
    assert (
        "stage2" in agreement and "teacher" not in agreement and all(-1 <= value <= 1 for value in agreement.values())
    )


def test_ranks_agree_as_scipy_says() -> None:
    """Without an order on one side there is nothing to agree with."""
    from scipy.stats import spearmanr

    scores, other = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    assert rank_agreement(scores, other) == pytest.approx(float(spearmanr(scores, other).statistic), abs=1e-6)
    assert rank_agreement(scores, torch.ones(40)) == 0


def test_a_run_stops_between_batches_of_features(cohort: Path, config: TrainConfig, tmp_path: Path) -> None:
    """Not only within a fit: features of a cohort take hours."""
    events = train(cohort, tmp_path, config, CPU)
    while next(events) != Progress("HR features", 2, 16, "slides"):
        pass
    request_stop(tmp_path)
    with pytest.raises(StoppedError, match=r"reading slides was stopped because the file .*stop is there"):
        list(events)


def test_slides_that_lack_much_tissue_are_used_on_request(cohort: Path, trained: Trained, tmp_path: Path) -> None:
    """Which slides are used changes with the option, so the run states it and can go on with the other value."""
    empty = [tile(c, r) for r in (2, 3) for c in range(1, 7)]
    lines = cohort.read_text().splitlines()
    row = dict.fromkeys(lines[0].split(","), "") | {"slide": "lacking.tif", "patient": "q", "split": "train"}
    row["label"] = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))["label"]
    write_jpeg_slide(cohort.parent / "lacking.tif", rectangle(), empty=empty)
    table = cohort.with_name("lacking.csv")
    table.write_text("\n".join([*lines, ",".join(row.values())]) + "\n")
    config = trained.config.model_copy(update={"features": trained.copy_features(tmp_path / "features")})

    def events(allow_missing: bool) -> list[Event]:
        return _until_features(train(table, tmp_path / "run", config, CPU, allow_missing=allow_missing))

    def call() -> dict[str, object]:
        content: dict[str, object] = json.loads((tmp_path / "run" / "call.json").read_text())
        return content

    for _ in range(2):
        (failed,) = [event for event in events(False) if isinstance(event, Failed)]
        assert failed.subject == "lacking" and "--allow-missing" in failed.message and "allow_missing" not in call()
        allowed = events(True)
        assert not any(isinstance(event, Failed) for event in allowed) and call()["allow_missing"] is True
        assert any(isinstance(event, Notice) and "(--allow-missing)" in event.message for event in allowed)
    (file,) = (tmp_path / "features").rglob("lacking.h5")
    assert read_bag(file).origin.missing_tissue_share > 1 / 3


def _until_features(events: Iterator[Event]) -> list[Event]:
    """Return the events of a run up to the last feature file, and end the run."""
    taken = []
    with closing(events):  # type: ignore[type-var]  # generators close
        for event in events:
            taken.append(event)
            if isinstance(event, Progress) and event.unit == "slides" and event.done == event.total:
                break
    return taken


def test_run_folder_is_complete(run: tuple[Path, list[Event]]) -> None:
    """Everything that users rely on is there, and no temporary file."""
    folder = run[0]
    names = {p.name for p in folder.iterdir()}
    assert {"config.yaml", "events.jsonl", "features", "checkpoints", "metrics.json", "slides.json", "bundle"} <= names
    assert not list(folder.rglob("*.partial"))
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(len(lines)))


def test_the_report_is_one_page_of_its_own(run: tuple[Path, list[Event]]) -> None:
    """It needs nothing from elsewhere, shows every method, the slides and the training, and knows that it finished."""
    page = (run[0] / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(http|<script""", page)
    for shown in ("HR teacher", "LR student", "labels only", "stage1", "data:image/jpeg", "Research use only"):
        assert shown in page, shown
    assert "not finished" not in page
    stored = json.loads((run[0] / "slides.json").read_text())["slides"]
    assert {row["slide"] for row in stored if row["split"] == "test"} <= set(re.findall(r"[\w-]+", page))


def test_cost_is_counted(run: tuple[Path, list[Event]]) -> None:
    """Fewer patches, pixels and CPU-seconds than the teacher; nothing is estimated."""
    cost = {m: splits["test"]["cost"] for m, splits in json.loads((run[0] / "metrics.json").read_text()).items()}
    for counted in ("patches_per_slide", "pixels_per_slide", "cpu_seconds_per_slide"):
        assert 0 < cost["student"][counted] < cost["teacher"][counted]


def test_metrics_name_methods_splits_and_intervals(run: tuple[Path, list[Event]]) -> None:
    """``metrics.json`` has the keys that scripts rely on."""
    metrics = json.loads((run[0] / "metrics.json").read_text())
    assert set(metrics) == {"teacher", "student", "labels_only"}
    figures = metrics["student"]["test"]
    assert set(figures["auroc"]) >= {"value", "low", "high", "n_slides", "n_patients", "interval"}
    assert {"balanced_accuracy", "f1", "ece", "brier", "per_class", "agreement", "lesion_auroc", "cost"} <= set(figures)
    assert figures["cost"]["patches_per_slide"] < metrics["teacher"]["test"]["cost"]["patches_per_slide"]


def test_bundle_predicts_what_the_run_measured(run: tuple[Path, list[Event]], cohort: Path) -> None:
    """The shared bundle holds exactly the weights that were evaluated."""
    bundle = Bundle(run[0] / "bundle")
    slide_file = next(cohort.parent.glob("*.tif"))
    with Slide(slide_file) as slide:
        *_, last = predict(slide, bundle, device=CPU)
    assert isinstance(last, Finished)
    stored = sorted((run[0] / "features").rglob(f"5x*/**/{slide_file.stem}.h5"))
    with torch.inference_mode():
        logits = [bundle.student.mil(torch.from_numpy(read_bag(path).features)).logits.tolist() for path in stored]
    predicted = list(last.result.student.logits.values())
    assert len(logits) == 2  # the student's encoder, and that of the labels-only baseline
    assert any(values == pytest.approx(predicted, abs=1e-5) for values in logits)


def test_second_call_does_nothing_again(run: tuple[Path, list[Event]], cohort: Path, config: TrainConfig) -> None:
    """Features and ended stages are used as they are, and the figures are the same to the last digit."""
    stored = [*(run[0] / "features").rglob("*.h5"), *run[0].rglob("*.ckpt")]
    before = {p: p.stat().st_mtime_ns for p in stored}
    metrics = (run[0] / "metrics.json").read_text()
    events = list(train(cohort, run[0], config, CPU))
    assert before
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert metrics == (run[0] / "metrics.json").read_text()
    assert not [e for e in events if isinstance(e, Progress) and e.unit == "epochs"]


def test_another_configuration_is_refused_in_the_same_folder(
    run: tuple[Path, list[Event]], cohort: Path, config: TrainConfig
) -> None:
    """A run folder holds one run."""
    text = r"another configuration \(seed is \d+, this call has 9\); choose another --out"
    with pytest.raises(ConfigError, match=text):
        next(iter(train(cohort, run[0], config.model_copy(update={"seed": 9}), CPU)))


def test_another_cohort_is_refused_in_the_same_folder(
    run: tuple[Path, list[Event]], cohort: Path, config: TrainConfig, tmp_path: Path
) -> None:
    """Figures of labels that have been edited since would be taken for those of the table as it is."""
    header, first, *rest = cohort.read_text().splitlines()
    label = "normal" if ",lesion," in first else "lesion"
    edited = first.replace(",lesion,", ",?,").replace(",normal,", ",?,").replace("?", label)
    table = cohort.with_name("edited.csv")
    table.write_text("\n".join([header, edited, *rest]))
    with pytest.raises(
        ConfigError, match=r"a run with another cohort table; choose another --out, or delete this folder"
    ):
        next(iter(train(table, run[0], config, CPU)))


def test_wrong_calls_leave_nothing(cohort: Path, config: TrainConfig, tmp_path: Path) -> None:
    """A layer that does not exist lists those that do, and no folder is begun."""
    wrong = build_config(config.model_dump() | {"stage1": {"layers": ("block_99",)}})
    with pytest.raises(EncoderError, match=r"no layer block_99 .* available: block_1, "):
        next(iter(train(cohort, tmp_path / "run", wrong, CPU)))
    assert not (tmp_path / "run").exists()


def test_more_processes_than_gpus_leave_nothing(
    cohort: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="devices=2, but this machine has 1 GPUs; set devices=1"):
        list(train(cohort, tmp_path / "run", config.model_copy(update={"devices": 2}), "cuda"))
    assert not (tmp_path / "run").exists()


def test_a_student_that_cannot_be_used_leaves_nothing(cohort: Path, config: TrainConfig, tmp_path: Path) -> None:
    """Missing, or without the layer: told before any feature is made, not after hours of the teacher's."""
    teacher = config.encoder.teacher
    gone = {"encoder": {"teacher": teacher, "student": str(tmp_path / "gone.safetensors")}}
    with pytest.raises(EncoderError, match=r"gone\.safetensors"):
        next(iter(train(cohort, tmp_path / "run", build_config(config.model_dump() | gone), CPU)))
    other = {"encoder": {"teacher": teacher, "student": teacher}, "stage1": {"layers": ("block_12:block_99",)}}
    with pytest.raises(EncoderError, match=r"no layer block_99 .* available: block_1, "):
        next(iter(train(cohort, tmp_path / "run", build_config(config.model_dump() | other), CPU)))
    uneven = other | {"stage1": {"layers": ("block_12:block_6",), "projection": "identity"}}
    with pytest.raises(ConfigError, match=r"layer block_12 has .* use learned"):
        next(iter(train(cohort, tmp_path / "run", build_config(config.model_dump() | uneven), CPU)))
    assert not (tmp_path / "run").exists()


def test_a_broken_slide_is_listed_and_the_rest_goes_on(cohort: Path, config: TrainConfig, tmp_path: Path) -> None:
    """One bad slide stops nobody: it has a line in ``failures.csv`` with its reason."""
    for row in cohort.read_text().splitlines()[1:]:
        name = row.split(",")[0]
        (tmp_path / name).symlink_to(cohort.parent / name)
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"no slide at all")
    table = tmp_path / "cohort.csv"
    table.write_text(cohort.read_text() + "broken.tif,p_broken,normal,train\n")
    events = []
    stream = train(table, tmp_path / "run", config, CPU)
    for event in stream:
        events.append(event)
        if isinstance(event, Progress) and event.stage == "teacher":
            break
    stream.close()
    assert [e.subject for e in events if isinstance(e, Failed)] == ["broken"]
    assert "broken,features," in (tmp_path / "run" / "failures.csv").read_text()


def test_one_class_is_refused_before_any_work(cohort: Path, config: TrainConfig, tmp_path: Path) -> None:
    """The sentence says which split lacks what."""
    table = cohort.parent / "one_class.csv"
    lines = cohort.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(line for line in lines[1:] if ",lesion," in line)]))
    with pytest.raises(CohortError, match="has only lesion"):
        next(iter(train(table, tmp_path / "run", config, CPU)))
    assert not (tmp_path / "run").exists()


def test_turning_keeps_patch_and_children_together(run: tuple[Path, list[Event]], cohort: Path, tmp_path: Path) -> None:
    """Children hold the mean grey of their own pixels: after any turn the pairs still match."""
    slide_file = next(cohort.parent.glob("*.tif"))
    bag = read_bag(next((run[0] / "features").rglob(f"20x*/**/{slide_file.stem}.h5")))
    grid = grid_from_coords(bag.origin, bag.coords, 4)
    with Slide(slide_file) as slide:
        from napari_lrmil.core.geometry import BoxLevel0

        boxes = [BoxLevel0(float(x), float(y), *grid.lattice.cell) for x, y in grid.hr_corners]
        grey = np.array([[slide.read(box, (64, 64)).mean()] for box in boxes], dtype=np.float32)
    write_bag(tmp_path / "grey.h5", Bag(grey, bag.coords, bag.origin))
    arrays = {EMBEDDING: StoredRows.of(tmp_path / "grey.h5")}
    statistics = {EMBEDDING: FeatureStatistics(torch.zeros(1), torch.ones(1))}
    from lrmil_training.data.cohort import CohortSlide

    row = CohortSlide(slide_file, "p", "normal", "train")
    taught = TeacherTargets(row, grid, arrays, statistics, torch.zeros(len(grey)), torch.zeros(2))
    plan = build_config(TINY).plan
    data = PatchPairDataset([taught], plan, augmentation=Augmentation(), seed=5, with_hr_pixels=True)
    for epoch in range(4):
        data.epoch = epoch
        for index in range(len(data)):
            pair = data[index]
            blocks = pair.pixels.float().reshape(3, 4, 16, 4, 16).mean((0, 2, 4)).flatten()
            assert torch.allclose(blocks[pair.present], pair.targets[pair.present, 0], atol=2.5)
            own = pair.hr_pixels.float().mean((1, 2, 3))
            assert torch.allclose(own[pair.present], pair.targets[pair.present, 0], atol=0.5)
    data.close()


def _planted(n: int, seed: int) -> list[BagItem]:
    """Return bags of 30 instances; in positive ones three carry a signal in a direction of their own."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(n):
        x = rng.standard_normal((30, 12)).astype(np.float32)
        if i % 2:
            x[:3, 0] += 4.0
        items.append(BagItem(torch.from_numpy(x), i % 2))
    return items


def _auroc(mil: GatedAttentionMIL, items: list[BagItem]) -> float:
    logits = torch.stack([mil(item.instances).logits for item in items])
    value = multiclass_auroc(torch.softmax(logits, 1).numpy(), np.array([item.target for item in items]))
    assert value is not None
    return value


def _drain(stream: object) -> GatedAttentionMIL:
    while True:
        try:
            next(stream)  # type: ignore[call-overload]
        except StopIteration as end:
            mil: GatedAttentionMIL = end.value
            return mil


@pytest.mark.slow
def test_mil_learns_planted_signal_and_passes_its_attention_on(tmp_path: Path) -> None:
    """Learning is tested by learning: the teacher finds the planted instances, the student its attention."""
    items = {"train": _planted(60, 1), "val": _planted(30, 2)}
    plan: Callable[[str], FitPlan] = lambda stage: FitPlan(stage, 25, 25, 3, tmp_path, CPU, 0.9)  # noqa: E731
    settings = TeacherConfig(epochs=25, min_epochs=5, lr=5e-3, hidden=16)
    teacher = _drain(fit_mil(seeded_mil(12, 2, settings, 3), label_loss, items, settings, plan("teacher")))
    test = _planted(400, 4)  # so many that the bounds below do not hang on a few bags
    assert _auroc(teacher, test) > 0.95
    assert np.mean([teacher(i.instances).attention[:3].sum() for i in test if i.target]) > 0.5

    def taught(item: BagItem) -> BagItem:
        out = teacher(item.instances)
        return BagItem(item.instances, item.target, out.logits, out.scores)

    distil = Stage2Config(epochs=25, min_epochs=5, lr=5e-3, lambda_ce=0.0, init="fresh")
    pairs = {side: [taught(i) for i in bags] for side, bags in items.items()}
    student = _drain(fit_mil(seeded_mil(12, 2, settings, 8), distillation_loss(distil), pairs, distil, plan("stage2")))
    assert _auroc(student, test) > 0.95
    assert not student.training
    assert all(not p.requires_grad for p in student.parameters())


def test_features_of_others_are_refused_and_stay(
    run: tuple[Path, list[Event]], cohort: Path, config: TrainConfig, tmp_path: Path
) -> None:
    """Made with another encoder, resolution or program: one sentence, and nobody's work is overwritten."""
    shared = tmp_path / "shared"
    shutil.copytree(run[0] / "features", shared)
    first = config.model_copy(update={"features": shared})
    (file,) = shared.rglob(f"20x_64px*/*/{next(cohort.parent.glob('train*.tif')).stem}.h5")
    bag = read_bag(file)
    origins = {
        "another encoder": (replace(bag.origin, encoder_sha256="f" * 64), "features of encoder .*expected"),
        "another mpp": (replace(bag.origin, target_mpp=0.7), "patches of 64 px of 0.7 µm, expected 64 px of 0.5 µm"),
    }
    for name, (origin, message) in origins.items():
        write_bag(file, replace(bag, origin=origin))
        with pytest.raises(BagError, match=message):
            list(train(cohort, tmp_path / name, first, CPU))
        assert read_bag(file).origin == origin
    with h5py.File(file, "w") as foreign:
        foreign["features"], foreign["coords"] = bag.features, bag.coords
    content = file.read_bytes()
    with pytest.raises(BagError, match="another program wrote these features"):
        list(train(cohort, tmp_path / "foreign", first, CPU))
    assert file.read_bytes() == content


def test_a_broken_feature_file_is_made_again(
    run: tuple[Path, list[Event]], cohort: Path, config: TrainConfig, tmp_path: Path
) -> None:
    """A disk that lost half of it is no reason to stop."""
    folder = Path(shutil.copytree(run[0], tmp_path / "run"))
    file = next((folder / "features").rglob("20x*/*/*.h5"))
    before = read_bag(file).features
    file.write_bytes(file.read_bytes()[:500])
    list(train(cohort, folder, config, CPU))
    np.testing.assert_array_equal(read_bag(file).features, before)
